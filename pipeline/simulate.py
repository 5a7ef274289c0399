"""The simulate stage: explanations → scores on test images, by other models than the explainer.

A simulator scores the explainer's concepts on test images from its own embeddings; the explanation's
weights turn them into a predicted activation, which is compared with the recorded one. Where the
explainer's scores were softened or sharpened for a layer, so are the simulator's. The simulator
named `explainer` is the explainer's own concept scores: a check of the fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from core.concept_scores import sharpened
from core.correlation import explanation_correlations
from core.errors import ConceptError
from core.sharpness import Sharpness
from pipeline.baselines import compare_with_baselines
from pipeline.chance import layer_p_values, with_p_values
from pipeline.concepts_config import OWN_SCORE
from pipeline.config import SimulateConfig
from pipeline.engine import run_tasks
from pipeline.expected import ACTIVATIONS, EXPLANATIONS, SANITY, SCORES, Expected
from pipeline.fingerprints import fingerprint
from pipeline.fit import BLOCK
from pipeline.measures import agreement, measures_of
from pipeline.moments import StoredMoments
from pipeline.plan import ClipPlan, Plan
from pipeline.progress import Progress
from pipeline.rundir import Run, part_name
from pipeline.sanity import sanity_table
from pipeline.scores import (
    TEST,
    ScoreSource,
    Shards,
    explainer_source,
    model_source,
    rows_of_splits,
    shards_of,
)
from pipeline.sparse_weights import simulated_activations, sparse_weights
from pipeline.storage import Folder
from pipeline.targets import columns_of

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
        ("selection_gap", pa.float64()),
        ("agreement", pa.float64()),
    ]
)


def simulate(run: Run, plan: Plan, expected: Expected) -> None:
    """Score every length of every explanation by every simulator, and commit the tables."""
    made = expected.tables
    simulators = [plan.clips[simulator.name] for simulator in plan.config.simulators]
    with run.stage("simulate") as facts:
        if not all(run.is_fresh(table, made[table]) for table in (SCORES, SANITY)):
            run.withdraw(SCORES)
            run.withdraw(SANITY)
            _score_blocks(run, plan, simulators, made, facts)
        compare_with_baselines(run, plan, expected, facts)


def _score_blocks(
    run: Run,
    plan: Plan,
    simulators: Sequence[ClipPlan],
    made: Mapping[str, str],
    facts: dict[str, Any],
) -> None:
    settings = plan.config.simulate
    columns = columns_of(plan)
    explanations = run.read(EXPLANATIONS)
    shards = shards_of(run, plan)
    parts = run.parts(ACTIVATIONS)
    activations = [rows_of_splits(run, shards, parts, column.name, [TEST]) for column in columns]
    there = set(run.part_files(WORK))
    names: list[str] = []
    calls: list[tuple[Any, ...]] = []
    layers: list[tuple[Any, ...]] = []
    singles: list[tuple[Any, ...]] = []
    resumed = 0
    for explainer in plan.explainers:
        stored = StoredMoments(run, plan, explainer)
        own = explainer_source(run, plan, explainer)
        sources = {OWN_SCORE: own} | {
            s.name: model_source(run, s, stored.texts) for s in simulators
        }
        levels = [
            _levels(run, shards, source, stored.positions if source is own else None)
            for source in sources.values()
        ]
        softened = [source.texts is not None for source in sources.values()]
        places = ray.put({text: row for row, text in enumerate(stored.texts)})
        mine = explanations.filter(pc.equal(explanations["explainer"], explainer.name))
        for column, recorded in zip(columns, activations, strict=True):
            here = pc.and_(
                pc.equal(mine["layer"], column.layer), pc.equal(mine["pooling"], column.pooling)
            )
            layer = mine.filter(here)
            marked = pc.and_(layer["chosen"], pc.greater(layer["length"], 0))
            about = (recorded, list(zip(sources, softened, strict=True)))
            sharpness = stored.sharpness[column.layer, column.pooling]
            layers.append(
                (layer.filter(marked).combine_chunks(), places, *about, sharpness, *levels)
            )
            single = layer.filter(pc.equal(layer["length"], 1)).combine_chunks()
            # The explainer's own scores come first among the simulators.
            singles.append((single, places, recorded, sharpness, softened[0], levels[0]))
            for start in range(0, column.neurons, BLOCK):
                block = fingerprint(made[SCORES], explainer.name, column.name, start)
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
                        *about,
                        sharpness,
                        settings,
                        *levels,
                    )
                )
    progress = Progress("simulate", explanations.num_rows, "explanations")
    progress.resume_from(resumed)
    for position, _ in run_tasks(score_block, calls):
        progress.advance(calls[position][2].num_rows)
    table = pa.concat_tables([run.folder.read_table(name) for name in names])
    table = with_p_values(table, _p_values(layers))
    trusted = sanity_table(singles, settings.metrics, settings.top)
    size = run.write(SANITY, "sanity.parquet", trusted, made[SANITY])
    size += run.write(SCORES, "scores.parquet", table, made[SCORES])
    facts |= {"rows": table.num_rows, "bytes": size}
    run.prune(WORK, [])
    progress.close(f"{1 + len(simulators)} simulators, own score included")


def _p_values(layers: Sequence[tuple[Any, ...]]) -> dict[tuple[Any, ...], float]:
    """P-values of chosen explanations by layer, pooling, neuron, explainer and simulator."""
    layers = [call for call in layers if call[0].num_rows]
    found: dict[tuple[Any, ...], float] = {}
    names = ("layer", "pooling", "neuron", "explainer")
    for position, values in run_tasks(layer_p_values, layers):
        rows, simulators = layers[position][0], layers[position][3]
        keys = list(zip(*(rows[name].to_pylist() for name in names), strict=True))
        for (simulator, _), own in zip(simulators, values, strict=True):
            found |= {(*k, simulator): float(p) for k, p in zip(keys, own, strict=True)}
    return found


def _levels(run: Run, shards: Shards, source: ScoreSource, positions: np.ndarray | None) -> Any:
    """Reference to a source's logits or scores of some concepts on test images."""
    values = rows_of_splits(run, shards, source.parts, source.column, [TEST])
    return ray.remote(ScoreSource.levels).remote(source, run.folder, values, positions)


def score_block(
    folder: Folder,
    name: str,
    explanations: pa.Table,
    places: Mapping[str, int],
    activations: np.ndarray,
    simulators: Sequence[tuple[str, bool]],
    sharpness: Sharpness,
    settings: SimulateConfig,
    *levels: np.ndarray,
) -> None:
    """Score the explanations of a block of neurons and write their rows.

    Args:
        folder: The run.
        name: Part to write.
        explanations: Rows of the explanations table, of one layer, pooling and explainer.
        places: Column of each concept in `levels`.
        activations: Recorded activations on test images, (images, neurons).
        simulators: Names, and whether their levels are logits, in the order of `levels`.
        sharpness: What logits are multiplied by, and what is added.
        settings: Metrics, and the coverage of the intervals.
        levels: For each simulator, logits or scores on test images, (images, concepts).
    """
    weights, used = sparse_weights(explanations, places)
    neurons = explanations["neuron"].to_numpy()
    head = explanations.select(["layer", "pooling", "neuron", "explainer", "length", "chosen"])
    validation = explanations["val_correlation"].to_numpy()
    marked = np.flatnonzero(head["chosen"].to_numpy() & (head["length"].to_numpy() > 0))
    chosen = explanations.take(pa.array(marked))
    found, simulated = [], []
    for (simulator, logits), scores in zip(simulators, levels, strict=True):
        if len(scores) != len(activations):
            raise ConceptError(
                f"simulator {simulator!r} has {len(scores)} test images and the activations have "
                f"{len(activations)}; run 'neuroscribe run' again to record what is missing"
            )
        known = scores[:, used]
        known = sharpened(known, sharpness) if logits else known
        terms = np.ascontiguousarray(known.T, dtype=np.float64)
        # The bias shifts every prediction alike and leaves the correlation as it is.
        correlation = explanation_correlations(
            activations, weights, terms, neurons, settings.confidence
        )
        found.append((correlation.correlation, correlation.low, correlation.high))
        simulated.append(simulated_activations(chosen, weights[marked], known))
    measures = measures_of(settings.metrics, settings.top)
    del measures["correlation"]
    agreed = agreement(simulated)
    actual = activations[:, neurons[marked]]
    tables = []
    for place, (simulator, _) in enumerate(simulators):
        columns = dict(zip(("correlation", "ci_low", "ci_high"), found[place], strict=True))
        # How much better validation looked than test, to the same eyes: the price of choosing.
        same = simulator == OWN_SCORE
        columns["selection_gap"] = np.where(same, validation - columns["correlation"], np.nan)
        of_chosen = {"agreement": agreed[place]} | {
            name: measure(actual, simulated[place]) for name, measure in measures.items()
        }
        for measure_name, values in of_chosen.items():
            columns[measure_name] = np.full(len(neurons), np.nan)
            columns[measure_name][marked] = values
        content = {n: head[n] for n in head.column_names} | {
            "simulator": [simulator] * len(neurons)
        }
        content |= {n: pa.array(values, from_pandas=True) for n, values in columns.items()}
        tables.append(pa.table(content).select([*SCORE_SCHEMA.names, *measures]))
    folder.write_table(name, pa.concat_tables(tables).cast(_schema(measures)))


def _schema(measures: Iterable[str]) -> pa.Schema:
    """Columns of the scores, with those of the measures that were asked for."""
    return pa.schema([*SCORE_SCHEMA, *((measure, pa.float64()) for measure in measures)])
