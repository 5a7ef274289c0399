"""The sharpen stage: how sharp a model's concept scores should be for each layer, by validation images.

Factors on the logits, and shifts beside them, are tried on a sample: explanations are fitted on its
training images and scored on its validation images, by the explainer alone. No test image and no
simulator is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from core.concept_scores import sharpened
from core.forward import forward_paths
from core.lengths import path_correlations
from core.moments import ConceptMoments, CrossMoments
from core.sharpness import GRID, NATIVE, Sharpness, choose_sharpness
from pipeline.concepts import made_while_recording
from pipeline.engine import run_tasks
from pipeline.expected import ACTIVATIONS, SHARPNESS, Expected
from pipeline.explainers import ExplainerPlan
from pipeline.fit_config import FitConfig
from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.rundir import Run
from pipeline.scores import (
    ScoreSource,
    Shards,
    active_positions,
    explainer_source,
    read_rows,
    shards_of,
)
from pipeline.storage import Folder
from pipeline.targets import Column, columns_of

#: About so many images, so many concepts, and so many neurons of a layer are tried, at this length.
IMAGES_TRIED, CONCEPTS_TRIED, NEURONS_TRIED, LENGTH_TRIED = 10_000, 960, 128, 5

SPLITS = ("train", "val")

#: Shards that one task draws its sample from.
LANE = 64

SHARPNESS_SCHEMA = pa.schema(
    [
        ("explainer", pa.string()),
        ("layer", pa.string()),
        ("pooling", pa.string()),
        ("factor", pa.float64()),
        ("shift", pa.float64()),
        ("val_correlation", pa.float64()),
        ("neurons", pa.int32()),
        ("chosen", pa.bool_()),
    ]
)


def sharpen(run: Run, plan: Plan, expected: Expected) -> None:
    """Choose the sharpness of every explainer's concept scores for every layer; commit the table."""
    made = expected.tables[SHARPNESS]
    with run.stage("sharpen") as facts:
        if run.is_fresh(SHARPNESS, made):
            return
        if plan.config.recordings.keep == "test":
            raise made_while_recording(SHARPNESS)
        run.withdraw(SHARPNESS)
        given = _given(plan.config.fit.resolved)
        rows: list[dict[str, Any]] = []
        for explainer in plan.explainers:
            sharpness = given if explainer.kind == "open_clip" else NATIVE
            if sharpness is None:
                rows += _tried(run, plan, explainer)
            else:
                rows += [_row(explainer, c, sharpness) for c in columns_of(plan)]
        table = pa.Table.from_pylist(rows, schema=SHARPNESS_SCHEMA)
        size = run.write(SHARPNESS, "sharpness.parquet", table, made)
        facts |= {"rows": table.num_rows, "bytes": size}


def _given(settings: FitConfig) -> Sharpness | None:
    """The sharpness that the configuration sets for a model; None where each layer gets its own."""
    setting = settings.sharpness
    if setting == "auto":
        return None
    if setting == "native":
        return NATIVE
    if isinstance(setting, float):
        return Sharpness(setting)
    return Sharpness(setting.factor, setting.shift)


def _row(
    explainer: ExplainerPlan, column: Column, sharpness: Sharpness, **more: Any
) -> dict[str, Any]:
    about = {"explainer": explainer.name, "layer": column.layer, "pooling": column.pooling}
    return about | sharpness._asdict() | {"chosen": True} | more


def _tried(run: Run, plan: Plan, explainer: ExplainerPlan) -> list[dict[str, Any]]:
    """Rows of one explainer: all that is tried for every layer, and what is chosen."""
    columns = columns_of(plan)
    source = explainer_source(run, plan, explainer)
    active = active_positions(run, explainer.name)
    positions = active[spaced(len(active), CONCEPTS_TRIED)]
    sample = _draw(run, plan, source, columns)
    values, activations = sample
    logits = ray.remote(ScoreSource.levels)
    shared = [logits.remote(source, run.folder, values[split], positions) for split in SPLITS]
    shared += [
        ray.put(np.hstack([activations[split][c.name] for c in columns])) for split in SPLITS
    ]
    widths = [min(c.neurons, NEURONS_TRIED) for c in columns]
    calls = [(sharpness, widths, *shared) for sharpness in GRID]
    progress = Progress(f"sharpen {explainer.name}", len(GRID), "settings")
    found = np.full((len(GRID), len(columns), 2), np.nan)
    for place, scored in run_tasks(_try, calls):
        found[place] = scored
        progress.advance(1)
    rows = []
    chosen = []
    for c, column in enumerate(columns):
        best = choose_sharpness(GRID, found[:, c, 0])
        chosen.append(best)
        for sharpness, (mean, neurons) in zip(GRID, found[:, c], strict=True):
            value = float(mean) if np.isfinite(mean) else None
            more = {"val_correlation": value, "neurons": int(neurons), "chosen": sharpness == best}
            rows.append(_row(explainer, column, sharpness, **more))
    told = [f"{f:.2g}" + (f" {s:+.2g}" if s else "") for f, s in sorted(set(chosen))]
    progress.close(f"factors {', '.join(told)}")
    return rows


def spaced(count: int, most: int) -> np.ndarray:
    """At most so many of the first numbers, evenly spaced."""
    return np.arange(count) if count <= most else np.arange(most) * count // most


def _draw(
    run: Run, plan: Plan, source: ScoreSource, columns: Sequence[Column]
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """A sample of training and validation images: embeddings, and activations of some neurons."""
    counts = plan.index.split_counts
    share = min(1.0, IMAGES_TRIED / (counts["train"] + counts["val"]))
    shards = shards_of(run, plan)
    parts = run.parts(ACTIVATIONS)
    numbers = range(len(parts))
    calls = [
        (run.folder, shards, numbers[start : start + LANE], source, parts, columns, share)
        for start in range(0, len(parts), LANE)
    ]
    drawn = dict(run_tasks(_draw_lane, calls))
    lanes = [drawn[position] for position in range(len(calls))]
    embeddings = {s: np.concatenate([lane[0][s] for lane in lanes]) for s in ("train", "val")}
    activations = {
        s: {c.name: np.concatenate([lane[1][s][c.name] for lane in lanes]) for c in columns}
        for s in ("train", "val")
    }
    return embeddings, activations


def _draw_lane(
    folder: Folder,
    shards: Shards,
    numbers: Sequence[int],
    source: ScoreSource,
    parts: Sequence[str],
    columns: Sequence[Column],
    share: float,
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    values: dict[str, list[np.ndarray]] = {"train": [], "val": []}
    activations: dict[str, dict[str, list[np.ndarray]]] = {
        split: {column.name: [] for column in columns} for split in values
    }
    for number in numbers:
        seen = read_rows(folder, shards, number, source.parts[number], [source.column])
        read = read_rows(folder, shards, number, parts[number], [c.name for c in columns])
        for split in values:
            inside = shards.rows(folder, number, split, share)
            values[split].append(seen[source.column][inside])
            for column in columns:
                kept = spaced(column.neurons, NEURONS_TRIED)
                activations[split][column.name].append(read[column.name][inside][:, kept])
    return (
        {split: np.concatenate(pieces) for split, pieces in values.items()},
        {s: {name: np.concatenate(p) for name, p in by.items()} for s, by in activations.items()},
    )


def _try(
    sharpness: Sharpness,
    widths: Sequence[int],
    train_logits: np.ndarray,
    val_logits: np.ndarray,
    train_activations: np.ndarray,
    val_activations: np.ndarray,
) -> np.ndarray:
    """Mean validation correlation, and the number of neurons that have one, for each column.

    Args:
        sharpness: What logits are multiplied by, and what is added.
        widths: Neurons of each column.
        train_logits: Logits of training images, (images, concepts).
        val_logits: Logits of validation images.
        train_activations: Neurons of all columns on training images, (images, neurons).
        val_activations: The same on validation images.
    """
    train_scores = sharpened(train_logits, sharpness)
    val_scores = sharpened(val_logits, sharpness)
    train, val = ConceptMoments.of(train_scores), ConceptMoments.of(val_scores)
    paths = forward_paths(train, CrossMoments.of(train_scores, train_activations), LENGTH_TRIED)
    correlation = path_correlations(paths, val, CrossMoments.of(val_scores, val_activations))
    # A path that ends early is scored where it ends.
    last = np.maximum(paths.available - 1, 0)
    reached = np.take_along_axis(correlation, last[:, None], axis=1)[:, 0]
    out = []
    for own in np.split(reached, np.cumsum(widths)[:-1]):
        known = np.isfinite(own)
        out.append((own[known].mean() if known.any() else np.nan, known.sum()))
    return np.array(out)
