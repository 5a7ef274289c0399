"""Images and runs on S3: a real endpoint over HTTP on loopback, credentials from the environment alone."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from trouble import KEY, S3, SECRET, TESTS, environment, s3_endpoint, start, wait_for

from pipeline import planted
from pipeline.cli import main
from pipeline.fetching import fetch
from pipeline.images_config import ImagesConfig
from pipeline.rundir import Run
from pipeline.sources import read_index

FIRST, ALL, SHARD = 120, 180, 20
RUN = "s3://neurons/runs/one"
TABLES = ("images", "activations", "concept_scores/cells", "concepts", "explanations", "scores")

#: Two starts in one Ray: the second finds more images. What it prints are the exit codes.
TWICE = """
import shutil, sys
from pathlib import Path
from trouble import KEY, SECRET
from pipeline.cli import main
from pipeline.config import RayConfig
from pipeline.engine import engine
import s3fs
command, more = sys.argv[1].split("|"), Path(sys.argv[2])
with engine(RayConfig()):
    first = main(command)
    there = s3fs.S3FileSystem()
    for path in more.rglob("*.png"):
        there.put_file(str(path), f"neurons/data/{path.relative_to(more)}")
    print(first, main(command))
"""


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_endpoint() as endpoint:
        yield endpoint


def split_off(folder: Path) -> Path:
    """Put the later images into a folder of their own."""
    later = folder / "later"
    for path in sorted((folder / "images").rglob("*.png")):
        if int(path.stem) >= FIRST:
            target = later / path.relative_to(folder / "images")
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    return later


def config(folder: Path, images: str, name: str) -> Path:
    sections = planted.config(folder, recordings={"shard_size": SHARD}, images={"path": images})
    sections["fit"] = {"folds": 2, "max_length": 3}
    path = folder / name
    path.write_text(yaml.safe_dump(sections))
    return path


def contents(run: Run) -> dict[str, list[bytes]]:
    return {table: [run.folder.read(part) for part in run.parts(table)] for table in TABLES}


@pytest.fixture(scope="module")
def runs(s3: S3, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """A run on S3 that was killed, resumed and given more images; and a local one of all images."""
    folder = tmp_path_factory.mktemp("s3")
    planted.write_images(folder, ALL)
    local = config(folder, str(folder / "images"), "local.yaml")
    assert main(["run", str(local), "--out", str(folder / "run")]) == 3
    later = split_off(folder)
    s3.upload(folder / "images", "s3://neurons/data")
    remote = config(folder, "s3://neurons/data", "remote.yaml")

    process = start(remote, RUN, environment(), folder / "killed.txt")
    parts = Run(RUN).folder
    wait_for(lambda: parts.names("recordings/activations"), 90, "the first shard on S3", 0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    assert not parts.exists("manifest.json") or "atlas" not in Run(RUN).tables()

    command = "|".join(["run", str(remote), "--out", RUN])
    both = subprocess.run(
        [sys.executable, "-c", TWICE, command, str(later)],
        env=environment(),
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert both.stdout.splitlines()[-1:] == ["3 3"], both.stderr[-2000:]
    return Run.open(RUN), Run.open(folder / "run")


def test_a_run_on_s3_that_was_killed_and_grew_has_the_bits_of_a_local_one(
    runs: tuple[Run, Run],
) -> None:
    remote, local = runs
    assert contents(remote) == contents(local)
    assert remote.folder.names("work") == []
    assert not remote.folder.exists("lock.json")


def test_the_atlas_is_written_to_s3_whole(runs: tuple[Run, Run]) -> None:
    remote, local = (run.folder for run in runs)
    files = local.names("atlas")
    assert remote.names("atlas") == files
    assert "index.html" in files
    assert remote.names("atlas/images") == local.names("atlas/images")


def test_commands_read_runs_on_s3(
    runs: tuple[Run, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remote, local = (run.folder.url for run in runs)
    assert main(["status", remote, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"]["report"]["state"] == "done"
    for command in (["show", "RUN", "neurons:3"], ["search", "RUN", "concept 7"]):
        shown = []
        for url in (remote, local):
            assert main([word.replace("RUN", url) for word in command]) == 0
            shown.append(capsys.readouterr().out)
        assert shown[0] == shown[1]
    assert main(["diff", remote, local]) == 0
    assert "0 " in capsys.readouterr().out
    assert main(["export", remote]) == 0
    assert main(["export", local, "--out", str(tmp_path / "csv")]) == 0
    exported = Run(remote).folder.names("export")
    assert exported == sorted(path.name for path in (tmp_path / "csv").iterdir())
    assert exported


@pytest.fixture(scope="module")
def sources(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same small images as class folders, tars, Parquet and a manifest, here and on S3."""
    folder = tmp_path_factory.mktemp("sources")
    planted.write_images(folder / "folder", 30)
    (folder / "folder/concepts.parquet").unlink()
    paths = sorted((folder / "folder").rglob("*.png"))
    for name in ("tars", "parquet", "manifest"):
        (folder / name).mkdir()
    for number in range(2):
        with tarfile.open(folder / f"tars/{number}.tar", "w") as tar:
            for path in paths[number::2]:
                for suffix, data in ((".png", path.read_bytes()), (".cls", b"a")):
                    facts = tarfile.TarInfo(path.stem + suffix)
                    facts.size = len(data)
                    tar.addfile(facts, io.BytesIO(data))
    rows = pa.table({"image": [path.read_bytes() for path in paths], "kind": ["a"] * len(paths)})
    pq.write_table(rows, folder / "parquet/rows.parquet", row_group_size=10)
    listed = [f"../folder/{path.relative_to(folder / 'folder')}" for path in paths]
    here = pa.table({"path": [p.removeprefix("../folder/") for p in listed], "kind": ["a"] * 30})
    pq.write_table(here, folder / "folder/list.parquet")
    s3.upload(folder, "s3://neurons/sources")
    return folder


@pytest.mark.parametrize(
    ("where", "settings"),
    [
        ("folder/images", {}),
        ("tars", {"label": "cls"}),
        ("parquet", {"label": "kind"}),
        ("folder/list.parquet", {"format": "manifest", "label": "kind"}),
    ],
)
def test_every_kind_of_source_is_the_same_on_s3(
    sources: Path, where: str, settings: dict[str, str]
) -> None:
    index = {
        base: read_index(ImagesConfig.model_validate({"path": f"{base}/{where}", **settings}))
        for base in (str(sources), "s3://neurons/sources")
    }
    local, remote = (found.rows for found in index.values())
    assert local.num_rows == remote.num_rows == 30
    same = ["image_id", "path", "label", "split", "offset", "length"]
    assert remote.select(same).equals(local.select(same))
    for mine, theirs in list(zip(local.to_pylist(), remote.to_pylist(), strict=True))[::7]:
        assert theirs["url"].startswith("s3://neurons/sources/")
        assert fetch(mine) == fetch(theirs)


def test_an_image_that_is_put_anew_on_s3_has_another_stamp(s3: S3, sources: Path) -> None:
    where = ImagesConfig.model_validate({"path": "s3://neurons/sources/folder/images"})
    before = read_index(where).rows["stamp"].to_pylist()
    picture = sources / "folder/images/even/00000.png"
    picture.write_bytes((sources / "folder/images/even/00002.png").read_bytes())
    s3.upload(sources / "folder/images/even", "s3://neurons/sources/folder/images/even")
    after = read_index(where).rows["stamp"].to_pylist()
    assert [a == b for a, b in zip(before, after, strict=True)].count(False) == 1


def test_no_credential_lies_in_a_run_on_s3(runs: tuple[Run, Run]) -> None:
    import s3fs

    there = s3fs.S3FileSystem()
    files = there.find("neurons/runs")
    assert len(files) > 50
    for path in files:
        data = there.cat_file(path)
        assert KEY.encode() not in data
        assert SECRET.encode() not in data, path
