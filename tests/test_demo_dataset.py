"""The demo's data sets: complete, repeatable, and never half there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from core.errors import SourceError
from pipeline.demo.attributes import CONCEPTS, attributes
from pipeline.demo.dataset import draw, write_dataset
from pipeline.demo.scenes import render, scene_seed
from pipeline.demo.world import SIZE


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_data_set_has_its_pictures_and_the_truth_about_them(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", 12, seed=4)
    table = pq.read_table(tmp_path / "set" / "manifest.parquet")
    assert table.column_names == ["path", *CONCEPTS]
    for row in table.to_pylist():
        path = tmp_path / "set" / row.pop("path")
        picture, scene = render(scene_seed(4, int(path.stem)))
        assert {name for name, true in row.items() if true} == attributes(scene)
        with Image.open(path) as stored:
            assert (stored.format, stored.mode, stored.size) == ("JPEG", "RGB", (SIZE, SIZE))
            difference = np.asarray(stored, float) - np.asarray(picture, float)
        # Compression loses fine colour but no picture becomes another one.
        assert np.abs(difference).mean() < 20


def test_the_same_seed_gives_the_same_files_and_more_only_adds(tmp_path: Path) -> None:
    write_dataset(tmp_path / "one", 8, seed=9)
    write_dataset(tmp_path / "two", 8, seed=9)
    write_dataset(tmp_path / "more", 11, seed=9)
    write_dataset(tmp_path / "other", 8, seed=10)
    one, more, other = (contents(tmp_path / name) for name in ("one", "more", "other"))
    assert one == contents(tmp_path / "two")
    pictures = {name: data for name, data in one.items() if name.endswith(".jpg")}
    assert len(pictures) == 8
    assert pictures.items() <= more.items()
    assert not set(pictures.values()) & set(other.values())


def test_a_finished_data_set_is_left_alone_and_another_of_ours_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_dataset(folder, 5, seed=1)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    write_dataset(folder, 5, seed=1)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    write_dataset(folder, 3, seed=1)
    assert len(list((folder / "images").iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_folder_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SourceError, match="name another folder"):
        write_dataset(tmp_path, 3, seed=0)
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


def test_counts_and_seeds_out_of_range_are_refused(tmp_path: Path) -> None:
    for count, seed in ((0, 0), (100_001, 0), (1, -1)):
        with pytest.raises(ValueError, match="expected"):
            write_dataset(tmp_path / "set", count, seed)
    assert not (tmp_path / "set").exists()


def test_a_killed_writer_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    program = (
        "import sys; from pathlib import Path; from pipeline.demo.dataset import write_dataset\n"
        "write_dataset(Path(sys.argv[1]), 50_000, 0)"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(folder)])
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.rglob("*.jpg")):
            assert writer.poll() is None, "the writer ended before it wrote a picture"
            assert time.monotonic() < deadline, "no picture was written in a minute"
            time.sleep(0.05)
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    assert not folder.exists()
    write_dataset(folder, 2, seed=0)
    assert len(list((folder / "images").iterdir())) == 2


def test_drawing_is_the_same_in_any_number_of_processes() -> None:
    images, truth = draw(31, 505, 32)
    spread_images, spread_truth = draw(31, 505, 32, workers=2)
    np.testing.assert_array_equal(images, spread_images)
    np.testing.assert_array_equal(truth, spread_truth)
    true = attributes(render(scene_seed(31, 7))[1])
    assert {name for name, value in zip(CONCEPTS, truth[7], strict=True) if value} == true
