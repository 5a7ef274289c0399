"""Images and concept scores that the pages of many neurons share.

Every neuron's scatter of predicted against actual activation uses one sample of test images. So
a concept's scores on that sample are written once (``concepts/<explainer>/<number>``), and the
page predicts any explanation of any length from them.

* ``concepts/<explainer>/<number>``: for `CONCEPTS_PER_SHARD` consecutive concepts ``spread``
  (standard deviation over the training images) and ``scores`` (float16 on the sample);
* ``images/<number>``: for the images among rows ``number * IMAGES_PER_SHARD`` and on that some
  page shows, ``rows``, ``ids``, ``paths`` (where they differ from the ids), ``split``, ``label``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from core.errors import ShapeError
from pipeline.atlas.catalogue import ExplainerCatalogue
from pipeline.atlas.encode import half_precision, significant

SAMPLE_SIZE = 300
CONCEPTS_PER_SHARD = 32
IMAGES_PER_SHARD = 4096


def sample_rows(split: np.ndarray, size: int = SAMPLE_SIZE) -> Int[np.ndarray, " sample"]:
    """Rows of test images (of all images where none is), evenly spaced, at most ``size``."""
    rows = np.flatnonzero(split == "test")
    if len(rows) == 0:
        rows = np.arange(len(split))
    if len(rows) <= size:
        return rows
    return rows[(np.arange(size) * len(rows)) // size]


def concept_shards(
    explainer: ExplainerCatalogue,
    scores: np.ndarray,
    train: Bool[np.ndarray, " images"],
    sample: Int[np.ndarray, " sample"],
    block_bytes: int = 64 << 20,
) -> Iterator[dict[str, object]]:
    """Concept scores on the sample, and their spread, for the concepts that are in use.

    Args:
        explainer: Says which columns are in use.
        scores: Concept scores ``(images, concepts)``, read by blocks of rows.
        train: Marks the training images, over which the spread is taken.
        sample: Ascending rows.
        block_bytes: About so much of the scores is held in memory at once.

    Raises:
        ShapeError: The scores have other rows or fewer columns than the tables say.
    """
    used = explainer.positions
    if scores.shape[0] != len(train) or scores.shape[1] <= used.max(initial=0):
        raise ShapeError(
            f"concept scores of '{explainer.name}' have shape {scores.shape}; expected "
            f"{len(train)} images and more than {used.max(initial=0)} concepts. The run's tables "
            "are not of one recording"
        )
    count = max(1, int(train.sum()))
    total = np.zeros(len(used))
    squares = np.zeros(len(used))
    sampled = np.empty((len(sample), len(used)), np.float16)
    height = max(1, block_bytes // max(1, scores.shape[1] * scores.dtype.itemsize))
    for first in range(0, scores.shape[0], height):
        block = np.asarray(scores[first : first + height])[:, used]
        inside = slice(*np.searchsorted(sample, [first, first + len(block)]))
        sampled[inside] = block[sample[inside] - first]
        wide = block[train[first : first + len(block)]].astype(np.float64)
        total += wide.sum(axis=0)
        squares += np.einsum("ij,ij->j", wide, wide)
    spread = significant(np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0.0)))
    for start in range(0, len(used), CONCEPTS_PER_SHARD):
        stop = min(start + CONCEPTS_PER_SHARD, len(used))
        yield {
            "spread": spread[start:stop],
            "scores": [half_precision(sampled[:, number]) for number in range(start, stop)],
        }


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
