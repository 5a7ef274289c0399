"""Redoing stages that are fresh: the same result, made anew, and nobody else's files touched."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline import planted
from pipeline.cli import main
from pipeline.rundir import Run


def stamps(run: Path, *folders: str) -> dict[str, int]:
    files = [path for folder in folders for path in (run / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in files}


@pytest.fixture(scope="module")
def finished(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run through the fit, beside which somebody has put files of their own."""
    folder = tmp_path_factory.mktemp("forced")
    planted.write_images(folder, 300)
    (folder / "config.yaml").write_text(yaml.safe_dump(planted.config(folder)))
    stages = ["record", "concepts", "sharpen", "moments", "fit"]
    assert run_again(folder, "--stage", *stages) == 3
    for place in (
        "notes.txt",
        "my.parquet",
        "recordings/activations/mine.parquet",
        "recordings/activations/part-of-mine.parquet",
        "recordings/texts/mine.npz",
        "moments/cells/part-000000.npz",
        "work/paths/mine.txt",
    ):
        (folder / "run" / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / "run" / place).write_text("mine")
    return folder


def run_again(folder: Path, *arguments: str) -> int:
    return main(["run", str(folder / "config.yaml"), "--out", str(folder / "run"), *arguments])


def mine(folder: Path) -> list[str]:
    found = [p for p in (folder / "run").rglob("*") if p.is_file() and p.stat().st_size == 4]
    return sorted(str(p.relative_to(folder)) for p in found if p.read_bytes() == b"mine")


def test_without_force_nothing_is_done_again(finished: Path) -> None:
    run = finished / "run"
    before = stamps(run, "recordings", "moments")
    assert run_again(finished, "--stage", "record", "concepts", "moments", "fit") == 3
    assert stamps(run, "recordings", "moments") == before


def test_a_forced_stage_is_made_anew_with_the_same_bits_and_others_stay(finished: Path) -> None:
    run = finished / "run"
    kept = mine(finished)
    assert len(kept) == 7
    others, own = stamps(run, "moments", "recordings/images"), stamps(run, "recordings/activations")
    tables = Run.open(run).tables()
    content = {name: (run / name).read_bytes() for name in own}
    assert run_again(finished, "--stage", "record", "--force") == 3
    again = stamps(run, "recordings/activations")
    assert again.keys() == own.keys()
    made = [name for name in own if Path(name).name.count("-") == 2 and "mine" not in name]
    assert made
    assert all(again[name] > own[name] for name in made)
    assert {name: (run / name).read_bytes() for name in again} == content
    assert Run.open(run).tables() == tables
    moments = stamps(run, "moments")
    assert moments == {name: stamp for name, stamp in others.items() if name in moments}
    assert mine(finished) == kept


def test_all_stages_can_be_forced_and_leave_what_is_not_theirs(finished: Path) -> None:
    run = finished / "run"
    kept = mine(finished)
    explanations = Run.open(run).read("explanations")
    before = stamps(run, "moments")
    stages = ["record", "concepts", "sharpen", "moments", "fit"]
    assert run_again(finished, "--stage", *stages, "--force") == 3
    after = stamps(run, "moments")
    assert any(after[name] > before[name] for name in before)
    assert Run.open(run).read("explanations").equals(explanations)
    assert mine(finished) == kept
