"""The fit stage: moments → explanations of every length, for every neuron, in blocks of neurons.

Ray tasks fit a block each; the concept moments are put once and shared without copies. Blocks are
cut by position, so that neither workers nor restarts change a result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from core.forward import forward_paths
from core.lengths import choose_lengths, path_correlations, term_order
from core.moments import ConceptMoments, CrossMoments
from core.paper import paper_paths
from core.paths import Paths
from core.status import neuron_statuses
from pipeline.config import FitConfig
from pipeline.engine import run_tasks
from pipeline.expected import EXPLANATIONS, Expected
from pipeline.fingerprints import fingerprint
from pipeline.moments import (
    Column,
    active_positions,
    columns_of,
    read_concept_moments,
    read_cross_moments,
)
from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.rundir import Run, part_name
from pipeline.storage import Folder

WORK = "work/explanations"

#: Neurons that one task fits.
BLOCK = 256


EXPLANATION_SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("pooling", pa.string()),
        ("neuron", pa.int32()),
        ("explainer", pa.string()),
        ("status", pa.string()),
        ("length", pa.int32()),
        ("chosen", pa.bool_()),
        ("concepts", pa.list_(pa.string())),
        ("weights", pa.list_(pa.float64())),
        ("bias", pa.float64()),
        ("train_correlation", pa.float64()),
        ("val_correlation", pa.float64()),
    ]
)


def fit(run: Run, plan: Plan, expected: Expected) -> None:
    """Fit the explanations that are not there yet and commit their table."""
    made = expected.tables[EXPLANATIONS]
    with run.stage("fit") as facts:
        if not run.is_fresh(EXPLANATIONS, made):
            run.withdraw(EXPLANATIONS)
            _fit_blocks(run, plan, made, facts)


def _fit_blocks(run: Run, plan: Plan, whole: str, facts: dict[str, Any]) -> None:
    columns = columns_of(plan)
    names: list[str] = []
    there = set(run.part_files(WORK))
    total = len(plan.explainers) * sum(column.neurons for column in columns)
    progress = Progress("fit", total, "neurons")
    resumed = 0
    calls: list[tuple[Any, ...]] = []
    for explainer in plan.explainers:
        concepts = ray.put(read_concept_moments(run, explainer.name))
        texts = ray.put([explainer.concepts[p] for p in active_positions(run, explainer.name)])
        for index, column in enumerate(columns):
            cross = ray.put(read_cross_moments(run, explainer.name, index))
            for start in range(0, column.neurons, BLOCK):
                block = fingerprint(whole, explainer.name, column.name, start)
                names.append(part_name(WORK, len(names), block))
                if names[-1].rsplit("/", 1)[-1] in there:
                    resumed += min(BLOCK, column.neurons - start)
                    continue
                about = (column, explainer.name, start, plan.config.fit)
                calls.append((run.folder, names[-1], concepts, cross, texts, *about))
    progress.resume_from(resumed)
    for _, fitted in run_tasks(fit_block, calls):
        progress.advance(fitted)
    table = pa.concat_tables([run.folder.read_table(name) for name in names])
    facts |= {
        "rows": table.num_rows,
        "bytes": run.write(EXPLANATIONS, "explanations.parquet", table, whole),
    }
    run.prune(WORK, [])
    progress.close(f"{table.num_rows:,} explanations")


def fit_block(
    folder: Folder,
    name: str,
    concepts: Mapping[str, ConceptMoments],
    cross: Mapping[str, CrossMoments],
    texts: list[str],
    column: Column,
    explainer: str,
    start: int,
    settings: FitConfig,
) -> int:
    """Fit a block of neurons and write its explanations; returns the number of neurons."""
    rows = slice(start, start + BLOCK)
    block = {split: moments.take_neurons(rows) for split, moments in cross.items()}
    paths = find_paths(concepts, block, settings)
    table = explanation_rows(paths, concepts, block, texts, settings)
    size = table.num_rows
    head = {
        "layer": pa.array([column.layer] * size),
        "pooling": pa.array([column.pooling] * size),
        "neuron": pa.array(np.asarray(table["neuron"]) + start, pa.int32()),
        "explainer": pa.array([explainer] * size),
    }
    whole = pa.table(head | {n: table[n] for n in table.column_names if n != "neuron"})
    folder.write_table(name, whole.cast(EXPLANATION_SCHEMA))
    return len(paths.available)


def find_paths(
    concepts: Mapping[str, ConceptMoments], cross: Mapping[str, CrossMoments], settings: FitConfig
) -> Paths:
    """Explanations of every length by the search that the settings name."""
    if settings.resolved_search == "paper":
        return paper_paths(
            concepts["train"],
            cross["train"],
            concepts["val"],
            cross["val"],
            max_length=settings.max_length,
            tolerance=settings.tolerance,
        )
    return forward_paths(concepts["train"], cross["train"], settings.max_length)


def explanation_rows(
    paths: Paths,
    concepts: Mapping[str, ConceptMoments],
    cross: Mapping[str, CrossMoments],
    texts: list[str],
    settings: FitConfig,
) -> pa.Table:
    """A row for every length of every neuron; one row of length 0 where nothing can be explained.

    The published search is cut where it stopped, so its last length is the chosen one.
    """
    train = path_correlations(paths, concepts["train"], cross["train"])
    val = path_correlations(paths, concepts["val"], cross["val"])
    if settings.resolved_search == "paper":
        chosen = paths.available
    else:
        chosen = choose_lengths(val, settings.tolerance, paths.available)
    statuses = neuron_statuses(cross["train"])
    deviations = concepts["train"].std
    rows: list[dict[str, Any]] = []
    for neuron, status in enumerate(statuses):
        if paths.available[neuron] == 0:
            mean = float(cross["train"].neuron_mean[neuron])
            rows.append(_empty_row(neuron, str(status), mean))
        for length in range(1, int(paths.available[neuron]) + 1):
            terms, weights, bias = paths.explanation(neuron, length)
            order = term_order(weights, deviations[terms])
            rows.append(
                {
                    "neuron": neuron,
                    "status": str(status),
                    "length": length,
                    "chosen": bool(length == chosen[neuron]),
                    "concepts": [texts[term] for term in terms[order]],
                    "weights": weights[order].tolist(),
                    "bias": bias,
                    "train_correlation": _number(train[neuron, length - 1]),
                    "val_correlation": _number(val[neuron, length - 1]),
                }
            )
    head = ("layer", "pooling", "explainer")
    fields = [field for field in EXPLANATION_SCHEMA if field.name not in head]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


def _empty_row(neuron: int, status: str, mean: float) -> dict[str, Any]:
    """A neuron without terms is predicted by its mean."""
    return {
        "neuron": neuron,
        "status": status,
        "length": 0,
        "chosen": True,
        "concepts": [],
        "weights": [],
        "bias": _number(mean),
        "train_correlation": None,
        "val_correlation": None,
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def count_statuses(run: Run) -> dict[str, int]:
    """Neurons by status, counted once whatever their explainers and lengths."""
    table = run.read(EXPLANATIONS, ["layer", "pooling", "neuron", "status"])
    counts = table.group_by(["layer", "pooling", "neuron", "status"]).aggregate([])
    found = counts["status"].value_counts().to_pylist()
    return {entry["values"]: entry["counts"] for entry in found}
