"""Concept scores as the atlas reads them: a few rows of recordings, at the sharpness of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from core.sharpness import Sharpness
from pipeline.engine import run_tasks
from pipeline.scores import ScoreSource, Shards, read_rows
from pipeline.storage import Folder

#: Shards that one task reads rows of.
LANE = 64


class SharedRows:
    """Rows of what an explainer's concept scores are made from, read where they are asked for.

    Rows of embeddings are kept, since they serve every sharpness: an atlas asks for the same ten
    thousand or so each time.
    """

    def __init__(
        self,
        folder: Folder,
        shards: Shards,
        source: ScoreSource,
        sizes: Sequence[int],
        concepts: int,
    ) -> None:
        self.folder, self.source = folder, source
        self.shape = (sum(sizes), concepts)
        self._shards = shards
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._kept: dict[bytes, np.ndarray] = {}

    def read(self, rows: np.ndarray, concepts: np.ndarray) -> np.ndarray:
        """Embeddings of ascending rows, or their stored scores of some concepts."""
        if self.source.texts is None:
            return self._read(rows, concepts)
        key = rows.tobytes()
        if key not in self._kept:
            self._kept[key] = self._read(rows, None)
        return self._kept[key]

    def _read(self, rows: np.ndarray, concepts: np.ndarray | None) -> np.ndarray:
        cuts = np.searchsorted(rows, self._starts)
        reads = [
            (number, rows[start:stop] - self._starts[number])
            for number, (start, stop) in enumerate(pairwise(cuts.tolist()))
            if stop > start
        ]
        calls = [
            (self.folder, self._shards, self.source, reads[start : start + LANE], concepts)
            for start in range(0, len(reads), LANE)
        ]
        pieces = dict(run_tasks(_read_values, calls))
        return np.concatenate([pieces[position] for position in range(len(calls))])


@dataclass(frozen=True)
class ConceptScores:
    """Concept scores of an explainer at one sharpness: a matrix of which parts are read."""

    rows: SharedRows
    sharpness: Sharpness
    positions: np.ndarray | None = None
    """Which of the explainer's concepts the source has texts of, ascending; None for all of them."""

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of images and of concepts."""
        return self.rows.shape

    def __getitem__(self, places: tuple[np.ndarray, ...]) -> np.ndarray:
        """``scores[np.ix_(rows, concepts)]`` for ascending rows, float32."""
        rows, concepts = (np.ravel(place) for place in places)
        if self.positions is not None:
            concepts = np.searchsorted(self.positions, concepts)
        values = self.rows.read(rows, concepts)
        source = self.rows.source
        # Stored scores come with the concepts picked already.
        picked = None if source.texts is None else concepts
        return source.scores(source.levels(self.rows.folder, values, picked), self.sharpness)


def _read_values(
    folder: Folder,
    shards: Shards,
    source: ScoreSource,
    reads: Sequence[tuple[int, np.ndarray]],
    concepts: np.ndarray | None,
) -> np.ndarray:
    pieces = []
    for number, inside in reads:
        part = read_rows(folder, shards, number, source.parts[number], [source.column])
        values = part[source.column][inside]
        pieces.append(values if concepts is None else values[:, concepts])
    return np.concatenate(pieces)
