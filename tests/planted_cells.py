"""A network of which every neuron is one concept, and a finished run of it that tests can share.

Images and concepts are those of `pipeline.planted`; a vision-language model knows nothing of them, and
its scores serve to be recomputed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import transforms

from pipeline import planted
from pipeline.config import parse_config
from pipeline.run import execute
from pipeline.rundir import Run

TESTS = Path(__file__).parent
MODELS = TESTS.parent / "pipeline" / "demo" / "models"
IMAGES, NEURONS = 500, 24

#: The concept of each neuron.
OWNER = np.random.default_rng(4).permutation(planted.CONCEPTS)[:NEURONS]
WORDS = ["circle", "square", "triangle", "grey", "noise", "dark", "bright", "cells"]


class Cells(nn.Module):
    """One neuron for each of some cells, with a little of a noise cell, and a constant one."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.AvgPool2d(planted.CELL)
        self.neurons = nn.Linear(planted.ROWS * planted.COLUMNS, NEURONS + 1)
        weights = torch.zeros_like(self.neurons.weight)
        for neuron, concept in enumerate(OWNER):
            weights[neuron, concept] = 2.0
            weights[neuron, planted.CONCEPTS + neuron % planted.NOISE] = 0.2
        self.neurons.weight = nn.Parameter(weights)
        self.neurons.bias = nn.Parameter(torch.full_like(self.neurons.bias, 0.5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.neurons(self.cells(images[:, :1]).flatten(1))
        return out


def network() -> tuple[nn.Module, transforms.Compose]:
    """Factory for ``python:planted_cells:network``."""
    _, transform = planted.network()
    return Cells(), transform


_finished: list[Run] = []


def finished_run(temporary: pytest.TempPathFactory) -> Run:
    """The run, made once for all tests, and a copy of it for each process that tests run in."""
    if not _finished:
        mine = temporary.mktemp("cells")
        # Processes of one start of the tests have folders side by side.
        made = (mine if "PYTEST_XDIST_WORKER" not in os.environ else mine.parent.parent) / "planted"
        made.mkdir(exist_ok=True)
        with (made / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (made / "done").exists():
                _made(made)
                (made / "done").touch()
        shutil.copytree(made / "run", mine / "run")
        _finished.append(Run.open(mine / "run"))
    return _finished[0]


def _made(folder: Path) -> None:
    planted.write_images(folder, IMAGES)
    (folder / "words.txt").write_text("\n".join(WORDS) + "\n")
    sections = planted.config(folder) | {
        "target": {
            "model": "python:planted_cells:network",
            "layers": ["neurons"],
            "dtype": "float32",
        },
        "simulators": [{"name": "other", "model": f"local-dir:{MODELS / 'simulator'}"}],
        "atlas": {"images": False},
        "fit": {"folds": 2, "max_length": 3, "sharpness": {"factor": 0.5, "shift": 1.0}},
    }
    clip = {
        "name": "clip",
        "kind": "open_clip",
        "model": f"local-dir:{MODELS / 'explainer'}",
        "concepts": str(folder / "words.txt"),
        "calibration": {"a": 8.0, "b": 0.5},
    }
    sections["concepts"] = [*sections["concepts"], clip]  # type: ignore[misc]
    execute(parse_config(sections, base=TESTS), folder / "run")


def stored(run: Run, table: str, column: str, split: str) -> np.ndarray:
    """Rows of a recorded table of the images of a split, float64."""
    inside = np.array(run.read("images")["split"].to_pylist()) == split
    return np.stack(run.read(table)[column].to_numpy()).astype(np.float64)[inside]
