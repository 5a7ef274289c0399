"""Fingerprints: short hashes of the content that a result is made from.

A stage is fresh when the fingerprint of what it would be made from equals the one that its table
carries; names, times and places of the program do not enter.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa


def fingerprint(*parts: Any) -> str:
    """Hash of JSON-shaped values, 24 hex digits; equal values give equal fingerprints anywhere."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def fingerprint_table(table: pa.Table) -> str:
    """Hash of a small table's column names and values, whatever its chunks and buffers."""
    return fingerprint(table.column_names, [column.to_pylist() for column in table.columns])


def fingerprint_file(path: str | Path) -> str:
    """Hash of a local file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=12)).hexdigest()
