"""Runs that grow: more images, layers and concepts cost what is new, and give the bits of a fresh run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.moment_files
from core.moments import ConceptMoments, CrossMoments
from core.sharpness import NATIVE, Sharpness
from pipeline import planted as planted_network
from pipeline.concepts import embed_texts
from pipeline.config import Config, parse_config
from pipeline.decoding import DecodeShard
from pipeline.engine import Workers
from pipeline.expected import ACTIVATIONS, QUARANTINE, STAGES, embeddings_table, expect
from pipeline.expected import IMAGES as IMAGES_TABLE
from pipeline.fingerprints import fingerprint
from pipeline.images_table import rows_of
from pipeline.lanes import LaneShard, RecordLane, Sought
from pipeline.moment_files import Block, Layout, lanes_of, read_moments, waves_of
from pipeline.moments import BlockSums, Output, outputs_of
from pipeline.planning import prepare
from pipeline.run import execute
from pipeline.rundir import Run
from pipeline.running_totals import _addition, _fold
from pipeline.scores import divided
from pipeline.stream import block_of, models_of
from pipeline.targets import Column, columns_of

TESTS = Path(__file__).parent
MODELS = TESTS.parent / "pipeline/demo/models"
IMAGES, FEWER, SHARD, LANE, WAVE = 200, 130, 10, 3, 2
TEXTS = [
    f"{colour} {shape}"
    for shape in ("circle", "square")
    for colour in ("red", "green", "blue", "grey", "pink")
]
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
    blocks = [Block(NATIVE, "val", None), Block(NATIVE, "val", NEURONS)]
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
                    sums.add("val", NATIVE, scores_of(shard, wanted.concepts), rows)
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


def config(
    folder: Path, keep: str, network: str | None = None, directions: Any = (), **more: Any
) -> Config:
    """Labels and texts as explainers."""
    given: dict[str, Any] = {"limit": FEWER, "layers": ["neurons"], "texts": TEXTS[:8]} | more
    words = folder / f"{fingerprint(given['texts'])}.txt"
    words.write_text("\n".join(given["texts"]))
    base = planted_network.config(folder)
    base["images"] |= {"limit": given["limit"]}  # type: ignore[operator]
    base["target"] |= {"layers": given["layers"]}  # type: ignore[operator]
    base["target"] |= {"directions": list(directions)}  # type: ignore[operator]
    if network is not None:
        base["target"] |= {"model": network}  # type: ignore[operator]
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
    return parse_config(sections, base=TESTS if network is None else folder)


def carried_out(folder: Path, out: Path, keep: str, **more: Any) -> tuple[Run, dict[str, Any]]:
    """A run up to its moments, and its ledger."""
    execute(config(folder, keep, **more), out, STAGES[: STAGES.index("moments") + 1])
    run = Run.open(out)
    return run, run.ledger()["stages"]


GROWN: dict[str, Any] = {
    "limit": IMAGES,
    "layers": ["neurons", "cells"],
    "texts": [TEXTS[8], *TEXTS[1:7], TEXTS[9]],
}


@pytest.fixture(scope="module")
def fresh(folder: Path, local_ray: None) -> Run:
    run, _ = carried_out(folder, folder / "fresh", "all", **GROWN)
    return run


def test_stored_recordings_are_summed_where_something_is_new(
    folder: Path, fresh: Run, tmp_path: Path
) -> None:
    few, many = lanes_of(FEWER // SHARD), lanes_of(IMAGES // SHARD)
    run, ledger = carried_out(folder, tmp_path, "all")
    assert ledger["moments"]["blocks"] == 2 * 2 * SUBSETS * len(few)

    run, ledger = carried_out(folder, tmp_path, "all", **GROWN)
    known = len(few) - 1
    since = len(many) - known
    # Of labels and of texts: what is new by its images, and the new layer; of texts new ones as well.
    label = SUBSETS * (2 * since + len(many))
    assert ledger["moments"]["blocks"] == 2 * label + SUBSETS * 2 * known
    assert_same_moments(run, fresh)
    for explainer in ("label", "clip"):
        path = f"moments/{explainer}"
        assert run.part_files(path) == fresh.part_files(path)
        assert len(run.part_files(path)) == 1 + 2 * 3 * SUBSETS
        assert not run.part_files(f"{path}/lanes")


def test_only_images_after_the_last_full_lane_are_recorded_into_moments(
    folder: Path, fresh: Run, tmp_path: Path
) -> None:
    few, many = lanes_of(FEWER // SHARD), lanes_of(IMAGES // SHARD)
    run, ledger = carried_out(folder, tmp_path, "test")
    assert ledger["record"]["rows"] == FEWER
    parts = Path(run.folder.path("recordings/activations"))
    stamps = {p: p.stat().st_mtime_ns for p in parts.glob("part-*")}

    # The bits of an embedded text may depend on how many are embedded with it where these are few.
    more = {"limit": IMAGES, "texts": GROWN["texts"][1:5]}
    run, ledger = carried_out(folder, tmp_path, "test", **more)
    assert ledger["record"]["rows"] == SHARD * sum(map(len, many[len(few) - 1 :]))
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    assert_same_moments(run, fresh, concepts=slice(1, 5), columns=1)


def assert_same_moments(
    ours: Run, theirs: Run, concepts: slice = slice(None), columns: int = 2
) -> None:
    """The moments of a run are those of the last columns and of some texts of another."""
    for explainer in ("label", "clip"):
        files = [
            [f"moments/{explainer}/{f}" for f in run.folder.read_arrays(contents)["files"]]
            for run, contents in ((r, r.parts(f"moments/{explainer}")[0]) for r in (ours, theirs))
        ]
        assert len(files[0]) == (1 + columns) * SUBSETS
        others = files[1][:SUBSETS] + files[1][-columns * SUBSETS :]
        for mine, other in zip(files[0], others, strict=True):
            found, expected = read_moments(ours.folder, mine), read_moments(theirs.folder, other)
            if explainer == "clip":
                count = len(GROWN["texts"])
                expected = expected.select(np.arange(count)[concepts])
            assert fields(found) == fields(expected)


def test_new_concepts_are_summed_where_images_are_recorded_as_among_all_others(
    folder: Path, local_ray: None, tmp_path: Path
) -> None:
    plan = prepare(config(folder, "test"))
    run, expected = Run(tmp_path), expect(plan, "float32")
    clip, (column,) = plan.clips["clip"], columns_of(plan)
    table, texts = embeddings_table("clip"), plan.explainers[1].concepts
    embedded = embed_texts(run, clip, texts)
    sought = Sought("clip", table, embedded, clip.slope, clip.shift, np.arange(len(texts)))
    shards = divided(plan, expected.parts[IMAGES_TABLE])
    models = models_of(plan, {ACTIVATIONS, table})
    workers = Workers(actors=1, gpus=0.0, per_node=1)
    lane = RecordLane(
        run.folder, models.targets, models.clips, workers, "float32", 8, False, shards, [sought]
    )
    blocks = [
        Block(Sharpness(1.5, 0.5), subset, where)
        for subset in shards.subsets
        for where in (None, column)
    ]
    new = np.array([0, 2])
    all_of, new_of = ([f"{what}/{n}" for n in range(len(blocks))] for what in ("all", "new"))
    outputs: list[Output] = [(n, block, None) for n, block in zip(all_of, blocks, strict=True)]
    outputs += [(n, block, new) for n, block in zip(new_of, blocks, strict=True)]
    lane.begin(0, [outputs])
    for shard in plan.shards[:LANE]:
        parts = {QUARANTINE: expected.parts[QUARANTINE][shard.number]}
        rows = rows_of(plan, shard)
        decoded = DecodeShard(models.views)(block_of(rows, shard, parts))
        last = shard.number == LANE - 1
        lane.add(LaneShard(shard.number, rows.select(["image_id", "split"]), parts, last), decoded)
    lane.finish()
    for whole, some in zip(all_of, new_of, strict=True):
        ours, theirs = read_moments(run.folder, some), read_moments(run.folder, whole)
        assert isinstance(ours, CrossMoments)
        if isinstance(theirs, ConceptMoments):
            np.testing.assert_array_equal(ours.cross, theirs.scatter[:, new])
            np.testing.assert_array_equal(ours.concept_mean, theirs.mean)
        else:
            assert fields(ours) == fields(theirs.select(new))


# Batch normalisations, folded into the convolutions that are not recorded ---------------------------

FOLDED = """
import torch
from torch import nn
from torchvision import transforms

def network():
    torch.manual_seed(0)
    blocks = []
    for wide in (3, 8):
        blocks += [nn.Conv2d(wide, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    for part in blocks:
        if isinstance(part, nn.BatchNorm2d):
            # Large means that cancel, which are lost to rounding unless they are folded.
            part.running_var.uniform_(0.2, 3.0)
            part.running_mean.fill_(3e4)
            part.bias.data = part.running_mean / (part.running_var + part.eps).sqrt()
    return nn.Sequential(*blocks), transforms.Compose(
        [transforms.CenterCrop((48, 64)), transforms.ToTensor()]
    )
"""
NETWORK = "python:folded_blocks:network"


@pytest.fixture(scope="module")
def blocks(folder: Path) -> Path:
    (folder / "folded_blocks.py").write_text(FOLDED)
    rows = np.eye(8, dtype=np.float32)[:4]
    np.savez(folder / "rows.npz", weight=rows)
    return folder


def test_a_recorded_convolution_costs_the_moments_of_others_and_another_layer_nothing(
    blocks: Path,
) -> None:
    def summed(layers: list[str], directions: Any = ()) -> str:
        plan = prepare(config(blocks, "all", NETWORK, directions, layers=layers))
        return expect(plan, "float32").summed["act.5.avg"]

    rows = {"name": "rows", "path": "rows.npz", "weight": "weight", "apply": "pooled"}
    plain = summed(["5"])
    assert summed(["5", "2", "1"]) == plain
    assert summed(["5"], [rows | {"layer": "2"}]) == plain
    unfolded = summed(["5", "0"])
    assert unfolded != plain
    assert summed(["5"], [rows | {"layer": "0"}]) == unfolded == summed(["5", "0", "2"])
    assert len({plain, unfolded, summed(["5", "3"]), summed(["5", "0", "3"])}) == 4


@pytest.mark.parametrize("added", ["0", "2"])
def test_moments_after_an_added_layer_are_those_of_a_fresh_run(
    blocks: Path, local_ray: None, added: str, tmp_path: Path
) -> None:
    def totals(out: Path, layers: list[str]) -> tuple[Any, int]:
        execute(config(blocks, "all", NETWORK, layers=layers), out, STAGES[:4])
        run = Run.open(out)
        names = run.folder.read_arrays(run.parts("moments/label")[0])["files"]
        moments = [read_moments(run.folder, f"moments/label/{name}") for name in names]
        return [fields(one) for one in moments], run.ledger()["stages"]["moments"]["blocks"]

    alone, _ = totals(tmp_path / "run", ["5"])
    grown, blocks_summed = totals(tmp_path / "run", ["5", added])
    fresh, all_blocks = totals(tmp_path / "fresh", ["5", added])
    assert grown == fresh
    of_layer = [one for one in alone if one in fresh]
    if added == "0":  # the convolution is not folded any more: the last layer is rounded otherwise
        assert len(of_layer) < len(alone)
        assert blocks_summed * 3 == all_blocks * 2
    else:
        assert len(of_layer) == len(alone)
        assert blocks_summed * 3 == all_blocks
