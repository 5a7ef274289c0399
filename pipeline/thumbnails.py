"""Thumbnails of the images that an atlas shows.

They need the images themselves once more, of which tasks fetch those that some page shows. In the order
of the index, images in one Parquet file or row group are read one after the other.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from actors.decode import decode
from core.errors import UnreadableImage
from pipeline.engine import run_tasks
from pipeline.fetching import fetch
from pipeline.plan import Plan
from pipeline.sources_parquet import ParquetRows

#: Longer side of an image in the atlas, in pixels, and its JPEG quality.
THUMBNAIL_SIDE, THUMBNAIL_QUALITY = 112, 82

#: Images that one task makes small.
THUMBNAILS_PER_TASK = 256


def index_rows(plan: Plan, images: pa.Table, rows: Sequence[int]) -> pa.Table:
    """Rows of the index of some of the atlas's images, in their order."""
    index = plan.index.rows
    wanted = images["image_id"].take(pa.array(rows, pa.int64()))
    return index.take(pc.index_in(wanted, value_set=index["image_id"].combine_chunks()))


def thumbnails(plan: Plan, images: pa.Table, rows: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """Small pictures of some images, fetched again from where they are.

    Args:
        plan: Says where images are.
        images: The atlas's images.
        rows: Ascending rows of it. An image that cannot be read any more is left out.
    """
    wanted = index_rows(plan, images, rows).select(["url", "offset", "length", "stamp"])
    calls = []
    for start in range(0, len(rows), THUMBNAILS_PER_TASK):
        chunk = [int(row) for row in rows[start : start + THUMBNAILS_PER_TASK]]
        calls.append((chunk, wanted.slice(start, len(chunk)).to_pylist()))
    for _, pictures in run_tasks(_make_small, calls):
        yield from pictures


def _make_small(rows: Sequence[int], places: Sequence[dict[str, Any]]) -> list[tuple[int, bytes]]:
    pictures = []
    with closing(ParquetRows()) as opened:
        for row, place in zip(rows, places, strict=True):
            try:
                image = decode(fetch(place, opened))
            except (OSError, UnreadableImage):
                continue
            image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
            sink = io.BytesIO()
            image.save(sink, "JPEG", quality=THUMBNAIL_QUALITY)
            pictures.append((row, sink.getvalue()))
    return pictures
