"""Tables in mapped files: the same rows, none of them in memory of Arrow's, and no file left behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.mapped import on_disk


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_table_in_a_file_has_the_same_rows_in_one_piece(folder: Path) -> None:
    part = pa.table({"name": ["a", None, "ü"], "number": [1, 2, None], "list": [[1.0], [], None]})
    table = pa.concat_tables([part, part.slice(1)])
    before = pa.total_allocated_bytes()
    found = on_disk(table, least=0)
    assert found.equals(table)
    assert found["name"].num_chunks == 1
    assert pa.total_allocated_bytes() == before
    assert list(folder.iterdir()) == []


def test_a_small_table_and_one_without_room_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"number": np.arange(1000)})
    before = pa.total_allocated_bytes()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))
    for least in (0, 10_000):
        found = on_disk(pa.concat_tables([table, table]), least)
        assert found.equals(pa.concat_tables([table, table]))
        assert pa.total_allocated_bytes() > before
