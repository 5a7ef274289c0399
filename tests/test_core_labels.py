"""Concepts from labels and superclasses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from core.errors import ConceptError
from core.labels import Hierarchy, label_concepts

ANIMALS = Hierarchy(
    classes={"c1": "tench", "c2": "goldfish", "c3": "hen", "c4": "crane", "c5": "crane"},
    superclasses={
        "fish": frozenset({"c1", "c2"}),
        "bony fish": frozenset({"c1", "c2"}),
        "bird": frozenset({"c3", "c4"}),
        "fowl": frozenset({"c3"}),
        "hen": frozenset({"c2", "c3"}),
        "animal": frozenset({"c1", "c2", "c3", "c4"}),
        "thing": frozenset({"c1", "c2", "c3", "c4", "c5"}),
    },
)


def test_classes_come_first_in_order_of_id_then_superclasses() -> None:
    found = label_concepts(["c3", "c1", "c2", "c5", "c4", "c1"], ANIMALS)
    assert found.concepts == [
        *("tench", "goldfish", "hen", "crane", "crane (c5)"),
        *("fish", "bird", "hen (superclass)", "animal"),
    ]


def test_superclasses_count_by_the_classes_that_are_present() -> None:
    # Without c4, "bird" has one class; without c5, "animal" has them all.
    assert label_concepts(["c1", "c2", "c3"], ANIMALS).concepts[3:] == ["fish", "hen (superclass)"]


def test_a_score_is_one_exactly_where_the_concept_is_true() -> None:
    labels = ["c3", "c1", "c5", "c1"]
    found = label_concepts([*labels, "c2", "c4"], ANIMALS)
    scores = found.scores(labels)
    assert scores.dtype == np.float32
    truth = {
        "c1": {"tench", "fish", "animal"},
        "c3": {"hen", "bird", "hen (superclass)", "animal"},
        "c5": {"crane (c5)"},
    }
    for label, row in zip(labels, scores, strict=True):
        assert {found.concepts[j] for j in np.flatnonzero(row)} == truth[label]
        assert set(np.unique(row)) <= {0.0, 1.0}


def test_without_a_hierarchy_a_class_is_called_by_its_label() -> None:
    found = label_concepts(["zebra", "ant", "zebra"])
    assert found.concepts == ["ant", "zebra"]
    np.testing.assert_array_equal(found.scores(["zebra", "ant"]), [[0, 1], [1, 0]])


def test_a_class_that_the_hierarchy_does_not_know_keeps_its_label() -> None:
    assert label_concepts(["c1", "c2", "new"], ANIMALS).concepts == [
        *("tench", "goldfish", "new", "fish")
    ]


def test_concepts_depend_neither_on_order_nor_on_number_of_images() -> None:
    labels = ["c2", "c1", "c4", "c3"]
    assert label_concepts(labels, ANIMALS) == label_concepts(labels[::-1] * 3, ANIMALS)


def test_texts_are_unique_even_where_a_class_is_called_like_an_addition() -> None:
    odd = Hierarchy(classes={"a": "x", "b": "x", "c": "x (b)"}, superclasses={})
    found = label_concepts(["a", "b", "c"], odd)
    assert len(set(found.concepts)) == 3


def test_a_class_that_no_concept_was_made_from_still_has_its_superclasses() -> None:
    found = label_concepts(["c1", "c2", "c3"], ANIMALS)
    np.testing.assert_array_equal(found.scores(["c4"]), np.zeros((1, 5)))
    found = label_concepts(["c2", "c3", "c4", "c5"], ANIMALS)
    (row,) = found.scores(["c1"])
    assert {found.concepts[j] for j in np.flatnonzero(row)} == {"animal"}
    # Nothing is known of a class that is in no superclass.
    assert not found.scores(["c9"]).any()


def test_missing_labels_are_refused() -> None:
    with pytest.raises(ConceptError, match="1 of 2 images have no label"):
        label_concepts(["c1", ""], ANIMALS)
    with pytest.raises(ConceptError, match="no label"):
        label_concepts([])


def imagenet(shared: Path) -> Hierarchy:
    raw = json.loads((shared / "data" / "imagenet-hierarchy.json").read_text())
    return Hierarchy(
        {entry["wnid"]: entry["label"] for entry in raw["classes"]},
        {name: frozenset(ids) for name, ids in raw["superclasses"].items()},
    )


def test_imagenet_has_a_thousand_classes_and_its_superclasses_are_unions(shared: Path) -> None:
    hierarchy = imagenet(shared)
    present = sorted(hierarchy.classes)
    found = label_concepts(present, hierarchy)
    assert len(set(found.concepts)) == len(found.concepts)
    assert len(found.concepts) > 1300
    scores = found.scores(present)
    np.testing.assert_array_equal(scores[:, :1000], np.eye(1000))
    for column in range(1000, len(found.concepts)):
        members = {present[row] for row in np.flatnonzero(scores[:, column])}
        name = found.concepts[column].removesuffix(" (superclass)")
        assert members == hierarchy.superclasses[name]
    # No two concepts are true of the same classes.
    assert len({scores[:, j].tobytes() for j in range(len(found.concepts))}) == scores.shape[1]
