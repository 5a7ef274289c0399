"""Folders of files on local disk or any fsspec URL, written so that a file is whole or absent.

A local file is written under a temporary name and renamed; object stores make an upload visible
only when it is complete, so there the final name is written directly.
"""

from __future__ import annotations

import io
import json
import os
import secrets
from collections.abc import Callable
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
        self._local = isinstance(self._fs, LocalFileSystem)

    def __reduce__(self) -> tuple[type[Folder], tuple[str]]:
        return (Folder, (self.url,))

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    def path(self, name: str = "") -> str:
        """Full path or URL of a file in this folder, for people and for other libraries."""
        return f"{self.url.rstrip('/')}/{name}" if name else self.url

    def _full(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}" if name else self._root

    def is_file(self) -> bool:
        """Whether a file stands where the folder would be."""
        facts = self._info("")
        return facts is not None and facts["type"] == "file"

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder of this name is there."""
        return self._info(name) is not None

    def _info(self, name: str) -> dict[str, Any] | None:
        try:
            # Not `exists`: some file systems answer no when they cannot be reached.
            found: dict[str, Any] = self._patiently(name, self._fs.info)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found

    def _patiently(self, name: str, action: Callable[[str], Any]) -> Any:
        """Do something with a path, again while the storage does not answer."""
        path = self._full(name)
        return patiently(lambda: action(path), self.path(name))

    def names(self, name: str = "") -> list[str]:
        """Names of the files directly in a sub-folder, sorted; empty where there is none."""
        try:
            found = self._patiently(name, lambda path: self._fs.ls(path, detail=False))
        except FileNotFoundError:
            return []
        names = (str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in found)
        return sorted(n for n in names if n and not n.startswith(".tmp-"))

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        data: bytes = self._patiently(name, self._fs.cat_file)
        return data

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Write a file whole: a reader sees the old one, the new one, or none, never a part.

        A durable local file outlives a power failure once this returns; that costs milliseconds
        each, so that thousands of small files that can be made again do without.

        Raises:
            StoppedEarly: The storage is full, or does not answer for long.
        """
        target = self._full(name)
        if self._local:
            writing(lambda: _write_whole(Path(target), data, durable), self.path(name))
        else:
            writing(lambda: self._fs.pipe_file(target, data), self.path(name))

    def delete(self, name: str) -> None:
        """Delete one file that this program made; it is no error if it is gone already."""
        try:
            self._patiently(name, self._fs.rm_file)
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

        def read(path: str) -> pa.Table:
            with self._fs.open(path, "rb") as file:
                return pq.read_table(file, columns=columns)

        return self._patiently(name, read)

    def write_table(self, name: str, table: pa.Table, row_group_size: int = 4096) -> int:
        """Write one Parquet file (zstd, no dictionaries: best for float16) and return its bytes."""
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
        data = sink.getvalue().to_pybytes()
        self.write(name, data)
        return len(data)

    def read_arrays(self, name: str, prefix: str = "") -> dict[str, np.ndarray]:
        """The arrays of an uncompressed npz file whose names begin with `prefix`."""

        def read(path: str) -> dict[str, np.ndarray]:
            with self._fs.open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
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


def _write_whole(final: Path, data: bytes, durable: bool) -> None:
    """Write a local file under a temporary name and rename it."""
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.parent / f".tmp-{secrets.token_hex(6)}-{final.name}"
    try:
        with partial.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)
