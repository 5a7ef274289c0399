"""Image data sets as a small index: one row an image, with where its bytes lie; no pixel is read.

Formats: `folder` (class folders), `webdataset` (tars with a JSON or .cls file beside each image),
`parquet` (rows with the bytes of an image) and `manifest` (CSV or Parquet with `path` and any columns).
All of them on local disk or any fsspec URL.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from core.errors import SourceError, StoppedEarly, close_names
from core.splits import split_of
from pipeline.images_config import ImagesConfig, SplitConfig
from pipeline.outages import is_outage, patiently
from pipeline.sources_parquet import (
    PARQUET_SUFFIX,
    DamagedRowGroup,
    ParquetRows,
    holds_images,
    list_rows,
    row_url,
)
from pipeline.sources_webdataset import IMAGE_SUFFIXES, tar_samples
from pipeline.storage import filesystem
from pipeline.urls import refuse_secret

MANIFEST_SUFFIXES = (".csv", PARQUET_SUFFIX)

#: Seconds between tries to read an image.
RETRY_SECONDS = (0.2, 1.0)

#: What `length` is in the index where the image is a whole file, or where it is a row of a Parquet
#: file; `offset` is then the row's number, and `url` ends in the column's name.
WHOLE_FILE, PARQUET_ROW = -1, -2

#: Columns of the index. `url`, `offset` and `length` say where the bytes are; `stamp` changes when the
#: content does: size and modification time, or an object's etag.
INDEX_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("url", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("stamp", pa.string()),
    ]
)


@dataclass(frozen=True)
class ImageIndex:
    """The images of a data set, in `image_id` order.

    Attributes:
        rows: One row an image, columns of `INDEX_SCHEMA`.
        attributes: The other columns of a manifest or of Parquet files, in the same order of rows;
            no column otherwise.
    """

    rows: pa.Table
    attributes: pa.Table


def read_index(config: ImagesConfig) -> ImageIndex:
    """List the images of a data set.

    Raises:
        SourceError: The path is missing, holds no image, or its labels or splits cannot be read.
        StoppedEarly: The storage does not answer.
    """
    return patiently(lambda: _list_images(config), config.path)


def _list_images(config: ImagesConfig) -> ImageIndex:
    fs, root = filesystem(config.path)
    if not _has_magic(root) and not fs.exists(root):
        raise SourceError(
            f"images.path {config.path!r} does not exist; give a folder of class folders, WebDataset "
            "tars, Parquet files of images, or a manifest (CSV or Parquet)"
        )
    files = _files_of(fs, root)
    kind = config.format or _guess_format(fs, config.path, files)
    if config.image is not None and kind != "parquet":
        raise SourceError(
            f"images.image {config.image!r} names a column of Parquet files, and {config.path!r} is "
            f"read as {kind!r}; leave it out, or set images.format to parquet"
        )
    listing = {
        "folder": _list_folder,
        "webdataset": _list_tars,
        "parquet": _list_parquet,
        "manifest": _list_manifest,
    }[kind]
    columns, attributes = listing(fs, root, files, config)
    if not columns["image_id"]:
        raise SourceError(
            f"images.path {config.path!r} holds no image that format {kind!r} can see "
            f"({len(files):,} files looked at; image endings: {', '.join(IMAGE_SUFFIXES)})"
        )
    table = pa.table({**columns, "split": [""] * len(columns["image_id"])})
    table = table.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
    order = pc.sort_indices(table["image_id"])
    table, attributes = (
        table.take(order),
        (attributes.take(order) if attributes.num_columns else attributes),
    )
    table, attributes = table.slice(0, config.limit), attributes.slice(0, config.limit)
    _refuse_repeated_ids(table, config.path)
    splits = _splits(table, attributes, config.split)
    table = table.set_column(table.column_names.index("split"), "split", pa.array(splits))
    return ImageIndex(table.combine_chunks(), attributes.combine_chunks())


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
    if row["length"] == PARQUET_ROW:
        if rows is None:
            with closing(ParquetRows()) as rows:
                return fetch(row, rows)
        read = partial(rows.read, row["url"], row["offset"])
    else:
        fs, path = filesystem(row["url"])
        read = partial(_read, fs, path, row["offset"], row["length"])
    for wait in (*RETRY_SECONDS, None):
        try:
            return patiently(read, row["url"])
        except (FileNotFoundError, PermissionError) as error:
            _refuse_if_more_is_gone(row, error)
            raise
        except (IsADirectoryError, DamagedRowGroup):
            raise
        except OSError:
            if wait is None:
                raise
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _read(fs: Any, path: str, offset: int, length: int) -> bytes:
    if length == WHOLE_FILE:
        data: bytes = fs.cat_file(path)
        return data
    data = fs.cat_file(path, start=offset, end=offset + length)
    if len(data) != length:
        raise OSError(f"{len(data)} bytes where {length} were listed")
    return data


def _refuse_if_more_is_gone(row: Mapping[str, Any], error: OSError) -> None:
    """Stop where not one image is gone, but what holds many: a bucket, a disk, a tar, the right to read.

    A file that was gone when it was listed says nothing of that.
    """
    if row["stamp"] == GONE:
        return
    in_table = row["length"] == PARQUET_ROW
    fs, path = filesystem(row["url"].rpartition("#")[0] if in_table else row["url"])
    holder = path.rpartition("/")[0] if row["length"] == WHOLE_FILE else path
    try:
        there = patiently(lambda: fs.exists(holder), holder)
    except PermissionError:
        there = False
    if not there:
        raise StoppedEarly(
            f"{holder!r} was there when the images were listed and cannot be read now "
            f"({type(error).__name__}); run again to resume when it is back"
        ) from error


def _has_magic(path: str) -> bool:
    return any(character in path for character in "*?[")


def _files_of(fs: Any, root: str) -> dict[str, dict[str, Any]]:
    """Every file under a folder, matching a glob, or the file itself: path → facts."""
    if _has_magic(root):
        return {p: i for p, i in fs.glob(root, detail=True).items() if i["type"] == "file"}
    if fs.isfile(root):
        return {root: fs.info(root)}
    found: dict[str, dict[str, Any]] = fs.find(root, detail=True)
    return found


def _guess_format(fs: Any, path: str, files: Mapping[str, Any]) -> str:
    tables = sorted(name for name in files if name.lower().endswith(PARQUET_SUFFIX))
    if tables and holds_images(fs, tables[0]):
        return "parquet"
    if len(files) == 1 and next(iter(files)).lower().endswith(MANIFEST_SUFFIXES):
        return "manifest"
    if any(name.lower().endswith(".tar") for name in files):
        return "webdataset"
    if any(name.lower().endswith(IMAGE_SUFFIXES) for name in files):
        return "folder"
    raise SourceError(
        f"images.path {path!r} holds neither images nor .tar or Parquet files of images nor a "
        f"manifest ({len(files):,} files looked at); set images.format if the names are unusual"
    )


def _stamp(info: Mapping[str, Any]) -> str:
    """What is known of a file's content without reading it."""
    known = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified")
    return f"{info.get('size')}:{known}"


#: The stamp of a file that was gone when it was listed.
GONE = _stamp({"size": "missing"})


_Listing = tuple[dict[str, list[Any]], pa.Table]
_NO_ATTRIBUTES = pa.table({})


def _relative(path: str, root: str) -> str:
    base = root.rstrip("/") if not _has_magic(root) else root[: root.rfind("/", 0, _magic_at(root))]
    return path[len(base) :].lstrip("/") if path.startswith(base + "/") else path.rsplit("/", 1)[-1]


def _magic_at(path: str) -> int:
    return min(path.index(c) for c in "*?[" if c in path)


def _list_folder(fs: Any, root: str, files: dict[str, Any], config: ImagesConfig) -> _Listing:
    """Class folders: the label is the name of the folder that an image lies in."""
    columns: dict[str, list[Any]] = {n: [] for n in INDEX_SCHEMA.names if n != "split"}
    for path, info in files.items():
        if not path.lower().endswith(IMAGE_SUFFIXES):
            continue
        relative = _relative(path, root)
        parent = relative.rpartition("/")[0].rpartition("/")[2]
        _append(columns, relative, relative, parent or None, fs.unstrip_protocol(path), info)
    return columns, _NO_ATTRIBUTES


def _append(
    columns: dict[str, list[Any]],
    image_id: str,
    path: str,
    label: str | None,
    url: str,
    info: Mapping[str, Any],
    offset: int = 0,
    length: int = WHOLE_FILE,
) -> None:
    row = (image_id, path, label, url, offset, length, _stamp(info))
    for name, value in zip(
        ("image_id", "path", "label", "url", "offset", "length", "stamp"), row, strict=True
    ):
        columns[name].append(value)


def _list_tars(fs: Any, root: str, files: dict[str, Any], config: ImagesConfig) -> _Listing:
    """WebDataset: members that share a key are one sample; the JSON (or .cls) beside it has its label."""
    tars = sorted(path for path in files if path.lower().endswith(".tar"))
    columns: dict[str, list[Any]] = {n: [] for n in INDEX_SCHEMA.names if n != "split"}
    with ThreadPoolExecutor(max_workers=min(16, max(1, len(tars)))) as pool:
        samples = pool.map(lambda path: list(tar_samples(fs, path, config.label)), tars)
        for path, found in zip(tars, samples, strict=True):
            shard = _relative(path, root)
            for key, member, label in found:
                _append(
                    columns,
                    f"{shard.removesuffix('.tar')}/{key}",
                    f"{shard}/{member.name}",
                    label,
                    fs.unstrip_protocol(path),
                    files[path],
                    member.offset_data,
                    member.size,
                )
    return columns, _NO_ATTRIBUTES


def _list_parquet(fs: Any, root: str, files: dict[str, Any], config: ImagesConfig) -> _Listing:
    """Parquet files with the bytes of an image in each row; an id is made of file and row.

    Ids in the order of the rows let the images of a shard lie together.
    """
    named = [path for path in files if path.lower().endswith(PARQUET_SUFFIX)]
    paths = sorted(named or files)
    columns: dict[str, list[Any]] = {n: [] for n in INDEX_SCHEMA.names if n != "split"}
    attributes = []
    with ThreadPoolExecutor(max_workers=min(16, max(1, len(paths)))) as pool:
        listings = pool.map(lambda path: list_rows(fs, path, config), paths)
        for path, found in zip(paths, listings, strict=True):
            file = _relative(path, root)
            url = row_url(fs.unstrip_protocol(path), found.column)
            for row, (name, label) in enumerate(zip(found.names, found.labels, strict=True)):
                _append(
                    columns,
                    f"{file.removesuffix(PARQUET_SUFFIX)}/{row:08d}",
                    f"{file}/{name or f'{row:08d}'}",
                    label,
                    url,
                    files[path],
                    row,
                    PARQUET_ROW,
                )
            attributes.append(found.attributes)
    try:
        return columns, pa.concat_tables(attributes, promote_options="permissive")
    except pa.ArrowException as error:
        raise SourceError(
            f"the files of images.path {config.path!r} have columns of one name and unlike types "
            f"({error}); give them separately"
        ) from error


def _list_manifest(fs: Any, root: str, files: dict[str, Any], config: ImagesConfig) -> _Listing:
    """CSV or Parquet with a column `path` (relative to the manifest) and any other columns."""
    tables = []
    for path in sorted(files):
        with fs.open(path, "rb") as file:
            read: Callable[..., pa.Table] = (
                pa_csv.read_csv if path.lower().endswith(".csv") else pq.read_table
            )
            try:
                tables.append(read(file))
            except (pa.ArrowInvalid, OSError) as error:
                raise SourceError(f"manifest {path!r} cannot be read: {error}") from error
    table = pa.concat_tables(tables, promote_options="default")
    for column in ("path", config.label):
        if column is not None and column not in table.column_names:
            raise SourceError(
                f"manifest {config.path!r} has no column {column!r}; it has "
                f"{', '.join(map(repr, table.column_names[:20]))}{close_names(column, table.column_names)}"
            )
    paths = [str(p) for p in table["path"].to_pylist()]
    for path in paths:
        refuse_secret(path, f"an image in manifest {config.path!r}")
    labels = table[config.label].to_pylist() if config.label else [None] * len(paths)
    folder = next(iter(sorted(files))).rpartition("/")[0]
    columns: dict[str, list[Any]] = {n: [] for n in INDEX_SCHEMA.names if n != "split"}
    urls = [p if "://" in p else fs.unstrip_protocol(f"{folder}/{p}") for p in paths]
    for path, label, url, info in zip(paths, labels, urls, _infos(fs, urls), strict=True):
        _append(columns, path, path, None if label is None else str(label), url, info)
    drop = [name for name in ("path", config.label) if name is not None]
    return columns, table.drop_columns(drop)


def _infos(fs: Any, urls: list[str]) -> Iterator[Mapping[str, Any]]:
    """Facts about each file; one that is gone is listed as such and quarantined when it is read."""

    def info(url: str) -> Mapping[str, Any]:
        try:
            facts: Mapping[str, Any] = fs.info(fs._strip_protocol(url))
        except OSError as error:
            if is_outage(error):
                raise
            return {"size": "missing"}
        return facts

    with ThreadPoolExecutor(max_workers=16) as pool:
        yield from pool.map(info, urls)


def _refuse_repeated_ids(table: pa.Table, path: str) -> None:
    counts = table["image_id"].value_counts()
    repeated = [c["values"].as_py() for c in counts if c["counts"].as_py() > 1]
    if repeated:
        raise SourceError(
            f"images.path {path!r} lists {len(repeated):,} images more than once, for instance "
            f"{repeated[0]!r}; every image needs one row and an id of its own"
        )


def _splits(table: pa.Table, attributes: pa.Table, config: SplitConfig) -> list[str]:
    if config.column is None:
        fractions = (config.train, config.val, config.test)
        return split_of(table["image_id"].to_pylist(), fractions, config.seed)
    if config.column not in attributes.column_names:
        raise SourceError(
            f"images.split.column {config.column!r} is not a column of the images' table"
            f"{close_names(config.column, attributes.column_names)}"
        )
    values = [str(v) for v in attributes[config.column].to_pylist()]
    if wrong := sorted(set(values) - {"train", "val", "test"}):
        raise SourceError(
            f"images.split.column {config.column!r} holds {wrong[0]!r}; expected train, val or test"
        )
    return values
