"""A whole atlas: what its shards say against the tables and arrays that it was built from."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from atlas_planted import Layer, planted, shuffled

from core.errors import RecordingError, ShapeError
from pipeline.atlas.build import build_atlas
from pipeline.atlas.catalogue import catalogue_of
from pipeline.atlas.data import AtlasData
from pipeline.atlas.details import HISTOGRAM_BINS
from pipeline.atlas.samples import concept_shards, sample_rows, spread_rows

Files = dict[str, bytes]


def built(data: AtlasData) -> Files:
    files: Files = {}

    def write(path: str, content: bytes) -> None:
        assert path not in files, f"{path} was written twice"
        files[path] = content

    build_atlas(data, write)
    return files


def value_of(files: Files, key: str) -> Any:
    text = files[f"data/{key}.js"].decode("ascii")
    match = re.fullmatch(r"atlas\.put\((\"[^\"]*\"),(.*)\);\n", text)
    assert match is not None
    assert json.loads(match[1]) == key
    return json.loads(match[2])


def typed(stored: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(stored["data"]), np.dtype(stored["type"]))


def half(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f2")


def records(files: Files, overview: dict[str, Any]) -> dict[tuple[str, str, int], Any]:
    """Each neuron's record and the concept texts of its shard."""
    found = {}
    for number, group in enumerate(overview["groups"]):
        for first in range(0, group["count"], overview["neurons_per_shard"]):
            shard = value_of(files, f"neurons/{number}/{first // overview['neurons_per_shard']}")
            for record in shard["neurons"]:
                found[group["layer"], group["pooling"], record["n"]] = record, shard["concepts"]
    return found


@pytest.fixture(scope="module")
def data() -> AtlasData:
    layers = (Layer("late", 70), Layer("early", 20), Layer("early", 20, "max"))
    return planted(images=900, layers=layers, seed=1)


@pytest.fixture(scope="module")
def files(data: AtlasData) -> Files:
    return built(data)


@pytest.fixture(scope="module")
def overview(files: Files) -> Any:
    return value_of(files, "overview")


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
        assert shares == pytest.approx(row["shares"], abs=0.51e-4)
        assert stability == (row["stability"] and pytest.approx(row["stability"], abs=0.51e-4))
        if row["chosen"]:
            assert own["synonyms"] == row["synonyms"]
        key = (
            *(row[k] for k in ("layer", "pooling", "neuron", "explainer", "length")),
            "explainer",
        )
        assert gap == pytest.approx(scores[key]["selection_gap"], abs=0.51e-4)
        assert train == pytest.approx(row["train_correlation"], abs=0.51e-4)
        assert validation == pytest.approx(row["val_correlation"], abs=0.51e-4)
        for simulator, mark in zip(overview["simulators"], marks, strict=True):
            key = (*(row[k] for k in ("layer", "pooling", "neuron", "explainer", "length")),)
            score = scores.get((*key, simulator))
            assert (mark is None) == (score is None)
            if mark is not None and score is not None:
                expected = [score[k] for k in ("correlation", "ci_low", "ci_high")]
                assert mark == pytest.approx(expected, abs=0.51e-4)
                seen_scores += 1
    assert seen_scores == len(data.scores) > 1000


def test_groups_keep_the_order_of_the_network_and_the_fit_check_comes_last(overview: Any) -> None:
    groups = [(g["layer"], g["pooling"], g["count"]) for g in overview["groups"]]
    assert groups == [("late", "avg", 70), ("early", "avg", 20), ("early", "max", 20)]
    assert overview["simulators"] == ["clip-b", "explainer"]


def test_the_index_holds_the_chosen_explanation_of_every_neuron(
    data: AtlasData, files: Files, overview: Any
) -> None:
    start = {}
    total = 0
    for group in overview["groups"]:
        start[group["layer"], group["pooling"]] = total
        total += group["count"]
    for number, explainer in enumerate(overview["explainers"]):
        index = value_of(files, f"index/{number}")
        length, term = typed(index["length"]), typed(index["term"])
        weight, bias = typed(index["weight"]), typed(index["bias"])
        ends = np.cumsum(length.astype(int))
        score = [typed(column) for column in index["scores"]]
        assert len(length) == total
        assert ends[-1] == len(term) == len(weight)
        for row in data.explanations.to_pylist():
            if row["explainer"] != explainer["name"] or not row["chosen"]:
                continue
            place = start[row["layer"], row["pooling"]] + row["neuron"]
            own = slice(ends[place] - length[place], ends[place])
            assert [index["concepts"][c] for c in term[own]] == row["concepts"]
            assert weight[own] == pytest.approx(row["weights"], rel=1e-3)
            status = overview["statuses"][typed(index["status"])[place]]
            assert status == row["status"]
            if row["status"] == "ok":
                assert bias[place] == pytest.approx(row["bias"], rel=1e-3)
        for simulator, column in zip(overview["simulators"], score, strict=True):
            expected = np.full(total, -32768)
            for row in data.scores.to_pylist():
                if (
                    row["explainer"] == explainer["name"]
                    and row["simulator"] == simulator
                    and row["chosen"]
                ):
                    place = start[row["layer"], row["pooling"]] + row["neuron"]
                    expected[place] = round(row["correlation"] * 10_000)
            assert np.abs(column.astype(int) - expected).max() <= 1


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


def positions_of(data: AtlasData, explainer: str) -> dict[str, int]:
    return {
        row["concept"]: row["position"]
        for row in data.concepts.to_pylist()
        if row["explainer"] == explainer
    }


def test_concept_scores_and_spreads_are_those_at_each_sharpness(
    data: AtlasData, files: Files, overview: Any
) -> None:
    train = np.array(data.images["split"].to_pylist()) == "train"
    size = overview["concepts_per_shard"]
    seen = []
    for number, explainer in enumerate(overview["explainers"]):
        texts = value_of(files, f"index/{number}")["concepts"]
        positions = positions_of(data, explainer["name"])
        assert len(texts) == explainer["used"]
        for level, factor in enumerate(explainer["sharpness"]["factors"]):
            groups = [
                (group["layer"], group["pooling"])
                for group, own in zip(
                    overview["groups"], explainer["sharpness"]["levels"], strict=True
                )
                if own == level
            ]
            used = {
                text
                for row in data.explanations.to_pylist()
                if row["explainer"] == explainer["name"]
                and (row["layer"], row["pooling"]) in groups
                for text in row["concepts"]
            }
            recorded = np.asarray(data.concept_scores(explainer["name"], factor))
            written = set()
            for shard in range(-(-len(texts) // size)):
                value = value_of(files, f"concepts/{number}/{level}/{shard}")
                for concept, spread, scores in zip(
                    value["concepts"], value["spread"], value["scores"], strict=True
                ):
                    assert concept // size == shard
                    written.add(texts[concept])
                    column = recorded[:, positions[texts[concept]]]
                    wanted = column[overview["sample"]].astype(np.float16)
                    assert np.array_equal(half(scores), wanted)
                    std = column[train].astype(np.float64).std()
                    assert spread == pytest.approx(std, rel=1e-4)
            assert written == used
            seen.append((explainer["name"], factor))
    assert seen == [("attributes", 1.0), ("clip", 2.0), ("clip", 1.0), ("clip", 0.5)]


def test_what_a_page_predicts_equals_weights_times_scores_at_the_sharpness_of_the_layer(
    data: AtlasData, files: Files, overview: Any
) -> None:
    found = records(files, overview)
    names = [explainer["name"] for explainer in overview["explainers"]]
    groups = [(group["layer"], group["pooling"]) for group in overview["groups"]]
    factors = {
        (row["explainer"], row["layer"], row["pooling"]): row["factor"]
        for row in data.sharpness.to_pylist()
        if row["chosen"]
    }
    size = overview["concepts_per_shard"]
    softened = 0
    for row in data.explanations.to_pylist():
        if row["status"] != "ok" or row["length"] not in (2, 6):
            continue
        # As the page does it: terms of the path, scores of the shards of the layer's level.
        number = names.index(row["explainer"])
        place = groups.index((row["layer"], row["pooling"]))
        level = overview["explainers"][number]["sharpness"]["levels"][place]
        own = found[row["layer"], row["pooling"], row["neuron"]][0]["by"][number]
        (entry,) = [one for one in own["path"] if one[0] == row["length"]]
        predicted = np.full(len(overview["sample"]), entry[1])
        for term, weight in zip(entry[4], entry[5], strict=True):
            concept = own["concepts"][term]
            shard = value_of(files, f"concepts/{number}/{level}/{concept // size}")
            predicted += weight * half(shard["scores"][shard["concepts"].index(concept)])
        # From the run: the model's logits times the layer's factor, through a sigmoid.
        factor = factors[row["explainer"], row["layer"], row["pooling"]]
        scores = data.concept_scores(row["explainer"], 1.0)[overview["sample"]].astype(np.float64)
        if factor != 1.0:
            scores = 1 / (1 + np.exp(-factor * np.log(scores / (1 - scores))))
            softened += 1
        places = [positions_of(data, row["explainer"])[text] for text in row["concepts"]]
        expected = scores[:, places] @ np.array(row["weights"]) + row["bias"]
        assert predicted == pytest.approx(expected, abs=0.004 * np.abs(row["weights"]).sum())
        worse = data.concept_scores(row["explainer"], 1.0)[overview["sample"]][:, places]
        if factor != 1.0:
            away = worse @ np.array(row["weights"]) + row["bias"] - expected
            assert np.abs(away).max() > 0.004 * np.abs(row["weights"]).sum()
    assert softened > 100


def test_concept_shards_do_not_depend_on_the_blocks_they_are_read_by(data: AtlasData) -> None:
    split = np.array(data.images["split"].to_pylist())
    sample, training = sample_rows(split), spread_rows(split)
    explainer = catalogue_of(data).explainers[1]
    scores = data.concept_scores(explainer.name, explainer.factors[2])
    used = len(explainer.used_at(2))
    whole, parts = (
        list(concept_shards(explainer, 2, scores, training, sample, len(split), block_bytes))
        for block_bytes in (1 << 30, 7 * 8 * used)
    )
    for (number, part), (same, one) in zip(parts, whole, strict=True):
        assert number == same
        assert part["scores"] == one["scores"]
        assert part["spread"] == pytest.approx(one["spread"], rel=1e-4)


def test_only_needed_rows_and_concepts_are_read_and_the_spread_of_many_images_is_sampled(
    data: AtlasData,
) -> None:
    split = np.array(["train", "train", "train", "val", "test"] * 5000, dtype=object)
    sample, training = sample_rows(split), spread_rows(split)
    assert len(training) == 10_000
    assert (split[training] == "train").all()
    assert np.diff(training).max() <= 4
    explainer = catalogue_of(data).explainers[1]
    scores = np.random.default_rng(3).random((len(split), 60), np.float32)
    read = []

    class Watched:
        shape = scores.shape

        def __getitem__(self, places: tuple[np.ndarray, ...]) -> np.ndarray:
            read.append(places[0].ravel())
            assert set(places[1].ravel()) <= set(explainer.positions.tolist())
            return scores[places]

    shards = list(concept_shards(explainer, 0, Watched(), training, sample, len(split), 1 << 20))
    assert np.array_equal(np.concatenate(read), np.union1d(sample, training))
    for _, shard in shards:
        positions = explainer.positions[shard["concepts"]]
        exact = scores[split == "train"][:, positions].std(axis=0, dtype=np.float64)
        assert shard["spread"] == pytest.approx(exact, rel=0.02)
        for position, stored in zip(positions, shard["scores"], strict=True):
            assert np.array_equal(half(stored), scores[sample, position].astype(np.float16))


def test_the_sharpness_of_every_layer_and_what_was_tried_read_back(
    data: AtlasData, overview: Any
) -> None:
    groups = [(group["layer"], group["pooling"]) for group in overview["groups"]]
    for explainer in overview["explainers"]:
        told = explainer["sharpness"]
        rows = {
            (row["layer"], row["pooling"], row["factor"]): row
            for row in data.sharpness.to_pylist()
            if row["explainer"] == explainer["name"]
        }
        for group, level in zip(groups, told["levels"], strict=True):
            assert rows[(*group, told["factors"][level])]["chosen"]
        if explainer["name"] == "attributes":
            assert (told["tried"], told["curves"]) == ([], [])
            continue
        assert told["tried"] == [2.0, 1.0, 0.5]
        for group, curve in zip(groups, told["curves"], strict=True):
            expected = [rows[(*group, factor)]["val_correlation"] for factor in told["tried"]]
            assert curve == pytest.approx(expected, abs=0.51e-4)


def test_degenerate_concepts_are_counted_and_named(data: AtlasData, overview: Any) -> None:
    told = {e["name"]: e["degenerate"] for e in overview["explainers"]}
    assert told["clip"] == {"counts": {}, "names": []}
    assert told["attributes"]["counts"] == {"constant": 1, "duplicate": 1, "collinear": 1}
    assert told["attributes"]["names"] == [
        [row["concept"], row["status"], row["same_as"]] for row in data.degenerate.to_pylist()
    ]


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


def test_what_explanations_are_worth_reads_back_by_layer(
    data: AtlasData, files: Files, overview: Any
) -> None:
    assert len(overview["comparison"]) == len(overview["groups"])
    for explainer, simulator, group, methods in overview["comparison"]:
        assert overview["explainers"][explainer]["name"] == "clip"
        assert overview["simulators"][simulator] == "explainer"
        count = overview["groups"][group]["count"]
        assert methods[0] == ["linear", count, 0.4, 0.3, 0.5, None]
        assert methods[1] == ["single", count, 0.25, 0.15, 0.35, 0.875]
    assert [row[2] for row in overview["replacements"]] == [0, 1, 2]
    assert overview["replacements"][0][3:] == [70, 80, 0.8, 0.5, 0.1, 1.0, 2.5, 6.0]
    mean = [(f**0.4 + f**0.6) / 2 for f in overview["importance"]["fractions"]]
    assert overview["importance"]["groups"][1] == pytest.approx(mean, abs=0.51e-4)
    for explainer, simulator, pairs in overview["effects"]:
        whole = data.scores.filter(data.scores["chosen"]).to_pylist()
        about = overview["explainers"][explainer]["name"], overview["simulators"][simulator]
        own = [row for row in whole if (row["explainer"], row["simulator"]) == about]
        expected = sorted((row["correlation"], row["ablation_norm"]) for row in own)
        found = sorted((a, b) for a, b, _ in pairs)
        np.testing.assert_allclose(found, expected, atol=0.51e-4)


def test_every_image_that_is_shown_has_a_name_and_a_picture(
    data: AtlasData, files: Files, overview: Any
) -> None:
    shown = set(overview["sample"])
    for record, _ in records(files, overview).values():
        shown.update(record["values"]["rows"] if record["values"] else [])
    pictures = {
        int(path.rsplit("/", 1)[1].removesuffix(".jpg")): path
        for path in files
        if path.startswith("thumbs/")
    }
    assert set(pictures) == shown
    assert all(path == f"thumbs/{row % 256:02x}/{row}.jpg" for row, path in pictures.items())
    named = value_of(files, "images/0")
    assert named["rows"] == sorted(shown)
    rows = data.images.to_pylist()
    splits = [name for name, _ in overview["images"]["splits"]]
    for place, row in enumerate(named["rows"]):
        assert named["ids"][place] == rows[row]["image_id"]
        assert named["paths"][place] == rows[row]["path"]
        assert named["label"][place] == rows[row]["label"]
        assert splits[named["split"][place]] == rows[row]["split"]


def test_the_overview_counts_what_the_tables_hold(data: AtlasData, overview: Any) -> None:
    for number, explainer in enumerate(overview["explainers"]):
        name = explainer["name"]
        chosen = [
            r for r in data.explanations.to_pylist() if r["explainer"] == name and r["concepts"]
        ]
        chosen = [r for r in chosen if r["chosen"]]
        assert explainer["explained"] == len(chosen)
        assert explainer["lengths"] == [
            sum(r["length"] == k for r in chosen) for k in range(1, len(explainer["lengths"]) + 1)
        ]
        for text, positive, negative in explainer["top"]:
            signs = [
                w > 0
                for r in chosen
                for c, w in zip(r["concepts"], r["weights"], strict=True)
                if c == text
            ]
            assert (positive, negative) == (sum(signs), len(signs) - sum(signs))
        for s, simulator in enumerate(overview["simulators"]):
            values = [
                r["correlation"]
                for r in data.scores.to_pylist()
                if r["explainer"] == name and r["simulator"] == simulator and r["chosen"]
            ]
            shown = overview["explainers"][number]["scores"][s]
            assert shown["all"]["count"] == len(values)
            assert sum(group["count"] for group in shown["groups"]) == len(values)
            if values:
                assert shown["all"]["mean"] == pytest.approx(np.mean(values), abs=1e-4)
                assert shown["all"]["median"] == pytest.approx(np.median(values), abs=1e-4)
                assert sum(shown["all"]["bins"]) == len(values)
    statuses = {
        (r["layer"], r["pooling"], r["neuron"]): r["status"] for r in data.explanations.to_pylist()
    }
    for group in overview["groups"]:
        own = [
            status
            for (layer, pooling, _), status in statuses.items()
            if (layer, pooling) == (group["layer"], group["pooling"])
        ]
        assert group["statuses"] == {status: own.count(status) for status in set(own)}


def test_equal_inputs_give_equal_bytes_and_the_order_of_scores_does_not_matter(
    data: AtlasData, files: Files
) -> None:
    assert built(data) == files
    assert built(shuffled(data, seed=5)) == files


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


def test_concepts_may_be_given_by_position_instead_of_text() -> None:
    data = planted(layers=(Layer("l", 12),))
    place = {f"concept {number}": number for number in range(60)}
    numbers = [[place[c] for c in row] for row in data.explanations["concepts"].to_pylist()]
    column = data.explanations.schema.get_field_index("concepts")
    table = data.explanations.set_column(
        column, "concepts", pa.array(numbers, pa.list_(pa.int32()))
    )
    assert built(replace(data, explanations=table)) == built(data)


def test_a_run_without_scores_pictures_labels_or_simulators_still_has_an_atlas() -> None:
    data = planted(simulators=("explainer",), pictures=False)
    bare = replace(
        data,
        scores=data.scores.slice(0, 0),
        images=data.images.select(["image_id", "split"]),
    )
    overview = value_of(built(bare), "overview")
    assert overview["simulators"] == []
    assert overview["images"]["pictures"] is False
    assert not any(path.startswith("thumbs/") for path in built(bare))
    named = value_of(built(bare), "images/0")
    assert set(named) == {"rows", "ids", "split"}
    assert value_of(built(data), "overview")["simulators"] == ["explainer"]


def test_tables_that_contradict_each_other_are_refused() -> None:
    data = planted(layers=(Layer("l", 12),))
    twice = pa.concat_tables([data.explanations, data.explanations.slice(0, 3)])
    with pytest.raises(RecordingError, match="twice"):
        built(replace(data, explanations=twice))
    with pytest.raises(RecordingError, match="no column 'status'"):
        replace(data, explanations=data.explanations.drop_columns(["status"]))
    with pytest.raises(RecordingError, match="not in its table of concepts"):
        built(replace(data, concepts=data.concepts.slice(0, 30)))
    with pytest.raises(RecordingError, match="different runs"):
        built(replace(data, explanations=data.explanations.slice(0, 40)))
    with pytest.raises(RecordingError, match="only 5 neurons"):
        built(replace(data, activations=lambda *_: np.zeros((400, 5), np.float16)))
    with pytest.raises(ShapeError, match="400 images"):
        built(replace(data, activations=lambda *_: np.zeros((399, 12), np.float16)))
    with pytest.raises(ShapeError, match="concept scores"):
        built(replace(data, concept_scores=lambda *_: np.zeros((400, 7), np.float16)))
    with pytest.raises(RecordingError, match="no sharpness"):
        built(replace(data, sharpness=data.sharpness.slice(0, 1)))
    column = data.explanations.schema.get_field_index("shares")
    short = pa.array([[0.1]] * len(data.explanations), pa.list_(pa.float64()))
    with pytest.raises(RecordingError, match="concepts and shares"):
        built(replace(data, explanations=data.explanations.set_column(column, "shares", short)))
