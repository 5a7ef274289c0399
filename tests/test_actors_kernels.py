"""Kernels that are chosen by rule, whatever a network or its surroundings have asked for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import transforms

from actors.kernels import repeatable
from actors.recorder import Recorder, TargetPart
from actors.targets import Target


@pytest.fixture
def short_products() -> Iterator[None]:
    """Products of float32 in shorter numbers, as some networks' code asks for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


class Asking(nn.Module):
    """A linear layer that notes in which precision it is computed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.neurons = nn.Linear(3 * 32 * 32, 256)
        self.asked: list[str] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.asked.append(torch.get_float32_matmul_precision())
        out: torch.Tensor = self.neurons(images.flatten(1))
        return out


def recorded(images: np.ndarray) -> tuple[np.ndarray, list[str]]:
    module = Asking()
    transform = transforms.Compose(
        [transforms.Resize(32), transforms.CenterCrop(32), transforms.ToTensor()]
    )
    part = TargetPart(Target(module, transform, "asking"), {"neurons": ("avg",)})
    recorder = Recorder([part], device="cpu", dtype="float32", batch_size=16)
    (key,) = recorder.views
    return recorder.record({key: images}).activations["neurons", "avg"], module.asked


@pytest.mark.usefixtures("short_products")
def test_float32_is_all_of_float32_whatever_is_set() -> None:
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    found, asked = recorded(images)
    assert set(asked) == {"highest"}
    assert torch.get_float32_matmul_precision() == "medium"
    torch.set_float32_matmul_precision("highest")
    expected, _ = recorded(images)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.usefixtures("short_products")
def test_what_was_set_is_set_again_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), repeatable():
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == "medium"
    assert not torch.is_inference_mode_enabled()
