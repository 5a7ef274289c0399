"""Concepts from class labels: the classes themselves and the superclasses that group them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from core.errors import ConceptError


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Names of classes, and named groups of classes."""

    classes: Mapping[str, str]
    """Text of each class by its id, for instance ``{"n01440764": "tench"}``."""
    superclasses: Mapping[str, frozenset[str]]
    """Ids of the classes in each superclass, by the text of the superclass."""


@dataclass(frozen=True, slots=True)
class LabelConcepts:
    """Concepts that follow from an image's class label."""

    concepts: list[str]
    """Texts, all different: classes in the order of their ids, then superclasses."""
    members: dict[str, tuple[int, ...]]
    """Positions of the concepts that are true of an image with this label."""

    def scores(self, labels: Sequence[str]) -> Float[np.ndarray, "images concepts"]:
        """Concept scores of images with these labels: 1 where the concept is true, else 0.

        A class that the concepts were not made from is none of them, yet the superclasses that the
        hierarchy puts it into are true of it: so concepts can be made from training images alone.

        Returns:
            float32, one row per label.
        """
        scores = np.zeros((len(labels), len(self.concepts)), dtype=np.float32)
        for row, label in enumerate(labels):
            scores[row, list(self.members.get(label, ()))] = 1.0
        return scores


def label_concepts(labels: Sequence[str], hierarchy: Hierarchy | None = None) -> LabelConcepts:
    """Concepts of labelled images: one per class that is present, then the superclasses.

    A superclass counts when at least two and not all of the present classes are in it; of
    superclasses with the same present classes the first is kept. Texts are made unique: a class
    that shares its text with another gets its id, a superclass that shares its text with a class
    gets the word, in parentheses.

    Args:
        labels: Class id of each image.
        hierarchy: Texts and superclasses; without it a class is called by its label. Classes that
            it does not know are called by their label too.

    Raises:
        ConceptError: No labels, or a label that is missing or empty.

    Source:
        LE(Label), Oikarinen & Weng, ICML 2024 (arXiv:2405.06855).
    """
    missing = sum(1 for label in labels if not label)
    if missing or not labels:
        raise ConceptError(
            f"{missing} of {len(labels)} images have no label; concepts from labels need one for "
            "every image; check 'images.label' in the configuration"
        )
    present = sorted(set(labels))
    taken: set[str] = set()
    concepts: list[str] = []

    def add(text: str, addition: str) -> None:
        while text in taken:
            text = f"{text} ({addition})"
        taken.add(text)
        concepts.append(text)

    for label in present:
        add(hierarchy.classes.get(label, label) if hierarchy else label, label)
    members: dict[str, list[int]] = {label: [index] for index, label in enumerate(present)}
    groups: set[frozenset[str]] = set()
    for name, ids in (hierarchy.superclasses if hierarchy else {}).items():
        group = ids & frozenset(present)
        if 2 <= len(group) < len(present) and group not in groups:
            groups.add(group)
            for label in sorted(ids):
                members.setdefault(label, []).append(len(concepts))
            add(name, "superclass")
    return LabelConcepts(concepts, {label: tuple(found) for label, found in members.items()})
