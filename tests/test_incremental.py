"""Runs that grow: more images, layers and concepts cost what is new, and give the bits of a fresh run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.moment_files
from core.moments import ConceptMoments, CrossMoments
from pipeline import planted as planted_network
from pipeline.config import parse_config
from pipeline.expected import STAGES
from pipeline.fingerprints import fingerprint
from pipeline.moment_files import Block, Layout, lanes_of, read_moments, waves_of
from pipeline.moments import BlockSums, outputs_of
from pipeline.run import execute
from pipeline.rundir import Run
from pipeline.running_totals import _addition, _fold
from pipeline.targets import Column

TESTS = Path(__file__).parent
MODELS = TESTS.parent / "pipeline/demo/models"
IMAGES, FEWER, SHARD, LANE, WAVE = 200, 130, 10, 3, 2
TEXTS = ["a red circle", "stripes", "a blue square", "dots", "a green triangle", "noise"]
SUBSETS = 3


@pytest.fixture(scope="module", autouse=True)
def short_lanes() -> Iterator[None]:
    """Lanes of 3, 3, 3, 3, 6, 6, … shards, in waves of two; decided in this process alone."""
    patch = pytest.MonkeyPatch()
    patch.setattr(pipeline.moment_files, "LANE", LANE)
    patch.setattr(pipeline.moment_files, "WAVE", WAVE)
    yield
    patch.undo()


# Names and sums without a run: shards and concepts are made from their own names ----------------

NEURONS = Column("layer", "avg", 2)


def scores_of(shard: str, concepts: Sequence[str]) -> np.ndarray:
    """Scores of a concept are a function of its name and the shard's."""
    size = 5 + sum(map(ord, shard)) % 7
    return np.stack(
        [np.random.default_rng([*map(ord, shard + concept)]).random(size) for concept in concepts],
        axis=1,
    ).astype(np.float32)


def activations_of(shard: str) -> np.ndarray:
    return scores_of(shard, ["neuron 0", "neuron 1"])


def layout(shards: Sequence[str], concepts: Sequence[str], origin: str = "made") -> Layout:
    blocks = [Block(1.0, "val", None), Block(1.0, "val", NEURONS)]
    made = fingerprint(shards, concepts, origin)[:12]
    return Layout(
        "moments/e",
        f"moments/e/part-000000-{made}.npz",
        np.arange(len(concepts)),
        list(concepts),
        blocks,
        [fingerprint(origin, n) for n in range(len(blocks))],
        list(shards),
    )


def sum_up(run: Run, wanted: Layout, steps: int = 1_000) -> list[tuple[int, int, int]]:
    """Sum what is lacking as the stages do, and stop after some steps.

    Returns:
        For each lane that was summed its number, the block's, and how many concepts were looked at.
    """
    stretches = wanted.lacking(run)
    there = wanted.summed(run)
    run.folder.write_arrays(wanted.contents, **wanted.arrays())
    summed: list[tuple[int, int, int]] = []
    for wave in waves_of(stretches):
        for lane in wave:
            for name, block, new in outputs_of(stretches, lane, there):
                if (steps := steps - 1) < 0:
                    return summed
                sums = BlockSums(len(wanted.concepts), [(block, new)])
                for number in wanted.lanes[lane]:
                    shard = wanted.shards[number]
                    rows = {NEURONS.name: activations_of(shard)}
                    sums.add("val", 1.0, scores_of(shard, wanted.concepts), rows)
                sums.write(run.folder, [name])
                concepts = len(wanted.concepts) if new is None else len(new)
                summed.append((lane, wanted.blocks.index(block), concepts))
        for addition in (a for s in stretches if (a := _addition(s, wave)) is not None):
            if (steps := steps - 1) < 0:
                return summed
            _fold(run.folder, addition)
    run.prune(wanted.path, wanted.lasting)
    run.prune(f"{wanted.path}/lanes", [])
    return summed


def fields(moments: ConceptMoments | CrossMoments) -> dict[str, bytes]:
    names = type(moments).__dataclass_fields__
    return {name: np.asarray(getattr(moments, name)).tobytes() for name in names}


def assert_as_fresh(run: Run, wanted: Layout, folder: Path) -> None:
    """The totals are the bits of one pass, the lasting ones and no others are there."""
    fresh = Run(folder / fingerprint(wanted.shards, wanted.concepts))
    sum_up(fresh, wanted)
    assert set(run.part_files(wanted.path)) == set(fresh.part_files(wanted.path))
    assert not run.part_files(f"{wanted.path}/lanes")
    for name in wanted.names:
        ours, theirs = read_moments(run.folder, name), read_moments(fresh.folder, name)
        assert fields(ours) == fields(theirs)


def names(count: int, prefix: str = "s") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def test_lanes_double_with_the_images_and_are_the_same_whatever_comes_after() -> None:
    whole = lanes_of(400)
    assert [len(lane) for lane in whole[:10]] == [3, 3, 3, 3, 6, 6, 12, 12, 24, 24]
    assert [number for lane in whole for number in lane] == list(range(400))
    for count in range(1, 400):
        some = lanes_of(count)
        assert some[:-1] == whole[: len(some) - 1]
        assert some[-1].start == whole[len(some) - 1].start


def test_the_lanes_of_a_hundred_million_images_are_a_few_hundred(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.moment_files, "LANE", 64)
        patch.setattr(pipeline.moment_files, "WAVE", 32)
        lanes = lanes_of(10**8 // 256)
        assert len(lanes) < 300
        assert len(lanes_of(10**6 // 256)) == 62
    for lane in lanes[64:]:
        assert len(lane) <= lane.start / 32


def test_more_images_are_summed_from_the_last_lane_on(tmp_path: Path) -> None:
    run, concepts = Run(tmp_path / "run"), names(4, "c")
    assert len(sum_up(run, layout(names(13), concepts))) == 2 * 5
    more = layout(names(20), concepts)
    assert {lane for lane, _, _ in sum_up(run, more)} == {4, 5}
    assert_as_fresh(run, more, tmp_path)
    # Where the last lane was full, nothing of it is summed again.
    full = layout(names(24), concepts)
    assert {lane for lane, _, _ in sum_up(run, full)} == {5}
    assert {lane for lane, _, _ in sum_up(run, layout(names(25), concepts))} == {6}
    assert sum_up(run, layout(names(25), concepts)) == []


def test_few_images_are_one_lane_that_is_the_total(tmp_path: Path) -> None:
    run, concepts = Run(tmp_path / "run"), names(3, "c")
    few = layout(names(3), concepts)
    assert [stretch.lanes for stretch in few.lacking(run)] == [[name] for name in few.names]
    sum_up(run, few)
    assert sorted(few.names) == [f"moments/e/{file}" for file in run.part_files("moments/e")[1:]]
    more = layout(names(4), ["c0", "x", "c2"])
    assert {lane for lane, _, concepts in sum_up(run, more) if concepts == 3} == {1}
    assert_as_fresh(run, more, tmp_path)


def test_a_changed_image_costs_the_lanes_from_its_own_on_at_most(tmp_path: Path) -> None:
    run, concepts = Run(tmp_path / "run"), names(4, "c")
    sum_up(run, layout(names(20), concepts))
    last = layout([*names(19), "other"], concepts)
    assert {lane for lane, _, _ in sum_up(run, last)} == {5}
    first = layout(["other", *names(20)[1:]], concepts)
    assert {lane for lane, _, _ in sum_up(run, first)} == set(range(6))
    assert_as_fresh(run, first, tmp_path)


def test_new_concepts_are_summed_alone_and_old_ones_are_taken(tmp_path: Path) -> None:
    run, shards = Run(tmp_path / "run"), names(13)
    sum_up(run, layout(shards, ["a", "b", "c", "d"]))
    # One is gone, two are new, one of them in the midst; more images at the same time.
    more = layout(names(20), ["a", "x", "c", "b", "y"])
    summed = sum_up(run, more)
    assert {(lane, concepts) for lane, _, concepts in summed if lane < 4} == {
        (lane, 2) for lane in range(4)
    }
    assert {(lane, concepts) for lane, _, concepts in summed if lane >= 4} == {(4, 5), (5, 5)}
    assert_as_fresh(run, more, tmp_path)


def test_concepts_that_are_taken_out_cost_nothing(tmp_path: Path) -> None:
    run, shards = Run(tmp_path / "run"), names(20)
    sum_up(run, layout(shards, ["a", "b", "c", "d"]))
    fewer = layout(shards, ["d", "b"])
    assert sum_up(run, fewer) == []
    assert_as_fresh(run, fewer, tmp_path)


def test_nothing_of_other_origin_is_taken(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    sum_up(run, layout(names(13), ["a", "b"]))
    other = layout(names(13), ["a", "b"], origin="another layer")
    assert len(sum_up(run, other)) == 2 * 5
    assert_as_fresh(run, other, tmp_path)


@pytest.mark.parametrize("steps", [1, 3, 6, 12, 18])
def test_sums_that_are_broken_off_go_on_to_the_same_bits(tmp_path: Path, steps: int) -> None:
    run = Run(tmp_path / "run")
    sum_up(run, layout(names(13), ["a", "b", "c"]))
    more = layout(names(28), ["a", "c", "x"])
    first = sum_up(run, more, steps)
    second = sum_up(run, more)
    assert not {step[:2] for step in first} & {step[:2] for step in second}
    assert_as_fresh(run, more, tmp_path)


# Runs --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("incremental")
    planted_network.write_images(path, IMAGES)
    return path


def carried_out(folder: Path, out: Path, keep: str, **more: Any) -> tuple[Run, dict[str, Any]]:
    """A run up to its moments, with labels and texts as explainers; the run and its ledger."""
    given: dict[str, Any] = {"limit": FEWER, "layers": ["neurons"], "texts": TEXTS[:4]} | more
    words = folder / f"{fingerprint(given['texts'])}.txt"
    words.write_text("\n".join(given["texts"]))
    base = planted_network.config(folder)
    base["images"] |= {"limit": given["limit"]}  # type: ignore[operator]
    base["target"] |= {"layers": given["layers"]}  # type: ignore[operator]
    clip: dict[str, Any] = {
        "name": "clip",
        "kind": "open_clip",
        "model": f"local-dir:{MODELS / 'explainer'}",
    }
    # Every concept is active, whatever the images.
    clip |= {"concepts": str(words), "calibration": {"a": 8.0, "b": 0.5}}
    sections = base | {
        "concepts": [{"name": "label", "kind": "labels"}, clip],
        "recordings": {"shard_size": SHARD, "keep": keep},
        "fit": {"folds": SUBSETS - 1, "sharpness": 1.5},
    }
    execute(parse_config(sections, base=TESTS), out, STAGES[: STAGES.index("moments") + 1])
    run = Run.open(out)
    return run, run.ledger()["stages"]


GROWN = {
    "limit": IMAGES,
    "layers": ["neurons", "cells"],
    "texts": [TEXTS[4], *TEXTS[1:4], TEXTS[5]],
}


@pytest.fixture(scope="module")
def fresh(folder: Path, local_ray: None) -> Run:
    run, _ = carried_out(folder, folder / "fresh", "all", **GROWN)
    return run


def assert_same_moments(ours: Run, theirs: Run) -> None:
    for explainer in ("label", "clip"):
        found, expected = (
            run.folder.read_arrays(run.parts(f"moments/{explainer}")[0]) for run in (ours, theirs)
        )
        assert found["positions"].tolist() == expected["positions"].tolist()
        assert len(found["files"]) == len(expected["files"]) == 3 * SUBSETS
        for mine, other in zip(found["files"], expected["files"], strict=True):
            path = f"moments/{explainer}/"
            left = fields(read_moments(ours.folder, path + mine))
            assert left == fields(read_moments(theirs.folder, path + other))


def images_from(lane: int, lanes: Sequence[range]) -> int:
    return sum(len(lane) for lane in lanes[lane:]) * SHARD


def test_stored_recordings_are_summed_where_something_is_new(
    folder: Path, fresh: Run, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    few, many = lanes_of(FEWER // SHARD), lanes_of(IMAGES // SHARD)
    run, ledger = carried_out(folder, out, "all")
    assert ledger["moments"]["blocks"] == 2 * 2 * SUBSETS * len(few)
    before = set(run.part_files("moments/clip"))

    # More images and a layer: of the old columns only the lanes after the last full one.
    run, ledger = carried_out(folder, out, "all", **GROWN | {"texts": TEXTS[:4]})
    since = len(many) - len(few) + 1
    assert ledger["moments"]["blocks"] == 2 * SUBSETS * (2 * since + len(many))
    assert len(set(run.part_files("moments/clip"))) == 2 * 3 * SUBSETS + 1

    # Other concepts: recordings of images that were not touched are not read.
    run, ledger = carried_out(folder, out, "all", **GROWN)
    assert ledger["record"]["rows"] == IMAGES
    assert_same_moments(run, fresh)
    assert not before & set(run.part_files("moments/clip"))
    for explainer in ("label", "clip"):
        path = f"moments/{explainer}"
        assert run.part_files(path) == fresh.part_files(path)
        assert not run.part_files(f"{path}/lanes")


def test_only_images_after_the_last_full_lane_are_recorded_into_moments(
    folder: Path, fresh: Run, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    few, many = lanes_of(FEWER // SHARD), lanes_of(IMAGES // SHARD)
    run, ledger = carried_out(folder, out, "test")
    assert ledger["record"]["rows"] == FEWER
    stamps = recorded(run)

    run, ledger = carried_out(folder, out, "test", limit=IMAGES)
    assert ledger["record"]["rows"] == images_from(len(few) - 1, many)
    kept = recorded(run)
    assert {path: kept[path] for path in stamps} == stamps

    # A new layer and new concepts need all images again, and only what is new is summed of them.
    old = {explainer: totals(run, explainer) for explainer in ("label", "clip")}
    run, ledger = carried_out(folder, out, "test", **GROWN)
    assert ledger["record"]["rows"] == IMAGES
    assert_same_moments(run, fresh)
    assert old["label"] < totals(run, "label")
    assert not old["clip"] & totals(run, "clip")


def recorded(run: Run) -> dict[str, int]:
    """Parts of recorded tables of shards that were full, and when they were written."""
    parts = Path(run.folder.path("recordings/activations")).glob("part-*")
    return {p.name: p.stat().st_mtime_ns for p in sorted(parts)}


def totals(run: Run, explainer: str) -> set[str]:
    return set(run.part_files(f"moments/{explainer}")[1:])
