"""Faults in every stage, on a cluster: each run ends with the bits of an undisturbed one, and says so once.

`benchmarks/faults.py` does the same at random and for longer.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from trouble import TESTS, cluster, environment, s3_endpoint, small_disk, start

from pipeline import planted
from pipeline.cli import main
from pipeline.rundir import Run

sys.path.insert(0, str(TESTS.parent / "benchmarks"))

from faults import Harm, digests, write_config

MANY, BAD = 3000, 30


pytestmark = pytest.mark.skipif(
    "NEUROSCRIBE_FAULTS" not in os.environ, reason="takes minutes: make test-faults"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("faults")
    planted.write_images(made, 200)
    return made


@pytest.fixture(scope="module")
def harm(folder: Path) -> Iterator[Harm]:
    with ExitStack() as stack:
        s3 = stack.enter_context(s3_endpoint())
        s3.upload(folder / "images", "s3://neurons/images")
        made = Harm(stack.enter_context(cluster(2)), s3, random.Random(0))
        stack.callback(made.end)
        yield made


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> dict[str, str]:
    config, said = write_config(folder, str(folder / "images"), None), folder / "whole.txt"
    assert start(config, str(folder / "whole"), environment(), said).wait(200) == 0, (
        said.read_text()
    )
    return digests(Run.open(folder / "whole"))


def test_kills_a_stop_and_a_full_disk_change_no_bit(
    undisturbed: dict[str, str], harm: Harm, folder: Path
) -> None:
    config = write_config(folder, str(folder / "images"), harm.nodes.address)
    faults = [("record", "disk"), ("record", "worker"), ("fit", "disk"), ("fit", "driver")]
    faults += [("report", "stop")]
    try:
        with small_disk(folder / "disk", 64) as disk:
            assert harm.to_run(config, str(disk / "run"), faults, disk), harm.lost
            assert digests(Run.open(disk / "run")) == undisturbed
    except PermissionError as error:
        pytest.skip(str(error))


def test_lost_nodes_and_ten_seconds_without_storage_change_no_bit(
    undisturbed: dict[str, str], harm: Harm, folder: Path
) -> None:
    config = write_config(folder, "s3://neurons/images", harm.nodes.address)
    faults = [("record", "cut"), ("moments", "driver"), ("ablate", "node"), ("ablate", "cut")]
    assert harm.to_run(config, "s3://neurons/run", faults), harm.lost
    assert digests(Run.open("s3://neurons/run")) == undisturbed


def test_3000_images_with_bad_ones_lost_nodes_and_a_killed_driver_come_out_right(
    harm: Harm, tmp_path: Path, local_ray: None
) -> None:
    planted.write_images(tmp_path, MANY)
    paths = sorted((tmp_path / "images").rglob("*.png"))
    bad = paths[:: MANY // BAD]
    for number, path in enumerate(bad):
        path.write_bytes(path.read_bytes()[:-60] if number % 2 else b"")
    config = tmp_path / "config.yaml"
    for address, name in ((None, "alone"), (harm.nodes.address, "cluster")):
        config.write_text(yaml.safe_dump(planted.config(tmp_path, ray={"address": address})))
        out = str(tmp_path / name)
        if address is None:
            assert main(["run", str(config), "--out", out]) == 3
            continue
        faults = [("record", "node"), ("record", "driver"), ("fit", "node")]
        said = harm.to_run(config, out, faults, done=3)
        assert said, harm.lost
    assert digests(Run.open(tmp_path / "cluster")) == digests(Run.open(tmp_path / "alone"))
    listed = Run.open(tmp_path / "cluster").read("quarantine")["path"].to_pylist()
    assert listed == sorted(str(path.relative_to(tmp_path / "images")) for path in bad)
    assert said.count(f"{MANY - BAD:,} images, {BAD} quarantined") == 1
    assert "Traceback" not in said
