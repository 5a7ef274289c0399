"""Parquet files that hold the bytes of images: what their rows say, and the bytes of one row.

The layout of Hugging Face (a struct of `bytes` and `path`, names of classes in the schema) or a plain
column of bytes. Row groups are the unit of reading: nothing smaller can be found without reading what
lies before it. Listing leaves the bytes alone; rows that are fetched in ascending order cost one pass
over their row groups.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.errors import SourceError, close_names
from pipeline.images_config import ImagesConfig
from pipeline.storage import filesystem

PARQUET_SUFFIX = ".parquet"

#: Names that say which of several columns of bytes is meant, the likeliest first.
USUAL_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes")

#: Images that are held in memory at once, and bytes that are asked of a file at once.
BATCH = 32
BUFFER = 1 << 20

#: Times that a row group may turn out damaged before the rest of its images are given up.
TRIES = 3


class DamagedRowGroup(OSError):
    """A row group that was read in vain several times; another try would be no better."""


@dataclass(frozen=True)
class ParquetListing:
    """What the rows of one file say of their images, without the images themselves.

    Attributes:
        column: The column of bytes, as part of a URL: see `row_url`.
        names: The file name that each image had once, null where it is not known.
        labels: The label of each image, as text, null where there is none.
        attributes: Boolean and numeric columns and the one that holds the split, one row an image.
    """

    column: str
    names: pa.Array
    labels: pa.Array
    attributes: pa.Table


def holds_images(fs: Any, path: str) -> bool:
    """Whether a Parquet file has a column of bytes; a manifest has none.

    Raises:
        SourceError: It is not a Parquet file that can be read.
    """
    with _opened(fs, path) as file:
        return bool(_byte_columns(file.schema_arrow))


def list_rows(fs: Any, path: str, config: ImagesConfig) -> ParquetListing:
    """List the rows of one file; of the image column only the names are read, never the bytes.

    Raises:
        SourceError: The file cannot be read, or lacks a column that the configuration names, or
            does not say which of its columns holds the images.
    """
    with _opened(fs, path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
        image = _image_column(schema, path, config.image)
        for key, column in (("label", config.label), ("split.column", config.split.column)):
            if column is not None and column not in schema.names:
                raise SourceError(f"images.{key} {column!r} is not in {_columns_of(path, schema)}")
        leaves = _byte_columns(schema)[image]
        attributes = [f.name for f in schema if _is_attribute(f, config)]
        wanted = [*attributes, *leaves[1:], *([config.label] if config.label else [])]
        try:
            table = file.read(columns=wanted, use_threads=False).replace_schema_metadata(None)
        except (pa.ArrowInvalid, OSError) as error:
            raise _unreadable(path, error) from error
    none = pa.nulls(rows, pa.string())
    return ParquetListing(
        column=leaves[0],
        names=pc.struct_field(table[image].combine_chunks(), [0]) if leaves[1:] else none,
        labels=_labels(table, schema, path, config.label) if config.label else none,
        attributes=table.select(attributes),
    )


def row_url(url: str, column: str) -> str:
    """The URL of a file together with the column in which images lie."""
    return f"{url}#{quote(column, safe='')}"


def as_text(values: pa.ChunkedArray, column: str, where: str) -> pa.ChunkedArray:
    """A column as text: numbers and dates as they are written, bytes that are UTF-8.

    Raises:
        SourceError: It holds something else.
    """
    try:
        return values.cast(pa.string())
    except pa.ArrowException as error:
        raise SourceError(
            f"column {column!r} of {where} holds {values.type}, which is not text nor can be written as "
            f"text ({str(error).splitlines()[0]}); expected text, numbers or dates"
        ) from error


class ParquetRows:
    """Reads images out of Parquet files; goes on where it was when the next row lies ahead.

    The rows of a shard, taken in order, thus read each of its row groups once, and no more of one
    than lies before the last row. Held in memory are a page and the dictionary, not a row group,
    which may be as large as the file.
    """

    def __init__(self) -> None:
        self._failures: Counter[tuple[str, int]] = Counter()
        self._opened = ExitStack()
        self.close()

    def close(self) -> None:
        """Close the file that is open; reading opens one again."""
        self._opened.close()
        self._url, self._group, self._first = "", -1, 0
        self._batch: pa.Array = pa.nulls(0)
        self._batches: Iterator[pa.RecordBatch] = iter(())

    def read(self, url: str, row: int) -> bytes:
        """The bytes in one row; empty where the row holds none.

        Args:
            url: As from `row_url`.
            row: Position in the file, from 0.

        Raises:
            DamagedRowGroup: Its row group has turned out damaged `TRIES` times.
            OSError: The file is gone or cannot be read.
        """
        try:
            if url != self._url:
                self._open(url)
            group = bisect_right(self._starts, row) - 1
            if self._failures[url, group] >= TRIES:
                raise DamagedRowGroup(f"row group {group}")
            if group != self._group or row < self._first:
                self._begin(group)
            while row >= self._first + len(self._batch):
                self._first += len(self._batch)
                self._batch = next(self._batches).column(0)
        except (pa.ArrowInvalid, StopIteration, OSError) as error:
            where = url, self._group
            self.close()
            if isinstance(error, OSError) and (type(error) is not OSError or error.errno):
                raise  # the file system's: what was read may be as good as ever
            self._failures[where] += 1
            kind = OSError if self._failures[where] < TRIES else DamagedRowGroup
            raise kind(f"row group {where[1]}: {error}") from error
        value = self._batch[row - self._first].as_py()
        data = value["bytes"] if isinstance(value, Mapping) else value
        return bytes(data or b"")

    def _open(self, url: str) -> None:
        self.close()
        location, _, self._column = url.rpartition("#")
        fs, path = filesystem(location)
        raw = self._opened.enter_context(fs.open(path, "rb"))
        self._file = self._opened.enter_context(
            pq.ParquetFile(raw, pre_buffer=False, buffer_size=BUFFER)
        )
        groups = self._file.metadata
        sizes = (groups.row_group(n).num_rows for n in range(groups.num_row_groups))
        self._starts = list(accumulate(sizes, initial=0))
        self._url = url

    def _begin(self, group: int) -> None:
        self._group, self._first = group, self._starts[group]
        if group == self._file.num_row_groups:
            raise OSError(f"the file ends at row {self._first}, before one that was listed")
        self._batch = pa.nulls(0)
        self._batches = self._file.iter_batches(
            BATCH, row_groups=[group], columns=[unquote(self._column)], use_threads=False
        )


@contextmanager
def _opened(fs: Any, path: str) -> Iterator[Any]:
    """A Parquet file for the length of a `with` block."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(pq.ParquetFile(stack.enter_context(fs.open(path, "rb"))))
        except (pa.ArrowInvalid, OSError) as error:
            raise _unreadable(path, error) from error
        yield file


def _unreadable(path: str, error: BaseException) -> SourceError:
    return SourceError(
        f"{path!r} cannot be read as Parquet ({error}); remove it or make it again, or set "
        "images.format if it is something else"
    )


def _byte_columns(schema: pa.Schema) -> dict[str, list[str]]:
    """Columns of bytes; for each the path of the bytes in the schema, and that of the file name."""
    found = {}
    for field in schema:
        kinds = {f.name: f.type for f in field.type} if pa.types.is_struct(field.type) else {}
        if _is_bytes(field.type):
            found[field.name] = [field.name]
        elif "bytes" in kinds and _is_bytes(kinds["bytes"]):
            named = "path" in kinds and pa.types.is_string(kinds["path"])
            found[field.name] = [f"{field.name}.{k}" for k in ("bytes", "path")[: 1 + named]]
    return found


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _image_column(schema: pa.Schema, path: str, wanted: str | None) -> str:
    """The column that holds the images: the one that is named, the only one, or the usual one."""
    known = list(_byte_columns(schema))
    if wanted in known:
        return wanted
    if wanted is not None:
        raise SourceError(
            f"images.image {wanted!r} is not a column of bytes, or of structs with `bytes`, in "
            f"{_columns_of(path, schema)}{close_names(wanted, known)}"
        )
    usual = sorted(
        (name for name in known if name.lower() in USUAL_NAMES),
        key=lambda name: USUAL_NAMES.index(name.lower()),
    )
    if usual or len(known) == 1:
        return (usual or known)[0]
    found = ", ".join(map(repr, known)) if known else "none"
    raise SourceError(
        f"expected one column of images in {_columns_of(path, schema)}; columns of bytes, or of "
        f"structs with `bytes`: {found}. "
        + (
            "Name one of them as images.image"
            if known
            else "Set images.format if this is a manifest"
        )
    )


def _columns_of(path: str, schema: pa.Schema) -> str:
    return f"{path!r}, which has the columns {', '.join(map(repr, schema.names[:20]))}"


def _is_attribute(field: pa.Field, config: ImagesConfig) -> bool:
    if field.name == config.label:
        return False
    kind, types = field.type, pa.types
    number = types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind)
    return bool(number) or field.name == config.split.column


def _labels(table: pa.Table, schema: pa.Schema, path: str, column: str) -> pa.Array:
    """Labels as text: of a class its name where the schema says it, else the value."""
    values = table[column].combine_chunks()
    facts = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = facts.get("info", {}).get("features", {}).get(column, {})
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    if not names:
        if pa.types.is_string(values.type) or _is_bytes(values.type):
            return as_text(values, column, repr(path))
        texts = [None if value is None else str(value) for value in values.to_pylist()]
        return pa.array(texts, pa.string())
    if (wrong := pc.max(values).as_py() or 0) >= len(names):
        raise SourceError(
            f"{path!r} has the class {wrong} in column {column!r}, and its schema names "
            f"{len(names):,} classes; expected at most {len(names) - 1}"
        )
    # Hugging Face writes -1 for "not known".
    known = pc.if_else(pc.less(values, 0), pa.scalar(None, values.type), values)
    return pa.array([str(name) for name in names], pa.string()).take(known)
