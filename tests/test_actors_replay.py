"""Replacing activations and running the rest, against hooks and arithmetic by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision import transforms as tv

from actors.replay import Replay
from actors.targets import Target
from core.errors import ConfigError, ModelError, ShapeError

SIDE, IMAGES, VARIANTS = 16, 6, 41
SQUARE = tv.Compose([tv.Resize((SIDE, SIDE)), tv.ToTensor()])
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
ROWS = RNG.integers(0, IMAGES, VARIANTS)
SHIFTS = RNG.normal(0, 2, VARIANTS)


class Residual(nn.Module):
    """A convolution that is passed by, a normalisation, and a linear head on the mean over space."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.last(x + torch.tanh(self.branch(torch.relu(x))))
        out: Tensor = self.head(self.pool(x).flatten(1))
        return out


def residual() -> Target:
    torch.manual_seed(0)
    return Target(Residual().eval(), SQUARE, "residual")


def transformer() -> Target:
    torch.manual_seed(0)
    module = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=SIDE,
        patch_size=4,
        depth=2,
        embed_dim=24,
        num_heads=3,
        num_classes=7,
    )
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return Target(module.eval(), SQUARE, "transformer")


def by_hand(target: Target, layer: str, edit: Any) -> np.ndarray:
    """Logits of each variant in a pass of its own, from the image on, with a hook that edits it."""
    part = dict(target.module.named_modules())[layer]
    images = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 255
    found = []
    with torch.inference_mode():
        for variant, row in enumerate(ROWS):

            def hook(_part: Any, _inputs: Any, output: Tensor, variant: int = variant) -> Tensor:
                output = output.clone()
                edit(output[0], variant)
                return output

            handle = part.register_forward_hook(hook)
            found.append(target.module(images[row : row + 1])[0])
            handle.remove()
    return torch.stack(found).numpy()


def neurons_of(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, count, VARIANTS)


CASES = {
    "before a residual block": (residual, "stem", "avg", 8, "map", True),
    "inside a residual block": (residual, "branch", "max", 8, "map", False),
    "before a linear head": (residual, "last", "avg", 8, "map", True),
    "a vector": (residual, "head", "avg", 5, "number", True),
    "all tokens of a block": (transformer, "blocks.0", "avg", 24, "tokens", True),
    "a class token inside a block": (transformer, "blocks.0.mlp", "first", 24, "first", False),
    "the class token of the last layer": (transformer, "norm", "first", 24, "first", True),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch_size", [16, "auto"])
def test_shifted_activations_give_the_logits_of_passes_with_a_hook_by_hand(
    case: str, batch_size: Any
) -> None:
    make, layer, pooling, count, kind, expands = CASES[case]
    neurons = neurons_of(count)

    def edit(output: Tensor, variant: int) -> None:
        k, shift = int(neurons[variant]), float(SHIFTS[variant])
        if kind == "tokens":
            output[:, k] += shift
        elif kind == "first":
            output[0, k] += shift
        else:
            output[k] += shift

    replay = Replay(make(), layer, pooling, batch_size=batch_size)
    found = replay.shifted(PIXELS, ROWS, neurons, SHIFTS).numpy()
    np.testing.assert_allclose(found, by_hand(make(), layer, edit), atol=2e-5, rtol=1e-5)
    assert replay.expand == expands


@pytest.mark.parametrize("case", ["before a residual block", "a class token inside a block"])
def test_zeroed_maps_give_the_logits_of_passes_with_a_hook_by_hand(case: str) -> None:
    make, layer, pooling, count, kind, _ = CASES[case]
    neurons = neurons_of(count)

    def edit(output: Tensor, variant: int) -> None:
        k = int(neurons[variant])
        output[(0, k) if kind == "first" else k] = 0.0

    found = Replay(make(), layer, pooling).zeroed(PIXELS, ROWS, neurons).numpy()
    np.testing.assert_allclose(found, by_hand(make(), layer, edit), atol=2e-5, rtol=1e-5)


def test_shifting_all_neurons_together_is_one_pass_with_all_shifts() -> None:
    shifts = np.random.default_rng(2).normal(0, 1, (VARIANTS, 8))

    def edit(output: Tensor, variant: int) -> None:
        output += torch.from_numpy(shifts[variant]).float().view(8, 1, 1)

    for layer in ("stem", "branch"):
        found = Replay(residual(), layer, "avg").shifted_together(PIXELS, ROWS, shifts).numpy()
        np.testing.assert_allclose(found, by_hand(residual(), layer, edit), atol=2e-5, rtol=1e-5)


def test_a_shift_by_zero_changes_no_logit() -> None:
    replay = Replay(transformer(), "blocks.0", "avg")
    base = replay.logits(PIXELS).numpy()
    found = replay.shifted(PIXELS, ROWS, neurons_of(24), np.zeros(VARIANTS)).numpy()
    np.testing.assert_allclose(found, base[ROWS], atol=2e-5)


def test_logits_of_a_variant_do_not_depend_on_the_variants_beside_it() -> None:
    replay = Replay(residual(), "stem", "avg", batch_size=16)
    neurons = neurons_of(8)
    whole = replay.shifted(PIXELS, ROWS, neurons, SHIFTS).numpy()
    few = np.array([40, 3, 17])
    alone = replay.shifted(PIXELS, ROWS[few], neurons[few], SHIFTS[few]).numpy()
    np.testing.assert_array_equal(alone, whole[few])


def test_what_is_kept_of_logits_is_in_the_order_of_the_variants() -> None:
    replay = Replay(residual(), "stem", "avg")
    neurons = neurons_of(8)
    whole = replay.shifted(PIXELS, ROWS, neurons, SHIFTS)
    marks = torch.arange(IMAGES) * 100.0
    found = replay.shifted(
        PIXELS, ROWS, neurons, SHIFTS, reduce=lambda logits, rows: logits[:, 2] + marks[rows]
    )
    np.testing.assert_array_equal(found.numpy(), (whole[:, 2] + marks[ROWS]).numpy())


@pytest.mark.parametrize(
    ("make", "layer", "pooling"), [(residual, "last", "avg"), (transformer, "norm", "first")]
)
def test_a_linear_head_behind_a_layer_is_found_with_its_weights(
    make: Any, layer: str, pooling: str
) -> None:
    replay = Replay(make(), layer, pooling)
    head = replay.examine(PIXELS[:4])
    assert head is not None
    linear: Any = make().module.head
    np.testing.assert_array_equal(head.weight, linear.weight.detach().numpy())
    np.testing.assert_array_equal(head.bias, linear.bias.detach().numpy())
    neurons = neurons_of(head.weight.shape[1])
    algebra = replay.logits(PIXELS).numpy()[ROWS] + (head.weight[:, neurons] * SHIFTS).T
    found = replay.shifted(PIXELS, ROWS, neurons, SHIFTS).numpy()
    np.testing.assert_allclose(found, algebra, atol=1e-4)


class ClippedHead(Residual):
    """Between the layer and its head there is a step that shows only when a map is shifted down."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.stem(x))
        out: Tensor = self.head(self.pool(torch.relu(x)).flatten(1))
        return out


@pytest.mark.parametrize(
    ("module", "layer", "pooling"),
    [
        (Residual(), "stem", "avg"),
        (Residual(), "last", "max"),
        (Residual(), "head", "avg"),
        (ClippedHead(), "last", "avg"),
    ],
)
def test_layers_without_a_linear_head_behind_them_are_told_apart(
    module: nn.Module, layer: str, pooling: str
) -> None:
    assert Replay(Target(module, SQUARE, "net"), layer, pooling).examine(PIXELS[:1]) is None


def test_networks_that_are_no_classifiers_and_poolings_without_a_shift_are_refused() -> None:
    maps = Target(nn.Sequential(nn.Conv2d(3, 4, 3)), SQUARE, "maps")
    with pytest.raises(ModelError, match=r"tensor of shape \(6, 4, 14, 14\).*expected logits"):
        Replay(maps, "0", "avg", batch_size=6).logits(PIXELS)
    with pytest.raises(ConfigError, match=r"absmax.*cannot be replaced"):
        Replay(residual(), "stem", "absmax")


def test_variants_that_fit_no_image_are_refused() -> None:
    replay = Replay(residual(), "stem", "avg")
    with pytest.raises(ShapeError, match="2 rows came with 1"):
        replay.shifted(PIXELS, np.array([0, 1]), np.array([1]), np.array([0.5]))
    with pytest.raises(ShapeError, match="rows from 0 to 6 do not fit 6 images"):
        replay.zeroed(PIXELS, np.array([0, 6]), np.array([1, 1]))
