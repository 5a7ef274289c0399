"""Decoding and resizing JPEG files on a device, against Pillow on one core, in the same run.

    python benchmarks/decoding.py [--device cuda] [--images 2048] [--rounds 3] [--results FILE.json]

Files of 500 x 375 (made pictures, quality 90, colour thinned out to a quarter, 64 kB) in main memory →
8-bit arrays of 224 x 224: in main memory by Pillow, on the device by what recording actors do with
`recordings.decode: gpu`. Files are looked at (`header`) on a core in both cases, since that is what a decode
task still does. Rounds alternate; images a second, sorted.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from PIL import Image

from actors.decode import MAX_PIXELS, Decoder
from actors.gpu_decode import DeviceDecoder, check_decoder
from actors.undecoded import undecoded
from actors.views import CenterCrop, Resize, View

MADE = 64
"""Different pictures; the others repeat them."""


def files() -> list[bytes]:
    """Pictures with smooth parts and fine ones."""
    draw = np.random.default_rng(0)
    out = []
    for _ in range(MADE):
        coarse = draw.integers(0, 256, (15, 20, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        noisy = np.asarray(picture).astype(np.float32) + draw.normal(0, 8, (375, 500, 3))
        buffer = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(
            buffer, "JPEG", quality=90, subsampling=2
        )
        out.append(buffer.getvalue())
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--pillow", type=int, default=256, help="images for Pillow")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path)
    chosen = parser.parse_args()
    check_decoder(chosen.device)
    resize, crop = Resize(256, Image.Resampling.BILINEAR), CenterCrop(224, 224)
    view = View("resize(256,bilinear)+crop(224x224)", (224, 224, 3), (resize, crop))
    made = files()
    data = [made[number % MADE] for number in range(max(chosen.images, chosen.pillow))]
    left = [undecoded(one, [view], MAX_PIXELS) for one in made]
    sent = [file for file in left if file is not None]
    assert len(sent) == MADE
    on_device = DeviceDecoder({view.key: view}, chosen.device)
    pillow = Decoder({view.key: view}, lambda row: row["data"])
    rows: list[dict[str, Any]] = [{"data": one} for one in data[: chosen.pillow]]

    def by_device() -> None:
        answers = on_device([sent[number % MADE] for number in range(chosen.images)])
        assert all(reason is None for reason, _ in answers)
        if on_device.device.type == "cuda":
            torch.cuda.synchronize()

    # One thread, as a decode task has; a device that is a CPU has all of them.
    calls: dict[str, tuple[int, Callable[[], Any]]] = {
        "pillow, one core": (len(rows), lambda: pillow(rows)),
        "header, one core": (
            len(data),
            lambda: [undecoded(one, [view], MAX_PIXELS) for one in data],
        ),
        f"device {chosen.device}": (chosen.images, by_device),
    }
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(chosen.rounds + 1):
        for name, (count, call) in calls.items():
            begun = time.perf_counter()
            call()
            rates[name].append(count / (time.perf_counter() - begun))
    found = {name: sorted(round(rate, 1) for rate in some[1:]) for name, some in rates.items()}
    ours, theirs = (
        torch.stack([views[view.key] for _, views in on_device(sent)]).cpu().numpy().astype(int),
        np.stack([views[view.key] for _, views in pillow([{"data": one} for one in made])]),
    )
    difference = np.abs(ours - theirs)
    gpu = torch.cuda.get_device_name() if on_device.device.type == "cuda" else None
    facts = {
        "command": f"python benchmarks/decoding.py --device {chosen.device} --images {chosen.images}",
        "machine": machine() + (f", {gpu}" if gpu else ""),
        "versions": {name: metadata.version(name) for name in ("torch", "torchvision", "pillow")},
        "bytes of a file": round(float(np.mean([len(one) for one in made]))),
        "images per second, sorted": found,
        "difference from Pillow in grey levels": {
            "largest": int(difference.max()),
            "mean": round(float(difference.mean()), 4),
        },
    }
    print(json.dumps(facts, indent=1))
    if chosen.results:
        chosen.results.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
