"""The bytes of an image of the index, from wherever they lie."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

from core.errors import StoppedEarly
from pipeline.sources_files import is_there, read_file, tried
from pipeline.sources_parquet import DamagedRowGroup, ParquetRows
from pipeline.stamps import MISSING

#: What `length` is in the index where the image is a whole file, or where it is a row of a Parquet
#: file; `offset` is then the row's number, and `url` ends in the column's name.
WHOLE_FILE, PARQUET_ROW = -1, -2


def fetch(row: Mapping[str, Any], rows: ParquetRows | None = None) -> bytes:
    """The bytes of one image of the index; what may be a passing fault is tried three times.

    Args:
        row: Of the index: its `url`, `offset` and `length`.
        rows: What the previous image was fetched with. Images in Parquet files lie behind one another:
            taken in the order of the index with the same `rows`, each is read once.

    Raises:
        OSError: The file is gone, cannot be read, or is shorter than it was when it was listed.
        StoppedEarly: The storage does not answer, or more is gone than this file.
    """
    if row["length"] == PARQUET_ROW and rows is None:
        with closing(ParquetRows()) as rows:
            return fetch(row, rows)
    try:
        if rows is not None and row["length"] == PARQUET_ROW:
            opened = rows
            read = lambda: opened.read(row["url"], row["offset"])  # noqa: E731
            return tried(read, row["url"], (DamagedRowGroup,))
        length = None if row["length"] == WHOLE_FILE else row["length"]
        return read_file(row["url"], row["offset"], length)
    except (FileNotFoundError, PermissionError) as error:
        _refuse_if_more_is_gone(row, error)
        raise


def _refuse_if_more_is_gone(row: Mapping[str, Any], error: OSError) -> None:
    """Stop where not one image is gone, but what holds many: a bucket, a disk, a tar, the right to read.

    A file that was gone when it was listed says nothing of that.
    """
    if row["stamp"] == MISSING:
        return
    url = row["url"].rpartition("#")[0] if row["length"] == PARQUET_ROW else row["url"]
    if not is_there(url, above=row["length"] == WHOLE_FILE):
        raise StoppedEarly(
            f"what holds {row['path']!r} was there when the images were listed and cannot be read now "
            f"({type(error).__name__}: {url}); run again to resume when it is back"
        ) from error
