"""Simpler explanations from the same recordings, to measure the linear ones against.

`clip-dissect` names each neuron by the concept that its most activating training images share
(`core.dissect`); `single` is the one concept that correlates best with the neuron on training images.
No image is read again and no test image is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from core.errors import ConfigError
from core.lengths import path_correlations
from core.moments import ConceptMoments, CrossMoments, Moments, merged
from core.ranked import single_paths
from core.sharpness import Sharpness
from pipeline.compare import comparison_table
from pipeline.concepts_config import OWN_SCORE
from pipeline.dissect import dissect
from pipeline.engine import run_tasks
from pipeline.expected import BASELINE_SCORES, COMPARISON, EXPLANATIONS, SCORES, Expected
from pipeline.expected import BASELINES as BASELINES_TABLE
from pipeline.explainers import ExplainerPlan
from pipeline.fit import BLOCK
from pipeline.moments import StoredMoments
from pipeline.plan import Plan
from pipeline.rundir import Run
from pipeline.score import Judge, score_explanations, simulators
from pipeline.scores import VAL, explainer_source, read_sharpness
from pipeline.targets import Column, columns_of

CLIP_DISSECT, SINGLE = "clip-dissect", "single"
BASELINES = (CLIP_DISSECT, SINGLE)

BASELINE_SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("pooling", pa.string()),
        ("neuron", pa.int32()),
        ("explainer", pa.string()),
        ("method", pa.string()),
        ("status", pa.string()),
        ("length", pa.int32()),
        ("chosen", pa.bool_()),
        ("concepts", pa.list_(pa.string())),
        ("weights", pa.list_(pa.float64())),
        ("bias", pa.float64()),
        ("train_correlation", pa.float64()),
        ("val_correlation", pa.float64()),
        ("sharpness", pa.float64()),
        ("shift", pa.float64()),
    ]
)


def check_baselines(names: Sequence[str], keep: str) -> None:
    """Refuse baselines that the recordings cannot give, before work starts.

    Raises:
        ConfigError: `clip-dissect` without activations of training images.
    """
    if CLIP_DISSECT in names and keep == "test":
        raise ConfigError(
            f"the baseline {CLIP_DISSECT!r} looks at the training images that activate each neuron "
            "most, and with recordings.keep 'test' only test images are kept; set recordings.keep to "
            f"'all', or leave {CLIP_DISSECT!r} out of simulate.baselines"
        )


def make_baselines(
    run: Run, plan: Plan, explainer: ExplainerPlan, names: Sequence[str]
) -> pa.Table:
    """Explanations of every neuron that can be explained, by simpler methods.

    Args:
        run: With recordings, and moments and explanations of this explainer.
        plan: Its plan.
        explainer: Whose concepts are used: the active ones for `single`, all for `clip-dissect`.
        names: Of `BASELINES`.

    Returns:
        `BASELINE_SCHEMA`, the schema of explanations with `method`, and with `sharpness` and `shift`:
        the factor on the logits of concept scores and what is added, those of the explainer's own
        explanations of the layer, so that both are seen by the same eyes. A neuron whose best concept
        does not correlate positively has length 0 with `single`.

    Raises:
        ConfigError: See `check_baselines`.
    """
    check_baselines(names, plan.config.recordings.keep)
    neurons = _explainable(run, plan, explainer)
    makers = {SINGLE: _single, CLIP_DISSECT: _dissected}
    tables = [makers[name](run, plan, explainer, neurons) for name in dict.fromkeys(names)]
    return pa.concat_tables([BASELINE_SCHEMA.empty_table(), *tables])


def compare_with_baselines(run: Run, plan: Plan, expected: Expected, facts: dict[str, Any]) -> None:
    """Make the baselines that the configuration names, score them, and commit the tables.

    Without any, tables that an earlier configuration has left are withdrawn. What it has cost is
    added to the facts.
    """
    tables = (BASELINES_TABLE, BASELINE_SCORES, COMPARISON)
    wanted = {t: expected.tables[t] for t in tables if t in expected.tables}
    if not wanted:
        for table in tables:
            run.withdraw(table)
        return
    if all(run.is_fresh(table, made) for table, made in wanted.items()):
        return
    names = plan.config.simulate.baselines
    made = pa.concat_tables([make_baselines(run, plan, e, names) for e in plan.explainers])
    scores, comparison = compare(run, plan, run.read(SCORES), made)
    facts["rows"] = facts.get("rows", 0) + made.num_rows
    for table, content in zip(tables, (made, scores, comparison), strict=True):
        run.withdraw(table)
        size = run.write(table, f"{table}.parquet", content, wanted[table])
        facts["bytes"] = facts.get("bytes", 0) + size


def compare(run: Run, plan: Plan, ours: pa.Table, baselines: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Scores of baselines by every simulator, and the comparison with the run's explanations.

    Args:
        run: With recordings.
        plan: Its plan.
        ours: The table of scores.
        baselines: Of one or more explainers, as `make_baselines` gives them.

    Returns:
        Tables `METHOD_SCORE_SCHEMA` and `COMPARISON_SCHEMA`.
    """
    scores = []
    for explainer in plan.explainers:
        mine = baselines.filter(pc.equal(baselines["explainer"], explainer.name))
        texts = sorted(set(pc.list_flatten(mine["concepts"]).to_pylist()))
        places = {text: place for place, text in enumerate(explainer.concepts)}
        own = explainer_source(run, plan, explainer)
        judges = [Judge(OWN_SCORE, explainer.name, own, places)]
        judges += simulators(run, plan, texts, explainer.name)
        scores.append(score_explanations(run, plan, mine, judges))
    found = pa.concat_tables(scores)
    return found, comparison_table(ours, found, plan.config.simulate.confidence)


def _explainable(run: Run, plan: Plan, explainer: ExplainerPlan) -> dict[Column, np.ndarray]:
    """Neurons of each column whose status is `ok`, ascending."""
    table = run.read(EXPLANATIONS, ["layer", "pooling", "neuron", "explainer", "status"])
    ok = pc.and_(pc.equal(table["explainer"], explainer.name), pc.equal(table["status"], "ok"))
    table = table.filter(ok)
    layers, poolings = (table[name].to_numpy() for name in ("layer", "pooling"))
    neurons = table["neuron"].to_numpy()
    return {
        column: np.unique(neurons[(layers == column.layer) & (poolings == column.pooling)])
        for column in columns_of(plan)
    }


def _rows(
    column: Column,
    explainer: str,
    method: str,
    sharpness: Sharpness,
    neurons: np.ndarray,
    concepts: list[list[str]],
    weights: list[list[float]],
    **more: Any,
) -> pa.Table:
    """Rows of some neurons of a column; what is not given is null."""
    size = len(neurons)
    content = {
        "layer": pa.array([column.layer] * size, pa.string()),
        "pooling": pa.array([column.pooling] * size, pa.string()),
        "neuron": pa.array(neurons, pa.int32()),
        "explainer": pa.array([explainer] * size, pa.string()),
        "method": pa.array([method] * size, pa.string()),
        "status": pa.array(["ok"] * size, pa.string()),
        "length": pa.array([len(texts) for texts in concepts], pa.int32()),
        "chosen": pa.array([True] * size, pa.bool_()),
        "concepts": pa.array(concepts, pa.list_(pa.string())),
        "weights": pa.array(weights, pa.list_(pa.float64())),
        "sharpness": pa.array([sharpness.factor] * size, pa.float64()),
        "shift": pa.array([sharpness.shift] * size, pa.float64()),
    }
    content |= {name: pa.array(values, from_pandas=True) for name, values in more.items()}
    missing = [name for name in BASELINE_SCHEMA.names if name not in content]
    content |= {name: pa.nulls(size, pa.float64()) for name in missing}
    return pa.table(content).select(BASELINE_SCHEMA.names)


def _dissected(
    run: Run, plan: Plan, explainer: ExplainerPlan, neurons: Mapping[Column, np.ndarray]
) -> pa.Table:
    chosen = read_sharpness(run, explainer.name)
    tables = [BASELINE_SCHEMA.empty_table()]
    for column, places in dissect(run, plan, explainer, neurons):
        concepts = [[explainer.concepts[place]] if place >= 0 else [] for place in places]
        weights = [[1.0] * len(texts) for texts in concepts]
        about = (column, explainer.name, CLIP_DISSECT, chosen[column.layer, column.pooling])
        zero = np.zeros(len(places))
        tables.append(_rows(*about, neurons[column], concepts, weights, bias=zero))
    return pa.concat_tables(tables)


def _single(
    run: Run, plan: Plan, explainer: ExplainerPlan, neurons: Mapping[Column, np.ndarray]
) -> pa.Table:
    stored = StoredMoments(run, plan, explainer)
    texts = ray.put(stored.texts)
    tables = dict.fromkeys(neurons, BASELINE_SCHEMA.empty_table())
    for sharpness in sorted(set(stored.sharpness.values()), reverse=True):
        concepts = ray.put(_train_and_val(stored.concepts(sharpness)))
        for column in neurons:
            same = stored.sharpness[column.layer, column.pooling] == sharpness
            if not same or not len(neurons[column]):
                continue
            cross = ray.put(_train_and_val(stored.cross(column)))
            blocks = np.split(neurons[column], range(BLOCK, len(neurons[column]), BLOCK))
            calls = [
                (column, explainer.name, block, sharpness, texts, concepts, cross)
                for block in blocks
            ]
            found = dict(run_tasks(single_block, calls))
            tables[column] = pa.concat_tables([found[n] for n in range(len(calls))])
    return pa.concat_tables(list(tables.values()))


def _train_and_val(subsets: Mapping[str, Moments]) -> list[Moments]:
    return [merged([part for name, part in subsets.items() if name != VAL]), subsets[VAL]]


def single_block(
    column: Column,
    explainer: str,
    neurons: np.ndarray,
    sharpness: Sharpness,
    texts: Sequence[str],
    concepts: Sequence[ConceptMoments],
    cross: Sequence[CrossMoments],
) -> pa.Table:
    """The best single concept of some neurons of a column.

    Args:
        column: The layer.
        explainer: Name of the explainer.
        neurons: Those to explain.
        sharpness: What the moments were taken with.
        texts: Concepts of the moments.
        concepts: Moments of training and of validation images.
        cross: The same of all neurons of the layer.
    """
    train, val = (part.take_neurons(neurons) for part in cross)
    paths = single_paths(concepts[0], train, sign="positive")
    has = paths.available > 0
    positions, weights = paths.concepts[:, 0, 0], paths.weights[:, 0, 0]
    return _rows(
        column,
        explainer,
        SINGLE,
        sharpness,
        neurons,
        [[texts[place]] if there else [] for place, there in zip(positions, has, strict=True)],
        [[float(w)] if there else [] for w, there in zip(weights, has, strict=True)],
        bias=np.where(has, paths.bias[:, 0], train.neuron_mean),
        train_correlation=path_correlations(paths, concepts[0], train)[:, 0],
        val_correlation=path_correlations(paths, concepts[1], val)[:, 0],
    )
