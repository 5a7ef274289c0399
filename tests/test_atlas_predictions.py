"""What explanations predict of test images, as shards of neurons tell it, against the whole arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from atlas_planted import Layer, planted
from atlas_reading import Built, built, half, records, value_of

from core.sharpness import Sharpness
from pipeline.atlas.predictions import BINS, FURTHEST, SMALLEST_BIN


def held_out(atlas: Built) -> np.ndarray:
    return np.flatnonzero(np.array(atlas.data.images["split"].to_pylist()) == "test")


def explained(atlas: Built) -> Iterator[tuple[Any, Any, Any, Sharpness]]:
    """Row of the explanations, record, explainer's part of it, and sharpness, of chosen explanations."""
    names = [explainer["name"] for explainer in atlas.overview["explainers"]]
    found = records(atlas.files, atlas.overview)
    sharpness = {
        (row["explainer"], row["layer"], row["pooling"]): Sharpness(row["factor"], row["shift"])
        for row in atlas.data.sharpness.to_pylist()
        if row["chosen"]
    }
    for row in atlas.data.explanations.to_pylist():
        if row["chosen"] and row["concepts"]:
            record, _ = found[row["layer"], row["pooling"], row["neuron"]]
            own = record["by"][names.index(row["explainer"])]
            yield row, record, own, sharpness[row["explainer"], row["layer"], row["pooling"]]


def scores_of(atlas: Built, row: Any, sharpness: Sharpness, simulator: str) -> np.ndarray:
    """Concept scores of an explanation's concepts on test images, in the order of its terms."""
    if simulator == "explainer":
        scores = atlas.data.concept_scores(row["explainer"], sharpness)
    else:
        assert atlas.data.simulated_scores is not None
        scores = atlas.data.simulated_scores(simulator, row["explainer"], sharpness)
    positions = {
        one["concept"]: one["position"]
        for one in atlas.data.concepts.to_pylist()
        if one["explainer"] == row["explainer"]
    }
    columns = [positions[concept] for concept in row["concepts"]]
    return np.asarray(scores)[held_out(atlas)][:, columns].astype(np.float64)


def test_contributions_along_the_range_sum_to_the_mean_prediction_of_each_bin(atlas: Built) -> None:
    seen = 0
    for row, record, own, sharpness in explained(atlas):
        actual = atlas.data.activations(row["layer"], row["pooling"])[:, row["neuron"]]
        actual = actual[held_out(atlas)].astype(np.float64)
        means, counts = record["values"]["bins"]
        assert sum(counts) == len(actual)
        assert min(counts) >= SMALLEST_BIN
        assert 1 <= len(counts) <= BINS
        order = np.argsort(actual, kind="stable")
        cuts = np.cumsum(counts)[:-1]
        assert means == pytest.approx([b.mean() for b in np.split(actual[order], cuts)], rel=1e-3)
        profile = half(own["profile"]).astype(np.float64).reshape(-1, len(counts))
        assert len(profile) == len(own["concepts"])
        (entry,) = [one for one in own["path"] if one[0] == row["length"]]
        told = entry[1] + np.array(entry[5]) @ profile[entry[4]]
        predicted = scores_of(atlas, row, sharpness, "explainer") @ row["weights"] + row["bias"]
        expected = [b.mean() for b in np.split(predicted[order], cuts)]
        assert told == pytest.approx(expected, abs=2e-3 * np.abs(row["weights"]).sum())
        seen += 1
    assert seen > 150


def test_the_worst_failures_are_those_of_an_independent_sort(atlas: Built) -> None:
    kinds = set()
    rows = held_out(atlas)
    for row, _, own, sharpness in explained(atlas):
        actual = atlas.data.activations(row["layer"], row["pooling"])[:, row["neuron"]]
        actual = actual[rows].astype(np.float64)
        for simulator, sides in zip(atlas.overview["simulators"], own["worst"], strict=True):
            if row["explainer"] == "attributes" and simulator != "explainer":
                assert sides is None  # no score by this simulator, so no prediction either
                continue
            predicted = scores_of(atlas, row, sharpness, simulator) @ row["weights"] + row["bias"]
            if simulator != "explainer":
                predicted = actual.mean() + actual.std() * (
                    (predicted - predicted.mean()) / predicted.std()
                )
            error = predicted - actual
            for side, sign in zip(sides, (1, -1), strict=True):
                worst = sorted((sign * error)[sign * error > 0])[::-1][:FURTHEST]
                told = [sign * (p - a) for _, p, a in side]
                scale = 1e-3 * (np.abs(predicted).max() + np.abs(actual).max())
                assert told == pytest.approx(worst, abs=scale)
                for image, p, a in side:
                    place = int(np.searchsorted(rows, image))
                    assert rows[place] == image
                    assert (p, a) == pytest.approx((predicted[place], actual[place]), abs=scale)
            kinds.add((row["explainer"], simulator))
    assert kinds == {("attributes", "explainer"), ("clip", "explainer"), ("clip", "clip-b")}


def test_neurons_without_activation_or_explanation_have_neither(atlas: Built) -> None:
    bad = 0
    for record, _ in records(atlas.files, atlas.overview).values():
        for own in record["by"]:
            if own["status"] != "ok":
                assert own["profile"] is own["worst"] is None
                bad += 1
    assert bad == 2 * 3 * 4


def test_other_methods_stand_beside_a_neuron_with_their_scores() -> None:
    data = planted(layers=(Layer("l", 12),))
    files = built(data)
    overview = value_of(files, "overview")
    found = records(files, overview)
    assert found["l", "avg", 3][0]["others"] == []
    single = ["single", ["concept 2"], [2.0], [[0.25, 0.15, 0.35], [0.3, 0.2, 0.4]], 1]
    assert found["l", "avg", 2][0]["others"] == [single]
    assert found["l", "avg", 4][0]["others"][0][3][0] is None
    baseline, people = found["l", "avg", 0][0]["others"]
    assert baseline[0] == "single"
    score = [0.1235, 0.0, 0.2]
    texts = ["concept 0", "concept 1"]
    assert people == ["people", texts, [1.0, -0.1235], [score, score], None]
