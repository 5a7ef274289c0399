"""Moments and forward selection on a GPU: rates, seconds, and agreement with the CPU.

    python benchmarks/fit_gpu.py [--device cuda] [--results FILE.json]

Planted scores and activations: 5,000 concepts that occur together in groups, 26,560 neurons (as many
as ResNet-50 has convolution channels), each the weighted sum of five concepts and noise, 35,000 images in
shards of 4,096. The rate of moments is compared with that of the same float64 matrix products on arrays
that lie ready. Seconds of the fit are from moments in main memory to weights in main memory, copies to the
GPU included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.forward import forward_paths
from core.forward_gpu import gpu_forward_paths
from core.moment_sums import MomentSum
from core.moments import ConceptMoments, CrossMoments

CONCEPTS, NEURONS, IMAGES, SHARD = 5000, 26560, 35000, 4096


def shards(device: str, concepts: int, neurons: int, images: int) -> Any:
    """Scores and activations, shard by shard, as they are recorded: float16 in main memory."""
    torch.manual_seed(0)
    groups = torch.randn(64, concepts, device=device)
    weights = torch.zeros(concepts, neurons, device=device)
    rows = torch.randint(0, concepts, (5, neurons), device=device)
    weights.scatter_(0, rows, torch.rand(5, neurons, device=device) + 0.5)
    for start in range(0, images, SHARD):
        count = min(SHARD, images - start)
        common = torch.randn(count, 64, device=device) @ groups / 8
        scores = torch.sigmoid(2 * (common + torch.randn(count, concepts, device=device)) - 2)
        noise = 0.5 * torch.randn(count, neurons, device=device)
        yield scores.half().cpu().numpy(), (scores @ weights + noise).half().cpu().numpy()


def seconds(function: Callable[[], Any], rounds: int = 5) -> list[float]:
    found = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begun)
    return sorted(round(value, 4) for value in found[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", type=float, default=1.0, help="of concepts, neurons and images")
    parser.add_argument("--results", type=Path)
    chosen = parser.parse_args()
    device = chosen.device
    concepts, neurons, images = (int(n * chosen.scale) for n in (CONCEPTS, NEURONS, IMAGES))
    parts = list(shards(device, concepts, neurons, images))
    facts: dict[str, Any] = {
        "command": f"python benchmarks/fit_gpu.py --device {device}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores"
        + (f", {torch.cuda.get_device_name()}" if device != "cpu" else ""),
        "versions": {name: metadata.version(name) for name in ("torch", "numpy")},
        "concepts": concepts,
        "neurons": neurons,
        "images": images,
    }
    gram, cross = MomentSum(concepts, device=device), MomentSum(concepts, neurons, device)
    for scores, activations in parts:
        gram.add(scores)
        cross.add(scores, activations)
    train = ConceptMoments.from_sum(gram), CrossMoments.from_sum(cross)

    facts["TFLOP/s in float64, sorted"] = rates(parts[0], device)
    print(json.dumps(facts["TFLOP/s in float64, sorted"]), flush=True)

    half = len(parts) // 4 + 1
    on_cpu = merged_on_cpu(parts[:half], 512)
    on_gpu = merged_on_gpu(parts[:half], 512, device)
    facts["largest difference of moments between GPU and CPU, relative to the diagonal"] = (
        difference(on_cpu, on_gpu)
    )
    for count in (min(2048, neurons), neurons):
        some = train[1].take_neurons(slice(0, count))
        some = CrossMoments(
            some.count,
            some.concept_mean,
            some.neuron_mean,
            some.neuron_scatter,
            np.ascontiguousarray(some.cross),
        )
        facts[f"seconds for {count} neurons, length 10, sorted"] = seconds(
            lambda some=some: gpu_forward_paths(train[0], some, 10, device), 3
        )
        print(count, facts[f"seconds for {count} neurons, length 10, sorted"], flush=True)
    some = train[1].take_neurons(slice(0, 256))
    begun = time.perf_counter()
    expected = forward_paths(train[0], some, 10)
    facts["CPU, seconds a neuron"] = round((time.perf_counter() - begun) / 256, 6)
    found = gpu_forward_paths(train[0], some, 10, device)
    facts["share of neurons with the CPU's selection"] = float(
        np.mean((expected.concepts == found.concepts).reshape(len(found.bias), -1).all(axis=1))
    )
    text = json.dumps(facts, indent=1)
    print(text)
    if chosen.results:
        chosen.results.write_text(text + "\n")


def rates(part: Any, device: str) -> dict[str, Any]:
    """Rates of the two kinds of moments, and of the same products on arrays that lie ready."""
    scores, activations = part
    on_device = [torch.from_numpy(values).to(device) for values in part]
    p, q = (values.double() for values in on_device)
    concepts, neurons = p.shape[1], q.shape[1]
    gram, cross = MomentSum(concepts, device=device), MomentSum(concepts, neurons, device)
    out_gram = torch.zeros(concepts, concepts, dtype=torch.float64, device=device)
    out_cross = torch.zeros(concepts, neurons, dtype=torch.float64, device=device)
    calls = {
        "concepts": (
            concepts,
            lambda: out_gram.addmm_(p.T, p),
            lambda: gram.add(on_device[0]),
            lambda: gram.add(scores),
        ),
        "cross": (
            neurons,
            lambda: out_cross.addmm_(p.T, q),
            lambda: cross.add(*on_device),
            lambda: cross.add(scores, activations),
        ),
    }
    found: dict[str, Any] = {}
    for name, (width, *timed) in calls.items():
        flops = 2 * len(p) * concepts * width
        what = ("product alone", "moments", "moments, from main memory")
        found[name] = {
            label: [round(flops / s / 1e12, 3) for s in reversed(seconds(call))]
            for label, call in zip(what, timed, strict=True)
        }
        middle = {label: values[2] for label, values in found[name].items()}
        found[name]["moments / product"] = round(middle["moments"] / middle["product alone"], 3)
    return found


def merged_on_cpu(parts: list[Any], neurons: int) -> CrossMoments:
    total = MomentSum(parts[0][0].shape[1], neurons)
    for scores, activations in parts:
        total.add(scores, activations[:, :neurons])
    return CrossMoments.from_sum(total)


def merged_on_gpu(parts: list[Any], neurons: int, device: str) -> CrossMoments:
    total = MomentSum(parts[0][0].shape[1], neurons, device)
    for scores, activations in parts:
        total.add(scores, activations[:, :neurons])
    return CrossMoments.from_sum(total)


def difference(a: CrossMoments, b: CrossMoments) -> float:
    return float(np.abs(a.cross - b.cross).max() / np.sqrt(a.neuron_scatter.max() * a.count))


if __name__ == "__main__":
    main()
