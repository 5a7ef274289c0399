"""Kernels that are chosen by rule, whatever a network or its surroundings have asked for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
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


class Attending(nn.Module):
    """Attention over the cells of an image, and a layer to hook."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.cells = nn.Conv2d(3, 64, 4, 4)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.neurons = nn.Linear(64, 32)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.cells(images).flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        out: torch.Tensor = self.neurons(mixed)
        return out


def test_attention_multiplies_all_tokens_at_once_and_gives_what_the_network_gives() -> None:
    images = np.random.default_rng(2).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    transform = transforms.Compose(
        [transforms.Resize(32), transforms.CenterCrop(32), transforms.ToTensor()]
    )
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        expected = Attending().eval()(pixels).mean(1).numpy()
    target = Target(Attending().eval().requires_grad_(False), transform, "attending")
    recorder = Recorder(
        [TargetPart(target, {"neurons": ("avg",)})], device="cpu", dtype="float32", batch_size=16
    )
    (key,) = recorder.views
    recorder.record({key: images})
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        found = recorder.record({key: images}).activations["neurons", "avg"]
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)
    assert "aten::bmm" not in {event.key for event in seen.key_averages()}
