"""The simulate stage: explanations → scores on test images, by other models than the explainer.

A simulator scores the explainer's concepts on test images from its own embeddings; the explanation's
weights turn them into a predicted activation, which is compared with the recorded one. The
simulator named `explainer` is the explainer's own concept scores: a check of the fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from scipy import sparse

from core.concept_scores import sigmoid_scores
from core.correlation import correlation_with_interval
from core.errors import ConceptError
from pipeline.concepts import embed_texts, read_split
from pipeline.config import OWN_SCORE
from pipeline.engine import run_tasks
from pipeline.expected import (
    ACTIVATIONS,
    EXPLANATIONS,
    IMAGES,
    SCORES,
    Expected,
    embeddings_table,
    scores_table,
)
from pipeline.fingerprints import fingerprint
from pipeline.fit import BLOCK
from pipeline.moments import active_positions, columns_of
from pipeline.plan import ClipPlan, Plan
from pipeline.progress import Progress
from pipeline.rundir import Run, part_name
from pipeline.storage import Folder

WORK = "work/scores"

SCORE_SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("pooling", pa.string()),
        ("neuron", pa.int32()),
        ("explainer", pa.string()),
        ("length", pa.int32()),
        ("chosen", pa.bool_()),
        ("simulator", pa.string()),
        ("correlation", pa.float64()),
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
    ]
)


def simulate(run: Run, plan: Plan, expected: Expected) -> None:
    """Score every length of every explanation by every simulator, and commit the table."""
    made = expected.tables[SCORES]
    simulators = [plan.clips[simulator.name] for simulator in plan.config.simulators]
    with run.stage("simulate") as facts:
        if not run.is_fresh(SCORES, made):
            run.withdraw(SCORES)
            _score_blocks(run, plan, simulators, made, facts)


def _score_blocks(
    run: Run, plan: Plan, simulators: Sequence[ClipPlan], whole: str, facts: dict[str, Any]
) -> None:
    columns = columns_of(plan)
    explanations = run.read(EXPLANATIONS)
    activations = [_on_test(run, ACTIVATIONS, column.name) for column in columns]
    there = set(run.part_files(WORK))
    names: list[str] = []
    calls: list[tuple[Any, ...]] = []
    resumed = 0
    for explainer in plan.explainers:
        active = active_positions(run, explainer.name)
        texts = [explainer.concepts[position] for position in active]
        scores = {OWN_SCORE: _on_test(run, scores_table(explainer.name), "score", active)}
        for simulator in simulators:
            scores[simulator.name] = _simulated_scores(run, simulator, texts)
        places = ray.put({text: row for row, text in enumerate(texts)})
        mine = explanations.filter(pc.equal(explanations["explainer"], explainer.name))
        for column, recorded in zip(columns, activations, strict=True):
            here = pc.and_(
                pc.equal(mine["layer"], column.layer), pc.equal(mine["pooling"], column.pooling)
            )
            layer = mine.filter(here)
            for start in range(0, column.neurons, BLOCK):
                block = fingerprint(whole, explainer.name, column.name, start)
                name = part_name(WORK, len(names), block)
                names.append(name)
                neurons = layer["neuron"]
                inside = pc.and_(pc.greater_equal(neurons, start), pc.less(neurons, start + BLOCK))
                rows = layer.filter(inside).combine_chunks()
                if name.rsplit("/", 1)[-1] in there:
                    resumed += rows.num_rows
                    continue
                calls.append(
                    (
                        run.folder,
                        name,
                        rows,
                        places,
                        recorded,
                        list(scores),
                        plan.config.simulate.confidence,
                        *scores.values(),
                    )
                )
    progress = Progress("simulate", explanations.num_rows, "explanations")
    progress.resume_from(resumed)
    for position, _ in run_tasks(score_block, calls):
        progress.advance(calls[position][2].num_rows)
    table = pa.concat_tables([run.folder.read_table(name) for name in names])
    facts |= {"rows": table.num_rows, "bytes": run.write(SCORES, "scores.parquet", table, whole)}
    run.prune(WORK, [])
    progress.close(f"{1 + len(simulators)} simulators, own score included")


def _on_test(run: Run, table: str, column: str, positions: np.ndarray | None = None) -> Any:
    """Reference to a column's test rows, (images, entries), read by a task."""
    jobs = list(zip(run.parts(IMAGES), run.parts(table), strict=True))
    return ray.remote(_read_test).remote(run.folder, jobs, column, positions)


def _read_test(
    folder: Folder,
    jobs: Sequence[tuple[str, str]],
    column: str,
    positions: np.ndarray | None,
) -> np.ndarray:
    parts = [read_split(folder, *job, [column])["test"][column] for job in jobs]
    whole = np.concatenate(parts)
    return whole if positions is None else np.ascontiguousarray(whole[:, positions])


def _simulated_scores(run: Run, simulator: ClipPlan, texts: Sequence[str]) -> Any:
    """Reference to a simulator's scores of some concepts on test images, (images, concepts)."""
    embedded = embed_texts(run, simulator, texts)
    images = _on_test(run, embeddings_table(simulator.name), "embedding")
    task = ray.remote(_sigmoid_scores)
    return task.remote(run.folder, embedded, images, simulator.slope, simulator.shift)


def _sigmoid_scores(
    folder: Folder, texts: str, images: np.ndarray, slope: float, shift: float
) -> np.ndarray:
    return sigmoid_scores(images, folder.read_arrays(texts)["embedding"], slope, shift)


def score_block(
    folder: Folder,
    name: str,
    explanations: pa.Table,
    places: Mapping[str, int],
    activations: np.ndarray,
    simulators: Sequence[str],
    confidence: float,
    *concept_scores: np.ndarray,
) -> None:
    """Score the explanations of a block of neurons and write their rows.

    Args:
        folder: The run.
        name: Part to write.
        explanations: Rows of the explanations table, of one layer, pooling and explainer.
        places: Column of each concept in `concept_scores`.
        activations: Recorded activations on test images, (images, neurons).
        simulators: Names, in the order of `concept_scores`.
        confidence: Coverage of the intervals.
        concept_scores: For each simulator, its concept scores on test images, (images, concepts).
    """
    weights, used = _weights(explanations, places)
    neurons = explanations["neuron"].to_numpy()
    head = explanations.select(["layer", "pooling", "neuron", "explainer", "length", "chosen"])
    tables = []
    for simulator, scores in zip(simulators, concept_scores, strict=True):
        if len(scores) != len(activations):
            raise ConceptError(
                f"simulator {simulator!r} has {len(scores)} test images and the activations have "
                f"{len(activations)}; run 'neuroscribe run' again to record what is missing"
            )
        terms = np.ascontiguousarray(scores[:, used].T, dtype=np.float64)
        results = np.full((3, len(neurons)), np.nan)
        for start in range(0, len(neurons), BLOCK):
            rows = slice(start, start + BLOCK)
            # The bias shifts every prediction alike and leaves the correlation as it is.
            simulated = (weights[rows] @ terms).T
            actual = activations[:, neurons[rows]]
            found = correlation_with_interval(actual, simulated, confidence)
            results[:, rows] = found.correlation, found.low, found.high
        columns = dict(zip(("correlation", "ci_low", "ci_high"), results, strict=True))
        content = {n: head[n] for n in head.column_names} | {
            "simulator": [simulator] * len(neurons)
        }
        content |= {n: pa.array(values, from_pandas=True) for n, values in columns.items()}
        tables.append(pa.table(content).select(SCORE_SCHEMA.names).cast(SCORE_SCHEMA))
    folder.write_table(name, pa.concat_tables(tables))


def _weights(explanations: pa.Table, places: Mapping[str, int]) -> tuple[Any, np.ndarray]:
    """Weights as a sparse matrix (explanations, used concepts), and the used concepts' places."""
    lists = explanations["concepts"].combine_chunks()
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    texts = pc.list_flatten(lists).to_pylist()
    values = pc.list_flatten(explanations["weights"].combine_chunks()).to_numpy()
    columns = np.array([places[text] for text in texts], dtype=np.int64)
    used, local = np.unique(columns, return_inverse=True)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    shape = (len(lengths), len(used))
    return sparse.csr_array((values, (rows, local)), shape=shape), used
