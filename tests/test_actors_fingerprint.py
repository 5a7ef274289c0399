"""Fingerprints change with content, and with nothing else."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import importlib
import os
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision import transforms as tv

from actors.fingerprint import callable_fingerprint, describe, state_fingerprint
from actors.targets import load_target


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1))


def test_equal_networks_have_equal_fingerprints() -> None:
    assert state_fingerprint(network()) == state_fingerprint(copy.deepcopy(network()))
    last = network().to(memory_format=torch.channels_last)  # same content, other memory layout
    assert state_fingerprint(last) == state_fingerprint(network())


def test_the_smallest_change_of_one_weight_is_noticed() -> None:
    changed = network()
    weight = changed[3].weight.data
    weight[2, 1] = torch.nextafter(weight[2, 1], torch.tensor(9.0))
    assert state_fingerprint(changed) != state_fingerprint(network())


def test_a_buffer_a_number_format_and_the_wiring_are_noticed() -> None:
    buffered, half, wired, strided = network(), network().to(torch.bfloat16), network(), network()
    buffered[1].running_mean[0] = 0.5
    wired[2] = nn.GELU()
    strided[0].stride = (2, 2)
    found = {state_fingerprint(one) for one in (network(), buffered, half, wired, strided)}
    assert len(found) == 5


def test_a_swap_of_two_tensors_is_noticed() -> None:
    one, other = nn.ModuleDict(), nn.ModuleDict()
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    one.update({"a": first, "b": second})
    other.update({"a": second, "b": first})
    assert state_fingerprint(one) != state_fingerprint(other)


def test_the_code_of_a_users_own_network_is_part_of_its_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    source = "from torch import nn\nclass Net(nn.Module):\n  def forward(self, x):\n    return {}\n"
    found = []
    for name, body in (("fp_one", "x"), ("fp_two", "x + 1")):
        path = tmp_path / name / "shared_name.py"
        path.parent.mkdir()
        path.write_text(source.format(body))
        monkeypatch.syspath_prepend(str(path.parent))
        sys.modules.pop("shared_name", None)
        found.append(state_fingerprint(importlib.import_module("shared_name").Net()))
    sys.modules.pop("shared_name", None)
    assert found[0] != found[1]


def test_settings_of_a_transform_are_part_of_its_fingerprint() -> None:
    def made(**changes: Any) -> str:
        return callable_fingerprint(
            tv.Compose([tv.Resize(**{"size": 32, **changes}), tv.ToTensor()])
        )

    assert made() == made()
    assert len({made(), made(size=33), made(size=(32, 32)), made(max_size=99)}) == 4
    mean = [callable_fingerprint(tv.Normalize(torch.tensor([m]), [1.0])) for m in (0.1, 0.1, 0.2)]
    assert mean[0] == mean[1] != mean[2]


def test_functions_differ_by_code_constants_defaults_and_closure() -> None:
    def scaled(by: float) -> Any:
        return lambda x: x * by

    def plain(x: float, y: float = 1.0) -> float:
        return x + y

    partial = functools.partial(plain, y=2.0)
    other = functools.partial(plain, y=3.0)
    functions = [scaled(1.0), scaled(2.0), lambda x: x * 2, lambda x: x * 3, plain, partial, other]
    assert len({callable_fingerprint(one) for one in functions}) == len(functions)
    assert callable_fingerprint(scaled(2.0)) == callable_fingerprint(scaled(2.0))


def test_a_description_has_no_memory_address() -> None:
    class Custom:
        def __init__(self) -> None:
            self.table = np.arange(3)
            self.again: Any = None

        def __call__(self, x: Any) -> Any:
            return x

    one, two = Custom(), Custom()
    assert "0x" not in describe([one, object(), lambda x: x, one.__call__])
    assert describe(one) == describe(two)
    two.table[1] = 7
    assert describe(one) != describe(two)


def test_an_object_that_holds_itself_is_described_all_the_same() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    assert len(describe(loop)) < 10_000


# Settings that neither weights nor print show ------------------------------------------------------


def same_weights(make: Callable[..., nn.Module], *settings: dict[str, Any]) -> list[nn.Module]:
    """Networks that differ in settings alone, as the first assertion makes sure."""
    made = [make(**some).eval() for some in settings]
    for other in made[1:]:
        other.load_state_dict(made[0].state_dict())
        assert repr(other) == repr(made[0])
    return made


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (
            lambda **given: nn.MultiheadAttention(8, **given),
            [{"num_heads": 2}, {"num_heads": 4}, {"num_heads": 2, "batch_first": True}],
        ),
        (
            lambda **given: nn.TransformerEncoderLayer(8, 2, 16, **given),
            [{}, {"norm_first": True}, {"activation": F.gelu}],
        ),
        (
            lambda **given: timm.create_model("test_vit", **given),
            [{"num_heads": 2}, {"num_heads": 4}, {"global_pool": "avg", "fc_norm": False}],
        ),
    ],
)
def test_settings_that_a_network_does_not_print_are_noticed(
    make: Callable[..., nn.Module], settings: list[dict[str, Any]]
) -> None:
    made = same_weights(make, *settings)
    assert len({state_fingerprint(one) for one in made}) == len(settings)
    assert state_fingerprint(copy.deepcopy(made[0])) == state_fingerprint(made[0])


@dataclasses.dataclass
class Sizes:
    heads: int = 2


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("scale", [1, 2, 1.5, True, None, "1", torch.float16]),
        ("stages", [[1, 2], [2, 1], (1, 2), {1, 2}, {"a": 1}, {"a": 2}]),
        ("act", [F.relu, F.gelu, nn.ReLU, functools.partial(F.elu, alpha=1.0)]),
        ("act", [functools.partial(F.elu, alpha=a) for a in (1.0, 2.0)]),
        ("sizes", [Sizes(2), Sizes(3), types.SimpleNamespace(heads=2), argparse.Namespace()]),
        ("table", [torch.zeros(2), torch.ones(2), np.ones(2), [torch.ones(2), torch.zeros(2)]]),
        ("aside", [[nn.Linear(1, 1, bias=False)] for _ in range(2)]),
    ],
)
def test_plain_attributes_of_every_part_are_noticed(name: str, values: list[Any]) -> None:
    found = set()
    for value in values:
        one = network()
        setattr(one[2], name, value)
        found.add(state_fingerprint(one))
        again = network()
        setattr(again[2], name, copy.deepcopy(value))
        assert state_fingerprint(again) in found
    assert len(found) == len(values)


def test_parts_in_lists_are_known_by_their_names_and_may_hold_each_other() -> None:
    found = []
    for order in ((0, 3), (3, 0)):
        one: Any = network()
        one.stages = [one[place] for place in order]
        one[1].owner = [one]
        aside: Any = nn.Linear(2, 2, bias=False)
        nn.init.ones_(aside.weight)
        aside.owner = [one]
        one.aside = [aside]
        found.append(state_fingerprint(one))
    assert found[0] != found[1]


def test_files_devices_addresses_and_the_mode_are_not_noticed() -> None:
    one, other = network(), network().train()
    for part, where, device, thing in (
        (one[2], "/home/a/weights.pt", "cpu", object()),
        (other[2], "/mnt/b/weights.pt", "cuda:0", object()),
    ):
        settings: Any = part
        settings.path, settings.device, settings.thing = where, device, thing
        settings.lock = threading.Lock()
        settings.printed = network
        settings.extra_repr = lambda thing=thing: f"thing={thing}"
    assert state_fingerprint(one) == state_fingerprint(other)


class Noting(nn.Module):
    """Keeps what it saw, itself and in methods that it calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.last: Any = None
        self.calls, self.cache = 0, {}  # type: ignore[var-annotated]

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(x)
        self._note(out)
        return out

    def _note(self, out: torch.Tensor) -> None:
        self.calls += 1
        self.last, self.shape = out, tuple(out.shape)
        self.cache[str(out.device)] = out


@pytest.mark.parametrize(
    "make",
    [
        Noting,
        *(
            functools.partial(timm.create_model, name)
            for name in ("levit_128s", "test_vit", "test_resnet", "test_efficientnet")
        ),
        functools.partial(timm.create_model, "swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1)),
        functools.partial(torchvision.models.get_model, "swin_v2_t"),
    ],
)
def test_running_a_network_leaves_its_fingerprint(make: Callable[[], nn.Module]) -> None:
    module = make().eval()
    before = state_fingerprint(module)
    size = (getattr(module, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))[1:]
    with torch.inference_mode():
        module(torch.rand(1, 3, *size))
    assert state_fingerprint(module) == before


# Code ----------------------------------------------------------------------------------------------

FILES = {
    "fp_own/__init__.py": "",
    "fp_own/base.py": "from torch import nn\nclass Base(nn.Module):\n  def forward(self, x):\n    return x\n",
    "fp_own/net.py": "from .base import Base\nfrom fp_helper import scaled\nclass Net(Base):\n  pass\n",
    "fp_helper.py": "def scaled(x):\n  import fp_lazy\n  return fp_lazy.by * x\n",
    "fp_lazy.py": "by = 2\n",
    "fp_build.py": (
        "import timm, numpy\nfrom fp_own.net import Net\ndef transform(image):\n  return image\n"
        "def own():\n  return Net(), transform\n"
        "def library():\n  return timm.create_model('test_vit', num_heads=2), transform\n"
    ),
    "fp_other.py": "nothing = 1\n",
}


def made_in_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, factory: str, changes: dict[str, str]
) -> str:
    """Fingerprint of a network from a factory in files of which some are changed."""
    for name, text in (FILES | changes).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.startswith("fp_")]:
        del sys.modules[name]
    target = load_target(f"python:fp_build:{factory}", "random:0", base=folder)
    return state_fingerprint(target.module, target.made_in)


@pytest.mark.parametrize("factory", ["own", "library"])
@pytest.mark.parametrize("changed", [*FILES, "fp_new.py"])
def test_the_files_of_a_factory_and_of_all_that_it_imports_are_noticed(
    factory: str, changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = made_in_folder(tmp_path / "a", monkeypatch, factory, {})
    assert made_in_folder(tmp_path / "b", monkeypatch, factory, {}) == plain
    text = FILES.get(changed, "") + "\nmore = 1\n"
    other = made_in_folder(tmp_path / "c", monkeypatch, factory, {changed: text})
    assert (other != plain) == (changed not in ("fp_other.py", "fp_new.py"))


def test_another_number_of_heads_in_a_factory_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"fp_build.py": FILES["fp_build.py"].replace("num_heads=2", "num_heads=4")}
    plain = made_in_folder(tmp_path / "a", monkeypatch, "library", {})
    assert made_in_folder(tmp_path / "b", monkeypatch, "library", other) != plain


def test_files_of_libraries_and_of_this_program_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "fp_plain.py").write_text(
        "import numpy, PIL.Image, pipeline.planted, actors.clip\n"
    )
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import fp_plain\n"
        "from actors.own_code import own_sources\nprint(len(own_sources([], 'fp_plain')))\n"
        "print(len(own_sources([], 'pipeline.planted')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["1", "1"]


def test_another_process_finds_the_same_fingerprint_whatever_it_has_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = made_in_folder(tmp_path, monkeypatch, "own", {})
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import {first}\n"
        "from pathlib import Path; from actors.fingerprint import state_fingerprint\n"
        "from actors.targets import load_target\n"
        "t = load_target('python:fp_build:own', 'random:0', base=Path(sys.argv[1]))\n"
        "t.module({{1, 2}} and __import__('torch').ones(1))\n"
        "print(state_fingerprint(t.module, t.made_in))"
    )
    for seed, first in (("1", "fp_lazy"), ("2", "fp_other")):
        done = subprocess.run(
            [sys.executable, "-c", program.format(first=first), str(tmp_path)],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        assert done.stdout.strip() == here
