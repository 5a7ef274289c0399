"""Shards of which files come undecoded, on workers without a GPU: the very code of those that have one."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from image_zoo import bad, good, settle
from PIL import Image

from actors.undecoded import MAX_BYTES
from core.errors import ConfigError
from pipeline import planted, stream
from pipeline.columns import array_of, matrix, sparse_column
from pipeline.config import parse_config
from pipeline.decoding import FILE, ON_CPUS, ON_DEVICE, DecodeShard
from pipeline.engine import Workers
from pipeline.estimate import estimate
from pipeline.expected import ACTIVATIONS, QUARANTINE, Expected, expect
from pipeline.images_table import rows_of
from pipeline.plan import Plan
from pipeline.planning import prepare
from pipeline.price import read_prices
from pipeline.record import record, refuse_decoding
from pipeline.run import carry_out
from pipeline.rundir import Run
from pipeline.shards import RecordShard
from pipeline.show import status_lines
from pipeline.stream import block_of, models_of

WORKERS = Workers(actors=1, gpus=0.0, per_node=1)
COLUMN = "act.neurons.avg"
#: A file whose header and end are in order, and which no decoder can read.
UNREADABLE = "without its tables.jpg"
#: Files of the zoo that go to a device.
SENT = {
    "jpeg under another ending.gif",
    "grey.jpg",
    "broken colour profile.jpg",
    "progressive.jpg",
    UNREADABLE,
}


#: The planted network behind a change of shape, in which a device and Pillow differ most.
SQUEEZED = """
from PIL import Image
from torchvision import transforms
from pipeline import planted

def network():
    resize = transforms.Resize((40, 90), transforms.InterpolationMode.BICUBIC)
    module, steps = planted.network()
    return module, transforms.Compose([resize, *steps.transforms])
"""


#: The planted network with the same preprocessing as a function, which cannot be taken apart.
WHOLE = """
from pipeline import planted

MODULE, STEPS = planted.network()

def look(image):
    return STEPS(image)

def network():
    return MODULE, look
"""


def planned(folder: Path, decode: str, model: str = "pipeline.planted", **recordings: Any) -> Plan:
    sections = planted.config(
        folder,
        target={"model": f"python:{model}:network", "layers": ["neurons"], "dtype": "float32"},
        images={"path": str(folder / "images")},
        concepts=[{"name": "label", "kind": "labels"}],
        recordings={"shard_size": 16, "max_quarantined": 1.0, "decode": decode, **recordings},
    )
    return prepare(parse_config(sections, base=folder))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of every kind, good and bad, in two classes; and enough JPEG files for every split."""
    folder = tmp_path_factory.mktemp("zoo")
    (folder / "squeezed.py").write_text(SQUEEZED)
    (folder / "whole_look.py").write_text(WHOLE)
    settle(folder / "images", [*good(), *bad()])
    whole = next(animal.data for animal in good() if animal.name.endswith(b"ending.gif"))
    first, last = whole.index(b"\xff\xdb"), whole.index(b"\xff\xc0")
    (folder / "images/a" / UNREADABLE).write_bytes(whole[:first] + whole[last:])
    rng = np.random.default_rng(2)
    for number in range(60):
        levels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        name = f"images/{'ab'[number % 2]}/tiles {number:02d}.{'jpg' if number % 5 else 'png'}"
        Image.fromarray(levels).save(folder / name)
    return folder


def blocks(plan: Plan, expected: Expected, *, leave: bool) -> list[pa.Table]:
    """All shards as a decode task gives them."""
    models = models_of(plan, {ACTIVATIONS})
    decode = DecodeShard(models.views, leave)
    parts = [
        {t: expected.parts[t][shard.number] for t in (QUARANTINE, ACTIVATIONS)}
        for shard in plan.shards
    ]
    return [
        decode(block_of(rows_of(plan, shard), shard, some))
        for shard, some in zip(plan.shards, parts, strict=True)
    ]


def recorded(plan: Plan, out: Path, *, leave: bool) -> tuple[pa.Table, pa.Table]:
    """Quarantine and activations of all shards, recorded without Ray."""
    run, expected, models = Run(out), expect(plan, "float32"), models_of(plan, {ACTIVATIONS})
    shard = RecordShard(run.folder, models.targets, models.clips, WORKERS, "float32", 8)
    for block in blocks(plan, expected, leave=leave):
        assert shard(block)["images"][0].as_py() <= block.num_rows
    tables = [
        pa.concat_tables([run.folder.read_table(part) for part in expected.parts[table]])
        for table in (QUARANTINE, ACTIVATIONS)
    ]
    return tables[0], tables[1]


def agree(ours: pa.Table, theirs: pa.Table, atol: float = 4e-3) -> None:
    """Activations of the same images, up to a grey level's rounding."""
    assert ours["image_id"].to_pylist() == theirs["image_id"].to_pylist()
    np.testing.assert_allclose(
        matrix(ours[COLUMN]), matrix(theirs[COLUMN]), rtol=2e-3, atol=atol, equal_nan=True
    )


def test_the_zoo_is_quarantined_and_recorded_as_without_a_gpu(zoo: Path, tmp_path: Path) -> None:
    theirs = recorded(planned(zoo, "cpu"), tmp_path / "cpu", leave=False)
    ours = recorded(planned(zoo, "gpu"), tmp_path / "gpu", leave=True)
    assert ours[0].num_rows == len(list(bad())) + 1
    assert ours[0].equals(theirs[0])
    reasons = dict(zip(ours[0]["image_id"].to_pylist(), ours[0]["reason"].to_pylist(), strict=True))
    assert reasons[f"a/{UNREADABLE}"] == "damaged"
    agree(ours[1], theirs[1])
    assert np.isfinite(matrix(ours[1][COLUMN])[:, 0]).all()


def test_a_block_carries_files_or_pixels_and_nothing_for_bad_images(zoo: Path) -> None:
    plan = planned(zoo, "gpu")
    expected = expect(plan, "float32")
    (view,) = models_of(plan, {ACTIVATIONS}).views.values()
    whole = pa.concat_tables(blocks(plan, expected, leave=True))
    decoded = pa.concat_tables(blocks(plan, expected, leave=False))
    went = pc.is_valid(whole["data"])
    names = {Path(path).name for path in whole.filter(went)["path"].to_pylist()}
    assert {name for name in names if not name.startswith("tiles")} == SENT
    assert sum(name.startswith("tiles") for name in names) == 48
    told = whole["reason"].to_pylist()
    expected_reasons = decoded["reason"].to_pylist()
    unread = [Path(path).name == UNREADABLE for path in whole["path"].to_pylist()]
    assert told == [
        None if one else reason for one, reason in zip(unread, expected_reasons, strict=True)
    ]
    pixels = pc.binary_length(whole["view0"])
    usable = pc.is_null(whole["reason"])
    size = int(np.prod(view.shape))
    sizes = pc.if_else(pc.and_(usable, pc.invert(went)), size, 0)
    assert pixels.to_pylist() == sizes.to_pylist()
    here = pc.and_(usable, pc.invert(went))
    np.testing.assert_array_equal(
        array_of(whole["view0"], view), array_of(decoded.filter(here)["view0"], view)
    )
    for row in whole.filter(went).select(list(FILE)).to_pylist():
        with Image.open(io.BytesIO(row["data"])) as image:
            assert image.size == (row["width"], row["height"])


def test_views_that_a_device_cannot_make_leave_blocks_as_they_are(zoo: Path) -> None:
    plan = planned(zoo, "gpu")
    views = models_of(plan, {ACTIVATIONS}).views
    (view,) = views.values()
    assert DecodeShard(views, leave=True).leave
    turned = type(view)(view.key, view.shape, (lambda image: image,))
    assert not DecodeShard({view.key: turned}, leave=True).leave
    assert not DecodeShard(views).leave
    assert DecodeShard(views | {"turned": turned}, leave=True).leave


def test_what_a_model_sees_is_decoded_in_one_place_whatever_else_is_recorded(
    zoo: Path, tmp_path: Path
) -> None:
    plan, whole = planned(zoo, "gpu"), planned(zoo, "gpu", "whole_look")
    assert whole.target.preprocess.view.whole
    expected = expect(plan, "float32")
    _, alone = recorded(plan, tmp_path / "alone", leave=True)
    run = Run(tmp_path / "both")
    targets = {ACTIVATIONS: plan.target, "other": whole.target}
    shard = RecordShard(run.folder, targets, {}, WORKERS, "float32", 8)
    decode = DecodeShard(shard.views, leave=True)
    by_pillow = DecodeShard({whole.target.preprocess.view.key: whole.target.preprocess.view})
    for one in plan.shards:
        parts = {t: expected.parts[t][one.number] for t in (QUARANTINE, ACTIVATIONS)}
        block = decode(block_of(rows_of(plan, one), one, parts))
        seen = by_pillow(block_of(rows_of(plan, one), one, parts))
        good = pc.is_null(seen["reason"])
        assert pc.is_null(block["reason"]).equals(good)
        np.testing.assert_array_equal(
            array_of(block.filter(good)["view1"], whole.target.preprocess.view),
            array_of(seen.filter(good)["view0"], whole.target.preprocess.view),
        )
        shard(block)
    both = pa.concat_tables([run.folder.read_table(p) for p in expected.parts[ACTIVATIONS]])
    kept = alone.filter(pc.is_in(alone["image_id"], value_set=both["image_id"].combine_chunks()))
    assert len(both) == len(alone)
    np.testing.assert_array_equal(matrix(both[COLUMN]), matrix(kept[COLUMN]))


def test_a_model_of_which_no_image_is_decoded_on_a_device_does_not_say_so(zoo: Path) -> None:
    cpu, gpu = (expect(planned(zoo, d, "whole_look"), "float32") for d in ("cpu", "gpu"))
    assert cpu.tables == gpu.tables
    assert cpu.summed == gpu.summed


@pytest.mark.parametrize("rows", [[], [0], [1, 4], [0, 1, 2, 3, 4]])
def test_a_sparse_column_gives_its_arrays_back_however_it_is_cut(rows: list[int]) -> None:
    view = models_view()
    arrays = [np.full(view.shape, 7 * row + 1, np.uint8) for row in rows]
    column = pa.chunked_array([sparse_column(arrays, rows, 5), sparse_column([], [], 3)])
    for start in range(8):
        for stop in range(start, 9):
            wanted = [a for row, a in zip(rows, arrays, strict=True) if start <= row < stop]
            found = array_of(column.slice(start, stop - start), view)
            expected = np.stack(wanted) if wanted else np.zeros((0, *view.shape), np.uint8)
            np.testing.assert_array_equal(found, expected)
    kept = column.filter(pa.array([False, True, True, False, True, True, False, True]))
    assert len(array_of(kept, view)) == len({1, 2, 4} & set(rows))


def models_view() -> Any:
    from actors.preprocessing import split_transform

    return split_transform(planted.network()[1]).view


@pytest.mark.parametrize("keep", ["all", "test"])
def test_recording_by_ray_leaves_files_to_the_actors(
    keep: str, zoo: Path, tmp_path: Path, local_ray: None
) -> None:
    tables = {}
    for decode in ("cpu", "gpu"):
        plan, run = planned(zoo, decode, "squeezed", keep=keep), Run(tmp_path / decode)
        record(run, plan, expect(plan, "float32"), WORKERS, "float32")
        tables[decode] = [run.read(name) for name in ("quarantine", "activations")]
        facts = run.ledger()["stages"]["record"]
        if decode == "cpu":
            assert not {ON_DEVICE, ON_CPUS} & set(facts)
        if decode == "gpu":
            used = run.read("images").num_rows
            sent = (
                len(SENT) - 1 + 48
            )  # all but the unreadable one, and the tiles that are JPEG files
            assert (facts[ON_DEVICE], facts[ON_CPUS]) == (sent, used - sent)
            said = f"{sent} images decoded on GPUs, {used - sent} on CPUs"
            assert said in "\n".join(status_lines(run))
            moments = [name for name in run.folder.names("moments/label") if "npz" in name]
            assert bool(moments) == (keep == "test")
    assert tables["gpu"][0].equals(tables["cpu"][0])
    agree(tables["gpu"][1], tables["cpu"][1], atol=0.05)
    # Without Ray and lanes, the same bits; with Pillow alone, others.
    plan = planned(zoo, "gpu", "squeezed")
    _, alone = recorded(plan, tmp_path / "alone", leave=True)
    chosen = pc.is_in(alone["image_id"], value_set=tables["gpu"][1]["image_id"].combine_chunks())
    ours, theirs = matrix(tables["gpu"][1][COLUMN]), matrix(alone.filter(chosen)[COLUMN])
    np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(ours, matrix(tables["cpu"][1][COLUMN]), equal_nan=True)
    assert (len(ours) < alone.num_rows) == (keep == "test")


def test_two_shards_at_once_in_an_actor_are_recorded_as_one_after_the_other(
    zoo: Path, tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(zoo, "gpu")
    monkeypatch.setattr(stream, "AT_ONCE", {"cpu": 2})
    run = Run(tmp_path / "at once")
    record(run, plan, expect(plan, "float32"), WORKERS, "float32")
    quarantine, activations = recorded(plan, tmp_path / "in turn", leave=True)
    assert run.read("quarantine").equals(quarantine)
    assert run.read("activations")["image_id"].equals(activations["image_id"])
    ours, theirs = matrix(run.read("activations")[COLUMN]), matrix(activations[COLUMN])
    np.testing.assert_array_equal(ours, theirs)


def test_an_actor_computes_one_shard_while_it_writes_another(zoo: Path, tmp_path: Path) -> None:
    """Storage that answers only once the next shard has been computed: alone, one would wait for ever."""
    plan = planned(zoo, "gpu")
    run, expected, models = Run(tmp_path), expect(plan, "float32"), models_of(plan, {ACTIVATIONS})
    computed, told = [], threading.Condition()

    class Shard(RecordShard):
        def columns(self, *given: Any) -> Any:
            made = super().columns(*given)
            with told:
                computed.append(given[0])
                told.notify_all()
            return made

        def write(self, *given: Any) -> int:
            with told:
                assert told.wait_for(lambda: len(computed) == 2, timeout=60)
            return super().write(*given)

    shard = Shard(run.folder, models.targets, models.clips, WORKERS, "float32", 8)
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(shard, blocks(plan, expected, leave=True)[:2]))
    assert [row["shard"][0].as_py() for row in rows] == [0, 1]


def test_where_images_are_decoded_is_part_of_what_recordings_are_made_from(zoo: Path) -> None:
    cpu, gpu = (expect(planned(zoo, decode), "float32") for decode in ("cpu", "gpu"))
    sections = planted.config(zoo, concepts=[{"name": "label", "kind": "labels"}])
    sections["recordings"] = {"shard_size": 16}
    assert cpu == expect(prepare(parse_config(sections, base=zoo)), "float32")
    changed = {table for table in cpu.tables if cpu.tables[table] != gpu.tables[table]}
    same = {"images", "quarantine", "concepts", "concept_scores/label"}
    assert changed == set(cpu.tables) - same
    assert {name for name in cpu.summed if cpu.summed[name] != gpu.summed[name]} == {COLUMN}
    largest = [models_of(planned(zoo, d), {ACTIVATIONS}).largest_bytes for d in ("cpu", "gpu")]
    assert largest == [48 * 64 * 3, MAX_BYTES]


def test_a_run_without_a_gpu_is_refused_before_it_does_anything(
    zoo: Path, tmp_path: Path, local_ray: None
) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here, so that the run is not refused")
    refuse_decoding("cpu", WORKERS)
    with pytest.raises(ConfigError, match=r"no GPU.*set recordings\.decode to 'cpu'"):
        refuse_decoding("gpu", WORKERS)
    with pytest.raises(ConfigError, match="recording workers have no GPU"):
        carry_out(Run(tmp_path / "run"), planned(zoo, "gpu"))
    assert not (tmp_path / "run").exists()
    config = planned(zoo, "gpu").config
    with pytest.raises(ConfigError, match="recording workers have no GPU"):
        estimate(config, read_prices())
