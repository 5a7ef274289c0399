"""Networks whose neurons are known sums of the cells of planted images, with layers to ablate."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import transforms

from pipeline.planted import CELL, COLUMNS, CONCEPTS, ROWS

EARLY, LATE, PERFECT, CLASSES = 10, 14, 8, 5
"""Neurons of two layers, how many of the late ones are sums of cells alone, and outputs."""


class Ablated(nn.Module):
    """Cells → early sums; cells and the tanh of early sums → late sums; a linear head on these."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        rng = np.random.default_rng(5)
        self.cells = nn.AvgPool2d(CELL)
        self.early = nn.Linear(ROWS * COLUMNS, EARLY)
        self.late = nn.Linear(ROWS * COLUMNS + EARLY, LATE)
        self.head = nn.Linear(LATE, CLASSES)
        self.plain = plain
        for layer, neurons in ((self.early, EARLY), (self.late, LATE)):
            weight = np.zeros(tuple(layer.weight.shape))
            for neuron in range(neurons):
                terms = rng.permutation(CONCEPTS)[:3]
                weight[neuron, terms] = rng.uniform(0.8, 2.0, 3) * rng.choice([-1, 1], 3)
            if layer is self.late:
                weight[PERFECT:, -EARLY:] = rng.normal(0, 1, (LATE - PERFECT, EARLY))
            layer.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32))
            layer.bias = nn.Parameter(torch.zeros(neurons))
        self.head.weight = nn.Parameter(
            torch.tensor(rng.normal(0, 1, (CLASSES, LATE)), dtype=torch.float32)
        )
        self.head.bias = nn.Parameter(torch.zeros(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        cells = self.cells(images[:, :1]).flatten(1)
        late = self.late(torch.cat([cells, torch.tanh(self.early(cells))], dim=1))
        # The same sum, without a module that could be recognised.
        return self.head(late) if self.plain else late @ self.head.weight.T + self.head.bias


def _preprocessing() -> transforms.Compose:
    crop = transforms.CenterCrop((ROWS * CELL, COLUMNS * CELL))
    return transforms.Compose([crop, transforms.ToTensor()])


def network() -> tuple[nn.Module, transforms.Compose]:
    return Ablated(plain=True), _preprocessing()


def disguised() -> tuple[nn.Module, transforms.Compose]:
    """The same function, whose linear head cannot be seen."""
    return Ablated(plain=False), _preprocessing()
