"""Shards of neurons: what they say against the tables and arrays they were made from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from atlas_planted import Layer, planted
from atlas_reading import Files, built, half, records, value_of

from pipeline.atlas.data import AtlasData
from pipeline.atlas.details import HISTOGRAM_BINS


def tenthousandths(values: list[float]) -> list[float]:
    return [1e4 * value for value in values]


def test_every_explanation_and_score_reads_back_within_the_declared_rounding(
    data: AtlasData, files: Files, overview: Any
) -> None:
    found = records(files, overview)
    names = [explainer["name"] for explainer in overview["explainers"]]
    scores = {
        (r["layer"], r["pooling"], r["neuron"], r["explainer"], r["length"], r["simulator"]): r
        for r in data.scores.to_pylist()
    }
    seen_scores = 0
    for row in data.explanations.to_pylist():
        record, texts = found[row["layer"], row["pooling"], row["neuron"]]
        number = names.index(row["explainer"])
        own = record["by"][number]
        assert own["status"] == row["status"]
        if row["status"] != "ok":
            assert own["chosen"] == 0
            assert own["path"] == []
            continue
        assert (own["chosen"] == row["length"]) == row["chosen"]
        (entry,) = [one for one in own["path"] if one[0] == row["length"]]
        _, bias, train, validation, terms, weights, marks, shares, stability, gap = entry
        assert [texts[number][str(own["concepts"][t])] for t in terms] == row["concepts"]
        assert weights == pytest.approx(row["weights"], rel=0.51e-4)
        assert bias == pytest.approx(row["bias"], rel=0.51e-4)
        assert shares == pytest.approx(tenthousandths(row["shares"]), abs=0.51)
        assert stability == (row["stability"] and pytest.approx(row["stability"], abs=0.51e-4))
        if row["chosen"]:
            assert own["synonyms"] == row["synonyms"]
        key = (
            *(row[k] for k in ("layer", "pooling", "neuron", "explainer", "length")),
            "explainer",
        )
        assert gap == pytest.approx(1e4 * scores[key]["selection_gap"], abs=0.51)
        assert train == pytest.approx(1e4 * row["train_correlation"], abs=0.51)
        assert validation == pytest.approx(1e4 * row["val_correlation"], abs=0.51)
        for simulator, mark in zip(overview["simulators"], marks, strict=True):
            key = (*(row[k] for k in ("layer", "pooling", "neuron", "explainer", "length")),)
            score = scores.get((*key, simulator))
            assert (mark is None) == (score is None)
            if mark is not None and score is not None:
                expected = [score[k] for k in ("correlation", "ci_low", "ci_high")]
                assert mark == pytest.approx(tenthousandths(expected), abs=0.51)
                seen_scores += 1
    assert seen_scores == len(data.scores) > 1000


def test_images_of_each_band_are_those_of_an_independent_sort(
    data: AtlasData, files: Files, overview: Any
) -> None:
    bands = overview["bands"]
    assert [band[0] for band in bands[1:]] == [band[1] for band in bands[:-1]]
    assert (bands[0][0], bands[-1][1]) == (0, len(data.images))
    for (layer, pooling, neuron), (record, _) in records(files, overview).items():
        column = data.activations(layer, pooling)[:, neuron].astype(np.float64)
        if not np.isfinite(column).all():
            assert record["values"] is None
            continue
        ranked = sorted(range(len(column)), key=lambda row: (-column[row], row))
        shown, levels = record["values"]["rows"], record["values"]["levels"]
        assert levels == pytest.approx(column[shown], rel=0.51e-4)
        for (first, stop, _, _), count in zip(bands, overview["pictures"], strict=True):
            own, shown = shown[:count], shown[count:]
            assert set(own) <= set(ranked[first:stop])
            assert len(set(own)) == count
            assert (own[0], own[-1]) == (ranked[first], ranked[stop - 1])
        assert shown == []


def test_statistics_histogram_and_sample_describe_the_recorded_activations(
    data: AtlasData, files: Files, overview: Any
) -> None:
    split = np.array(data.images["split"].to_pylist())
    assert (split[overview["sample"]] == "test").all()
    assert len(overview["sample"]) == min(300, (split == "test").sum())
    for (layer, pooling, neuron), (record, _) in records(files, overview).items():
        values = record["values"]
        if values is None:
            continue
        column = data.activations(layer, pooling)[:, neuron]
        wide = column.astype(np.float64)
        assert np.array_equal(half(values["sample"]), column[overview["sample"]])
        assert values["mean"] == pytest.approx(wide.mean(), rel=1e-4, abs=1e-9)
        assert values["spread"] == pytest.approx(wide.std(), rel=1e-4, abs=1e-9)
        assert values["zero"] == pytest.approx((wide == 0).mean(), abs=0.51e-4)
        assert [values["min"], values["max"]] == pytest.approx([wide.min(), wide.max()], rel=1e-4)
        if wide.max() > wide.min():
            counts, _ = np.histogram(wide, HISTOGRAM_BINS, (wide.min(), wide.max()))
            assert values["histogram"] == counts.tolist()
        assert sum(values["histogram"]) == len(wide)


def test_measures_of_chosen_explanations_read_back_and_above_chance_is_counted(
    data: AtlasData, files: Files, overview: Any
) -> None:
    assert overview["measures"] == ["p_value", "q_value", "cosine", "ablation_norm"]
    found = records(files, overview)
    names = [explainer["name"] for explainer in overview["explainers"]]
    seen = 0
    above = {(name, simulator): [0, 0] for name in names for simulator in overview["simulators"]}
    for row in data.scores.filter(data.scores["chosen"]).to_pylist():
        own = found[row["layer"], row["pooling"], row["neuron"]][0]["by"]
        values = own[names.index(row["explainer"])]["measures"]
        place = overview["simulators"].index(row["simulator"])
        expected = [row[name] for name in overview["measures"]]
        assert values[place] == pytest.approx(expected, rel=0.51e-4)
        above[row["explainer"], row["simulator"]][0] += row["q_value"] <= 0.05
        above[row["explainer"], row["simulator"]][1] += 1
        seen += 1
    assert seen > 100
    for explainer in overview["explainers"]:
        for simulator, scores in zip(overview["simulators"], explainer["scores"], strict=True):
            counts = above[explainer["name"], simulator]
            assert scores["above_chance"] == (counts if counts[1] else None)
        assert [row[0] for row in explainer["sanity"]] == ["correlation", "cosine"]
        assert [row[-1] for row in explainer["sanity"]] == [True, False]


def test_a_neuron_stays_below_eight_kilobytes() -> None:
    files = built(planted(images=2000, layers=(Layer("l", 256),), concepts=500, longest=10))
    details = sum(len(c) for path, c in files.items() if path.startswith("data/neurons/"))
    index = sum(len(c) for path, c in files.items() if path.startswith("data/index/"))
    assert (details + index) / 256 < 8 * 1024


def test_neurons_that_are_not_numbered_from_zero_are_found_under_their_numbers() -> None:
    data = planted(layers=(Layer("l", 40),))
    odd = [number % 2 == 1 for number in data.explanations["neuron"].to_pylist()]
    scored = [number % 2 == 1 for number in data.scores["neuron"].to_pylist()]
    data = replace(
        data, explanations=data.explanations.filter(odd), scores=data.scores.filter(scored)
    )
    files = built(data)
    overview = value_of(files, "overview")
    assert overview["groups"][0]["neurons"] == list(range(1, 40, 2))
    for (_, _, neuron), (record, _) in records(files, overview).items():
        column = data.activations("l", "avg")[:, neuron]
        if record["values"]:
            assert record["values"]["levels"][0] == pytest.approx(float(column.max()), rel=1e-4)
