"""Which images can be used: decided by all models of a run, and by nothing that a run does not have."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import own_looks
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from PIL import Image
from torchvision import transforms as tv

from actors.decode import decode
from actors.preprocessing import split_transform
from actors.views import MAX_RATIO, View, refusals
from core.errors import StoppedEarly, UnreadableImage
from pipeline import planted
from pipeline.config import parse_config
from pipeline.decoding import DecodeShard
from pipeline.engine import Workers
from pipeline.expected import ACTIVATIONS, CONCEPTS, IMAGES, QUARANTINE, SHARPNESS, expect
from pipeline.images_table import rows_of
from pipeline.pilot import Pilot
from pipeline.plan import Plan
from pipeline.planning import prepare
from pipeline.record import record
from pipeline.rundir import Run
from pipeline.stream import block_of, own_error

WORKERS = Workers(actors=1, gpus=0.0, per_node=1)
TESTS = Path(__file__).parent
IMAGES_MADE = 120
PLANTED, PICKY, MENDED = "pipeline.planted:network", "own_looks:picky", "own_looks:mended"


@pytest.fixture(scope="module", autouse=True)
def installed() -> Iterator[None]:
    """As if the preprocessings were in a package that every worker has."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(own_looks)
    yield
    cloudpickle.unregister_pickle_by_value(own_looks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("used")
    cells = planted.write_images(path, IMAGES_MADE)
    np.save(path / "refused.npy", np.flatnonzero(cells[:, 0] > own_looks.BRIGHT))
    return path


def planned(folder: Path, model: str = PLANTED, **sections: Any) -> Plan:
    target = {"model": f"python:{model}", "layers": ["neurons"], "dtype": "float32"}
    settings = {
        "target": target,
        "recordings": {"shard_size": 25, "max_quarantined": 1.0},
    } | sections
    return prepare(parse_config(planted.config(folder, **settings), base=TESTS))


def recorded(plan: Plan, out: Path) -> Run:
    run = Run(out, plan.config.store)
    record(run, plan, expect(plan, "float32"), WORKERS, "float32")
    return run


def refused(folder: Path) -> list[str]:
    """Ids of the images that the picky preprocessing fails on."""
    numbers = np.load(folder / "refused.npy").tolist()
    return sorted(f"{'odd' if n % 2 else 'even'}/{n:05d}.png" for n in numbers)


def quarantined(run: Run) -> list[str]:
    return sorted(run.read(QUARANTINE)["image_id"].to_pylist())


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("keep", ["all", "test"])
def test_an_image_that_a_preprocessing_of_ones_own_refused_is_used_once_that_is_mended(
    folder: Path, tmp_path: Path, keep: str
) -> None:
    settings = {"recordings": {"shard_size": 25, "max_quarantined": 1.0, "keep": keep}}
    alone = recorded(planned(folder, **settings), tmp_path / "alone")
    assert len(refused(folder)) > 5
    out = tmp_path / "run"
    recorded(planned(folder, **settings), out)
    # The images were used before: this is no fault of the storage.
    run = recorded(planned(folder, PICKY, **settings), out)
    assert quarantined(run) == refused(folder)
    used = run.read(IMAGES)["image_id"].to_pylist()
    assert len(used) == IMAGES_MADE - len(refused(folder))
    if keep == "all":
        assert run.read(ACTIVATIONS)["image_id"].to_pylist() == used
    for model in (MENDED, PLANTED):
        run = recorded(planned(folder, model, **settings), out)
        assert not quarantined(run)
        for table in (IMAGES, ACTIVATIONS):
            assert str(run.read(table).to_pylist()) == str(alone.read(table).to_pylist())


@pytest.mark.usefixtures("local_ray")
def test_a_preprocessing_that_fails_takes_no_image_from_other_networks_of_a_store(
    folder: Path, tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    for model, gone in ((PICKY, refused(folder)), (PLANTED, [])):
        run = recorded(planned(folder, model, store=store), tmp_path / model.partition(":")[0])
        assert quarantined(run) == gone
        assert run.read(IMAGES).num_rows == IMAGES_MADE - len(gone)


def view_of(*steps: Any) -> View:
    return split_transform(tv.Compose([*steps, tv.ToTensor()])).view


def test_usual_preprocessings_share_a_quarantine_and_refuse_nothing_that_decodes() -> None:
    views = [
        view_of(tv.Resize(256), tv.CenterCrop(224)),
        view_of(tv.Resize(518, tv.InterpolationMode.BICUBIC), tv.CenterCrop(518)),
        view_of(tv.Resize(724), tv.CenterCrop(40)),
        view_of(tv.Resize((384, 384))),
    ]
    assert refusals(views) == refusals([]) == []
    for short in (1, 3, 100, 836):
        for size in ((short, MAX_RATIO * short), (MAX_RATIO * short, short)):
            assert all(view.takes(size) for view in views)
    large = view_of(tv.Resize(1024), tv.CenterCrop(40))
    assert not large.takes((1, MAX_RATIO))
    assert refusals([*views, large]) == ["resize(1024)"]
    own = split_transform(lambda image: tv.ToTensor()(image.resize((9, 9))) * 2).view
    assert refusals([*views, own]) == [own.key]


def test_an_image_is_too_elongated_whoever_looks_at_it(tmp_path: Path) -> None:
    Image.new("L", (MAX_RATIO * 2, 2)).save(tmp_path / "long.png")
    Image.new("L", (2, MAX_RATIO * 2 + 1)).save(tmp_path / "longer.png")
    assert decode((tmp_path / "long.png").read_bytes()).size == (MAX_RATIO * 2, 2)
    with pytest.raises(UnreadableImage, match="too elongated"):
        decode((tmp_path / "longer.png").read_bytes())


def allocate(_image: Any) -> Any:
    return torch.empty(1 << 60)


def refuse_memory(error: BaseException) -> Callable[[Any], Any]:
    def step(_image: Any) -> Any:
        raise error

    return step


@pytest.mark.parametrize(
    "step",
    [
        allocate,
        lambda _image: np.empty(1 << 50),
        refuse_memory(MemoryError()),
        refuse_memory(OSError(errno.ENOMEM, "Cannot allocate memory")),
        refuse_memory(torch.cuda.OutOfMemoryError()),
    ],
)
def test_too_little_memory_says_nothing_of_an_image(step: Any) -> None:
    view = View("whole:x", (3, 8, 8), (step,))
    with pytest.raises(MemoryError):
        view.apply(Image.new("RGB", (9, 9)))


@pytest.mark.usefixtures("local_ray")
def test_too_little_memory_on_a_worker_stops_the_run_in_order() -> None:
    def starve(image: Image.Image) -> Any:
        return View("whole:x", (3, 8, 8), (lambda _: torch.empty(1 << 60),)).apply(image)

    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        ray.get(ray.remote(starve).remote(Image.new("RGB", (9, 9))))
    error = own_error(caught.value)
    assert isinstance(error, StoppedEarly)
    assert "too little memory" in str(error)
    assert "Traceback" not in str(error)


def test_a_shard_is_judged_by_models_that_look_at_it_later(folder: Path) -> None:
    plan = planned(folder, PICKY)
    view = plan.target.preprocess.view
    (shard, *_) = plan.shards
    block = block_of(rows_of(plan, shard), shard, {})
    by_itself = DecodeShard({view.key: view})(block)
    later = DecodeShard({}, deciding={view.key: view})(block)
    assert later["reason"].equals(by_itself["reason"])
    assert by_itself["reason"].null_count < block.num_rows
    assert "view0" not in later.column_names


def test_a_pilot_judges_images_by_all_models_of_the_run(folder: Path, tmp_path: Path) -> None:
    models = Path(planted.__file__).parent / "demo/models"
    simulators = [{"name": "other", "model": f"local-dir:{models / 'simulator'}"}]
    plan = planned(folder, simulators=simulators)
    clip = plan.clips["other"]
    own = planned(folder, PICKY).target.preprocess
    plan.clips["other"] = type(clip)(**(vars(clip) | {"preprocess": own}))
    pilot = Pilot(Run(tmp_path), plan, WORKERS, "float32")
    sample = pilot._sample.plan
    assert not sample.clips
    assert own.view.key in pilot._expected(sample).views
    plain = planned(folder, simulators=simulators)
    assert set(expect(plan, "float32").parts[QUARANTINE]).isdisjoint(
        expect(plain, "float32").parts[QUARANTINE]
    )


class _Killed(BaseException):
    pass


@pytest.mark.usefixtures("local_ray")
def test_the_manifest_never_names_a_table_of_which_parts_are_gone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = recorded(planned(folder), tmp_path)
    prune = Run.prune

    def prune_and_die(self: Run, path: str, keep: Any) -> None:
        before = self.part_files(path)
        prune(self, path, keep)
        if self.part_files(path) != before:
            raise _Killed

    fewer = planned(folder, images={"path": str(folder / "images"), "limit": 50})
    monkeypatch.setattr(Run, "prune", prune_and_die)
    for _ in range(20):
        try:
            recorded(fewer, tmp_path)
            break
        except _Killed:
            for name, entry in run.tables().items():
                assert run.read(name).num_rows == entry.rows, name
    assert run.read(ACTIVATIONS).num_rows == 50


@pytest.mark.parametrize(("keep", "changes"), [("all", False), ("test", True)])
def test_the_seed_draws_the_sample_that_active_concepts_are_judged_on(
    folder: Path, tmp_path: Path, keep: str, changes: bool
) -> None:
    paths = sorted(str(path) for path in (folder / "images").rglob("*.png"))
    facts = {
        "path": paths,
        "kind": [Path(path).parent.name for path in paths],
        "part": [("train", "val", "test")[n % 3] for n in range(len(paths))],
    }
    manifest = tmp_path / "m.parquet"
    pq.write_table(pa.table(facts), manifest)
    made = []
    for seed in (0, 1):
        plan = planned(
            folder,
            images={
                "path": str(manifest),
                "label": "kind",
                "split": {"column": "part", "seed": seed},
            },
            concepts=[{"name": "label", "kind": "labels"}],
            recordings={"keep": keep},
        )
        made.append(expect(plan, "float32").tables)
    assert made[0][IMAGES] == made[1][IMAGES]
    assert (made[0][CONCEPTS] != made[1][CONCEPTS]) == changes
    assert made[0][SHARPNESS] != made[1][SHARPNESS]
