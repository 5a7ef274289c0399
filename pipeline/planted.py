"""A network whose neurons are known sums of concepts that can be read off its images.

An image is a grid of 8-pixel cells, each of one grey level. The first cells are concepts, the last
ones noise; a neuron is a weighted sum of three concept cells, a noise cell and a bias.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

ROWS, COLUMNS, CELL = 6, 8, 8
CONCEPTS, NOISE = 40, ROWS * COLUMNS - 40
NEURONS, TERMS = 60, 3
CONSTANT, DEAD, FAILED = 60, 61, 62

NAMES = [f"concept {number}" for number in range(CONCEPTS)]


def planted() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Concepts (neurons, terms), their weights, and biases of the planted neurons."""
    rng = np.random.default_rng(11)
    concepts = np.stack([rng.permutation(CONCEPTS)[:TERMS] for _ in range(NEURONS)])
    weights = rng.uniform(0.8, 2.0, (NEURONS, TERMS)) * rng.choice([-1, 1], (NEURONS, TERMS))
    return concepts, weights, rng.uniform(-1, 1, NEURONS)


class Planted(nn.Module):
    """Averages each cell and sums cells as planted."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.AvgPool2d(CELL)
        self.neurons = nn.Linear(ROWS * COLUMNS, FAILED + 1)
        concepts, weights, bias = planted()
        full = torch.zeros_like(self.neurons.weight)
        shift = torch.zeros_like(self.neurons.bias)
        for neuron in range(NEURONS):
            full[neuron, concepts[neuron]] = torch.tensor(weights[neuron], dtype=torch.float32)
            full[neuron, CONCEPTS + neuron % NOISE] = 0.3
            shift[neuron] = bias[neuron]
        shift[CONSTANT], shift[FAILED] = 2.5, float("nan")
        self.neurons.weight = nn.Parameter(full)
        self.neurons.bias = nn.Parameter(shift)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Activations (batch, neurons) of images (batch, 3, height, width)."""
        out: torch.Tensor = self.neurons(self.cells(images[:, :1]).flatten(1))
        return out


def network() -> tuple[nn.Module, transforms.Compose]:
    """Factory for ``python:pipeline.planted:network``."""
    crop = transforms.CenterCrop((ROWS * CELL, COLUMNS * CELL))
    return Planted(), transforms.Compose([crop, transforms.ToTensor()])


def levels(count: int, seed: int) -> np.ndarray:
    """Grey levels of every cell, (images, cells) uint8: concepts are mostly absent, noise is not."""
    rng = np.random.default_rng(seed)
    present = rng.random((count, CONCEPTS)) < rng.uniform(0.05, 0.5, CONCEPTS)
    concepts = np.where(present, rng.integers(120, 256, present.shape), 0)
    noise = rng.integers(0, 256, (count, NOISE))
    return np.concatenate([concepts, noise], axis=1).astype(np.uint8)


def write_images(folder: Path, count: int, seed: int = 3) -> np.ndarray:
    """Write PNG images in two class folders and `concepts.parquet` beside them; returns the levels."""
    cells = levels(count, seed)
    grids = cells.reshape(count, ROWS, COLUMNS).repeat(CELL, axis=1).repeat(CELL, axis=2)
    ids = [f"{'even' if n % 2 == 0 else 'odd'}/{n:05d}.png" for n in range(count)]
    for name in ("even", "odd"):
        (folder / "images" / name).mkdir(parents=True, exist_ok=True)
    for image_id, grid in zip(ids, grids, strict=True):
        Image.fromarray(grid).save(folder / "images" / image_id)
    columns = {name: cells[:, n] / np.float32(255) for n, name in enumerate(NAMES)}
    pq.write_table(pa.table({"image_id": ids, **columns}), folder / "concepts.parquet")
    return cells


def config(folder: Path, **sections: object) -> dict[str, object]:
    """Configuration of the planted network on the images in a folder."""
    base: dict[str, object] = {
        "images": {"path": str(folder / "images")},
        "target": {
            "model": "python:pipeline.planted:network",
            "layers": ["neurons"],
            "dtype": "float32",
        },
        "concepts": [
            {"name": "cells", "kind": "table", "path": str(folder / "concepts.parquet")},
        ],
        "recordings": {"shard_size": 100},
        "simulate": {"metrics": ["correlation", "cosine", "auprc", "f1", "iou"]},
    }
    return base | sections
