"""Ablation through the whole pipeline, on networks whose neurons are known sums of concepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline import planted
from pipeline.cli import main
from pipeline.config import parse_config
from pipeline.run import execute
from pipeline.rundir import Run
from tests.ablation_network import PERFECT, Ablated

IMAGES = 500
TESTS = Path(__file__).parent
TABLES = ("ablations", "replacements", "importance")


def config(folder: Path, factory: str = "network", **ablation: Any) -> dict[str, Any]:
    sections: dict[str, Any] = planted.config(folder)
    sections["target"] |= {
        "model": f"python:ablation_network:{factory}",
        "layers": ["early", "late"],
    }
    sections["ablation"] = {"layers": ["early", "late"], "temperature": 1.0} | ablation
    return sections


def run_of(folder: Path, name: str, factory: str = "network", **ablation: Any) -> Run:
    sections = config(folder, factory, **ablation)
    return Run.open(execute(parse_config(sections, base=TESTS), folder / name).url)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ablate")
    planted.write_images(path, IMAGES)
    return path


@pytest.fixture(scope="module")
def run(folder: Path, local_ray: None) -> Run:
    return run_of(folder, "run")
