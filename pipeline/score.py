"""Scoring explanations that are no part of the fit: from elsewhere, or made by a simpler method.

They are judged on the run's test images by its simulators, and by its explainers' own concept scores
where those know the texts. A task scores a block of neurons and makes only the concept scores that the
block needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from core.correlation import explanation_correlations
from core.errors import ConfigError
from core.sharpness import NATIVE, Sharpness
from pipeline.calibration import calibrated
from pipeline.compare import comparison_lines, comparison_table
from pipeline.concepts_config import OWN_SCORE
from pipeline.engine import engine, run_tasks
from pipeline.expected import ACTIVATIONS, SCORES, expect
from pipeline.external import read_explanations, stem_of
from pipeline.fingerprints import fingerprint, fingerprint_table
from pipeline.fit import BLOCK
from pipeline.kept_config import kept_config
from pipeline.lock import locked
from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.rundir import Run, TableEntry
from pipeline.scores import (
    TEST,
    ScoreSource,
    explainer_source,
    model_source,
    read_sharpness,
    rows_of_splits,
    shards_of,
)
from pipeline.signals import stop_signals
from pipeline.sparse_weights import sparse_weights
from pipeline.storage import Folder
from pipeline.targets import columns_of

#: Raised when the same file and run would give other scores.
EXTERNAL_VERSION = 2

#: Key of a Parquet file's metadata: which of the run's own scores the file was compared with.
BESIDE = b"neuroscribe.scores"

METHOD_SCORE_SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("pooling", pa.string()),
        ("neuron", pa.int32()),
        ("explainer", pa.string()),
        ("method", pa.string()),
        ("length", pa.int32()),
        ("chosen", pa.bool_()),
        ("simulator", pa.string()),
        ("correlation", pa.float64()),
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("concepts", pa.list_(pa.string())),
        ("weights", pa.list_(pa.float64())),
    ]
)


@dataclass(frozen=True)
class Judge:
    """Who scores: a simulator, or an explainer by its own concept scores."""

    simulator: str
    """As in the table of scores."""
    explainer: str | None
    """Whose explanations or concept scores these are; None for any."""
    source: ScoreSource
    places: Mapping[str, int]
    """Where the source has each concept; explanations with others are not scored by this judge."""


@dataclass(frozen=True)
class Scored:
    """A file of explanations, scored."""

    path: str
    """The table of scores."""
    scores: pa.Table
    comparison: pa.Table
    without: int
    """Rows of the file that had no concept at all."""
    confidence: float
    plainly: bool
    """Whether the run's own explanations use another sharpness of concept scores than these."""


def score_file(url: str | Path, explanations: str, layer: str | None = None) -> Scored:
    """Score explanations from a file on a finished run, and keep the scores beside its tables.

    The same file on the same run is scored once.

    Args:
        url: The run directory.
        explanations: CSV or Parquet file, as `pipeline.external` reads them.
        layer: As for `pipeline.external.read_explanations`.

    Raises:
        UsageError: There is no such run, it is not finished, or the file does not fit it.
    """
    from pipeline.planning import prepare  # loads models, which the tasks of this module do without

    run = Run.open(url)
    plan = prepare(kept_config(run))
    # Models may have run in any format when this was recorded, on whatever machine that was.
    could = (expect(plan, dtype) for dtype in ("float32", "bfloat16", "float16"))
    fresh = next((one for one in could if run.is_fresh(SCORES, one.tables[SCORES])), None)
    if fresh is None:
        raise ConfigError(
            f"{run.folder.url!r} has no scores of its own to compare with, or its images, models or "
            "settings have changed since; run 'neuroscribe run' on it again first"
        )
    plan = calibrated(run, plan, fresh)
    table, without = read_explanations(explanations, columns_of(plan), layer)
    known = (_known(table, _places(explainer.concepts)) for explainer in plan.explainers)
    if not plan.config.simulators and not any(pc.any(mask).as_py() for mask in known):
        raise ConfigError(
            "nobody can score these explanations: the run has no simulator, and none of its "
            "explainers knows all concepts of any of them; add a simulator and run again"
        )
    source = run.tables()[SCORES].fingerprint
    whole = fingerprint(EXTERNAL_VERSION, fingerprint_table(table), source)
    stem = stem_of(explanations)
    name, path = f"external/{stem}", f"external/{stem}-{whole[:12]}.parquet"
    if not run.is_fresh(name, whole):
        with locked(run.folder), engine(plan.config.ray), stop_signals():
            made = _score(run, plan, table).replace_schema_metadata({BESIDE: source.encode()})
            run.write(name, path, made, whole)
    scores = run.read(name)
    confidence = plan.config.simulate.confidence
    compared = comparison_table(run.read(SCORES), scores, confidence)
    own = {s for e in plan.explainers for s in read_sharpness(run, e.name).values()}
    plainly = {sharpness for _, sharpness in _kinds(table)} == {NATIVE} != own
    return Scored(run.folder.path(path), scores, compared, without, confidence, plainly)


def external_scores(run: Run) -> dict[str, TableEntry]:
    """Tables of explanations from elsewhere that were scored beside the run's present ones."""
    tables = run.tables()
    beside = tables[SCORES].fingerprint.encode()
    return {
        name: entry
        for name, entry in tables.items()
        if name.startswith("external/")
        and (run.read(name, ["neuron"]).schema.metadata or {}).get(BESIDE) == beside
    }


def scored_lines(scored: Scored) -> list[str]:
    """What a file's scores come to, for a person."""
    lines = comparison_lines(scored.comparison, scored.confidence)
    unknown = scored.scores.filter(pc.is_null(scored.scores["correlation"]))
    neurons = unknown.group_by(["layer", "pooling", "neuron"]).aggregate([]).num_rows
    lines.append("")
    if scored.plainly:
        lines.append(
            "These were scored with each model's own calibration; the run's own explanations use the "
            "sharpness of concept scores chosen for each layer. Columns `sharpness` and `shift` set it here."
        )
    if scored.without:
        lines.append(f"{scored.without:,} rows of the file have no concept and were left out.")
    if neurons:
        lines.append(
            f"{neurons:,} neurons have no score by some judge: they, or the prediction, do not vary."
        )
    return [*lines, f"Scores: {scored.path}"]


def _score(run: Run, plan: Plan, table: pa.Table) -> pa.Table:
    """Scores of explanations from a file, by every simulator and explainer that can give some."""
    texts = sorted(set(pc.list_flatten(table["concepts"]).to_pylist()))
    judges = simulators(run, plan, texts)
    for explainer in plan.explainers:
        places = _places(explainer.concepts)
        if places.keys() & set(texts):
            own = explainer_source(run, plan, explainer)
            judges.append(Judge(OWN_SCORE, explainer.name, own, places))
    return score_explanations(run, plan, table, judges)


def simulators(
    run: Run, plan: Plan, texts: Sequence[str], explainer: str | None = None
) -> list[Judge]:
    """The run's simulators as judges of explanations of these texts."""
    places = _places(texts)
    clips = [plan.clips[simulator.name] for simulator in plan.config.simulators]
    return [Judge(c.name, explainer, model_source(run, c, texts), places) for c in clips]


def score_explanations(
    run: Run, plan: Plan, explanations: pa.Table, judges: Sequence[Judge]
) -> pa.Table:
    """Correlation on test images of explanations of any making, by every judge that can give it.

    Args:
        run: With recordings.
        plan: Its plan.
        explanations: `layer, pooling, neuron, method, concepts, weights`, and `sharpness` and `shift`:
            the factor on the logits of concept scores that weights are for, and what is added.
        judges: Who scores.

    Returns:
        `METHOD_SCORE_SCHEMA`, judge by judge; a correlation that is undefined is null.
    """
    shards = shards_of(run, plan)
    recorded = run.parts(ACTIVATIONS)
    calls: list[tuple[Any, ...]] = []
    values = [
        rows_of_splits(run, shards, judge.source.parts, judge.source.column, [TEST])
        for judge in judges
    ]
    activations: dict[str, Any] = {}
    for column in columns_of(plan):
        here = pc.and_(
            pc.equal(explanations["layer"], column.layer),
            pc.equal(explanations["pooling"], column.pooling),
        )
        layer = explanations.filter(here)
        for judge, levels in zip(judges, values, strict=True):
            known = layer.filter(_known(layer, judge.places))
            for rows in _blocks(known):
                if column.name not in activations:
                    activations[column.name] = rows_of_splits(
                        run, shards, recorded, column.name, [TEST]
                    )
                used = set(pc.list_flatten(rows["concepts"]).to_pylist())
                short = {text: place for text, place in judge.places.items() if text in used}
                known_texts = dataclasses.replace(judge, places=short)
                confidence = plan.config.simulate.confidence
                calls.append(
                    (run.folder, rows, known_texts, confidence, activations[column.name], levels)
                )
    progress = Progress("score", sum(call[1].num_rows for call in calls), "explanations")
    found: dict[int, pa.Table] = {}
    for position, scores in run_tasks(score_block, calls):
        found[position] = scores
        progress.advance(scores.num_rows)
    progress.close()
    tables = [found[position] for position in range(len(calls))]
    return pa.concat_tables([METHOD_SCORE_SCHEMA.empty_table(), *tables])


def _places(texts: Sequence[str]) -> dict[str, int]:
    return {text: place for place, text in enumerate(texts)}


def _known(table: pa.Table, places: Mapping[str, int]) -> pa.Array:
    """Which explanations have no concept but those."""
    lists = table["concepts"].to_pylist()
    return pa.array([all(text in places for text in texts) for texts in lists], pa.bool_())


def _blocks(table: pa.Table) -> list[pa.Table]:
    """Explanations of one method and sharpness, a task's worth at a time."""
    kinds = _kinds(table)
    blocks = []
    for kind in dict.fromkeys(kinds):
        mine = table.filter(pa.array([other == kind for other in kinds], pa.bool_()))
        blocks += [mine.slice(n, BLOCK).combine_chunks() for n in range(0, mine.num_rows, BLOCK)]
    return blocks


def _kinds(table: pa.Table) -> list[tuple[str, Sharpness]]:
    """Method and sharpness of each explanation."""
    columns = (table[name].to_pylist() for name in ("method", "sharpness", "shift"))
    return [(method, Sharpness(*sharp)) for method, *sharp in zip(*columns, strict=True)]


def score_block(
    folder: Folder,
    explanations: pa.Table,
    judge: Judge,
    confidence: float,
    activations: np.ndarray,
    values: np.ndarray,
) -> pa.Table:
    """Scores of some explanations of one layer, method and sharpness by one judge.

    Args:
        folder: The run.
        explanations: As `score_explanations` takes them.
        judge: Who scores; knows their concepts.
        confidence: Coverage of the intervals.
        activations: Recorded activations of the layer on test images, (images, neurons).
        values: The judge's embeddings or stored scores of the same images, (images, width).
    """
    weights, used = sparse_weights(explanations, judge.places)
    levels = judge.source.levels(folder, values, used)
    scores = judge.source.scores(levels, _kinds(explanations.slice(0, 1))[0][1])
    neurons = explanations["neuron"].to_numpy()
    terms = np.ascontiguousarray(scores.T, dtype=np.float64)
    found = explanation_correlations(activations, weights, terms, neurons, confidence)
    size = len(neurons)
    kept = ("layer", "pooling", "neuron", "method", "concepts", "weights")
    content = {name: explanations[name] for name in kept}
    content |= {
        "explainer": pa.array([judge.explainer] * size, pa.string()),
        "length": pc.list_value_length(explanations["concepts"]),
        "chosen": pa.array([True] * size),
        "simulator": pa.array([judge.simulator] * size),
        "correlation": pa.array(found.correlation, from_pandas=True),
        "ci_low": pa.array(found.low, from_pandas=True),
        "ci_high": pa.array(found.high, from_pandas=True),
    }
    return pa.table(content).select(METHOD_SCORE_SCHEMA.names).cast(METHOD_SCORE_SCHEMA)
