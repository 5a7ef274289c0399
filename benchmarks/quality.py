"""Forward selection against the published search, on one set of recordings, scored on test images.

    python benchmarks/quality.py CONFIG.yaml --out RUN [--results FILE.json]

Records what is not recorded yet, then fits and simulates twice from the same moments: with
`search: forward` and with `preset: paper`. Neurons are compared pairwise; the interval of a mean
difference is ± 1.96 standard errors over neurons. RUN is left with the configuration's own fit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import load_config
from pipeline.engine import engine
from pipeline.expected import STAGES
from pipeline.fit_config import FitConfig
from pipeline.planning import prepare
from pipeline.run import carry_out
from pipeline.rundir import Run

FIXED_LENGTH = 5
KEY = ("layer", "pooling", "neuron", "explainer", "simulator")


def by_length(scores: pa.Table) -> dict[tuple[Any, ...], dict[int, float]]:
    """Test correlation of every length, by neuron, explainer and simulator."""
    found: dict[tuple[Any, ...], dict[int, float]] = {}
    columns = [scores[name].to_pylist() for name in (*KEY, "length", "correlation")]
    for *key, length, correlation in zip(*columns, strict=True):
        if correlation is not None:
            found.setdefault(tuple(key), {})[length] = correlation
    return found


def chosen_lengths(scores: pa.Table) -> dict[tuple[Any, ...], int]:
    chosen = scores.filter(scores["chosen"])
    columns = [chosen[name].to_pylist() for name in (*KEY, "length")]
    return {tuple(key): length for *key, length in zip(*columns, strict=True)}


def compare(forward: pa.Table, paper: pa.Table) -> list[dict[str, Any]]:
    """One row for each layer, explainer and simulator; neurons that both searches explain."""
    ours, theirs = by_length(forward), by_length(paper)
    our_choice, their_choice = chosen_lengths(forward), chosen_lengths(paper)
    groups: dict[tuple[Any, ...], list[tuple[float, ...]]] = {}
    for key, path in ours.items():
        length = their_choice.get(key, 0)
        if key not in theirs or length not in theirs[key] or length not in path:
            continue
        longest = max(path)
        row = (
            theirs[key][length],
            path[length],
            path[min(FIXED_LENGTH, longest)],
            path[our_choice[key]],
            path[longest],
            length,
            our_choice[key],
        )
        layer, pooling, _, explainer, simulator = key
        groups.setdefault((explainer, simulator, layer, pooling), []).append(row)
    rows = []
    for (explainer, simulator, layer, pooling), values in groups.items():
        v = np.array(values)
        mean = v.mean(axis=0)
        error = 1.96 * (v[:, 2] - v[:, 0]).std(ddof=1) / np.sqrt(len(v))
        rows.append(
            {
                "explainer": explainer,
                "scored by": simulator,
                "layer": layer,
                "pooling": pooling,
                "neurons": len(v),
                "paper": mean[0],
                "paper length": mean[5],
                "forward, same lengths": mean[1],
                f"forward, length {FIXED_LENGTH}": mean[2],
                "forward, chosen": mean[3],
                "chosen length": mean[6],
                "forward, longest": mean[4],
                f"length {FIXED_LENGTH} / paper": mean[2] / mean[0],
                "same lengths / paper": mean[1] / mean[0],
                f"difference at {FIXED_LENGTH}": mean[2] - mean[0],
                "± of difference": error,
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("--out", required=True)
    parser.add_argument("--results", type=Path)
    chosen = parser.parse_args()
    plan = prepare(load_config(chosen.config))
    run = Run(chosen.out)
    tables = {}
    searches = {"paper": FitConfig(preset="paper"), "forward": plan.config.fit}
    seconds = {}
    with engine(plan.config.ray):
        carry_out(run, plan, STAGES[:2])
        for name, fit in searches.items():
            config = plan.config.model_copy(update={"fit": fit})
            stages = ["sharpen", "moments", "fit", "simulate"]
            carry_out(run, replace(plan, config=config), stages)
            tables[name] = run.read("scores")
            seconds[name] = run.ledger()["stages"]["fit"].get("seconds")
        carry_out(run, plan)
    rows = [
        {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
        for row in compare(tables["forward"], tables["paper"])
    ]
    facts = {
        "command": " ".join(["python", "benchmarks/quality.py", chosen.config, "--out RUN"]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {n: metadata.version(n) for n in ("torch", "ray", "numpy", "timm")},
        "images": run.entry("images").rows,
        "fit seconds": seconds,
        "rows": rows,
    }
    print(markdown(rows))
    print(json.dumps({k: v for k, v in facts.items() if k != "rows"}))
    if chosen.results:
        chosen.results.write_text(json.dumps(facts, indent=1) + "\n")
    return 0


def markdown(rows: list[dict[str, Any]]) -> str:
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
