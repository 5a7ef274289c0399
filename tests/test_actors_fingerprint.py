"""Fingerprints change with content, and with nothing else."""

from __future__ import annotations

import copy
import functools
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import transforms as tv

from actors.fingerprint import callable_fingerprint, describe, state_fingerprint


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
