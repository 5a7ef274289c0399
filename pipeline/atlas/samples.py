"""Images and concept scores that the pages of many neurons share.

Every neuron's scatter of predicted against actual activation uses one sample of test images. So
a concept's scores on that sample are written once for each sharpness that explanations were made
with, and the page predicts any explanation of any length from them.

* ``concepts/<explainer>/<level>/<number>``: of the concepts whose numbers are ``number *
  CONCEPTS_PER_SHARD`` and on, those that explanations use at the explainer's ``level``-th sharpness
  (as the overview lists them): ``concepts`` (their numbers), ``spread`` (standard deviation
  over training images) and ``scores`` (float16 on the sample);
* ``images/<number>``: for the images among rows ``number * IMAGES_PER_SHARD`` and on that some
  page shows, ``rows``, ``ids``, ``paths`` (where they differ from the ids), ``split``, ``label``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from core.errors import ShapeError
from pipeline.atlas.catalogue import ExplainerCatalogue
from pipeline.atlas.data import ScoreMatrix
from pipeline.atlas.encode import half_precision, significant

SAMPLE_SIZE = 300
SPREAD_SIZE = 10_000
CONCEPTS_PER_SHARD = 32
IMAGES_PER_SHARD = 4096


def sample_rows(split: np.ndarray, size: int = SAMPLE_SIZE) -> Int[np.ndarray, " sample"]:
    """Rows of test images (of all images where none is), evenly spaced, at most ``size``."""
    rows = np.flatnonzero(split == "test")
    if len(rows) == 0:
        rows = np.arange(len(split))
    return _evenly_spaced(rows, size)


def spread_rows(split: np.ndarray, size: int = SPREAD_SIZE) -> Int[np.ndarray, " rows"]:
    """Rows of training images (of all where none is), evenly spaced, at most ``size``.

    A standard deviation over ten thousand images is known to one per cent or so, and reading the
    concept scores of a million images for it would take longer than all else in an atlas.
    """
    rows = np.flatnonzero(split == "train")
    return _evenly_spaced(rows if len(rows) else np.arange(len(split)), size)


def _evenly_spaced(rows: Int[np.ndarray, " all"], most: int) -> Int[np.ndarray, " rows"]:
    return rows if len(rows) <= most else rows[(np.arange(most) * len(rows)) // most]


def concept_shards(
    explainer: ExplainerCatalogue,
    level: int,
    scores: ScoreMatrix,
    spread_over: Int[np.ndarray, " training"],
    sample: Int[np.ndarray, " sample"],
    images: int,
    block_bytes: int = 64 << 20,
) -> Iterator[tuple[int, dict[str, object]]]:
    """Concept scores on the sample, and their spread, for the concepts in use at one sharpness.

    Args:
        explainer: Says which concepts are in use, and where.
        level: At which sharpness of the explainer's the scores are made.
        scores: Concept scores ``(images, concepts)``; only the rows of the sample and of the
            spread are read.
        spread_over: Ascending rows over which the spread is taken; see `spread_rows`.
        sample: Ascending rows.
        images: Number of images of the run.
        block_bytes: About so much of the scores is held in memory at once.

    Yields:
        The number of a shard and its value. Shards without any concept in use are left out.

    Raises:
        ShapeError: The scores have other rows or fewer columns than the tables say.
    """
    used = explainer.used_at(level)
    columns = explainer.positions[used]
    check_scores(explainer.name, scores, images, columns)
    total = np.zeros(len(used))
    squares = np.zeros(len(used))
    sampled = np.empty((len(sample), len(used)), np.float16)
    needed = np.union1d(sample, spread_over)
    height = max(1, block_bytes // max(1, 8 * len(used)))
    for first in range(0, len(needed), height):
        rows = needed[first : first + height]
        block = np.asarray(scores[np.ix_(rows, columns)])
        inside = slice(*np.searchsorted(sample, [rows[0], rows[-1] + 1]))
        sampled[inside] = block[np.searchsorted(rows, sample[inside])]
        wide = block[np.isin(rows, spread_over, assume_unique=True)].astype(np.float64)
        total += wide.sum(axis=0)
        squares += np.einsum("ij,ij->j", wide, wide)
    count = max(1, len(spread_over))
    spread = significant(np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0.0)))
    shards = used // CONCEPTS_PER_SHARD
    for shard in np.unique(shards).tolist():
        start, stop = np.searchsorted(shards, [shard, shard + 1]).tolist()
        yield (
            shard,
            {
                "concepts": used[start:stop].tolist(),
                "spread": spread[start:stop],
                "scores": [half_precision(sampled[:, place]) for place in range(start, stop)],
            },
        )


def check_scores(
    name: str, scores: ScoreMatrix, images: int, columns: Int[np.ndarray, " used"]
) -> None:
    """Refuse concept scores that are not of the run's images and concepts.

    Raises:
        ShapeError: They have other rows or fewer columns than the tables say.
    """
    if scores.shape[0] != images or scores.shape[1] <= columns.max(initial=0):
        raise ShapeError(
            f"concept scores of '{name}' have shape {scores.shape}; expected "
            f"{images} images and more than {columns.max(initial=0)} concepts. The run's tables "
            "are not of one recording"
        )


def image_shards(
    images: pa.Table, rows: Int[np.ndarray, " rows"], splits: list[str]
) -> Iterator[tuple[int, dict[str, object]]]:
    """What there is to say about each image that some page shows.

    Args:
        images: The run's images.
        rows: Ascending rows that are shown.
        splits: Names of the splits; the shards store indices.

    Yields:
        The number of a shard and its value. Shards without any shown image are left out.
    """
    places = {name: number for number, name in enumerate(splits)}
    for shard in np.unique(rows // IMAGES_PER_SHARD).tolist():
        own = rows[rows // IMAGES_PER_SHARD == shard]
        part = images.take(pa.array(own))
        value: dict[str, object] = {
            "rows": own.tolist(),
            "ids": [str(name) for name in part["image_id"].to_pylist()],
            "split": [places.get(name, -1) for name in part["split"].to_pylist()],
        }
        for column, key in (("path", "paths"), ("label", "label")):
            if column in images.column_names:
                texts = [None if v is None else str(v) for v in part[column].to_pylist()]
                if texts != value["ids"] and any(text is not None for text in texts):
                    value[key] = texts
        yield shard, value
