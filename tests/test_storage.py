"""Folders: whole files or none, the same on local disk and elsewhere."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from core.errors import ConfigError, RecordingError
from pipeline.rundir import Run, part_name
from pipeline.storage import Folder


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder(tmp_path if request.param == "local" else f"memory://{tmp_path.name}")


def test_what_is_written_is_read_back(folder: Folder) -> None:
    folder.write("a/b.bin", b"one")
    folder.write("a/b.bin", b"two")
    assert folder.read("a/b.bin") == b"two"
    assert folder.names("a") == ["b.bin"]
    assert folder.names("nothing") == []
    assert pickle.loads(pickle.dumps(folder)).read("a/b.bin") == b"two"


def test_tables_and_arrays_survive_the_way_through_a_file(folder: Folder) -> None:
    values = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 3)
    table = pa.table({"image_id": [f"i{n}" for n in range(7)], "act.x.avg": column})
    folder.write_table("t.parquet", table)
    assert folder.read_table("t.parquet").equals(table)
    folder.write_arrays("m.npz", **{"train/x": values, "val/x": values[:2]})
    assert list(folder.read_arrays("m.npz", "val/")) == ["val/x"]
    np.testing.assert_array_equal(folder.read_arrays("m.npz")["train/x"], values)


def test_a_reader_never_sees_a_part_of_a_file(tmp_path: Path) -> None:
    folder, size = Folder(tmp_path), 1 << 20
    folder.write("f", b"a" * size)
    seen: set[bytes] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            data = folder.read("f")
            seen.add(data[:1] if data == data[:1] * size else b"torn")

    reader = threading.Thread(target=read)
    reader.start()
    for letter in b"bcdefgh" * 6:
        folder.write("f", bytes([letter]) * size, durable=False)
    stop.set()
    reader.join()
    assert b"torn" not in seen
    assert len(seen) > 1


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write("f", b"old")
    with pytest.raises(TypeError):
        folder.write("f", "text")  # type: ignore[arg-type]
    assert folder.read("f") == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_pruning_deletes_only_parts_of_our_own_making(folder: Folder) -> None:
    run = Run(folder)
    keep, stale = part_name("t", 0, "a" * 24), part_name("t", 1, "b" * 24)
    for name in (keep, stale, "t/mine.parquet", "t/part-1.parquet"):
        folder.write(name, b"x")
    run.prune("t", [keep])
    assert folder.names("t") == sorted(["mine.parquet", "part-1.parquet", keep.rsplit("/", 1)[-1]])


def test_a_table_that_is_not_committed_is_asked_for_by_name(folder: Folder) -> None:
    run = Run(folder)
    run.write("scores", "scores.parquet", pa.table({"x": [1]}), "f")
    assert run.is_fresh("scores", "f")
    assert not run.is_fresh("scores", "g")
    with pytest.raises(RecordingError, match=r"close names: 'scores'"):
        run.entry("score")
    with pytest.raises(ConfigError, match="not a run directory"):
        Run.open("memory://nowhere-at-all")


def test_a_kill_between_table_and_manifest_leaves_no_table_for_fresh(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(folder)
    run.write("concepts", "concepts.parquet", pa.table({"x": [1]}), "a")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            run.write("concepts", "concepts.parquet", pa.table({"x": [2]}), "b")
    assert not run.is_fresh("concepts", "a")
    assert not run.is_fresh("concepts", "b")


class FileServer(MemoryFileSystem):
    """A storage that shows a file while it is written, and does not rename over another."""

    protocol = "smb"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    broken = False

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        super().pipe_file(path, value[: len(value) // 2], mode, **more)
        if self.broken:
            raise OSError("the line was cut")
        super().pipe_file(path, value, mode, **more)

    def mv(self, path1: str, path2: str, **more: Any) -> None:
        if self.exists(path2):
            raise FileExistsError(path2)
        super().mv(path1, path2, **more)


def test_a_write_to_a_file_server_that_is_cut_off_leaves_no_part_of_a_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fsspec.register_implementation("smb", FileServer, clobber=True)
    folder = Folder("smb://server/run")
    folder.write("a/f", b"old content")
    folder.write("a/f", b"content")
    assert folder.create("a/g", b"made")
    monkeypatch.setattr(FileServer, "broken", True)
    for write in (folder.write, folder.create):
        with pytest.raises(OSError, match="line was cut"):
            write("a/new", b"never whole")
    with pytest.raises(OSError, match="line was cut"):
        folder.write("a/f", b"never whole")
    assert folder.read("a/f") == b"content"
    assert folder.names("a") == ["f", "g"]
    assert len(FileServer.store) == 2
