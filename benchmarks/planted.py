"""How often the concepts that make a neuron are found, all of them and no other: a figure.

    python benchmarks/planted.py [--quick] [--results FILE.json] [--figure FILE.svg]

Made neurons: the weighted sum of five of 500 concept scores, and noise. Weights are positive, in standard
deviations of the scores, between 0.5 and 2, since the published search ranks concepts by signed weight and
would not find a negative one. Concepts come in groups of five that share a cause, each to another degree;
three of a neuron's concepts are of one group and two of another. One thing is changed at a time: the ratio
of the signal's variance to the noise's, how much the concepts of a group share, the number of training
images. A neuron counts where the explanation of length five names just its five concepts. The published
search also needs validation images and has a quarter as many; it often stops before the fifth concept, so
that the share of planted concepts among those named is given too.

The figure needs matplotlib (pip install matplotlib); without --figure it is not imported.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from core.beam import beam_paths
from core.forward import forward_paths
from core.moments import ConceptMoments, CrossMoments
from core.paper import paper_paths
from core.paths import Paths

CONCEPTS, GROUP, TERMS, NEURONS = 500, 5, 5, 400

USUAL = {"signal": 1.0, "shared": 0.5, "images": 4000}
CHANGED: dict[str, tuple[float, ...]] = {
    "signal": (0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
    "shared": (0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98),
    "images": (250, 500, 1000, 2000, 4000, 8000, 16000),
}
HIGH_SIGNAL = 10.0

Moments = tuple[ConceptMoments, CrossMoments]
SEARCHES: dict[str, Callable[[Moments, Moments], Paths]] = {
    "forward": lambda train, _: forward_paths(*train, TERMS),
    "forward, ridge 0.1": lambda train, _: forward_paths(*train, TERMS, ridge=0.1),
    "beam of 8": lambda train, _: beam_paths(*train, TERMS, 8),
    "published search": lambda train, val: paper_paths(*train, *val, TERMS),
}


def planted(
    signal: float, shared: float, images: int, neurons: int, seed: int
) -> tuple[Moments, Moments, np.ndarray, float]:
    """Moments for training and validation, the planted concepts, and their groups' correlation."""
    rng = np.random.default_rng(seed)
    images, val = int(images), int(images) // 4
    causes = np.repeat(rng.standard_normal((images + val, CONCEPTS // GROUP)), GROUP, axis=1)
    own = rng.standard_normal((images + val, CONCEPTS))
    # The members of a group have their cause in them to different degrees, as "animal" and "spaniel".
    share = np.tile(shared + (1 - shared) * shared * np.linspace(0, 0.8, GROUP), CONCEPTS // GROUP)
    p = 1 / (1 + np.exp(2 - 2 * (np.sqrt(share) * causes + np.sqrt(1 - share) * own)))
    support = np.stack([_support(rng) for _ in range(neurons)])
    weights = rng.uniform(0.5, 2.0, support.shape)
    standard = p / p.std(axis=0)
    q = sum(standard[:, c] * w for c, w in zip(support.T, weights.T, strict=True))
    q = q + q.std(axis=0) / np.sqrt(signal) * rng.standard_normal(q.shape)
    within = float(np.mean([np.corrcoef(p[:, g : g + 2].T)[0, 1] for g in range(0, 500, GROUP)]))
    train = ConceptMoments.of(p[:images]), CrossMoments.of(p[:images], q[:images])
    rest = ConceptMoments.of(p[images:]), CrossMoments.of(p[images:], q[images:])
    return train, rest, support, within


def _support(rng: np.random.Generator) -> np.ndarray:
    """Three concepts of one group and two of another."""
    groups = rng.choice(CONCEPTS // GROUP, 2, replace=False)
    members = [rng.choice(GROUP, size, replace=False) for size in (3, TERMS - 3)]
    return np.concatenate([g * GROUP + m for g, m in zip(groups, members, strict=True)])


def recovered(paths: Paths, support: np.ndarray) -> float:
    """Share of neurons whose explanation of full length has just the planted concepts."""
    found = np.sort(paths.concepts[:, TERMS - 1], axis=1)
    return float((found == np.sort(support, axis=1)).all(axis=1).mean())


def planted_among_named(paths: Paths, support: np.ndarray) -> float:
    """Share of the concepts in the longest explanations that were planted."""
    last = np.maximum(paths.available - 1, 0)
    named = paths.concepts[np.arange(len(last)), last]
    right = (named[:, :, None] == support[:, None, :]).any(axis=2)
    return float(right.sum() / max(1, (named >= 0).sum()))


def panel(name: str, neurons: int, values: tuple[float, ...]) -> list[dict[str, Any]]:
    rows = []
    for seed, value in enumerate(values):
        setting = USUAL | {name: value}
        train, val, support, within = planted(
            setting["signal"], setting["shared"], int(setting["images"]), neurons, seed
        )
        row: dict[str, Any] = {name: value, "correlation within groups": round(within, 3)}
        for search, call in SEARCHES.items():
            paths = call(train, val)
            row[search] = round(recovered(paths, support), 4)
            row[f"{search}: planted among named"] = round(planted_among_named(paths, support), 4)
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


INK = "#010203"
"""Stands in for the colour that a reader's light or dark mode decides."""

STYLE = """<style>
 svg { color: #24292f; background: #ffffff; }
 @media (prefers-color-scheme: dark) { svg { color: #d6dde4; background: #0d1117; } }
</style>
"""


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Three panels of shares, as an SVG whose ink follows the reader's light or dark mode."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.rcParams |= {
        "svg.hashsalt": "planted",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    for part in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"):
        mpl.rcParams[part] = INK
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.5), sharey=True, layout="constrained")
    panels = (
        ("signal", "signal", "variance of signal / of noise", "log"),
        ("shared", "correlation within groups", "correlation of concepts within a group", "linear"),
        ("images", "images", "training images", "log"),
    )
    looks = zip(("o", "s", "^", "D"), ("#2f81d6", "#c77700", "#1a9e77", "#c2478f"), strict=True)
    styles = dict(zip(SEARCHES, looks, strict=True))
    for axis, (name, along, label, scale) in zip(axes, panels, strict=True):
        for search, (marker, colour) in styles.items():
            x, y = ([row[key] for row in found[name]] for key in (along, search))
            # The first line is broad, since others lie on it.
            width, mark = (4.0, 7.0) if search == "forward" else (1.4, 4.5)
            axis.plot(x, y, marker, ls="-", c=colour, label=search, ms=mark, lw=width)
        axis.set_xscale(scale)
        axis.set_xlabel(label)
        axis.set_ylim(-0.03, 1.03)
        axis.grid(color=INK, alpha=0.15, linewidth=0.7)
        axis.set_axisbelow(True)
        if scale == "log":
            ticks = [row[along] for row in found[name]][1::2]
            axis.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
            axis.minorticks_off()
    axes[0].set_ylabel("share of neurons\nfound exactly")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})
    text = path.read_text().replace(INK, "currentColor")
    path.write_text(re.sub(r"(<svg[^>]*>\n)", rf"\1{STYLE}", text, count=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="forty neurons at every other point")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--figure", type=Path)
    chosen = parser.parse_args()
    step, neurons = (2, 40) if chosen.quick else (1, NEURONS)
    found = {name: panel(name, neurons, values[::step]) for name, values in CHANGED.items()}
    high = [row for row in found["signal"] if row["signal"] >= HIGH_SIGNAL]
    facts = {
        "command": "python benchmarks/planted.py" + " --quick" * chosen.quick,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: metadata.version(name) for name in ("numpy",)},
        "concepts": CONCEPTS,
        "planted concepts of a neuron": TERMS,
        "neurons at each point": neurons,
        "greatest standard error of a share": round(0.5 / neurons**0.5, 3),
        "unless changed": USUAL,
        f"least share found at signal / noise of {HIGH_SIGNAL:g} and more": {
            search: min(row[search] for row in high) for search in SEARCHES
        },
        "panels": found,
    }
    if chosen.results:
        chosen.results.write_text(json.dumps(facts, indent=1) + "\n")
    if chosen.figure:
        draw(found, chosen.figure)
    print(json.dumps({key: value for key, value in facts.items() if key != "panels"}, indent=1))


if __name__ == "__main__":
    main()
