"""Scoring by simulation: seconds for a whole network, memory, and the same scores by plain loops.

    python benchmarks/simulate.py [--quick] [--processes 2] [--sections NAME ...] [--results FILE.json]

Made data: 5,000 concepts whose logits share causes, 10,000 test images, 26,560 neurons (as many as ResNet-50
has convolution channels), each the sum of eight concepts and noise, and for each neuron ten explanations, of
lengths one to ten. Data lie in main memory as a run stores them: activations float16, concept scores float32.

Sections, all by default: `ratio` (ours, a plain loop with the same jackknife, a loop with SciPy's bootstrap;
alternating, one thread), `whole` (every neuron, blocks of 256 shared by processes of one thread each, copies
and conversions included), `memory` (peaks for few and many neurons), `others` (AUPRC against scikit-learn,
all measures, the null of swapped explanations), `gpu` (every neuron, from main memory to main memory;
skipped without a GPU). Sections already in the results file and not asked for are kept.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from made_data import World, alternating, spread
from scipy import sparse
from scipy.stats import bootstrap, pearsonr
from scipy.stats import t as student_t
from sklearn.metrics import average_precision_score
from threadpoolctl import threadpool_limits

from core.correlation import explanation_correlations
from core.correlation_gpu import gpu_explanation_correlations
from core.metrics import METRICS, auprc, switched_on
from core.null import null_p_values, q_values, swapped_correlations

LENGTHS, BLOCK = 10, 256
SECTIONS = ("ratio", "whole", "memory", "others", "gpu")


@dataclass
class Size:
    concepts: int = 5000
    neurons: int = 26560
    images: int = 10000
    rounds: int = 5
    compared: int = 4
    some: int = 256


QUICK = Size(500, 2048, 1000, 1, 2, 64)


class Network:
    """Recorded activations, concept scores and explanations of every neuron."""

    def __init__(self, size: Size) -> None:
        self.size = size
        world = World(size.concepts, size.neurons)
        self.actual = np.empty((size.images, size.neurons), np.float16)
        self.terms = np.empty((size.concepts, size.images), np.float32)
        for number, start in enumerate(range(0, size.images, 2048)):
            rows = slice(start, min(start + 2048, size.images))
            scores, q = world.shard(number, rows.stop - rows.start, 1.0)
            self.actual[rows], self.terms[:, rows] = q, scores.T
        rng = np.random.default_rng(2)
        extra = rng.integers(0, size.concepts, (size.neurons, LENGTHS - world.support.shape[1]))
        chosen = np.concatenate([world.support, extra], axis=1)
        spreads = self.terms.std(axis=1)
        kept = [length for last in range(1, LENGTHS + 1) for length in range(last)]
        indices = chosen[:, kept]
        # The true weights, to the first of the true terms in a short explanation, then false terms.
        strength = np.concatenate([world.weights, rng.uniform(-0.1, 0.1, extra.shape)], axis=1)
        values = strength[:, kept] / spreads[indices]
        counts = np.tile(np.arange(1, LENGTHS + 1), size.neurons)
        pointers = np.append(0, np.cumsum(counts))
        shape = (len(counts), size.concepts)
        self.weights = sparse.csr_array((values.ravel(), indices.ravel(), pointers), shape=shape)
        self.neurons = np.repeat(np.arange(size.neurons), LENGTHS)

    def block(self, start: int, stop: int) -> tuple[np.ndarray, Any, np.ndarray, np.ndarray]:
        """Arguments of `explanation_correlations` for some neurons, as a task of a run makes them."""
        weights = self.weights[start * LENGTHS : stop * LENGTHS]
        used, local = np.unique(weights.indices, return_inverse=True)
        shape = (weights.shape[0], len(used))
        weights = sparse.csr_array((weights.data, local, weights.indptr), shape=shape)
        actual = np.ascontiguousarray(self.actual[:, start:stop])
        terms = self.terms[used].astype(np.float64)
        return actual, weights, terms, np.repeat(np.arange(stop - start), LENGTHS)


def ratio(network: Network) -> dict[str, Any]:
    """Milliseconds an explanation, by ours and by plain loops; and their scores compared."""
    size = network.size
    given = network.block(0, size.compared)
    small = network.block(0, 1)
    found = alternating(
        {
            "ours": lambda: explanation_correlations(*given),
            "a loop: scipy.stats.pearsonr, jackknife in NumPy": lambda: plain_loop(*given),
        },
        size.rounds,
    )
    begun = time.perf_counter()
    resampled(*small)
    boot = time.perf_counter() - begun
    explanations = size.compared * LENGTHS
    ours, plain = explanation_correlations(*given), plain_loop(*given)
    loop = [b / a for a, b in zip(*found.values(), strict=True)]
    middle = spread(found["ours"], 1e3 / explanations)[0]
    return {
        "ms an explanation: median, least, greatest": {
            name: spread(values, 1e3 / explanations) for name, values in found.items()
        },
        "loop with jackknife / ours, round by round": spread(loop, 1.0, 2),
        "ms an explanation, scipy.stats.bootstrap of 999 samples": round(boot * 1e3, 1),
        "loop with bootstrap / ours": round(boot * 1e3 / middle),
        "largest difference of a correlation from SciPy's": float(
            np.abs(ours.correlation - plain[0]).max()
        ),
        "largest difference of an end of an interval from the plain jackknife": float(
            np.abs(np.stack([ours.low, ours.high]) - plain[1:]).max()
        ),
    }


def plain_loop(actual: Any, weights: Any, terms: Any, neurons: Any) -> np.ndarray:
    """Correlation and jackknife interval, one explanation after the other."""
    rows = []
    for k, neuron in enumerate(neurons):
        x, y = actual[:, neuron].astype(np.float64), (weights[[k]] @ terms)[0]
        r, images = pearsonr(x, y)[0], len(x)
        a, s = ((v - v.mean()) / v.std() for v in (x, y))
        lost = images / (images - 1)
        without = (images * r - lost * a * s) / np.sqrt(
            (images - lost * a**2) * (images - lost * s**2)
        )
        squares = np.square(np.arctanh(without) - np.arctanh(without).mean())
        freedom = 2 * squares.mean() ** 2 / (squares.var() / images)
        error = math.sqrt(squares.sum() * (images - 1) / images)
        reach = student_t.ppf(0.975, freedom) * error
        rows.append((r, math.tanh(math.atanh(r) - reach), math.tanh(math.atanh(r) + reach)))
    return np.array(rows).T


def resampled(actual: Any, weights: Any, terms: Any, neurons: Any) -> None:
    """SciPy's percentile bootstrap of one explanation."""
    x, y = actual[:, neurons[-1]].astype(np.float64), (weights[[-1]] @ terms)[0]
    bootstrap(
        (x, y), lambda a, b: pearsonr(a, b)[0], paired=True, vectorized=False, n_resamples=999,
        method="percentile", rng=np.random.default_rng(0),
    )  # fmt: skip


_shared: list[Network] = []


def score_blocks(starts: list[int]) -> tuple[float, float, float]:
    """Seconds on the clock and of the processor for some blocks, and the sum of their scores."""
    network, total = _shared[0], 0.0
    with threadpool_limits(1):
        wall, cpu = time.perf_counter(), time.process_time()
        for start in starts:
            given = network.block(start, min(start + BLOCK, network.size.neurons))
            total += float(np.nansum(explanation_correlations(*given).low))
        return time.perf_counter() - wall, time.process_time() - cpu, total


def whole(network: Network, processes: int) -> dict[str, Any]:
    """Every neuron, all lengths, shared by processes that have the data by fork."""
    _shared[:] = [network]
    starts = list(range(0, network.size.neurons, BLOCK))
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        pool.map(score_blocks, [[0]] * processes)  # wake them
        begun = time.perf_counter()
        parts = pool.map(score_blocks, [starts[k::processes] for k in range(processes)], 1)
        wall = time.perf_counter() - begun
    return {
        "processes": processes,
        "seconds on the clock": round(wall, 2),
        "processor seconds, each process": [round(cpu, 2) for _, cpu, _ in parts],
        "explanations": len(network.neurons),
        "load of the machine just after": round(os.getloadavg()[0], 1),
    }


def memory(network: Network) -> dict[str, Any]:
    """Peaks beside the arguments, concept scores in float64 among these."""
    size, found = network.size, {}
    for neurons in (size.some // 4, size.some):
        given = network.block(0, neurons)
        tracemalloc.start()
        explanation_correlations(*given)
        found[neurons] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    few, many = found.values()
    return {
        "MB beside the arguments, by neurons": {n: round(p / 1e6, 3) for n, p in found.items()},
        "peak for four times the neurons / peak": round(many / few, 3),
    }


def others(network: Network) -> dict[str, Any]:
    """The other measures, and p-values against swapped explanations."""
    size = network.size
    actual, weights, terms, _ = network.block(0, size.some)
    simulated = (weights[LENGTHS - 1 :: LENGTHS] @ terms).T.copy()
    few = slice(0, max(8, size.some // 8))
    on = switched_on(actual[:, few])

    def by_scikit_learn() -> np.ndarray:
        pairs = zip(on.T, simulated[:, few].T, strict=True)
        return np.array([average_precision_score(a, s) for a, s in pairs])

    count = on.shape[1]
    calls: dict[str, Callable[[], Any]] = {
        name: lambda metric=metric: metric(actual[:, few], simulated[:, few])
        for name, metric in METRICS.items()
    }
    calls["auprc by scikit-learn"] = by_scikit_learn
    seconds = alternating(calls, size.rounds)
    times = [b / a for a, b in zip(seconds["auprc"], seconds["auprc by scikit-learn"], strict=True)]
    begun = time.perf_counter()
    swapped = swapped_correlations(actual, simulated)
    swap = time.perf_counter() - begun
    own = explanation_correlations(actual, weights, terms, np.repeat(np.arange(size.some), LENGTHS))
    q = q_values(null_p_values(own.correlation[LENGTHS - 1 :: LENGTHS], swapped))
    return {
        "ms a neuron: median, least, greatest": {
            name: spread(values, 1e3 / count, 3) for name, values in seconds.items()
        },
        "scikit-learn / ours, AUPRC, round by round": spread(times, 1.0, 2),
        "largest difference of AUPRC from scikit-learn's": float(
            np.abs(auprc(actual[:, few], simulated[:, few]) - by_scikit_learn()).max()
        ),
        f"ms a neuron, {len(swapped)} swapped explanations": round(swap * 1e3 / size.some, 3),
        "share of neurons with q up to 0.05, by explanations with their true terms": float(
            (q <= 0.05).mean()
        ),
    }


def gpu(network: Network) -> dict[str, Any]:
    """Every neuron on a GPU, from main memory to main memory."""
    given = network.actual, network.weights, network.terms, network.neurons
    few = slice(0, 64 * LENGTHS)
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(network.size.rounds + 1):
        begun = time.perf_counter()
        found = gpu_explanation_correlations(*given)
        seconds.append(time.perf_counter() - begun)
    expected = explanation_correlations(*network.block(0, 64))
    differences = [
        np.nanmax(np.abs(getattr(found, name)[few] - getattr(expected, name)))
        for name in ("correlation", "low", "high")
    ]
    return {
        "GPU": torch.cuda.get_device_name(),
        "seconds: median, least, greatest": spread(seconds[1:]),
        "seconds, first call": round(seconds[0], 3),
        "peak of GPU memory, GB": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        "largest difference from the CPU": float(max(differences)),
    }


def targets(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What was aimed at, and what was found."""
    wanted = [
        ("whole", "seconds on the clock", 60.0),
        ("gpu", "seconds: median, least, greatest", 3.0),
        ("memory", "peak for four times the neurons / peak", 1.1),
        ("ratio", "largest difference of a correlation from SciPy's", 1e-12),
        ("others", "largest difference of AUPRC from scikit-learn's", 1e-12),
    ]
    rows = []
    for section, what, limit in wanted:
        if section in found:
            value = found[section][what]
            value = value[0] if isinstance(value, list) else value
            row = {"what": f"{section}: {what}", "found": value, "target": limit}
            rows.append({**row, "met": value <= limit})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="about a tenth of everything, once")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--results", type=Path)
    chosen = parser.parse_args()
    size = QUICK if chosen.quick else Size()
    facts: dict[str, Any] = {}
    if chosen.results and chosen.results.exists():
        facts = json.loads(chosen.results.read_text())
    network = Network(size)
    single: dict[str, Callable[[Network], Any]] = {
        "ratio": ratio, "memory": memory, "others": others,
    }  # fmt: skip
    for name in chosen.sections:
        if name == "gpu" and not torch.cuda.is_available():
            print("gpu skipped: there is no GPU here")
            continue
        if name in single:
            with threadpool_limits(1):
                facts[name] = single[name](network)
        else:
            facts[name] = gpu(network) if name == "gpu" else whole(network, chosen.processes)
        facts[name]["machine"] = machine()
        facts[name]["versions"] = {
            n: metadata.version(n) for n in ("numpy", "scipy", "scikit-learn", "torch")
        }
        print(name, json.dumps(facts[name], indent=1, ensure_ascii=False), flush=True)
    quick = " --quick" if chosen.quick else ""
    facts |= {
        "command": f"python benchmarks/simulate.py --processes {chosen.processes}{quick}",
        "size": vars(size),
        "targets": [] if chosen.quick else targets(facts),
    }
    if chosen.results:
        chosen.results.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(facts["targets"], indent=1))


if __name__ == "__main__":
    main()
