"""What an atlas is made from: the tables of a run and ways to reach its arrays and pictures.

The columns are those of the public contract (run directory). Nothing here reads a file; whoever
builds an atlas decides where tables and arrays come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from actors.heat_maps import Maps
from core.errors import RecordingError
from core.sharpness import Sharpness

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
    "shares",
    "stability",
    "synonyms",
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
    "selection_gap",
)
MEASURES = (
    "p_value",
    "q_value",
    "agreement",
    "cosine",
    "auprc",
    "f1",
    "iou",
    "ablation_norm",
    "ablation_optim",
)
"""Columns of scores that only chosen explanations have; those that are there are shown."""

SHARPNESS_COLUMNS = (
    "explainer",
    "layer",
    "pooling",
    "factor",
    "shift",
    "val_correlation",
    "chosen",
)
DEGENERATE_COLUMNS = ("explainer", "concept", "status", "same_as")
CONCEPT_COLUMNS = ("explainer", "position", "concept")
IMAGE_COLUMNS = ("image_id", "split")

Pairs = tuple[np.ndarray, np.ndarray]
"""Images, by row, and neurons, by number in their layer, of equal number."""

FIT_CHECK = "explainer"
"""Simulator name of the explainer's own score: a check of the fit, not a simulation."""


class ScoreMatrix(Protocol):
    """Concept scores, ``(images, concepts)``: an array, or what reads the rows it is asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers of images and of concepts."""

    def __getitem__(self, places: tuple[np.ndarray, ...], /) -> np.ndarray:
        """A part: ``scores[np.ix_(rows, concepts)]`` for ascending rows."""


class HeatMaps(Protocol):
    """Maps of neurons of convolutional layers, made when an atlas asks for them."""

    inset: float
    """Share of a square picture, on each side, that the network does not see."""

    def shape(self, layer: str) -> tuple[int, int] | None:
        """Height and width of the maps of a layer; None where its neurons have no place."""

    def read(self, wanted: Mapping[str, Pairs]) -> Mapping[str, Maps]:
        """Maps of pairs of an image and a neuron, by layer: rows of images, and neurons."""


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

    sharpness: pa.Table
    """What the logits of each explainer's concept scores were multiplied by for each layer and
    pooling and what was added (``chosen``), and how well explanations did with what else was tried."""

    degenerate: pa.Table
    """Concepts that the training images do not tell from others; may be empty."""

    images: pa.Table
    """The images, in the order of the rows of the arrays below; ``path`` and ``label`` optional."""

    activations: Callable[[str, str], np.ndarray]
    """``(layer, pooling)`` -> activations, ``(images, neurons)`` float16."""

    concept_scores: Callable[[str, Sharpness], ScoreMatrix]
    """``(explainer, sharpness)`` -> concept scores at that sharpness, ``(images, concepts)``, of which
    the rows and concepts that are needed are read, and never the whole."""

    simulated_scores: Callable[[str, str, Sharpness], ScoreMatrix] | None = None
    """``(simulator, explainer, sharpness)`` -> a simulator's scores of the explainer's concepts, read
    like `concept_scores`; None where no other model is there."""

    thumbnails: Callable[[Sequence[int]], Iterator[tuple[int, bytes]]] | None = None
    """Rows of images -> ``(row, JPEG bytes)`` of small pictures (96-128 px), in any order. A
    row that cannot be shown may be left out. None builds an atlas without pictures."""

    heat_maps: HeatMaps | None = None
    """Where in images neurons are active; None builds an atlas without."""

    others: Sequence[pa.Table] = ()
    """Explanations by other methods with their scores, a row for each judge."""

    sanity: pa.Table | None = None
    """What each measure did in the two sanity tests; None where they were not made."""

    comparison: pa.Table | None = None
    """Linear explanations beside simpler ones; None where there are none."""

    replacements: pa.Table | None = None
    """Accuracy and loss with all neurons of a layer replaced; None without ablation."""

    importance: pa.Table | None = None
    """Share of each neuron's effect that its highest activations carry; None without ablation."""

    folds: int = 0
    """Folds of the training images that ``stability`` was counted over; 0 if it was not."""

    def __post_init__(self) -> None:
        needed = {
            "explanations": (self.explanations, EXPLANATION_COLUMNS),
            "scores": (self.scores, SCORE_COLUMNS),
            "concepts": (self.concepts, CONCEPT_COLUMNS),
            "sharpness": (self.sharpness, SHARPNESS_COLUMNS),
            "degenerate_concepts": (self.degenerate, DEGENERATE_COLUMNS),
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
