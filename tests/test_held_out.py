"""No test image is used to fit, choose, filter or scale: corrupting them all changes no explanation."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config import parse_config
from pipeline.demo.attributes import CONCEPTS
from pipeline.demo.config import demo_config
from pipeline.demo.dataset import write_dataset
from pipeline.run import execute
from pipeline.rundir import Run
from pipeline.sources import read_index

IMAGES = 300
FITTED = ("record", "concepts", "sharpen", "moments", "fit")
CHOSEN = ("sharpness", "degenerate_concepts", "paths", "explanations")

pytestmark = pytest.mark.usefixtures("local_ray")


def explained(folder: Path, keep: str) -> Run:
    config: dict[str, Any] = demo_config(folder)
    config["target"] = {
        "model": "timm:test_efficientnet",
        "weights": "random:0",
        "layers": ["conv_head"],
    }
    config["recordings"] = {"keep": keep, "shard_size": 100}
    config["fit"] = {"max_length": 4, "folds": 2}
    config |= {"simulate": {}, "simulators": []}  # neither takes part in what is fitted
    execute(parse_config(config, base=folder), folder / keep, FITTED)
    return Run.open(folder / keep)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Drawn images, and the same of which those for tests are corrupted."""
    folder = tmp_path_factory.mktemp("held")
    sound, corrupted = folder / "sound", folder / "corrupted"
    write_dataset(sound, IMAGES, seed=5)
    shutil.copytree(sound, corrupted)
    assert corrupt_test_images(corrupted) > 40
    return sound, corrupted


def corrupt_test_images(folder: Path) -> int:
    """Replace every test image by noise and turn every one of its attributes round."""
    images = read_index(parse_config(demo_config(folder), base=folder).images).rows
    test = images.filter(pa.compute.equal(images["split"], "test"))["path"].to_pylist()
    names = {Path(path).name for path in test}
    rng = np.random.default_rng(0)
    for name in names:
        noise = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "images" / name, quality=92)
    manifest = pq.read_table(folder / "manifest.parquet")
    wrong = np.array([Path(path).name in names for path in manifest["path"].to_pylist()])
    for concept in CONCEPTS:
        place = manifest.column_names.index(concept)
        values = manifest[concept].to_numpy() ^ wrong
        manifest = manifest.set_column(place, manifest.field(place), pa.array(values))
    pq.write_table(manifest, folder / "manifest.parquet")
    return int(wrong.sum())


def assert_equal_moments(one: Run, other: Run, table: str) -> None:
    """The same numbers in every block; names of files follow from all images, and differ."""
    firsts = [run.folder.read_arrays(run.parts(table)[0]) for run in (one, other)]
    np.testing.assert_array_equal(firsts[0]["positions"], firsts[1]["positions"])
    pairs = list(zip(*(first["files"].tolist() for first in firsts), strict=True))
    assert len(pairs) >= 6
    for names in pairs:
        found, expected = (
            run.folder.read_arrays(f"{table}/{name}")
            for run, name in zip((one, other), names, strict=True)
        )
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("keep", ["all", "test"])
def test_corrupted_test_images_change_no_explanation_by_a_bit(
    folders: tuple[Path, Path], keep: str
) -> None:
    sound, corrupted = runs = [explained(folder, keep) for folder in folders]
    for table in CHOSEN:
        assert sound.read(table).equals(corrupted.read(table)), table
    for explainer in ("attributes", "clip"):
        assert_equal_moments(sound, corrupted, f"moments/{explainer}")
    # The corruption is there: test rows differ, and no others do.
    table = "activations"
    columns = [np.stack(run.read(table)["act.conv_head.avg"].to_numpy()) for run in runs]
    kept = sound.read("images")["split"].to_pylist()
    splits = np.array(kept if keep == "all" else [split for split in kept if split == "test"])
    changed = (columns[0] != columns[1]).any(axis=1)
    assert changed[splits == "test"].all()
    assert not changed[splits != "test"].any()
