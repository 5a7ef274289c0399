"""What a number format costs, on planted rounding; which one `auto` chooses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.recorder import resolve_dtype
from core.errors import ConfigError, StoppedEarly
from pipeline import planted
from pipeline.config import parse_config
from pipeline.engine import Workers
from pipeline.number_format import (
    ENOUGH,
    FILE,
    compare_formats,
    format_note,
    number_format,
    tried_format,
)
from pipeline.plan import Plan
from pipeline.planning import prepare
from pipeline.rundir import Run


def test_the_column_that_agrees_least_is_told_with_its_neurons() -> None:
    rng = np.random.default_rng(0)
    full = {name: rng.standard_normal((64, 5)).astype(np.float16) for name in ("a", "b", "c")}
    noise = rng.standard_normal((64, 5))
    short = dict(full) | {"b": (full["b"] + 0.5 * noise).astype(np.float16)}
    trial = compare_formats("bfloat16", 3.0, short, full)
    known = [np.corrcoef(short["b"][:, k], full["b"][:, k])[0, 1] for k in range(5)]
    assert trial is not None
    assert (trial.layer, trial.images) == ("b", 64)
    assert trial.median == pytest.approx(np.median(known), abs=1e-6)
    assert trial.least == pytest.approx(min(known), abs=1e-6)
    said = format_note(trial)
    assert "3.0 times as fast" in said
    assert "float32 is the safer" in said
    same = compare_formats("bfloat16", 3.0, full, full)
    assert same is not None
    assert "float32 is the safer" not in format_note(same)


def test_a_neuron_that_rounding_makes_constant_does_not_agree() -> None:
    full = np.random.default_rng(1).standard_normal((32, 3)).astype(np.float16)
    short = full.copy()
    short[:, 1] = 7
    trial = compare_formats("bfloat16", 2.0, {"a": short}, {"a": full})
    assert trial is not None
    assert trial.least == 0
    assert trial.median == pytest.approx(1)


def test_neurons_that_never_vary_say_nothing() -> None:
    rng = np.random.default_rng(0)
    full = rng.standard_normal((8, 2)).astype(np.float16)
    full[:, 1] = 2
    trial = compare_formats("bfloat16", 1.0, {"a": full}, {"a": full})
    assert trial is not None
    assert trial.least == pytest.approx(1)
    assert compare_formats("bfloat16", 1.0, {"a": full[:, 1:]}, {"a": full[:, 1:]}) is None


NETWORK = '''
import torch
from torchvision import transforms


class Offset(torch.nn.Module):
    """Grey levels of three places, upon an offset beside which a short format loses them."""

    def __init__(self, offset):
        super().__init__()
        self.pool = torch.nn.AdaptiveAvgPool2d(4)
        self.conv = torch.nn.Conv2d(3, 3, 1)
        torch.nn.init.constant_(self.conv.bias, offset)

    def forward(self, images):
        return self.conv(self.pool(images)).flatten(1)


def near():
    torch.manual_seed(0)
    return Offset(0.0).eval(), transforms.Compose([transforms.CenterCrop(32), transforms.ToTensor()])


def far():
    torch.manual_seed(0)
    return Offset(30.0).eval(), transforms.Compose([transforms.CenterCrop(32), transforms.ToTensor()])
'''

CPU = Workers(actors=1, gpus=0.0, per_node=1)


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., Plan]:
    """Plans of networks whose activations survive bfloat16, or do not."""
    planted.write_images(tmp_path, 40)
    (tmp_path / "offset_networks.py").write_text(NETWORK)

    def plan(network: str, **target: object) -> Plan:
        sections = planted.config(tmp_path)
        model = {"model": f"python:offset_networks:{network}", "layers": ["conv"]}
        sections["target"] = {**model, "pooling": ["avg"], **target}
        return prepare(parse_config(sections, base=tmp_path))

    return plan


@pytest.mark.skipif(
    resolve_dtype("cpu") == torch.float32, reason="this processor does not compute in bfloat16"
)
def test_auto_is_the_short_format_only_where_activations_survive_it(
    planned: Callable[..., Plan], tmp_path: Path
) -> None:
    near, far = Run(tmp_path / "near"), Run(tmp_path / "far")
    assert number_format(near, planned("near"), CPU) == "bfloat16"
    assert number_format(far, planned("far"), CPU) == "float32"
    assert near.folder.read_json(FILE)["agreement"]["median"] > ENOUGH
    told = far.folder.read_json(FILE)["agreement"]
    assert told["median"] < ENOUGH
    assert told["dtype"] == "bfloat16"
    assert told["images"] == 32
    assert number_format(far, planned("far", dtype="bfloat16"), CPU) == "bfloat16"


@pytest.mark.skipif(
    resolve_dtype("cpu") == torch.float32, reason="this processor does not compute in bfloat16"
)
def test_what_was_chosen_stays_until_the_network_is_another(
    planned: Callable[..., Plan], tmp_path: Path
) -> None:
    run, far, near = Run(tmp_path / "run"), planned("far"), planned("near")
    assert number_format(run, far, CPU) == "float32"
    written = run.folder.read(FILE)
    shutil.rmtree(tmp_path / "images")
    assert number_format(run, far, CPU) == "float32"
    assert run.folder.read(FILE) == written
    with pytest.raises(StoppedEarly, match="cannot be read now"):  # another network needs images
        number_format(run, near, CPU)
    assert run.folder.read(FILE) == written


def test_a_machine_without_short_formats_tries_none(planned: Callable[..., Plan]) -> None:
    plan = planned("far", dtype="float32")
    assert tried_format(plan, "cpu") == ("float32", None)
    with pytest.raises(ConfigError, match="float16"):
        tried_format(planned("far", dtype="float16"), "cpu")
