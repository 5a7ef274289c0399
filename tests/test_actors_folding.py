"""Folded networks against the networks as they are."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from actors.folding import fold_batch_norms, foldable


def lively(module: nn.Module) -> nn.Module:
    """With statistics and weights of batch normalisations as training leaves them: of any sign and size."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d) and part.running_var is not None:
            assert part.running_mean is not None
            part.running_mean.normal_()
            part.running_var.uniform_(0.2, 3.0)
            if part.affine:
                nn.init.normal_(part.weight)
                nn.init.normal_(part.bias)
    return module.eval()


def outputs(module: nn.Module, names: set[str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    handles = [
        part.register_forward_hook(
            lambda _m, _i, out, name=name: found.__setitem__(name, out.clone())
        )
        for name, part in module.named_modules()
        if name in names
    ]
    torch.manual_seed(1)
    with torch.inference_mode():
        module(torch.rand(2, 3, 64, 64))
    for handle in handles:
        handle.remove()
    return found


def near(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max())


@pytest.mark.parametrize(
    ("make", "folded"),
    [
        (lambda: torchvision.models.resnet18(), 20),
        (lambda: torchvision.models.densenet121(), 59),  # most of its norms come first
        (lambda: timm.create_model("tf_efficientnet_lite0"), 49),  # norms with activations inside
    ],
)
def test_a_folded_network_gives_in_every_other_layer_what_it_gave(make: Any, folded: int) -> None:
    network = lively(make())
    convolutions = {n for n, part in network.named_modules() if isinstance(part, nn.Conv2d)}
    names = {name for name, _ in network.named_modules()} - convolutions
    before = outputs(network, names)
    assert fold_batch_norms(network) == folded
    assert {name for name, _ in network.named_modules()} - convolutions == names
    after = outputs(network, names)
    assert before.keys() == after.keys()
    assert all(near(after[name], before[name]) for name in before)


def test_convolutions_that_are_kept_give_what_they_gave() -> None:
    network = lively(torchvision.models.resnet18())
    names = {"conv1", "layer2.0.conv2", "layer4.1.bn1"}
    before = outputs(network, names)
    assert fold_batch_norms(network, names) == 18
    after = outputs(network, names)
    assert all(near(after[name], before[name]) for name in names)


class Block(nn.Module):
    """A convolution and a batch normalisation with something else between them or beside."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.kind = kind
        if kind == "weights made anew":
            parametrizations.weight_norm(self.conv)
        if kind == "no statistics":
            self.norm = nn.BatchNorm2d(4, track_running_stats=False)
        if kind == "hooked":
            self.conv.register_forward_hook(lambda _m, _i, out: out * 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        out: Tensor = self.norm(y.relu() if self.kind == "an activation between" else y)
        if self.kind == "read twice":
            return out + y
        if self.kind == "run twice":
            return out + self.conv(x * 2)
        if self.kind == "weights read":
            return out + self.conv.weight.mean()
        if self.kind == "depends on its input" and x.mean() > 0.1:
            return out + y
        return out


@pytest.mark.parametrize(
    "kind",
    [
        "an activation between",
        "read twice",
        "run twice",
        "weights read",
        "weights made anew",
        "no statistics",
        "hooked",
        "depends on its input",
    ],
)
def test_what_cannot_be_folded_is_left_alone(kind: str) -> None:
    network = lively(Block(kind))
    x = torch.rand(2, 3, 8, 8)
    with torch.inference_mode():
        before = network(x)
        assert fold_batch_norms(network) == 0
        assert torch.equal(network(x), before)


def test_the_plain_block_is_folded() -> None:
    network = lively(Block("plain"))
    x = torch.rand(2, 3, 8, 8)
    with torch.inference_mode():
        before = network(x)
        assert fold_batch_norms(network) == 1
        assert near(network(x), before)


def test_tied_weights_are_not_folded() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    network[2].weight = network[0].weight
    lively(network)
    x = torch.rand(2, 3, 8, 8)
    with torch.inference_mode():
        before = network(x)
        assert fold_batch_norms(network) == 0
        assert torch.equal(network(x), before)


def test_weights_that_would_not_be_finite_stay_as_they_are() -> None:
    network = lively(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    network[1].weight.data[0] = float("inf")  # type: ignore[union-attr]
    assert fold_batch_norms(network) == 0


def test_foldable_convolutions_are_told_beforehand() -> None:
    network = lively(torchvision.models.densenet121())
    convolutions = [n for n, part in network.named_modules() if isinstance(part, nn.Conv2d)]
    told = foldable(network, [*convolutions, "features.norm5"])
    assert foldable(network, ["features.norm5", convolutions[1]]) == [convolutions[1]]
    before = {name: network.get_submodule(name).weight for name in convolutions}
    fold_batch_norms(network)
    folded = [n for n in convolutions if network.get_submodule(n).weight is not before[n]]
    assert told == sorted(folded)
    assert 0 < len(told) < len(convolutions)
