"""The files of a data set, on local disk or any fsspec URL: what is there, and the bytes of one.

A local folder is walked here and not by fsspec, because what goes wrong in folders of photographs must
not be lost in silence: names that are not UTF-8, links that lead in circles, folders that may not be
read, pipes that never end. A million files are listed in seconds and kept as columns, not as objects.
"""

from __future__ import annotations

import errno
import heapq
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from core.errors import NeuroscribeError, SourceError
from pipeline.outages import is_outage, patiently
from pipeline.stamps import listed_stamps, local_stamp
from pipeline.storage import filesystem

#: Seconds between tries to read a file.
RETRY_SECONDS = (0.2, 1.0)

#: Larger files are not read: no photograph has so many bytes, and a worker's memory has an end.
MAX_BYTES = 1 << 30

#: What `url` begins with where a local name is not UTF-8, and so cannot be written in a table as it is.
RAW_BYTES = "file-bytes:"

_LOCAL = "file://"
_FINAL = (errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)
_ROWS = 1 << 16

SCHEMA = pa.schema([("path", pa.string()), ("url", pa.string()), ("stamp", pa.string())])


class NotARegularFile(OSError):
    """A pipe, socket or device: reading it might never end."""


class TooLarge(OSError):
    """A file beyond `MAX_BYTES`."""


def list_files(url: str) -> tuple[Any, str, pa.Table]:
    """Every file of a folder, matching a glob, or the file itself.

    Folders behind links are entered, each folder once, under a path without links where it has one.

    Args:
        url: Path or URL. One that exists is taken as it is, whatever characters are in it.

    Returns:
        The file system, the path within it (a glob as it was given), and a table of `SCHEMA`: `path` for
        people and for ids, `url` to read it by, `stamp`, which changes when the content does.

    Raises:
        SourceError: There is nothing, or a folder in it may not be listed.
    """
    fs, root = filesystem(url)
    try:
        return fs, root, _files(fs, root, url)
    except NeuroscribeError:
        raise
    except Exception as error:  # every client has errors of its own for what it is refused
        if isinstance(fs, LocalFileSystem) or is_outage(error):
            raise
        said = (str(error).splitlines() or [""])[0]
        raise SourceError(
            f"images.path {url!r} may not be listed ({type(error).__name__}: {said}); check its name, and "
            "give credentials and the right to list and to read it"
        ) from error


def _files(fs: Any, root: str, url: str) -> pa.Table:
    if has_magic(root) and not fs.exists(root):
        found = sorted((p, i) for p, i in fs.glob(root, detail=True).items() if _is_file(i))
        if isinstance(fs, LocalFileSystem):
            return _local(path for path, _ in found)
        return _remote(fs, found)
    if not fs.exists(root):
        raise SourceError(
            f"images.path {url!r} does not exist; give a folder of class folders, WebDataset "
            "tars, Parquet files of images, or a manifest (CSV or Parquet)"
        )
    if isinstance(fs, LocalFileSystem):
        paths = [root] if Path(root).is_file() else _walk(root)
        return _local(paths)
    if fs.isfile(root):
        return _remote(fs, [(root, fs.info(root))])
    return _remote(fs, fs.find(root, detail=True).items())


def has_magic(path: str) -> bool:
    """Whether a path has characters that a glob is made of."""
    return any(character in path for character in "*?[")


def read_file(url: str, offset: int = 0, length: int | None = None) -> bytes:
    """The bytes of a file or of a part of it; what may be a passing fault is tried three times.

    Raises:
        OSError: It is gone, cannot be read, is no regular file, is larger than `MAX_BYTES`, or is
            shorter than it was when it was listed.
        StoppedEarly: The storage does not answer.
    """
    return tried(lambda: _read(url, offset, length), url)


def tried(read: Callable[[], bytes], url: str, final: tuple[type[OSError], ...] = ()) -> bytes:
    """What `read` returns, after three tries where the fault may pass; `final` are those that do not."""
    final += (FileNotFoundError, PermissionError, IsADirectoryError, NotARegularFile, TooLarge)
    for wait in (*RETRY_SECONDS, None):
        try:
            return patiently(read, url)
        except final:
            raise
        except OSError as error:
            if wait is None or error.errno in _FINAL:
                raise
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _read(url: str, offset: int, length: int | None) -> bytes:
    local = _local_path(url)
    if local is not None:
        # Opened directly: fsspec would take some characters of a name for its own.
        facts = os.stat(local)  # noqa: PTH116 - bytes that are not UTF-8 stay what they are
        if not stat.S_ISREG(facts.st_mode) and not stat.S_ISDIR(facts.st_mode):
            raise NotARegularFile(url)
        if length is None and facts.st_size > MAX_BYTES:
            raise TooLarge(url)
        with open(local, "rb") as file:  # noqa: PTH123
            file.seek(offset)
            data = file.read(-1 if length is None else length)
    else:
        fs, path = filesystem(url)
        end = {} if length is None else {"start": offset, "end": offset + length}
        data = fs.cat_file(path, **end)
    if length is not None and len(data) != length:
        raise OSError(f"{len(data)} bytes where {length} were listed")
    return data


def _local_path(url: str) -> str | bytes | None:
    if url.startswith(RAW_BYTES):
        return unquote_to_bytes(url.removeprefix(RAW_BYTES))
    return url.removeprefix(_LOCAL) if url.startswith(_LOCAL) else None


def is_there(url: str, above: bool) -> bool:
    """Whether a file, or with `above` the folder that it lies in, is there and may be looked at."""
    local = _local_path(url)
    if local is not None:
        place = os.path.dirname(local) if above else local  # noqa: PTH120 - of text and of bytes
        return patiently(lambda: _found(place), url)
    fs, path = filesystem(url)
    place = path.rpartition("/")[0] if above else path
    try:
        return bool(patiently(lambda: fs.exists(place), url))
    except PermissionError:
        return False


def _found(path: str | bytes) -> bool:
    try:
        os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    return True


def shown(path: str) -> str:
    """A local path as text that can be written: bytes that are not UTF-8 as `\\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def local_url(path: str) -> str:
    """What a local file is read by, whatever its name."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return RAW_BYTES + quote_from_bytes(os.fsencode(path))
    return _LOCAL + path


def _is_file(info: Mapping[str, Any]) -> bool:
    return info["type"] == "file" or bool(info.get("islink"))


def _local(paths: Iterable[str]) -> pa.Table:
    return table_of((shown(path), local_url(path), local_stamp(path)) for path in paths)


def _remote(fs: Any, files: Iterable[tuple[str, Mapping[str, Any]]]) -> pa.Table:
    files = list(files)
    made = zip(files, listed_stamps(fs, files), strict=True)
    return table_of((path, fs.unstrip_protocol(path), stamp) for (path, _), stamp in made)


def table_of(rows: Iterator[tuple[str, str, str]]) -> pa.Table:
    """A table of `SCHEMA`, made in stretches so that no more than one is held as objects."""
    batches = []
    while some := list(islice(rows, _ROWS)):
        columns = [pa.array(values, pa.string()) for values in zip(*some, strict=True)]
        batches.append(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
    return pa.Table.from_batches(batches, SCHEMA)


def _walk(root: str) -> Iterator[str]:
    """Paths of all files under a local folder; each folder is entered once, so that links end."""
    entered: set[tuple[int, int]] = set()
    waiting: list[str] = [root]
    linked: list[str] = []
    while waiting or linked:
        # Folders behind links come last, in order: what they are called must not depend on the disk.
        folder = waiting.pop() if waiting else heapq.heappop(linked)
        try:
            facts = os.stat(folder)  # noqa: PTH116
            if (facts.st_dev, facts.st_ino) in entered:
                continue
            entered.add((facts.st_dev, facts.st_ino))
            entries = os.scandir(folder)
        except OSError as error:
            if is_outage(error):
                raise
            raise SourceError(
                f"the folder {shown(folder)!r} cannot be listed ({error.strerror}), so its images "
                "would be missing; make it readable or move it away"
            ) from error
        with entries:
            for entry in entries:
                if not _is_folder(entry):
                    yield entry.path
                elif entry.is_symlink():
                    heapq.heappush(linked, entry.path)
                else:
                    waiting.append(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False
