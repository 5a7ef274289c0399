"""Image data sets as a small index: one row an image, with where its bytes lie; no pixel is read.
`pipeline.fetching` reads them.

Formats: `folder` (class folders), `webdataset` (tars with a JSON or .cls file beside each image),
`parquet` (rows with the bytes of an image) and `manifest` (CSV or Parquet with `path` and any columns).
All of them on local disk or any fsspec URL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from core.errors import SourceError, close_names
from core.splits import split_of
from pipeline.fetching import PARQUET_ROW, WHOLE_FILE
from pipeline.images_config import ImagesConfig, SplitConfig
from pipeline.mapped import on_disk
from pipeline.outages import patiently
from pipeline.sources_files import (
    has_magic,
    list_files,
    shown,
)
from pipeline.sources_parquet import (
    PARQUET_SUFFIX,
    as_text,
    holds_images,
    list_rows,
    row_url,
)
from pipeline.sources_webdataset import IMAGE_SUFFIXES, tar_samples
from pipeline.stamps import stamps, warn_of_sizes
from pipeline.urls import refuse_secret

#: Rows that are looked at as Python objects at one time.
AT_ONCE = 50_000

MANIFEST_SUFFIXES = (".csv", PARQUET_SUFFIX)

#: Columns of the index. `url`, `offset` and `length` say where the bytes are; `stamp` changes when the
#: content does: size and modification time, or an object's etag, and of Parquet the column of images.
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

    @property
    def split_counts(self) -> dict[str, int]:
        """Images of train, val and test."""
        return count_splits(self.rows)

    def spread(self, count: int) -> list[dict[str, Any]]:
        """At most so many rows, evenly spread, in an order of which every part is spread as well."""
        total = self.rows.num_rows
        places = np.unique(np.linspace(0, total - 1, min(count, total)).astype(int))
        places = np.random.default_rng(0).permutation(places)
        found: list[dict[str, Any]] = self.rows.take(pa.array(places)).to_pylist()
        return found


def count_splits(images: pa.Table) -> dict[str, int]:
    """Images of each split; 0 where there is none."""
    found = images["split"].value_counts().to_pylist()
    return dict.fromkeys(("train", "val", "test"), 0) | {e["values"]: e["counts"] for e in found}


def read_index(config: ImagesConfig) -> ImageIndex:
    """List the images of a data set.

    Raises:
        SourceError: The path is missing, holds no image, or its labels or splits cannot be read.
        StoppedEarly: The storage does not answer.
    """
    index = patiently(lambda: _list_images(config), config.path)
    pa.default_memory_pool().release_unused()
    return index


def _list_images(config: ImagesConfig) -> ImageIndex:
    fs, root, files = list_files(config.path)
    kind = config.format or _guess_format(fs, config.path, files["path"])
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
    table, attributes = listing(fs, shown(root), files, config)
    if not table.num_rows:
        raise SourceError(
            f"images.path {config.path!r} holds no image that format {kind!r} can see "
            f"({files.num_rows:,} files looked at; image endings: {', '.join(IMAGE_SUFFIXES)})"
        )
    order = pc.sort_indices(table["image_id"])
    if not np.array_equal(order, np.arange(len(order))):  # taking is copying
        table = table.take(order)
        attributes = attributes.take(order) if attributes.num_columns else attributes
    table, attributes = table.slice(0, config.limit), attributes.slice(0, config.limit)
    _refuse_repeated_ids(table, config.path)
    warn_of_sizes(table["stamp"], config.path)
    splits = _splits(table, attributes, config.split)
    table = table.append_column("split", splits).select(INDEX_SCHEMA.names)
    return ImageIndex(on_disk(table), on_disk(attributes))


def _guess_format(fs: Any, path: str, paths: pa.ChunkedArray) -> str:
    tables = sorted(_ending(paths, (PARQUET_SUFFIX,)).to_pylist())
    if tables and holds_images(fs, tables[0]):
        return "parquet"
    if len(paths) == 1 and len(_ending(paths, MANIFEST_SUFFIXES)):
        return "manifest"
    if len(_ending(paths, (".tar",))):
        return "webdataset"
    if len(_ending(paths, IMAGE_SUFFIXES)):
        return "folder"
    raise SourceError(
        f"images.path {path!r} holds neither images nor .tar or Parquet files of images nor a "
        f"manifest ({len(paths):,} files looked at); set images.format if the names are unusual"
    )


def _ending(paths: pa.ChunkedArray, suffixes: tuple[str, ...]) -> pa.ChunkedArray:
    return paths.filter(_ends(paths, suffixes))


def _ends(paths: pa.ChunkedArray, suffixes: tuple[str, ...]) -> pa.ChunkedArray:
    """Which paths end in one of some endings, in capitals or not."""
    pattern = "|".join(re.escape(suffix) for suffix in suffixes)
    return pc.match_substring_regex(paths, f"(?i)(?:{pattern})$")


_Listing = tuple[pa.Table, pa.Table]
_NO_ATTRIBUTES = pa.table({})
_NO_IMAGES = INDEX_SCHEMA.remove(INDEX_SCHEMA.get_field_index("split")).empty_table()


def _relative(paths: pa.ChunkedArray, root: str) -> pa.ChunkedArray:
    """Paths as they read from a folder; of a glob, from the folder before its first pattern."""
    first = min((root.index(c) for c in "*?[" if c in root), default=0) if has_magic(root) else 0
    if first and not pc.any(pc.starts_with(paths, f"{root.rstrip('/')}/")).as_py():
        base = root[: root.rfind("/", 0, first)]
    else:
        base = root.rstrip("/")
    inside = pc.starts_with(paths, f"{base}/")
    cut = pc.utf8_slice_codeunits(paths, len(base) + 1)
    return pc.if_else(inside, cut, pc.replace_substring_regex(paths, ".*/", ""))


def _list_folder(fs: Any, root: str, files: pa.Table, config: ImagesConfig) -> _Listing:
    """Class folders: the label is the name of the folder that an image lies in."""
    files = files.filter(_ends(files["path"], IMAGE_SUFFIXES))
    relative = _relative(files["path"], root)
    deep = pc.match_substring(relative, "/")
    parent = pc.replace_substring_regex(relative, "^(?:.*/)?([^/]+)/[^/]*$", r"\1")
    nothing = pa.scalar(None, pa.string())
    return _rows(relative, relative, pc.if_else(deep, parent, nothing), files), _NO_ATTRIBUTES


def _rows(ids: Any, paths: Any, labels: Any, files: pa.Table) -> pa.Table:
    """Rows of the index, without the split, for images that are files of their own."""
    count = files.num_rows
    columns = {
        "image_id": ids,
        "path": paths,
        "label": labels,
        "url": files["url"],
        "offset": pa.array(np.zeros(count, np.int64)),
        "length": pa.array(np.full(count, WHOLE_FILE, np.int64)),
        "stamp": files["stamp"],
    }
    return pa.table(columns)


def _named(files: pa.Table, suffix: str, root: str, all_else: bool) -> list[dict[str, str]]:
    """Files with an ending, in order, each with its `name` as it reads from the folder."""
    some = files.filter(_ends(files["path"], (suffix,)))
    some = files if all_else and not some.num_rows else some
    some = some.append_column("name", _relative(some["path"], root)).sort_by("path")
    found: list[dict[str, str]] = some.to_pylist()
    return found


def _list_tars(fs: Any, root: str, files: pa.Table, config: ImagesConfig) -> _Listing:
    """WebDataset: members that share a key are one sample; the JSON (or .cls) beside it has its label."""
    tars = _named(files, ".tar", root, all_else=False)

    def listed(tar: Mapping[str, str]) -> pa.Table:
        shard = tar["name"]
        stem = shard.removesuffix(".tar")
        samples = list(tar_samples(fs, tar["path"], config.label))
        return _part(
            tar,
            tar["url"],
            ids=[f"{stem}/{key}" for key, _, _ in samples],
            paths=[f"{shard}/{member.name}" for _, member, _ in samples],
            labels=[label for _, _, label in samples],
            offsets=[member.offset_data for _, member, _ in samples],
            lengths=[member.size for _, member, _ in samples],
        )

    return _in_parallel(listed, tars), _NO_ATTRIBUTES


def _part(
    file: Mapping[str, str],
    url: str,
    *,
    ids: Any,
    paths: Any,
    labels: Any,
    offsets: Any,
    lengths: Any,
    column: str = "",
) -> pa.Table:
    """Rows of the index, without the split, for images that lie in one file."""
    columns = {
        "image_id": pa.array(ids, pa.string()),
        "path": pa.array(paths, pa.string()),
        "label": pa.array(labels, pa.string()),
        "url": pa.repeat(url, len(ids)),
        "offset": pa.array(offsets, pa.int64()),
        "length": pa.array(lengths, pa.int64()),
        "stamp": pa.repeat(f"{file['stamp']}#{column}" if column else file["stamp"], len(ids)),
    }
    return pa.table(columns)


def _in_parallel(listed: Callable[[Any], pa.Table], files: list[dict[str, str]]) -> pa.Table:
    with ThreadPoolExecutor(max_workers=min(16, max(1, len(files)))) as pool:
        return pa.concat_tables([_NO_IMAGES, *pool.map(listed, files)])


def _list_parquet(fs: Any, root: str, files: pa.Table, config: ImagesConfig) -> _Listing:
    """Parquet files with the bytes of an image in each row; an id is made of file and row.

    Ids in the order of the rows let the images of a shard lie together.
    """
    attributes: dict[str, pa.Table] = {}

    def listed(file: Mapping[str, str]) -> pa.Table:
        found, name = list_rows(fs, file["path"], config), file["name"]
        attributes[file["path"]] = found.attributes
        rows = pa.array(np.arange(len(found.names)))
        numbers = pc.utf8_lpad(rows.cast(pa.string()), 8, "0")
        # An image that had no name, or an empty one, is called by its row.
        named = pc.if_else(pc.greater(pc.binary_length(found.names), 0), found.names, None)
        return _part(
            file,
            row_url(file["url"], found.column),
            ids=pc.binary_join_element_wise(name.removesuffix(PARQUET_SUFFIX), numbers, "/"),
            paths=pc.binary_join_element_wise(name, pc.coalesce(named, numbers), "/"),
            labels=found.labels,
            offsets=rows,
            lengths=pa.repeat(PARQUET_ROW, len(rows)),
            column=found.column,
        )

    parts = _named(files, PARQUET_SUFFIX, root, all_else=True)
    rows = _in_parallel(listed, parts)
    try:
        told = [attributes[file["path"]] for file in parts]
        return rows, pa.concat_tables(told, promote_options="permissive")
    except pa.ArrowException as error:
        raise SourceError(
            f"the files of images.path {config.path!r} have columns of one name and unlike types "
            f"({error}); give them separately"
        ) from error


def _list_manifest(fs: Any, root: str, files: pa.Table, config: ImagesConfig) -> _Listing:
    """CSV or Parquet with a column `path` (relative to the manifest) and any other columns."""
    tables = []
    manifests = sorted(files["path"].to_pylist())
    for path in manifests:
        with fs.open(path, "rb") as file:
            read: Callable[..., pa.Table] = (
                pa_csv.read_csv if path.lower().endswith(".csv") else pq.read_table
            )
            try:
                tables.append(read(file))
            except (pa.ArrowInvalid, OSError) as error:
                raise SourceError(f"manifest {path!r} cannot be read: {error}") from error
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise SourceError(
            f"the manifests of images.path {config.path!r} have columns of one name and unlike types "
            f"({error}); give them separately"
        ) from error
    for column in ("path", config.label):
        if column is not None and column not in table.column_names:
            raise SourceError(
                f"manifest {config.path!r} has no column {column!r}; it has "
                f"{', '.join(map(repr, table.column_names[:20]))}{close_names(column, table.column_names)}"
            )
    where = f"manifest {config.path!r}"
    paths = as_text(table["path"], "path", where)
    if paths.null_count:
        raise SourceError(
            f"manifest {config.path!r} has {paths.null_count:,} rows without a path, the first is row "
            f"{pc.index(pc.is_null(paths), True).as_py() + 1:,}; every row names one image"
        )
    for path in paths.filter(pc.match_substring(paths, "://")).to_pylist():
        refuse_secret(path, f"an image in manifest {config.path!r}")
    nothing = pa.nulls(table.num_rows, pa.string())
    labels = as_text(table[config.label], config.label, where) if config.label else nothing
    folder = manifests[0].rpartition("/")[0]
    local = pc.binary_join_element_wise(fs.unstrip_protocol(folder).rstrip("/"), paths, "/")
    absolute = pc.starts_with(paths, "/") if isinstance(fs, LocalFileSystem) else False
    whole = pc.binary_join_element_wise("file://", paths, "")
    urls = pc.if_else(absolute, whole, local)
    urls = pc.if_else(pc.match_substring(paths, "://"), paths, urls)
    found = pa.table({"url": urls, "stamp": pa.array(stamps(urls.to_pylist()), pa.string())})
    drop = [name for name in ("path", config.label) if name is not None]
    return _rows(paths, paths, labels, found), table.drop_columns(drop)


def _refuse_repeated_ids(table: pa.Table, path: str) -> None:
    """Refuse ids that are there twice; rows are in the order of ids."""
    ids = table["image_id"].combine_chunks()
    repeated = ids[1:].filter(pc.equal(ids[1:], ids[:-1])).unique()
    if len(repeated):
        raise SourceError(
            f"images.path {path!r} lists {len(repeated):,} images more than once, for instance "
            f"{repeated[0].as_py()!r}; every image needs one row and an id of its own"
        )


def _splits(table: pa.Table, attributes: pa.Table, config: SplitConfig) -> pa.Array:
    if config.column is None:
        fractions = (config.train, config.val, config.test)
        found = []
        for start in range(0, len(table), AT_ONCE):
            ids = table["image_id"].slice(start, AT_ONCE).to_pylist()
            found.append(pa.array(split_of(ids, fractions, config.seed), pa.string()))
        return pa.chunked_array(found, pa.string())
    if config.column not in attributes.column_names:
        raise SourceError(
            f"images.split.column {config.column!r} is not a column of the images' table"
            f"{close_names(config.column, attributes.column_names)}"
        )
    column = as_text(attributes[config.column], config.column, "the images' table")
    texts = {value: str(value) for value in column.unique().to_pylist()}
    if wrong := sorted(set(texts.values()) - {"train", "val", "test"}):
        raise SourceError(
            f"images.split.column {config.column!r} holds {wrong[0]!r}; expected train, val or test"
        )
    places = pc.index_in(column, value_set=pa.array(list(texts), pa.string()))
    return pa.array(list(texts.values()), pa.string()).take(places)
