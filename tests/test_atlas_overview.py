"""The overview of an atlas: its figures against the tables of the run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from atlas_reading import Files

from pipeline.atlas.data import AtlasData


def test_groups_keep_the_order_of_the_network_and_the_fit_check_comes_last(overview: Any) -> None:
    groups = [(g["layer"], g["pooling"], g["count"]) for g in overview["groups"]]
    assert groups == [("late", "avg", 70), ("early", "avg", 20), ("early", "max", 20)]
    assert overview["simulators"] == ["clip-b", "explainer"]


def test_the_sharpness_of_every_layer_and_what_was_tried_read_back(
    data: AtlasData, overview: Any
) -> None:
    groups = [(group["layer"], group["pooling"]) for group in overview["groups"]]
    for explainer in overview["explainers"]:
        told = explainer["sharpness"]
        rows = {
            (row["layer"], row["pooling"], row["factor"], row["shift"]): row
            for row in data.sharpness.to_pylist()
            if row["explainer"] == explainer["name"]
        }
        for group, level in zip(groups, told["levels"], strict=True):
            assert rows[(*group, told["factors"][level], told["shifts"][level])]["chosen"]
        if explainer["name"] == "attributes":
            assert (told["tried"], told["curves"]) == ([], [])
            continue
        assert told["tried"] == [2.0, 1.0, 0.5]
        assert told["shifts"] == [0.0, 0.0, 1.0]
        for group, level, curve in zip(groups, told["levels"], told["curves"], strict=True):
            # With the shift of the layer not every factor was tried.
            keys = [(*group, factor, told["shifts"][level]) for factor in told["tried"]]
            expected = [rows[key]["val_correlation"] if key in rows else None for key in keys]
            assert [value is None for value in curve] == [value is None for value in expected]
            known = [value for value in expected if value is not None]
            assert [v for v in curve if v is not None] == pytest.approx(known, abs=0.51e-4)
        assert told["curves"][0][1] is None


def test_degenerate_concepts_are_counted_and_named(data: AtlasData, overview: Any) -> None:
    told = {e["name"]: e["degenerate"] for e in overview["explainers"]}
    assert told["clip"] == {"counts": {}, "names": []}
    assert told["attributes"]["counts"] == {"constant": 1, "duplicate": 1, "collinear": 1}
    assert told["attributes"]["names"] == [
        [row["concept"], row["status"], row["same_as"]] for row in data.degenerate.to_pylist()
    ]


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
