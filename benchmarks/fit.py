"""Moments and searches on a CPU: rates, milliseconds a neuron, memory, and the same job by scikit-learn.

    python benchmarks/fit.py [--quick] [--threads 2] [--sections NAME ...] [--results FILE.json]

Made data: 5,000 concepts whose logits share causes as those of a vision-language model do, with near
synonyms, 35,000 training and 5,000 validation images, 2,048 neurons; each neuron is the sum of eight
concepts with four times its scatter in noise. Scores are the sigmoid of the logits, once at the model's
own slope and once at a quarter of it. What is compared alternates, round by round, in one run.

Sections, all by default: `searches` (forward and published search against scikit-learn on the raw matrix,
then every search side by side), `moments` (rates against plain matrix products, peak memory), `curves` (time
against neurons, images, concepts; 20,000 concepts take 7 GB), `float16` (real photographs and models
from --shared, skipped without it). Sections already in the results file and not asked for are kept.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from float16_loss import losses
from machine import machine
from made_data import SHARD, Pair, World, alternating, some, spread, summed
from raw_matrix import by_scikit_learn
from threadpoolctl import threadpool_limits

from core.beam import beam_paths
from core.forward import forward_paths
from core.moment_sums import MomentSum
from core.moments import ConceptMoments, CrossMoments
from core.paper import paper_paths
from core.ranked import elastic_net_top_k_paths, single_paths
from pipeline.moments import ROWS

SHARED = Path(__file__).resolve().parents[2] / "shared"
LENGTH, BLOCK = 10, 256
FACTORS = {"own slope": 1.0, "softened, a quarter of the slope": 0.25}
SECTIONS = ("searches", "moments", "curves", "float16")
LOSSES = "loss of correlation on other images"
TIMES = "ms a neuron: median, least, greatest"


@dataclass
class Size:
    concepts: int = 5000
    most_concepts: int = 20000
    neurons: int = 2048
    images: int = 35000
    val: int = 5000
    rounds: int = 5
    timed: int = 1024
    compared: int = 64
    raw: int = 8
    photographs: int = 2000


QUICK = Size(500, 1000, 256, 3500, 500, 1, 128, 16, 2, 128)


def searches(size: Size) -> dict[str, Any]:
    """Milliseconds a neuron of every search, and of the published one by scikit-learn."""
    world = World(size.concepts, size.neurons)
    found: dict[str, Any] = {}
    for name, factor in FACTORS.items():
        p, q = (np.concatenate(rows) for rows in zip(*world.shards(size, factor), strict=True))
        train = summed(p[: size.images], q[: size.images])
        val = summed(p[size.images :], q[size.images :])
        row = found[name] = likeness(train[0])
        row[TIMES], raw = against_raw_matrix(train, val, p, q, size)
        row["published search by scikit-learn on the raw matrix"] = raw
        seconds = statistics.median(neuron["seconds"] for neuron in raw)
        for ours in row[TIMES]:
            row[f"scikit-learn / {ours}"] = round(seconds * 1e3 / row[TIMES][ours][0])
        print(json.dumps(row, indent=1), flush=True)
        del p, q
        for concepts in sorted({min(1000, size.concepts), size.concepts}):
            row[f"all searches, {concepts} concepts, {TIMES}"] = side_by_side(
                train, val, concepts, size
            )
    return found


def likeness(concepts: ConceptMoments) -> dict[str, Any]:
    """How alike the made concepts are: magnitudes of correlation among the first thousand."""
    scatter = concepts.scatter[:1000, :1000]
    norm = np.sqrt(np.diagonal(scatter))
    correlation = np.abs(scatter / norm / norm[:, None])
    np.fill_diagonal(correlation, np.nan)
    return {
        "median correlation of two concepts": round(float(np.nanmedian(correlation)), 3),
        "median over concepts of the highest": round(
            float(np.median(np.nanmax(correlation, axis=1))), 3
        ),
    }


def against_raw_matrix(
    train: Pair, val: Pair, p: np.ndarray, q: np.ndarray, size: Size
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Both searches from moments, before and after the published one on the raw matrix."""
    used, used_val = some(train, size.timed), some(val, size.timed)
    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: forward_paths(*used, LENGTH),
        "published": lambda: paper_paths(*used, *used_val, LENGTH),
    }
    before = alternating(calls, size.rounds)
    ours = paper_paths(*some(train, size.raw), *some(val, size.raw), LENGTH)
    raw = by_scikit_learn(p, q[:, : size.raw], size.images, LENGTH)
    for neuron, row in enumerate(raw):
        last = max(0, int(ours.available[neuron]) - 1)
        selected = row.pop("selected")
        row["concepts"] = len(selected)
        row["same concepts in the same order as ours"] = (
            selected + [-1] * (LENGTH - len(selected)) == ours.concepts[neuron, last].tolist()
        )
    after = alternating(calls, size.rounds)
    return {name: spread(before[name] + after[name], 1e3 / size.timed) for name in calls}, raw


def side_by_side(train: Pair, val: Pair, concepts: int, size: Size) -> dict[str, list[float]]:
    used, used_val = some(train, size.compared, concepts), some(val, size.compared, concepts)
    calls = {
        "forward": lambda: forward_paths(*used, LENGTH),
        "forward, ridge 0.1": lambda: forward_paths(*used, LENGTH, ridge=0.1),
        "forward, positive": lambda: forward_paths(*used, LENGTH, sign="positive"),
        "beam of 8": lambda: beam_paths(*used, LENGTH, 8),
        "elastic-net-top-k": lambda: elastic_net_top_k_paths(*used, LENGTH),
        "single": lambda: single_paths(*used),
        "paper": lambda: paper_paths(*used, *used_val, LENGTH),
    }
    seconds = alternating(calls, 3)
    return {name: spread(values, 1e3 / size.compared, 3) for name, values in seconds.items()}


PEAK = """
import sys
import numpy as np
from core.moment_sums import MomentSum
def memory(name):
    line = next(l for l in open("/proc/self/status") if l.startswith(name))
    return int(line.split()[1]) * 1024
concepts, neurons, rows = map(int, sys.argv[1:])
rng = np.random.default_rng(0)
p, q = np.empty((rows, concepts), np.float16), np.empty((rows, neurons), np.float16)
for row in range(rows):
    p[row], q[row] = rng.random(concepts), rng.random(neurons)
def add(width, other):
    total = MomentSum(width, other or None)
    for _ in range(2):
        total.add(p[:, :width], *([q[:, :other]] if other else []))
    return total.products()
add(64, min(64, neurons))
before = memory("VmRSS")
block = add(concepts, neurons)
print(before, memory("VmHWM"), block.nbytes)
"""


def moments(size: Size) -> dict[str, Any]:
    """Rates of moments and of the same matrix products on arrays that lie ready; peak memory."""
    rng = np.random.default_rng(0)
    p, other = (rng.standard_normal((SHARD, size.concepts)) for _ in range(2))
    q = rng.standard_normal((SHARD, size.neurons))
    gram, cross = MomentSum(size.concepts), MomentSum(size.concepts, size.neurons)
    stored = p.astype(np.float16), q.astype(np.float16)
    square, cross_work = 2 * SHARD * size.concepts**2, 2 * SHARD * size.concepts * size.neurons
    work = {
        "product, concepts by concepts": square,
        "product, concepts by neurons": cross_work,
        "product of a matrix with itself": square,
        "moments of concepts": square,
        "moments of concepts and neurons": cross_work,
    }
    calls: dict[str, Callable[[], Any]] = {
        "product, concepts by concepts": lambda: p.T @ other,
        "product, concepts by neurons": lambda: p.T @ q,
        "product of a matrix with itself": lambda: p.T @ p,
        "moments of concepts": lambda: gram.add(stored[0]),
        "moments of concepts and neurons": lambda: cross.add(*stored),
    }
    seconds = alternating(calls, size.rounds)
    rates = {name: [work[name] / s / 1e9 for s in values] for name, values in seconds.items()}

    def ratio(name: str, to: str) -> list[float]:
        return spread([a / b for a, b in zip(rates[name], rates[to], strict=True)], digits=3)

    found = {
        "rows of a shard": SHARD,
        "GFLOP/s: median, least, greatest": {
            name: spread(values, digits=1) for name, values in rates.items()
        },
        "seconds a shard": {name: spread(values) for name, values in seconds.items()},
        "counted": "2 x rows x columns x columns, also where a product is symmetric and half will do",
        "moments of concepts / product, round by round": ratio(
            "moments of concepts", "product, concepts by concepts"
        ),
        "moments of concepts / product of a matrix with itself, round by round": ratio(
            "moments of concepts", "product of a matrix with itself"
        ),
        "moments of concepts and neurons / product, round by round": ratio(
            "moments of concepts and neurons", "product, concepts by neurons"
        ),
    }
    for name, neurons in (("concepts", 0), ("concepts and neurons", size.neurons)):
        for rows in (1024, ROWS, SHARD):
            call = [sys.executable, "-c", PEAK, *map(str, (size.concepts, neurons, rows))]
            out = subprocess.run(call, check=True, capture_output=True, text=True).stdout.split()
            before, peak, block = map(int, out)
            found[f"peak memory / block, {name}, {rows} rows at a time"] = round(
                (peak - before) / block, 3
            )
        found[f"block, {name}, MB"] = round(block / 1e6, 1)
    return found


def curves(size: Size) -> dict[str, Any]:
    """Milliseconds against the numbers of neurons, images and concepts."""
    found: dict[str, Any] = {}
    by_images = moments_on_the_way(size)
    train = by_images[str(size.images)]
    counts = [n for n in (64, 128, 256, 512, 1024, 2048) if n <= size.neurons]
    seconds = forward_seconds({str(n): some(train, n) for n in counts}, size.rounds)
    middle = [statistics.median(seconds[str(n)]) for n in counts]
    found["ms by neurons"] = {n: spread(values, 1e3, 1) for n, values in seconds.items()}
    found["power of neurons in time, least squares of logarithms"] = round(
        float(np.polyfit(np.log(counts), np.log(middle), 1)[0]), 3
    )
    seconds = forward_seconds({n: some(m, 512) for n, m in by_images.items()}, size.rounds)
    found["ms a neuron by images, moments given"] = {
        n: spread(values, 1e3 / min(512, size.neurons)) for n, values in seconds.items()
    }
    by_images.clear()
    del train

    most = size.most_concepts
    train = summed(*World(most, BLOCK).shard(0, SHARD, 1.0))
    counts = [n for n in (1000, 2000, 5000, 10000, 20000) if n <= most]
    parts = {str(n): some(train, BLOCK, n if n < most else None) for n in counts}
    seconds = forward_seconds(parts, 3)
    found["ms a neuron by concepts"] = {n: spread(v, 1e3 / BLOCK) for n, v in seconds.items()}
    parts.clear()
    tracemalloc.start()
    forward_paths(*train, LENGTH)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    found[f"a block of {BLOCK} neurons at {most} concepts"] = {
        "seconds: median, least, greatest": spread(seconds[str(most)], 1.0, 3),
        "moments, GB": round((train[0].scatter.nbytes + train[1].cross.nbytes) / 1e9, 3),
        "memory beside them, GB": round(peak / 1e9, 3),
        "images of the moments": SHARD,
    }
    return found


def forward_seconds(moments: dict[str, Pair], rounds: int) -> dict[str, list[float]]:
    calls = {name: partial(forward_paths, *pair, LENGTH) for name, pair in moments.items()}
    return alternating(calls, rounds)


def moments_on_the_way(size: Size) -> dict[str, Pair]:
    """Moments of the first shards, of twice and four times as many images, and of all."""
    gram, cross = MomentSum(size.concepts), MomentSum(size.concepts, size.neurons)
    found: dict[str, Pair] = {}
    for scores, activations in World(size.concepts, size.neurons).shards(size, 1.0):
        gram.add(scores)
        cross.add(scores, activations)
        if gram.count in (SHARD, 2 * SHARD, 4 * SHARD, size.images):
            # The sums go on, so what they are now is copied.
            found[str(gram.count)] = copy.deepcopy(
                (ConceptMoments.from_sum(gram), CrossMoments.from_sum(cross))
            )
        if gram.count >= size.images:
            break
    return found


def targets(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What was aimed at, and what was found; medians."""
    rows: list[dict[str, Any]] = []

    def add(what: str, value: float, limit: float, at_least: bool = False) -> None:
        met = value >= limit if at_least else value <= limit
        rows.append({"what": what, "found": value, "target": limit, "met": bool(met)})

    for name, block in found.get("searches", {}).items():
        times = block[TIMES]
        add(f"forward, ms a neuron, {name}", times["forward"][0], 1.0)
        add(f"published search, ms a neuron, {name}", times["published"][0], 10.0)
        for ours in times:
            ratio = f"scikit-learn's published search / {ours}, {name}"
            add(ratio, block[f"scikit-learn / {ours}"], 1000, True)
    if "moments" in found:
        for name in ("concepts", "concepts and neurons"):
            ratio = f"moments of {name} / product, round by round"
            add(ratio, found["moments"][ratio][0], 0.7, True)
            peak = f"peak memory / block, {name}, {ROWS} rows at a time"
            add(peak, found["moments"][peak], 1.5)
    for layer, row in found.get("float16", {}).get(LOSSES, {}).items():
        key = "activations and embeddings: mean, ±"
        add(f"correlation lost by float16, {layer}", row[key][0], 1e-3)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, once")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--results", type=Path)
    chosen = parser.parse_args()
    size = QUICK if chosen.quick else Size()
    torch.set_num_threads(chosen.threads)
    os.environ["OPENBLAS_NUM_THREADS"] = str(chosen.threads)  # for the processes started from here
    facts: dict[str, Any] = {}
    if chosen.results and chosen.results.exists():
        facts = json.loads(chosen.results.read_text())
    quick = " --quick" if chosen.quick else ""
    with threadpool_limits(chosen.threads):
        for name in chosen.sections:
            if name == "float16":
                if not (chosen.shared / "data").is_dir():
                    print(f"float16 skipped: no real images and models at {chosen.shared}")
                    continue
                found = losses(chosen.shared, size.photographs)
            else:
                found = {"searches": searches, "moments": moments, "curves": curves}[name](size)
            facts[name] = found
            print(json.dumps(found, indent=1, ensure_ascii=False), flush=True)
            facts |= {
                "command": f"python benchmarks/fit.py --threads {chosen.threads}{quick}",
                "machine": machine(),
                "versions": {
                    n: metadata.version(n) for n in ("numpy", "scipy", "scikit-learn", "torch")
                },
                "size": vars(size),
                "targets": [] if chosen.quick else targets(facts),
            }
            if chosen.results:
                text = json.dumps(facts, indent=1, ensure_ascii=False)
                chosen.results.write_text(text + "\n")
    print(json.dumps(facts["targets"], indent=1))


if __name__ == "__main__":
    main()
