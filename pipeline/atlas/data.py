"""What an atlas is made from: the tables of a run and ways to reach its arrays and pictures.

The columns are those of the public contract (run directory). Nothing here reads a file; whoever
builds an atlas decides where tables and arrays come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from core.errors import RecordingError

EXPLANATION_COLUMNS = (
    "layer",
    "pooling",
    "neuron",
    "explainer",
    "status",
    "length",
    "chosen",
    "concepts",
    "weights",
    "bias",
    "train_correlation",
    "val_correlation",
)
SCORE_COLUMNS = (
    "layer",
    "pooling",
    "neuron",
    "explainer",
    "length",
    "simulator",
    "correlation",
    "ci_low",
    "ci_high",
)
CONCEPT_COLUMNS = ("explainer", "position", "concept")
IMAGE_COLUMNS = ("image_id", "split")

FIT_CHECK = "explainer"
"""Simulator name of the explainer's own score: a check of the fit, not a simulation."""


@dataclass(frozen=True, slots=True)
class AtlasData:
    """Everything that one atlas shows.

    Raises:
        RecordingError: A table lacks a column that the atlas reads.
    """

    title: str
    """Heading of the first page, for instance the name of the explained network."""

    provenance: Mapping[str, object]
    """Facts about the run, shown as they are (nested mappings and lists are fine). Keys that the
    page knows by name: ``model``, ``command``, and ``seconds`` (stage -> seconds), which is drawn
    as a table of costs."""

    explanations: pa.Table
    """One row for each explanation of one length; layers in the order of the network."""

    scores: pa.Table
    """One row for each score of one explanation; may be empty."""

    concepts: pa.Table
    """Each explainer's concepts with their positions in its concept scores."""

    images: pa.Table
    """The images, in the order of the rows of the arrays below; ``path`` and ``label`` optional."""

    activations: Callable[[str, str], np.ndarray]
    """``(layer, pooling)`` -> activations, ``(images, neurons)`` float16."""

    concept_scores: Callable[[str], np.ndarray]
    """``explainer`` -> concept scores, ``(images, concepts)``, possibly memory-mapped: read by
    slices of rows and never as a whole."""

    thumbnails: Callable[[Sequence[int]], Iterator[tuple[int, bytes]]] | None = None
    """Rows of images -> ``(row, JPEG bytes)`` of small pictures (96-128 px), in any order. A
    row that cannot be shown may be left out. None builds an atlas without pictures."""

    def __post_init__(self) -> None:
        needed = {
            "explanations": (self.explanations, EXPLANATION_COLUMNS),
            "scores": (self.scores, SCORE_COLUMNS),
            "concepts": (self.concepts, CONCEPT_COLUMNS),
            "images": (self.images, IMAGE_COLUMNS),
        }
        for name, (table, columns) in needed.items():
            absent = [column for column in columns if column not in table.column_names]
            if absent:
                raise RecordingError(
                    f"the table '{name}' has no column {', '.join(map(repr, absent))}; it has "
                    f"{', '.join(map(repr, table.column_names))}. The atlas needs "
                    f"{', '.join(columns)}"
                )
