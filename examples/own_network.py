"""A network of one's own: a factory that returns (network, transform)."""

from __future__ import annotations

import torch
from torch import nn
from torchvision import transforms


def network() -> tuple[nn.Module, transforms.Compose]:
    """The network and its preprocessing, which takes an RGB PIL image to floats (3, height, width)."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()
    )
    transform = transforms.Compose(
        [transforms.Resize(64), transforms.CenterCrop(64), transforms.ToTensor()]
    )
    return layers, transform
