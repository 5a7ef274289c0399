"""Running the rest of a network again for replaced neurons, against whole forward passes.

    python benchmarks/replay.py [--device cuda] [--results FILE.json]

ResNet-50 with random weights, 224 px, float32 without TensorFloat-32: replacements a second behind layer1 to
layer4, by `actors.replay`, from 8-bit images in main memory to numbers on the device. `raw` is the whole
network on batches of the same size that lie on the device, which is what a replacement costs where nothing is
shared. One image is replaced 256 times (on a CPU 32 times).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from machine import machine

from actors.replay import Replay
from actors.targets import load_target

MODEL, LAYERS = "torchvision:resnet50", ("layer1", "layer2", "layer3", "layer4")
IMAGES, EACH = {"cpu": 1, "cuda": 16}, {"cpu": 32, "cuda": 256}
ROUNDS = 5


def rates(call: Callable[[], object], count: int, device: str) -> list[float]:
    """How many a second, one figure a round, sorted; the first round is not counted."""
    found = []
    for _ in range(ROUNDS + 1):
        begun = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(count / (time.perf_counter() - begun))
    return sorted(round(rate, 1) for rate in found[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=IMAGES, default="cpu")
    parser.add_argument("--results", type=Path)
    chosen = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False
    device, each = chosen.device, EACH[chosen.device]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES[device], 224, 224, 3), dtype=np.uint8)
    count = len(images) * each
    module = load_target(MODEL, "random:0").module.to(device, memory_format=torch.channels_last)
    batch = torch.randn(each, 3, 224, 224, device=device).to(memory_format=torch.channels_last)

    def raw() -> None:
        with torch.inference_mode():
            for _ in images:
                module(batch)

    found = {"raw, the whole network": rates(raw, count, device)}
    for layer in LAYERS:
        replay = Replay(load_target(MODEL, "random:0"), layer, "avg", device)
        replay.examine(images[:2])
        rows = np.repeat(np.arange(len(images)), each)
        neurons = rng.integers(0, 256, count)
        shifts = rng.standard_normal(count).astype(np.float32)

        call = partial(replay.shifted, images, rows, neurons, shifts)
        found[f"behind {layer}, {'shared front' if replay.expand else 'whole passes'}"] = rates(
            call, count, device
        )
    raw_rate = statistics.median(found["raw, the whole network"])
    facts = {
        "command": f"python benchmarks/replay.py --device {device}",
        "machine": machine() + (f", {torch.cuda.get_device_name()}" if device == "cuda" else ""),
        "versions": {name: metadata.version(name) for name in ("torch", "torchvision")},
        "replacements per second, sorted": found,
        "median / raw": {
            name: round(statistics.median(values) / raw_rate, 2) for name, values in found.items()
        },
    }
    text = json.dumps(facts, indent=1)
    print(text)
    if chosen.results:
        chosen.results.write_text(text + "\n")


if __name__ == "__main__":
    main()
