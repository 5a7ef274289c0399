"""A store that runs share: the same tables as without, nothing recorded twice, nothing deleted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import planted
from pipeline.config import Config, parse_config
from pipeline.expected import STAGES
from pipeline.run import execute
from pipeline.rundir import Run
from pipeline.storage import Folder

TESTS = Path(__file__).parent
MODELS = TESTS.parent / "pipeline/demo/models"
IMAGES = 150
NETWORKS = ("python:pipeline.planted:network", "python:planted_cells:network")
WORDS = ["circle", "square", "triangle", "grey", "noise", "dark", "bright", "cells"]
UP_TO_FIT = STAGES[: STAGES.index("fit") + 1]
SHARED = ["images", "embeddings/clip", "embeddings/other", "concept_scores/clip"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store")
    planted.write_images(path, IMAGES)
    (path / "images" / "odd" / "broken.png").write_bytes(b"no picture")
    (path / "words.txt").write_text("\n".join(WORDS))
    return path


def config(folder: Path, network: str, store: Path | None, **sections: Any) -> Config:
    explainer: dict[str, Any] = {
        "name": "clip",
        "kind": "open_clip",
        "model": f"local-dir:{MODELS / 'explainer'}",
        "concepts": str(folder / "words.txt"),
        "calibration": {"a": 8.0, "b": 0.5},
    }
    settings = planted.config(folder) | {
        "target": {"model": network, "layers": ["neurons"], "dtype": "float32"},
        "concepts": [{"name": "label", "kind": "labels"}, explainer],
        "simulators": [{"name": "other", "model": f"local-dir:{MODELS / 'simulator'}"}],
        "recordings": {"shard_size": 40, "max_quarantined": 0.5},
        "fit": {"folds": 2, "max_length": 3, "sharpness": 0.5},
        "atlas": {"images": False},
        "store": None if store is None else str(store),
    }
    return parse_config(settings | sections, base=TESTS)


def files_of(store: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def alone(folder: Path, local_ray: None) -> dict[str, Run]:
    """A run of each network that shares nothing."""
    for number, network in enumerate(NETWORKS):
        execute(config(folder, network, None), folder / f"alone{number}", UP_TO_FIT)
    return {network: Run.open(folder / f"alone{n}") for n, network in enumerate(NETWORKS)}


@pytest.fixture(scope="module")
def shared(folder: Path, alone: dict[str, Run]) -> dict[str, Run]:
    """A run of each network, one after the other, with one store."""
    store = folder / "store"
    execute(config(folder, NETWORKS[0], store), folder / "shared0", UP_TO_FIT)
    before = files_of(store)
    execute(config(folder, NETWORKS[1], store), folder / "shared1", UP_TO_FIT)
    (folder / "before.json").write_text(json.dumps([str(path) for path in before]))
    assert {path: files_of(store)[path] for path in before} == before
    return {network: Run.open(folder / f"shared{n}") for n, network in enumerate(NETWORKS)}


@pytest.mark.parametrize("network", NETWORKS)
def test_runs_that_share_a_store_have_the_tables_of_runs_that_do_not(
    alone: dict[str, Run], shared: dict[str, Run], network: str
) -> None:
    ours, theirs = shared[network], alone[network]
    assert {n: e.fingerprint for n, e in ours.tables().items()} == {
        n: e.fingerprint for n, e in theirs.tables().items()
    }
    for name in theirs.tables():
        if name.partition("/")[0] in ("moments", "atlas"):
            continue
        # As text, in which one NaN is like another.
        assert str(ours.read(name).to_pylist()) == str(theirs.read(name).to_pylist()), name
    assert ours.read("quarantine")["image_id"].to_pylist() == ["odd/broken.png"]


def test_a_second_network_records_its_own_activations_alone(
    folder: Path, shared: dict[str, Run]
) -> None:
    first = set(json.loads((folder / "before.json").read_text()))
    added = {str(path.relative_to(folder / "store")) for path in files_of(folder / "store")} - {
        str(Path(name).relative_to(folder / "store")) for name in first
    }
    assert not added
    second = shared[NETWORKS[1]]
    own = {path.name for path in Path(second.folder.path("recordings")).iterdir() if path.is_dir()}
    assert "activations" in own
    assert not list(Path(second.folder.path("recordings")).glob("embeddings/*/part-*"))


def test_concept_moments_are_summed_once(shared: dict[str, Run]) -> None:
    first, second = (run.ledger()["stages"]["moments"]["blocks"] for run in shared.values())
    # Two explainers, three subsets: the concepts with each other, and with the one layer.
    assert (first, second) == (12, 6)


@pytest.mark.parametrize("name", SHARED)
def test_the_manifest_says_where_shared_tables_lie_and_which_files_are_theirs(
    folder: Path, shared: dict[str, Run], name: str
) -> None:
    run = Path(shared[NETWORKS[1]].folder.url)
    entry = json.loads((run / "manifest.json").read_text())["tables"][name]
    place = run / entry["path"]
    assert place.is_relative_to(folder / "store")
    parts = json.loads((run / entry["files"]).read_text())
    assert sum(pq.read_metadata(place / part).num_rows for part in parts) == entry["rows"] == IMAGES


def test_a_store_that_is_added_or_left_out_later_takes_the_recordings_along(
    folder: Path, alone: dict[str, Run], tmp_path: Path
) -> None:
    network, upto = NETWORKS[0], STAGES[: STAGES.index("moments") + 1]
    out, store = tmp_path / "run", tmp_path / "store"
    shutil.copytree(alone[network].folder.url, out)
    for place, parts in ((None, True), (store, False), (None, True)):
        execute(config(folder, network, place), out, upto)
        run = Run.open(out)
        for name in SHARED:
            assert bool(list(out.glob(f"recordings/{name}/part-*"))) == parts
            assert run.read(name).equals(alone[network].read(name))
        if place is None and not store.exists():
            rows = run.ledger()["stages"]["record"]["rows"]
    assert run.ledger()["stages"]["record"]["rows"] == rows == IMAGES
    kept = {path.relative_to(store).parts[0] for path in files_of(store)}
    assert {"images", "embeddings", "concept_scores", "quarantine"} <= kept


def test_a_quarantine_goes_along_so_that_no_image_is_decoded_again(
    folder: Path, alone: dict[str, Run], tmp_path: Path
) -> None:
    shutil.copytree(folder / "images", tmp_path / "images")
    shutil.copy(folder / "words.txt", tmp_path)
    stores = [tmp_path / "store", tmp_path / "another", None, tmp_path / "store"]
    for number, store in enumerate(stores):
        execute(config(tmp_path, NETWORKS[0], store), tmp_path / "run", ["record"])
        run = Run.open(tmp_path / "run")
        assert run.read("quarantine")["image_id"].to_pylist() == ["odd/broken.png"]
        assert run.read("images").num_rows == IMAGES
        if not number:  # spoilt behind the run's back, which shows if they are decoded again
            for path in (tmp_path / "images").rglob("*.png"):
                facts = path.stat()
                path.write_bytes(bytes(facts.st_size))
                os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert not list((tmp_path / "run/recordings/quarantine").glob("part-*"))


def test_runs_with_other_images_leave_those_of_others_in_the_store(
    folder: Path, shared: dict[str, Run]
) -> None:
    store = folder / "store"
    before = files_of(store)
    fewer = {"images": {"path": str(folder / "images"), "limit": 100}}
    upto = STAGES[: STAGES.index("concepts") + 1]
    execute(config(folder, NETWORKS[1], store, **fewer), folder / "fewer", upto)
    assert {path: files_of(store)[path] for path in before} == before
    run = Run.open(folder / "fewer")
    assert run.read("embeddings/clip").num_rows == run.read("images").num_rows == 100
    whole = shared[NETWORKS[1]].read("embeddings/clip")
    assert run.read("embeddings/clip").equals(whole.slice(0, 100))


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from pipeline.run import execute
from test_store import config
execute(config(Path({folder!r}), {network!r}, Path({store!r})), {out!r}, ["record", "concepts"])
"""


def test_two_runs_may_fill_a_store_at_once(
    folder: Path, alone: dict[str, Run], tmp_path: Path
) -> None:
    facts = {"tests": str(TESTS), "folder": str(folder), "store": str(tmp_path / "store")}
    programs = [
        PROGRAM.format(**facts, network=network, out=str(tmp_path / str(n)))
        for n, network in enumerate(NETWORKS)
    ]
    begun = [subprocess.Popen([sys.executable, "-c", program]) for program in programs]
    assert [process.wait(timeout=240) for process in begun] == [0, 0]
    for number, network in enumerate(NETWORKS):
        run = Run.open(tmp_path / str(number))
        for name in (*SHARED, "activations", "quarantine"):
            ours, theirs = run.read(name), alone[network].read(name)
            assert str(ours.to_pylist()) == str(theirs.to_pylist()), name


def test_a_file_is_created_by_one_of_many_writers(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert folder.create("deep/er/file", b"first")
    assert not folder.create("deep/er/file", b"second")
    assert folder.read("deep/er/file") == b"first"
    assert [p.name for p in (tmp_path / "deep/er").iterdir()] == ["file"]


def test_copies_outlive_what_they_were_made_from(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "here")
    folder.write("a", b"content")
    there = str(tmp_path / "there" / "b")
    folder.copy("a", there)
    folder.write("a", b"changed")
    folder.delete("a")
    assert folder.read(there) == b"content"
    memory = "memory://copies/c"
    folder.copy(there, memory)
    assert Folder("memory://copies").read("c") == folder.read(memory) == b"content"
