"""Where tasks find concept scores: stored ones of labels and tables, made from embeddings for models.

The concept scores of a vision-language model are kept with its own calibration for people to read.
Wherever they are computed with, they are made from the image embeddings, so that their sharpness can
differ from layer to layer and nothing is rounded on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from core.concept_scores import concept_logits, sharpened
from core.errors import RecordingError
from core.sharpness import Sharpness
from core.splits import fold_of, in_sample
from pipeline.columns import matrix
from pipeline.concepts import embed_texts, kept_rows
from pipeline.expected import CONCEPTS, IMAGES, SHARPNESS, embeddings_table, scores_table
from pipeline.explainers import ExplainerPlan
from pipeline.plan import ClipPlan, Plan
from pipeline.rundir import Run
from pipeline.storage import Folder

VAL, TEST = "val", "test"


@dataclass(frozen=True)
class Shards:
    """The recorded shards of a run, as tasks read them: names of parts, and how rows are divided."""

    images: list[str]
    """Parts of the images table."""
    folds: int
    """Folds of the training images; 0 is one fold."""
    seed: int
    keep: str = "all"
    """Which images the parts of recorded tables have rows of: all, or those of one split."""

    @property
    def subsets(self) -> list[str]:
        """Names of what moments are kept apart for: each fold of the training images, and val."""
        return [f"train-{fold}" for fold in range(max(1, self.folds))] + [VAL]

    def rows(self, folder: Folder, number: int, subset: str, share: float = 1.0) -> np.ndarray:
        """Which rows of a shard's recorded parts belong to a subset or split, or to a sample of it."""
        rows = kept_rows(folder, self.images[number], self.keep)
        return self.inside(rows["image_id"].to_pylist(), rows["split"].to_numpy(), subset, share)

    def inside(
        self, image_ids: Sequence[str], splits: np.ndarray, subset: str, share: float = 1.0
    ) -> np.ndarray:
        """Which of some images belong to a subset or split, and to a sample if one is drawn."""
        split, _, fold = subset.partition("-")
        inside: np.ndarray = splits == split
        if fold and self.folds > 1:
            inside &= np.array(fold_of(image_ids, self.folds, self.seed)) == int(fold)
        if share < 1.0:
            inside &= np.array(in_sample(image_ids, share, self.seed))
        return inside


def shards_of(run: Run, plan: Plan) -> Shards:
    """The recorded shards of a run."""
    return divided(plan, run.parts(IMAGES))


def divided(plan: Plan, images: list[str]) -> Shards:
    """Recorded shards with these parts of the images table, whether they are there yet or not."""
    config = plan.config
    seed = config.images.split.seed
    return Shards(images, config.fit.resolved.folds, seed, config.recordings.keep)


@dataclass(frozen=True)
class ScoreSource:
    """What an explainer's or simulator's concept scores are made from."""

    parts: list[str]
    """One a shard: stored scores, or image embeddings."""
    texts: str | None = None
    """npz of text embeddings; None where scores are stored."""
    slope: float = 1.0
    shift: float = 0.0

    @property
    def column(self) -> str:
        """Column of the parts that is read."""
        return "score" if self.texts is None else "embedding"

    def levels(
        self, folder: Folder, values: np.ndarray, positions: np.ndarray | None = None
    ) -> np.ndarray:
        """Logits where scores are made from embeddings, else the scores themselves, float32.

        Args:
            folder: The run.
            values: Rows of the column, (images, width).
            positions: Concepts to keep, by default all.
        """
        if self.texts is None:
            return (values if positions is None else values[:, positions]).astype(np.float32)
        texts = folder.read_arrays(self.texts)["embedding"]
        texts = texts if positions is None else texts[positions]
        return concept_logits(values, texts, self.slope, self.shift)

    def scores(self, levels: np.ndarray, sharpness: Sharpness) -> np.ndarray:
        """Concept scores at a sharpness; stored scores have one alone."""
        return levels if self.texts is None else sharpened(levels, sharpness)


def explainer_source(run: Run, plan: Plan, explainer: ExplainerPlan) -> ScoreSource:
    """Where an explainer's concept scores come from."""
    if explainer.kind != "open_clip":
        return ScoreSource(run.parts(scores_table(explainer.name)))
    return model_source(run, plan.clips[explainer.name], explainer.concepts)


def model_source(run: Run, clip: ClipPlan, texts: Sequence[str]) -> ScoreSource:
    """Where a vision-language model's scores of some concepts come from."""
    embedded = embed_texts(run, clip, texts)
    parts = run.parts(embeddings_table(clip.name))
    return ScoreSource(parts, embedded, clip.slope, clip.shift)


def read_rows(
    folder: Folder, shards: Shards, number: int, part: str, columns: Sequence[str]
) -> dict[str, np.ndarray]:
    """Columns of one part of a recorded table, each (images, width).

    Raises:
        RecordingError: The part does not hold the same images as the images table.
    """
    content = folder.read_table(part, ["image_id", *columns])
    known = kept_rows(folder, shards.images[number], shards.keep)["image_id"]
    if not content["image_id"].equals(known):
        raise RecordingError(
            f"{folder.path(part)} holds other images than {folder.path(shards.images[number])}; the "
            "run directory was changed by hand or by storage that failed: record into a new one"
        )
    return {column: matrix(content[column]) for column in columns}


def rows_of_splits(
    run: Run, shards: Shards, parts: Sequence[str], column: str, splits: Sequence[str]
) -> Any:
    """Reference to a column's rows of some splits, (images, width), read by a task.

    The order is that of the images table.
    """
    return ray.remote(_rows_of_splits).remote(run.folder, shards, parts, column, splits)


def _rows_of_splits(
    folder: Folder, shards: Shards, parts: Sequence[str], column: str, splits: Sequence[str]
) -> np.ndarray:
    rows = []
    for number, part in enumerate(parts):
        inside = np.any([shards.rows(folder, number, split) for split in splits], axis=0)
        rows.append(read_rows(folder, shards, number, part, [column])[column][inside])
    return np.concatenate(rows)


def active_positions(run: Run, explainer: str) -> np.ndarray:
    """Positions of an explainer's active concepts in its list, ascending."""
    table = run.read(CONCEPTS, ["explainer", "position", "active"])
    mine = np.asarray(table["explainer"]) == explainer
    active = np.asarray(table["active"])
    positions: np.ndarray = np.asarray(table["position"])[mine & active]
    return positions


def read_sharpness(run: Run, explainer: str) -> dict[tuple[str, str], Sharpness]:
    """The sharpness of an explainer's concept scores for each layer and pooling."""
    # Tables that older versions made have no shift.
    rows = run.read(SHARPNESS).to_pylist()
    return {
        (row["layer"], row["pooling"]): Sharpness(row["factor"], row.get("shift", 0.0))
        for row in rows
        if row["explainer"] == explainer and row["chosen"]
    }
