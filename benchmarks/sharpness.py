"""What slope and shift of concept scores are worth: the simulator's test correlation over a grid of both.

    python benchmarks/sharpness.py RUN [--explainer NAME] [--simulator NAME] [--results FILE.json]

RUN is a finished run with an `open_clip` explainer and a simulator whose recordings are kept; the figures
in docs/mathematics.md are from examples/efficientnet-lite0-tiny-imagenet.yaml. Explanations of five and ten
concepts are searched for at every pair, on a sample as the stage `sharpen` draws it, and scored by the
explainer on validation images and by the simulator on test images. The pair that the rule picks from the
explainer's validation correlation alone is compared with the best there is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from machine import machine

from core.concept_scores import sharpened
from core.forward import forward_paths
from core.lengths import path_correlations
from core.moments import ConceptMoments, CrossMoments
from core.paths import Paths
from core.sharpness import GRID, Sharpness, choose_sharpness
from pipeline.config import load_config
from pipeline.engine import engine
from pipeline.expected import ACTIVATIONS
from pipeline.plan import Plan
from pipeline.planning import prepare
from pipeline.rundir import Run
from pipeline.scores import (
    active_positions,
    explainer_source,
    model_source,
    read_rows,
    shards_of,
)
from pipeline.sharpen import (
    CONCEPTS_TRIED,
    IMAGES_TRIED,
    LENGTH_TRIED,
    NEURONS_TRIED,
    spaced,
)
from pipeline.targets import Column, columns_of

FACTORS = [one.factor for one in GRID if one.shift == 0]
LENGTHS = (5, 10)
RIDGE = 0.1


def values_of(
    run: Run, plan: Plan, parts: Sequence[str], columns: Mapping[str, np.ndarray | slice]
) -> dict[str, dict[str, np.ndarray]]:
    """Some neurons (or all values) of some columns by split: of training and validation a sample."""
    counts = plan.index.split_counts
    share = min(1.0, IMAGES_TRIED / (counts["train"] + counts["val"]))
    shares = {"train": share, "val": share, "test": 1.0}
    shards = shards_of(run, plan)
    found: dict[str, dict[str, list[np.ndarray]]] = {
        split: {name: [] for name in columns} for split in shares
    }
    for number, part in enumerate(parts):
        read = read_rows(run.folder, shards, number, part, list(columns))
        for split, some in shares.items():
            inside = shards.rows(run.folder, number, split, some)
            for name, kept in columns.items():
                found[split][name].append(read[name][inside][:, kept])
    return {s: {n: np.concatenate(v) for n, v in by.items()} for s, by in found.items()}


def reached(correlation: np.ndarray, paths: Paths, length: int) -> np.ndarray:
    """Correlation of the explanation of a length, or of the longest there is, for each neuron."""
    last = np.clip(paths.available[:, None] - 1, 0, length - 1)
    return np.take_along_axis(correlation, last, axis=1)[:, 0]


def tried(
    sharpness: Sharpness,
    own: dict[str, np.ndarray],
    other: np.ndarray,
    neurons: dict[str, np.ndarray],
    widths: list[int],
) -> list[list[float]]:
    """For each layer: own validation correlation, and the simulator's on test at each length."""
    scores = {split: sharpened(levels, sharpness) for split, levels in own.items()}
    moments = ConceptMoments.of(scores["train"])
    cross = CrossMoments.of(scores["train"], neurons["train"])

    def scored(paths: Paths, scores: np.ndarray, split: str) -> np.ndarray:
        held = CrossMoments.of(scores, neurons[split])
        return path_correlations(paths, ConceptMoments.of(scores), held)

    plain = forward_paths(moments, cross, LENGTH_TRIED)
    columns = [reached(scored(plain, scores["val"], "val"), plain, LENGTH_TRIED)]
    paths = forward_paths(moments, cross, max(LENGTHS), ridge=RIDGE)
    simulated = scored(paths, sharpened(other, sharpness), "test")
    columns += [reached(simulated, paths, length) for length in LENGTHS]
    by_layer = [np.split(column, np.cumsum(widths)[:-1]) for column in columns]
    return [
        [float(np.nanmean(values)) for values in layer] for layer in zip(*by_layer, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--explainer")
    parser.add_argument("--simulator")
    parser.add_argument("--shifts", type=float, nargs="*", default=[0.0, 1.0, 2.0, 3.0])
    parser.add_argument("--results", type=Path)
    chosen = parser.parse_args()
    run = Run.open(chosen.run)
    plan = prepare(load_config(chosen.run / "run.yaml"))
    explainer = next(
        e for e in plan.explainers if e.kind == "open_clip" and chosen.explainer in (None, e.name)
    )
    named = [s.name for s in plan.config.simulators if chosen.simulator in (None, s.name)]
    simulator = plan.clips[named[0]]
    columns: list[Column] = columns_of(plan)
    kept = {column.name: spaced(column.neurons, NEURONS_TRIED) for column in columns}
    recorded = values_of(run, plan, run.parts(ACTIVATIONS), kept)
    neurons = {s: np.hstack([by[c.name] for c in columns]) for s, by in recorded.items()}
    active = active_positions(run, explainer.name)
    positions = active[spaced(len(active), CONCEPTS_TRIED)]
    texts = [explainer.concepts[position] for position in positions]
    with engine(plan.config.ray):  # for text embeddings that the run does not have
        source = explainer_source(run, plan, explainer)
        theirs = model_source(run, simulator, texts)
    every = {"embedding": np.s_[:]}
    seen = values_of(run, plan, source.parts, every)
    own = {s: source.levels(run.folder, v["embedding"], positions) for s, v in seen.items()}
    del own["test"]
    seen = values_of(run, plan, theirs.parts, every)
    other = theirs.levels(run.folder, seen["test"]["embedding"])
    widths = [len(kept[column.name]) for column in columns]
    asked = {Sharpness(factor, shift) for factor in FACTORS for shift in chosen.shifts}
    grid = sorted(asked | set(GRID), reverse=True)
    found = {one: tried(one, own, other, neurons, widths) for one in grid}
    layers = {}
    for place, column in enumerate(columns):
        picked = choose_sharpness(GRID, np.array([found[one][place][0] for one in GRID]))
        table = {
            f"{one.factor:.2f} {one.shift:+g}": [round(v, 4) for v in found[one][place]]
            for one in grid
        }
        best = [
            max(values) for values in zip(*(found[one][place][1:] for one in grid), strict=True)
        ]
        said = {
            "picked by the rule": f"{picked.factor:.2f} {picked.shift:+g}",
            "simulator, test, as picked": [round(v, 4) for v in found[picked][place][1:]],
            "simulator, test, best pair": [round(v, 4) for v in best],
        }
        print(column.name, json.dumps(said), flush=True)
        layers[column.name] = said | {
            "factor shift: own validation; simulator's test at lengths 5 and 10": table
        }
    results = {
        "command": f"python benchmarks/sharpness.py {chosen.run}",
        "machine": machine(),
        "explainer": explainer.name,
        "simulator": simulator.name,
        "concepts": len(positions),
        "images": {split: len(values) for split, values in neurons.items()},
        "layers": layers,
    }
    if chosen.results:
        chosen.results.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
