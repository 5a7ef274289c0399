"""The fit stage: moments → explanations of every length, for every neuron, in blocks of neurons.

Ray tasks fit a block each; concept moments are put once and shared without copies. Blocks are cut by
position, so that neither workers nor restarts change a result. The paths are a table of their own:
which length is chosen, and what could stand in for its terms, is decided afterwards and again at will.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from core.errors import ConfigError
from core.lengths import cross_validated, path_correlations, term_order
from core.moments import ConceptMoments, CrossMoments, Moments, merged
from core.paths import Paths, refitted
from core.search import find_paths
from core.shares import variance_shares
from core.stability import selection_frequency
from core.status import neuron_statuses
from pipeline.choose import choose
from pipeline.engine import Workers, recording_workers, run_tasks
from pipeline.expected import EXPLANATIONS, PATHS, Expected
from pipeline.fingerprints import fingerprint
from pipeline.fit_config import FitConfig
from pipeline.moments import StoredMoments
from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.rundir import Run, part_name
from pipeline.scores import VAL
from pipeline.storage import Folder
from pipeline.targets import Column, columns_of

WORK = "work/paths"

#: Neurons that one task fits; that it selects concepts for on a GPU, which is sent all concept moments.
BLOCK, GPU_BLOCK = 256, 4096

PATH_SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("pooling", pa.string()),
        ("neuron", pa.int32()),
        ("explainer", pa.string()),
        ("status", pa.string()),
        ("length", pa.int32()),
        ("concepts", pa.list_(pa.string())),
        ("weights", pa.list_(pa.float64())),
        ("bias", pa.float64()),
        ("train_correlation", pa.float64()),
        ("val_correlation", pa.float64()),
        ("cv_correlation", pa.float64()),
        ("cv_error", pa.float64()),
        ("shares", pa.list_(pa.float64())),
        ("stability", pa.list_(pa.float64())),
    ]
)


def fit(run: Run, plan: Plan, expected: Expected) -> None:
    """Fit the paths that are not there yet, choose their lengths, and commit both tables."""
    with run.stage("fit") as facts:
        made = expected.tables[PATHS]
        if not run.is_fresh(PATHS, made):
            run.withdraw(PATHS)
            _fit_blocks(run, plan, made, facts)
        made = expected.tables[EXPLANATIONS]
        if not run.is_fresh(EXPLANATIONS, made):
            table = choose(run, plan, run.read(PATHS))
            size = run.write(EXPLANATIONS, "explanations.parquet", table, made)
            facts |= {"rows": table.num_rows, "bytes": facts.get("bytes", 0) + size}


def refuse_without_gpu(settings: FitConfig, workers: Workers) -> None:
    """Refuse to select concepts on GPUs where there are none.

    Raises:
        ConfigError: `fit.device` asks for what the cluster has not.
    """
    if settings.device == "gpu" and not workers.gpus:
        raise ConfigError(
            "fit.device is 'gpu', and there is no GPU here; leave it out, or add GPUs (on a cluster that "
            "grows from zero GPUs set ray.gpus_per_actor)"
        )


def _fit_blocks(run: Run, plan: Plan, whole: str, facts: dict[str, Any]) -> None:
    columns = columns_of(plan)
    settings = plan.config.fit.resolved
    block, gpus = BLOCK, 0.0
    if settings.device == "gpu":
        block, gpus = GPU_BLOCK, recording_workers(plan.config.ray).gpus
    names: dict[tuple[str, str, int], str] = {}
    for explainer in plan.explainers:
        for column in columns:
            for start in range(0, column.neurons, block):
                made = fingerprint(whole, explainer.name, column.name, start)
                key = (explainer.name, column.name, start)
                names[key] = part_name(WORK, len(names), made)
    there = {f"{WORK}/{name}" for name in run.part_files(WORK)}
    progress = Progress("fit", len(plan.explainers) * sum(c.neurons for c in columns), "neurons")
    progress.resume_from(
        sum(
            min(block, column.neurons - start)
            for explainer in plan.explainers
            for column in columns
            for start in range(0, column.neurons, block)
            if names[explainer.name, column.name, start] in there
        )
    )
    for explainer in plan.explainers:
        stored = StoredMoments(run, plan, explainer)
        texts = ray.put(stored.texts)
        for sharpness in sorted(set(stored.sharpness.values()), reverse=True):
            concepts: list[Any] | None = None
            for column in columns:
                starts = [
                    start
                    for start in range(0, column.neurons, block)
                    if names[explainer.name, column.name, start] not in there
                ]
                if stored.sharpness[column.layer, column.pooling] != sharpness or not starts:
                    continue
                concepts = concepts or [
                    ray.put(m) for m in blocks_to_fit(stored.concepts(sharpness))
                ]
                cross = ray.put(stored.cross(column))
                calls = [
                    (
                        *(run.folder, names[explainer.name, column.name, start], texts, column),
                        *(explainer.name, slice(start, start + block), settings, cross, *concepts),
                    )
                    for start in starts
                ]
                memory = 16 * block * len(stored.texts)
                for _, fitted in run_tasks(fit_block, calls, memory=memory, num_gpus=gpus):
                    progress.advance(fitted)
    table = pa.concat_tables([run.folder.read_table(name) for name in names.values()])
    facts |= {"rows": table.num_rows, "bytes": run.write(PATHS, "paths.parquet", table, whole)}
    run.prune(WORK, [])
    progress.close(f"{table.num_rows:,} explanations")


def blocks_to_fit(subsets: Mapping[str, Moments]) -> list[Moments]:
    """Moments that a fit needs: of training images, of validation, of both; then for each fold of
    the training images those of the rest, and those of the fold."""
    val = subsets[VAL]
    folds = [moments for name, moments in subsets.items() if name != VAL]
    train = merged(folds)
    blocks = [train, val, train.merge(val)]
    for fold in folds if len(folds) > 1 else []:
        blocks += [train.without(fold), fold]
    return blocks


def fit_block(
    folder: Folder,
    name: str,
    texts: list[str],
    column: Column,
    explainer: str,
    rows: slice,
    settings: FitConfig,
    cross: Mapping[str, CrossMoments],
    *concepts: ConceptMoments,
) -> int:
    """Fit a block of neurons and write its explanations; returns the number of neurons.

    Args:
        folder: The run.
        name: Part to write.
        texts: Concepts of the moments.
        column: The layer.
        explainer: Name of the explainer.
        rows: Neurons of the block.
        settings: What to fit, presets resolved.
        cross: Moments of all neurons of the layer, by subset.
        concepts: As `blocks_to_fit` gives them.
    """
    block = blocks_to_fit({subset: moments.take_neurons(rows) for subset, moments in cross.items()})
    device = "cuda" if settings.device == "gpu" else None
    table = explanation_rows(list(concepts), block, texts, settings, device)
    size = table.num_rows
    head = {
        "layer": pa.array([column.layer] * size),
        "pooling": pa.array([column.pooling] * size),
        "neuron": pa.array(np.asarray(table["neuron"]) + rows.start, pa.int32()),
        "explainer": pa.array([explainer] * size),
    }
    whole = pa.table(head | {n: table[n] for n in table.column_names if n != "neuron"})
    folder.write_table(name, whole.cast(PATH_SCHEMA))
    return len(block[0].neuron_mean)


def explanation_rows(
    concepts: list[ConceptMoments],
    cross: list[CrossMoments],
    texts: list[str],
    settings: FitConfig,
    device: str | None = None,
) -> pa.Table:
    """A row for every length of every neuron; one row of length 0 where nothing can be explained.

    Args:
        concepts: As `blocks_to_fit` gives them.
        cross: The same of the neurons.
        texts: Concepts of the moments.
        settings: What to fit, presets resolved.
        device: Where concepts are selected, as for `core.search.find_paths`.
    """
    (train, val, both), (train_x, val_x, both_x) = concepts[:3], cross[:3]
    paths = _search((train, train_x), (val, val_x), settings, device)
    correlations = {
        "train_correlation": path_correlations(paths, train, train_x),
        "val_correlation": path_correlations(paths, val, val_x),
    }
    folds = list(zip(concepts[3::2], cross[3::2], concepts[4::2], cross[4::2], strict=True))
    if settings.search == "paper":  # chooses with validation images, of which folds have none
        folds = []
    again = [
        _search((rest, rest_x), (val, val_x), settings, device) for rest, rest_x, _, _ in folds
    ]
    if folds:
        held = [
            path_correlations(path, fold, fold_x)
            for path, (_, _, fold, fold_x) in zip(again, folds, strict=True)
        ]
        mean, error = cross_validated(np.stack(held))
        correlations |= {"cv_correlation": mean, "cv_error": error}
    final, sums, sums_x = paths, train, train_x
    if settings.refit == "train+val":
        final, sums, sums_x = refitted(paths, both, both_x, settings.sign), both, both_x
    lengths = paths.concepts.shape[1]
    shares = [variance_shares(paths.concepts[:, k, : k + 1], sums, sums_x) for k in range(lengths)]
    stability = [_frequency(paths, again, k) for k in range(lengths)] if again else None
    deviations = train.std
    rows: list[dict[str, Any]] = []
    for neuron, status in enumerate(neuron_statuses(train_x)):
        if paths.available[neuron] == 0:
            mean_activation = _number(sums_x.neuron_mean[neuron])
            rows.append(_empty_row(neuron, str(status), mean_activation))
        for k in range(int(paths.available[neuron])):
            terms, weights, bias = final.explanation(neuron, k + 1)
            order = term_order(weights, deviations[terms])
            rows.append(
                {
                    "neuron": neuron,
                    "status": str(status),
                    "length": k + 1,
                    "concepts": [texts[term] for term in terms[order]],
                    "weights": weights[order].tolist(),
                    "bias": bias,
                    "shares": shares[k][neuron][order].tolist(),
                    "stability": stability[k][neuron][order].tolist() if stability else None,
                    **{name: _number(values[neuron, k]) for name, values in correlations.items()},
                }
            )
    head = ("layer", "pooling", "explainer")
    fields = [field for field in PATH_SCHEMA if field.name not in head]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


def _search(
    train: tuple[ConceptMoments, CrossMoments],
    val: tuple[ConceptMoments, CrossMoments],
    settings: FitConfig,
    device: str | None,
) -> Paths:
    return find_paths(
        settings.search,
        train,
        val,
        settings.max_length,
        sign=settings.sign,
        tolerance=settings.tolerance,
        ridge=settings.ridge,
        device=device,
    )


def _frequency(paths: Paths, folds: list[Paths], k: int) -> np.ndarray:
    """In how many folds each term of the explanations of length k + 1 was selected again."""
    return selection_frequency(
        paths.concepts[:, k, : k + 1], [fold.concepts[:, k, : k + 1] for fold in folds]
    )


def _empty_row(neuron: int, status: str, mean: float | None) -> dict[str, Any]:
    """A neuron without terms is predicted by its mean."""
    return {
        "neuron": neuron,
        "status": status,
        "length": 0,
        "concepts": [],
        "weights": [],
        "bias": mean,
        "shares": [],
        "stability": [],
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def count_statuses(run: Run) -> dict[str, int]:
    """Neurons by status, counted once whatever their explainers and lengths."""
    table = run.read(EXPLANATIONS, ["layer", "pooling", "neuron", "status"])
    counts = table.group_by(["layer", "pooling", "neuron", "status"]).aggregate([])
    found = counts["status"].value_counts().to_pylist()
    return {entry["values"]: entry["counts"] for entry in found}
