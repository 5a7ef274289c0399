"""Folders of files on local disk or any fsspec URL, written so that a file is whole or absent.

Names are relative to the folder. A full path or URL may stand in the place of a name, for files that lie
elsewhere, as those of a store that runs share do.

A local file is written under a temporary name and renamed, and so is one on a file server; object stores
make an upload visible only when it is complete, so there the final name is written directly. A storage
that does not answer is waited for (`pipeline.outages`).
"""

from __future__ import annotations

import io
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from core.errors import ConfigError
from pipeline.outages import patiently, writing
from pipeline.urls import refuse_secret

#: fsspec's names of storage that shows a file while it is written, as a disk does.
IN_PLACE = frozenset(
    {"arrow_hdfs", "dbfs", "ftp", "hdfs", "sftp", "smb", "ssh", "webHDFS", "webhdfs"}
)


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a path or URL, and the path within it.

    Raises:
        ConfigError: fsspec knows no such protocol, the package for it is not installed, or the URL
            carries a password or signature.
    """
    refuse_secret(url, "what is to be opened")
    try:
        # What is there is asked anew each time: other processes write as well.
        found: tuple[Any, str] = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"{url!r} cannot be opened: {error}; use a local path, or a URL whose fsspec package is "
            "installed (s3:// is)"
        ) from error
    return found


class Folder:
    """A folder, local or remote, addressed by paths relative to it. It is pickled as its URL."""

    def __init__(self, url: str | Path) -> None:
        text = str(url)
        self.url = text if "://" in text else str(Path(text).resolve())
        self._fs, self._root = filesystem(self.url)

    def __reduce__(self) -> tuple[type[Folder], tuple[str]]:
        return (Folder, (self.url,))

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    def path(self, name: str = "") -> str:
        """Full path or URL of a file in this folder, for people and for other libraries."""
        if is_elsewhere(name):
            return name
        return f"{self.url.rstrip('/')}/{name}" if name else self.url

    def _at(self, name: str) -> tuple[Any, str]:
        """The file system that a file lies on, and its path there."""
        if is_elsewhere(name):
            return filesystem(name)
        return self._fs, f"{self._root.rstrip('/')}/{name}" if name else self._root

    def _patiently(self, name: str, action: Callable[[Any, str], Any]) -> Any:
        """Do something with a file system and a path on it, again while it does not answer."""
        return patiently(lambda: action(*self._at(name)), self.path(name))

    def _info(self, name: str) -> dict[str, Any] | None:
        """Facts about a file or folder, or None where there is none."""
        try:
            # Not `exists`: some file systems answer no when they cannot be reached.
            found: dict[str, Any] = self._patiently(name, lambda fs, path: fs.info(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found

    def is_file(self) -> bool:
        """Whether a file stands where the folder would be."""
        facts = self._info("")
        return facts is not None and facts["type"] == "file"

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder of this name is there."""
        return self._info(name) is not None

    def names(self, name: str = "") -> list[str]:
        """Names of the files directly in a sub-folder, sorted; empty where there is none."""
        try:
            found = self._patiently(name, lambda fs, path: fs.ls(path, detail=False))
        except FileNotFoundError:
            return []
        names = (str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in found)
        return sorted(n for n in names if n and not n.startswith(".tmp-"))

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        data: bytes = self._patiently(name, lambda fs, path: fs.cat_file(path))
        return data

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Write a file whole: a reader sees the old one, the new one, or none, never a part.

        A durable local file outlives a power failure once this returns; that costs milliseconds
        each, so that thousands of small files that can be made again do without.

        Raises:
            StoppedEarly: The storage is full, or does not answer for long.
        """
        writing(lambda: self._write(*self._at(name), data, durable), self.path(name))

    def _write(self, fs: Any, path: str, data: bytes, durable: bool) -> None:
        if _writes_in_place(fs):
            _write_beside(fs, path, data)
        elif not isinstance(fs, LocalFileSystem):
            fs.pipe_file(path, data)
        else:
            with _partial(Path(path)) as partial:
                _write_file(partial, data, durable)
                partial.replace(path)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file whole unless there is one; whether this wrote it.

        Of several writers at once one alone succeeds on a local disk and on object stores that can
        create exclusively; on others the last one does.

        Raises:
            StoppedEarly: The storage is full, or does not answer for long.
        """
        if self.exists(name):
            return False
        return writing(lambda: self._create(*self._at(name), data), self.path(name))

    def _create(self, fs: Any, path: str, data: bytes) -> bool:
        if _writes_in_place(fs):
            _write_beside(fs, path, data)
            return True
        if not isinstance(fs, LocalFileSystem):
            try:
                fs.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
            return True
        with _partial(Path(path)) as partial:
            _write_file(partial, data, durable=True)
            try:
                os.link(partial, path)
            except FileExistsError:
                return False
            return True

    def copy(self, source: str, name: str) -> None:
        """Put another file's content under a name too: on one local disk a link, elsewhere a copy.

        Files are never changed in place, only replaced, so that a link is as good as a copy.
        """
        (fs, there), (other, path) = self._at(source), self._at(name)
        if not (isinstance(fs, LocalFileSystem) and isinstance(other, LocalFileSystem)):
            self.write(name, self.read(source))
            return

        def link() -> None:
            with _partial(Path(path)) as partial:
                try:
                    os.link(there, partial)
                except OSError:
                    shutil.copyfile(there, partial)
                partial.replace(path)

        writing(link, self.path(name))

    def delete(self, name: str) -> None:
        """Delete one file that this program made; it is no error if it is gone already."""
        try:
            self._patiently(name, lambda fs, path: fs.rm_file(path))
        except FileNotFoundError:
            return

    def read_json(self, name: str) -> Any:
        """A JSON file, or None where there is none."""
        try:
            return json.loads(self.read(name))
        except FileNotFoundError:
            return None

    def write_json(self, name: str, value: Any) -> None:
        """Write JSON, keys in the order given."""
        self.write(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """One Parquet file; only the columns asked for are fetched."""

        def read(fs: Any, path: str) -> pa.Table:
            # In this thread alone: Arrow's own threads answer a signal by giving the read up in their way,
            # with an error that nobody expects or by ending the program.
            with fs.open(path, "rb") as file, pq.ParquetFile(file) as parquet:
                table = parquet.read(columns, use_threads=False)
            if columns is None:
                return table
            missing = [name for name in columns if name not in table.column_names]
            if missing:
                raise pa.ArrowInvalid(f"no column {missing[0]!r}; found {table.column_names}")
            return table.select(columns)

        return self._patiently(name, read)

    def write_table(self, name: str, table: pa.Table, row_group_size: int = 4096) -> int:
        """Write one Parquet file and return its bytes."""
        data = parquet_bytes(table, row_group_size)
        self.write(name, data)
        return len(data)

    def read_arrays(self, name: str, prefix: str = "") -> dict[str, np.ndarray]:
        """The arrays of an uncompressed npz file whose names begin with `prefix`."""

        def read(fs: Any, path: str) -> dict[str, np.ndarray]:
            with fs.open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {key: arrays[key] for key in arrays.files if key.startswith(prefix)}

        found: dict[str, np.ndarray] = self._patiently(name, read)
        return found

    def write_arrays(self, name: str, **arrays: np.ndarray) -> int:
        """Write arrays as an uncompressed npz file and return its bytes."""
        sink = io.BytesIO()
        np.savez(sink, allow_pickle=False, **arrays)
        data = sink.getvalue()
        self.write(name, data)
        return len(data)


def is_elsewhere(name: str) -> bool:
    """Whether a name is a full path or URL."""
    return name.startswith("/") or "://" in name


def parquet_bytes(table: pa.Table, row_group_size: int = 4096) -> bytes:
    """A table as a Parquet file (zstd, and no dictionaries for numbers: best for float16)."""
    sink = pa.BufferOutputStream()
    texts = [
        field.name
        for field in table.schema
        if pa.types.is_string(field.type) or pa.types.is_boolean(field.type)
    ]
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=1,
        use_dictionary=texts,
        row_group_size=row_group_size,
        store_schema=True,
    )
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _writes_in_place(fs: Any) -> bool:
    """Whether a reader of this storage could see a file that is half written."""
    names = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return not IN_PLACE.isdisjoint(names)


def _write_beside(fs: Any, path: str, data: bytes) -> None:
    """Write under another name and rename: a reader sees the old file, for a moment none, or the new."""
    folder, _, name = path.rpartition("/")
    partial = f"{folder}/.tmp-{secrets.token_hex(6)}-{name}"
    fs.makedirs(folder, exist_ok=True)
    try:
        fs.pipe_file(partial, data)
        with suppress(FileNotFoundError):
            fs.rm_file(path)  # not every one of these renames over a file
        fs.mv(partial, path)
    except BaseException:
        with suppress(Exception):
            fs.rm_file(partial)
        raise


@contextmanager
def _partial(final: Path) -> Iterator[Path]:
    """A temporary name beside a file, in a folder that is made if need be; nothing is left there."""
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.parent / f".tmp-{secrets.token_hex(6)}-{final.name}"
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _write_file(path: Path, data: bytes, durable: bool) -> None:
    with path.open("wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
