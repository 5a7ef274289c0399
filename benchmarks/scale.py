"""How far it goes: time, bytes, memory and price of runs of any size, from what was measured.

    python benchmarks/scale.py ../shared/data/imagenet-sample --results benchmarks/results/scale.json

Two constants are measured here, on photographs in class folders: the processor time to decode one, and the
bytes that the index keeps of it. All others are read from `benchmarks/results`; prices come with the package.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import machine
from torchvision import transforms

from actors.decode import Decoder
from actors.preprocessing import split_transform
from pipeline.fetching import fetch
from pipeline.images_config import ImagesConfig
from pipeline.price import read_prices
from pipeline.sources import read_index

RESULTS = Path(__file__).parent / "results"

#: Photographs that are decoded.
DECODED = 300

#: What the rows of the table are: images, neurons, concepts.
SIZES = {
    "the paper": (50_000, 4_000, 1_500),
    "a network": (1_300_000, 30_000, 5_000),
    "many networks": (10_000_000, 100_000, 20_000),
    "images": (1_000_000_000, 30_000, 5_000),
    "neurons": (1_300_000, 1_000_000, 5_000),
    "concepts": (1_300_000, 30_000, 100_000),
    "all at once": (1_000_000_000, 1_000_000, 100_000),
}

#: Vision-language models beside the target, folds, test images that are kept at most, lengths.
CLIPS, FOLDS, TEST, LENGTHS = 2, 5, 100_000, 10

#: Bytes a neuron and length on disk: paths and explanations, and scores of two simulators.
TABLE_BYTES = 270 + 2 * 29


def read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def measured(folder: Path) -> dict[str, float]:
    """Constants of one image, one neuron or one product, in seconds and bytes."""
    index = read_index(ImagesConfig(path=str(folder)))
    rows = index.rows.slice(0, DECODED).to_pylist()
    view = split_transform(
        transforms.Compose(
            [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
        )
    ).view
    decoder = Decoder({view.key: view}, partial(fetch))
    torch.set_num_threads(1)
    decoder(rows[:20])
    begun = time.process_time()
    decoder(rows)
    decode = (time.process_time() - begun) / len(rows)
    recording = read("recording-h100.json")["rows"]
    rates = {
        name: sorted(recording[name]["images per second, sorted"]["recorder"])[1]
        for name in ("ResNet-50, 16 blocks, bfloat16", "CLIP ViT-B/16, bfloat16")
    }
    fit = read("fit-h100.json")
    curve = read("fit.json")["curves"]["ms a neuron by concepts"]
    simulate = read("simulate.json")["whole"]
    work = simulate["explanations"] * 10_000
    return {
        "decode, core seconds an image": round(decode, 5),
        "index, bytes an image": round(index.rows.nbytes / index.rows.num_rows, 1),
        "target, H100 seconds an image": 1 / rates["ResNet-50, 16 blocks, bfloat16"],
        "vision-language model, H100 seconds an image": 1 / rates["CLIP ViT-B/16, bfloat16"],
        "moments, H100 TFLOP/s": fit["TFLOP/s in float64, sorted"]["cross"]["moments"][2],
        "fit, core seconds a neuron and concept": 2 * curve["20000"][0] / 1000 / 20_000,
        "score, core seconds an explanation and image": sum(
            simulate["processor seconds, each process"]
        )
        / work,
    }


def size(
    images: int, neurons: int, concepts: int, one: dict[str, float], kept: int | None
) -> dict[str, Any]:
    """What a run takes.

    Args:
        images: Number of images.
        neurons: Of all layers.
        concepts: Active ones.
        one: The constants.
        kept: Test images with `recordings.keep: test`, or None where everything is kept.
    """
    test = min(kept or images // 5, images // 5)
    gpu_images = images * one["target, H100 seconds an image"]
    gpu_images += images * CLIPS * one["vision-language model, H100 seconds an image"]
    products = 2.0 * images * concepts * (concepts / 2 + neurons)
    gpu_moments = products / (1e12 * one["moments, H100 TFLOP/s"])
    fit = (1 + FOLDS) * neurons * concepts * one["fit, core seconds a neuron and concept"]
    score = (
        (1 + CLIPS) * LENGTHS * neurons * test * one["score, core seconds an explanation and image"]
    )
    rows = images if kept is None else test
    embedding = 2 * 768
    machines = {m.name.split()[0]: m.usd_per_hour for m in read_prices().machines}
    cores = images * one["decode, core seconds an image"] + fit + score
    gpu_hours = (gpu_images + gpu_moments) / 3600
    return {
        "images": images,
        "neurons": neurons,
        "concepts": concepts,
        "H100 hours, recording": round(gpu_images / 3600, 2),
        "H100 hours, moments": round(gpu_moments / 3600, 2),
        "core hours, decoding": round(images * one["decode, core seconds an image"] / 3600, 2),
        "core hours, fit": round(fit / 3600, 3),
        "core hours, scores": round(score / 3600, 3),
        "USD": round(
            gpu_hours * machines["p5.4xlarge"] + cores / 3600 * machines["c7i.4xlarge"] / 16, 2
        ),
        "GB, index in the driver": round(images * one["index, bytes an image"] / 1e9, 3),
        "GB, recordings": round(rows * 2 * (neurons + CLIPS * embedding / 2) / 1e9, 1),
        "GB, a block of cross moments": round(8 * neurons * concepts / 1e9, 2),
        "GB, a block of concepts": round(8 * concepts**2 / 1e9, 2),
        "GB, concept blocks of the fit": round(8 * (3 + 2 * FOLDS) * concepts**2 / 1e9, 1),
        "GB, moments": round(8 * (1 + FOLDS) * concepts * (neurons + concepts) / 1e9, 1),
        "GB, explanations and scores": round(neurons * LENGTHS * TABLE_BYTES / 1e9, 2),
        "GB, concept scores of the test images": round(4 * (1 + CLIPS) * test * concepts / 1e9, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="photographs in class folders")
    parser.add_argument("--results", type=Path)
    chosen = parser.parse_args()
    one = measured(chosen.folder)
    facts = {
        "command": "python benchmarks/scale.py ../shared/data/imagenet-sample",
        "machine": machine(),
        "constants": one,
        "kept, all images": {
            name: size(*wanted, one, None) for name, wanted in list(SIZES.items())[:2]
        },
        "kept, at most 100,000 test images": {
            name: size(*wanted, one, TEST) for name, wanted in SIZES.items()
        },
    }
    text = json.dumps(facts, indent=1)
    print(text)
    if chosen.results:
        chosen.results.write_text(text + "\n")


if __name__ == "__main__":
    main()
