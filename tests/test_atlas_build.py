"""A whole atlas: its index, what it is built from, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from atlas_planted import Layer, planted, shuffled
from atlas_reading import Files, built, typed, value_of

from core.errors import RecordingError, ShapeError
from pipeline.atlas.data import AtlasData


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


def test_equal_inputs_give_equal_bytes_and_the_order_of_scores_does_not_matter(
    data: AtlasData, files: Files
) -> None:
    assert built(data) == files
    assert built(shuffled(data, seed=5)) == files


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
