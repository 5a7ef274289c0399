"""Moments that are taken while images are recorded, with rows of test images alone on disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml

import pipeline.lanes
import pipeline.moment_files
import pipeline.moments
import pipeline.pilot
import pipeline.sharpen
from core.errors import ConfigError
from core.sharpness import Sharpness
from pipeline import planted as planted_network
from pipeline.cli import main
from pipeline.columns import matrix
from pipeline.config import parse_config
from pipeline.engine import Workers
from pipeline.expected import STAGES, Expected, made_by
from pipeline.fused import refuse_beyond_memory
from pipeline.pilot import Pilot
from pipeline.planning import prepare
from pipeline.run import execute
from pipeline.rundir import Run
from pipeline.scores import explainer_source, read_rows, shards_of
from pipeline.targets import columns_of

TESTS = Path(__file__).parent
MODELS = TESTS.parent / "pipeline/demo/models"
IMAGES, SHARD, LANE, WAVE = 200, 10, 8, 2
GRID = (Sharpness(1.5, 1.0), Sharpness(0.5, 1.0))
TO_MOMENTS, TO_SCORES = STAGES[: STAGES.index("fit")], STAGES[: STAGES.index("simulate") + 1]
RESULTS = ("paths", "explanations", "scores", "sharpness", "degenerate_concepts", "quarantine")
RECORDED = ("activations", "embeddings/clip", "embeddings/clip-b", "concept_scores/cells")

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module", autouse=True)
def short_lanes() -> Iterator[None]:
    """Lanes of 8, 8 and 4 shards, the first two added up at a time, and two sharpnesses to try: what
    is decided in this process alone."""
    patch = pytest.MonkeyPatch()
    patch.setattr(pipeline.moment_files, "LANE", LANE)
    patch.setattr(pipeline.moment_files, "WAVE", WAVE)
    patch.setattr(pipeline.sharpen, "GRID", GRID)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fused")
    planted_network.write_images(path, IMAGES)
    (path / "list.txt").write_text("a red circle\na blue square\na green triangle\nstripes\ndots\n")
    return path


@pytest.fixture(scope="module")
def bad(folder: Path) -> str:
    """An image of the training split that cannot be read."""
    index = prepare(parse_config(sections(folder), base=TESTS)).index.rows
    image_id: str = index.filter(pc.equal(index["split"], "train"))["image_id"][7].as_py()
    (folder / "images" / image_id).write_bytes(b"not an image")
    return image_id


def sections(folder: Path, keep: str = "all", **more: Any) -> dict[str, Any]:
    """Table and model as explainers, and a simulator."""
    calibration = {"a": 8.0, "b": 0.05}
    base = planted_network.config(folder)
    clip = {
        "name": "clip",
        "kind": "open_clip",
        "model": f"local-dir:{MODELS / 'explainer'}",
        "concepts": str(folder / "list.txt"),
        "calibration": calibration,
    }
    simulator = {"name": "clip-b", "model": f"local-dir:{MODELS / 'simulator'}"}
    return {
        **base,
        "concepts": [*base["concepts"], clip],  # type: ignore[misc]
        "simulators": [simulator | {"calibration": calibration}],
        "recordings": {"shard_size": SHARD, "keep": keep},
        "fit": {"folds": 2, "max_length": 4},
    } | more


def carried_out(
    folder: Path, out: Path, keep: str, stages: Sequence[str] = TO_MOMENTS, **more: Any
) -> Run:
    execute(parse_config(sections(folder, keep, **more), base=TESTS), out, stages)
    return Run.open(out)


@pytest.fixture(scope="module")
def stored(folder: Path, bad: str) -> Run:
    return carried_out(folder, folder / "stored", "all", TO_SCORES)


@pytest.fixture(scope="module")
def fused(folder: Path, bad: str) -> Run:
    return carried_out(folder, folder / "fused", "test", TO_SCORES)


def moments(run: Run) -> dict[str, dict[str, np.ndarray]]:
    """Arrays of all moments, by explainer and place."""
    found = {}
    for explainer in ("cells", "clip"):
        path = f"moments/{explainer}"
        contents = run.folder.read_arrays(run.parts(path)[0])
        found[explainer] = {"positions": contents["positions"], "concepts": contents["concepts"]}
        for number, file in enumerate(contents["files"]):
            found[f"{explainer}/{number}"] = run.folder.read_arrays(f"{path}/{file}")
    return found


def assert_same_bits(ours: Run, theirs: Run) -> None:
    for table in RESULTS:
        assert ours.read(table).equals(theirs.read(table)), table
    found, expected = moments(ours), moments(theirs)
    assert found.keys() == expected.keys()
    for name, arrays in expected.items():
        for field, values in arrays.items():
            assert found[name][field].tobytes() == values.tobytes(), (name, field)


def rows(table: pa.Table) -> list[tuple[str, bytes]]:
    """Ids and the bytes of the vectors: where a neuron fails, vectors with NaN are equal too."""
    (column,) = (name for name in table.column_names if name != "image_id")
    return list(
        zip(
            table["image_id"].to_pylist(),
            map(np.ndarray.tobytes, matrix(table[column])),
            strict=True,
        )
    )


def all_bytes(run: Run) -> dict[str, bytes]:
    """Content of all files of the tables that are there when the moments are taken."""
    made = [table for table in run.tables() if made_by(table) in TO_MOMENTS]
    assert any(table.startswith("moments") for table in made)
    return {part: run.folder.read(part) for table in made for part in run.parts(table)}


def test_explanations_and_moments_are_the_bits_of_the_stored_path(stored: Run, fused: Run) -> None:
    assert_same_bits(fused, stored)
    chosen = stored.read("sharpness").filter(pc.field("chosen"))
    assert set(chosen["shift"].to_pylist()) == {0.0, 1.0}, (
        "a model's scores are shifted, and no label"
    )
    assert any(f != 1.0 for f in chosen["factor"].to_pylist()), "no layer's sharpness was chosen"


def test_what_the_pilot_recorded_is_not_looked_at_again(
    stored: Run, folder: Path, bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "images", tmp_path / "images")
    images = tmp_path / "images"
    for name in ("concepts.parquet", "list.txt"):
        shutil.copy(folder / name, tmp_path)
    decide, gone = Pilot.decide, []

    def then_remove_its_images(pilot: Pilot, expected: Expected) -> None:
        decide(pilot, expected)
        for row in prepare(parse_config(sections(tmp_path), base=TESTS)).index.rows.to_pylist():
            if row["split"] != "test":
                (images / row["image_id"]).unlink()
                gone.append(row["image_id"])

    monkeypatch.setattr(Pilot, "decide", then_remove_its_images)
    run = carried_out(tmp_path, tmp_path / "run", "test", TO_SCORES)
    assert len(gone) > 100
    assert bad in gone
    for table in set(RESULTS) - {"quarantine"}:
        assert run.read(table).equals(stored.read(table)), table
    assert run.read("quarantine")["image_id"].to_pylist() == [bad]


def test_a_pilot_that_is_a_small_part_is_recorded_again_to_the_same_bits(
    stored: Run, folder: Path, bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.pilot, "REUSED", float("inf"))
    assert_same_bits(carried_out(folder, tmp_path, "test", TO_SCORES), stored)


def test_only_rows_of_test_images_are_on_disk(stored: Run, fused: Run) -> None:
    images = stored.read("images")
    assert fused.read("images").equals(images)
    test = pc.equal(images["split"], "test")
    for table in RECORDED:
        kept = fused.read(table)
        assert rows(kept) == rows(stored.read(table).filter(test)), table
        assert fused.entry(table).rows == kept.num_rows < 0.3 * images.num_rows
    files = [p for p in Path(fused.folder.path("recordings")).rglob("*") if p.is_file()]
    known = {fused.folder.path(part) for t in fused.tables() for part in fused.parts(t)}
    known |= {str(p) for p in Path(fused.folder.path("recordings/quarantine")).iterdir()}
    assert {str(p) for p in files if p.suffix != ".npz"} <= known
    texts = Path(fused.folder.path("recordings/texts"))
    assert {p.parent for p in files if p.suffix == ".npz"} == {texts}


def test_a_bad_training_image_is_quarantined_and_left_out(
    stored: Run, fused: Run, bad: str
) -> None:
    for run in (stored, fused):
        assert run.read("quarantine")["image_id"].to_pylist() == [bad]
        assert bad not in run.read("images")["image_id"].to_pylist()
    counts = [int(arrays["count"]) for name, arrays in moments(fused).items() if "count" in arrays]
    splits = fused.read("images")["split"].to_pylist()
    assert sum(counts[:3]) == splits.count("train") + splits.count("val")


@pytest.mark.parametrize("least", [1, 37, 100_000])
def test_rows_are_multiplied_in_the_batches_of_the_stored_path(
    stored: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    monkeypatch.setattr(pipeline.moments, "ROWS", least)
    monkeypatch.setattr(pipeline.lanes, "ROWS", least)
    plan = prepare(parse_config(sections(folder), base=TESTS))
    shards = shards_of(stored, plan)
    source = explainer_source(stored, plan, plan.explainers[0])
    parts, columns, numbers = stored.parts("activations"), ["act.neurons.avg"], range(3, 19)
    batches = pipeline.lanes.Batches(shards.subsets)
    found: dict[str, list[dict[str, np.ndarray]]] = {subset: [] for subset in shards.subsets}
    for number in numbers:
        read = read_rows(stored.folder, shards, number, source.parts[number], ["score"])
        read |= read_rows(stored.folder, shards, number, parts[number], columns)
        masks = {s: shards.rows(stored.folder, number, s) for s in shards.subsets}
        for subset, batch in batches.add(read, masks, number == numbers[-1]):
            found[subset].append(batch)
    for subset in shards.subsets:
        expected = list(
            pipeline.moments._batches(
                stored.folder, shards, numbers, source, parts, columns, subset
            )
        )
        assert len(expected) == len(found[subset])
        for ours, theirs in zip(found[subset], expected, strict=True):
            assert ours.keys() == theirs.keys()
            for name, values in theirs.items():
                np.testing.assert_array_equal(ours[name], values)


def test_a_second_start_records_nothing(fused: Run, folder: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in Path(fused.folder.url).rglob("part-*")}
    carried_out(folder, Path(fused.folder.url), "test", TO_SCORES)
    assert {p: p.stat().st_mtime_ns for p in Path(fused.folder.url).rglob("part-*")} == before


def test_two_actors_of_which_one_is_killed_give_the_bits_of_one(
    fused: Run, folder: Path, tmp_path: Path
) -> None:
    from ray._private.state import actors

    out = tmp_path / "run"
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not killed:
            time.sleep(0.05)
            if not any((out / "recordings/activations").glob("part-*")):
                continue
            alive = (a for a in actors().values() if a["State"] == "ALIVE")
            for actor in [a for a in alive if a["ActorClassName"] == "RecordLane"][:1]:
                os.kill(int(actor["Pid"]), signal.SIGKILL)
                killed.append(actor["Pid"])

    thread = threading.Thread(target=kill)
    thread.start()
    other = carried_out(folder, out, "test", ray={"actors": 2})
    thread.join()
    assert killed
    assert all_bytes(other) == all_bytes(fused)


def wait_for(out: Path, files: str, count: int, ended: Callable[[], bool]) -> None:
    """Wait until so many files are there."""
    deadline = time.monotonic() + 300
    while len(list(out.glob(files))) < count:
        assert not ended(), "it ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_that_is_stopped_and_killed_goes_on_to_the_same_bits(
    fused: Run, folder: Path, tmp_path: Path
) -> None:
    out, config = tmp_path / "run", tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(sections(folder, "test")))
    command = ["run", str(config), "--out", str(out)]
    parts = "recordings/activations/part-*"
    over = threading.Event()

    def stop() -> None:
        wait_for(out, parts, 3, over.is_set)
        os.kill(os.getpid(), signal.SIGTERM)

    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(stop)
        try:
            assert main(command) == 75
        finally:
            over.set()
        stopping.result()
    survivors = {p: p.stat().st_mtime_ns for p in out.glob(parts)}

    program = (
        "import sys, pipeline.moment_files as files, pipeline.sharpen as sharpen; "
        f"files.LANE, files.WAVE = {LANE}, {WAVE}; "
        f"sharpen.GRID = [sharpen.Sharpness(*pair) for pair in {[tuple(one) for one in GRID]}]; "
        "from pipeline.cli import main; sys.exit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *command],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    wait_for(out, "moments/clip/part-000002-*", 1, lambda: process.poll() is not None)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(timeout=120) == -signal.SIGKILL
    survivors = {p: p.stat().st_mtime_ns for p in out.glob(parts)} | survivors
    assert "moments/clip" not in Run(out).tables()

    other = carried_out(folder, out, "test")
    assert all_bytes(other) == all_bytes(fused)
    for path, stamp in survivors.items():
        assert path.stat().st_mtime_ns == stamp, "a finished part was written again"
    recorded = other.ledger()["stages"]["record"]["rows"]
    assert recorded <= IMAGES - WAVE * LANE * SHARD, "a lane that is in a total was recorded again"


def test_another_choice_of_what_is_kept_takes_nothing_for_fresh(
    stored: Run, fused: Run, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(stored.folder.url, tmp_path / "run")
    assert all_bytes(carried_out(folder, tmp_path / "run", "test")) == all_bytes(fused)
    for table in (*RECORDED, "concepts", "sharpness", "moments/cells", "moments/clip"):
        assert stored.entry(table).fingerprint != fused.entry(table).fingerprint
        assert stored.entry(table).path.endswith(".parquet") or not (
            set(stored.parts(table)) & set(fused.parts(table))
        )


def test_another_simulator_looks_at_test_images_alone(
    fused: Run, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(fused.folder.url, out)
    taken = all_bytes(fused)
    simulators = sections(folder)["simulators"]
    more = [*simulators, simulators[0] | {"name": "third"}]
    run = carried_out(folder, out, "test", simulators=more)
    tests = fused.entry("activations").rows
    assert run.entry("embeddings/third").rows == tests
    assert run.read("embeddings/third").equals(run.read("embeddings/clip-b"))
    assert run.ledger()["stages"]["record"]["rows"] == tests
    assert {part: data for part, data in all_bytes(run).items() if "moments" in part} == {
        part: data for part, data in taken.items() if "moments" in part
    }


def test_a_stage_that_would_need_images_asks_for_the_record_stage(
    fused: Run, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(fused.folder.url, out)
    config = parse_config(sections(folder, "test", fit={"folds": 3}), base=TESTS)
    with pytest.raises(ConfigError, match="add --stage record"):
        execute(config, out, ["moments"])


def test_moments_are_read_by_their_own_contents_while_those_of_other_settings_are_there(
    fused: Run, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(fused.folder.url, out)
    # Other settings of which all sums are there: a stage `record` alone, and back with other lengths.
    fit = {"folds": 2, "max_length": 4}
    other = carried_out(folder, out, "test", ["record"], fit=fit | {"max_concepts": 19_999})
    assert not [table for table in other.tables() if table.startswith("moments/")]
    back = carried_out(folder, out, "test", TO_SCORES, fit=fit | {"max_length": 3})
    assert moments(back).keys() == moments(fused).keys()
    assert max(back.read("paths")["length"].to_pylist()) == 3
    for explainer in ("cells", "clip"):
        arrays = fused.folder.read_arrays(fused.parts(f"moments/{explainer}")[0])
        first = f"moments/{explainer}/part-000000-{0:012d}.npz"
        back.folder.write_arrays(first, **(arrays | {"files": arrays["files"][:-1]}))
    plan = prepare(parse_config(sections(folder, "test"), base=TESTS))
    for explainer in plan.explainers:
        stored = pipeline.moments.StoredMoments(back, plan, explainer)
        (column,) = columns_of(plan)
        assert set(stored.cross(column)) == set(shards_of(back, plan).subsets)


def test_sums_beyond_memory_are_refused_before_work(folder: Path, bad: str) -> None:
    plan = prepare(parse_config(sections(folder, "test"), base=TESTS))
    workers = Workers(actors=1, gpus=0.0, per_node=1)
    with pytest.raises(ConfigError, match=r"fit\.folds \(2\) or fit\.max_concepts \(20,000\)"):
        refuse_beyond_memory(plan, workers, 2**50)
    refuse_beyond_memory(plan, workers, 2**20)
