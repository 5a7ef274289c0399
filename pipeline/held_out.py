"""What is known of validation and test images: recorded activations, logits, simulated activations.

Rows are the images of both splits in the order of the images table. Tasks read them part by part; what
is referred to here lies in Ray's object store and is passed on without copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from core.concept_scores import sharpened
from core.sharpness import Sharpness
from pipeline.columns import matrix
from pipeline.concepts_config import OWN_SCORE
from pipeline.expected import EXPLANATIONS
from pipeline.explainers import ExplainerPlan
from pipeline.moments import StoredMoments
from pipeline.plan import Plan
from pipeline.rundir import Run
from pipeline.scores import (
    TEST,
    VAL,
    ScoreSource,
    Shards,
    explainer_source,
    model_source,
    read_rows,
    rows_of_splits,
    shards_of,
)
from pipeline.sparse_weights import simulated_activations, sparse_weights
from pipeline.storage import Folder
from pipeline.targets import Column

HELD_OUT = (VAL, TEST)


@dataclass(frozen=True)
class Known:
    """Logits of the images and what follows from them; rows are validation and test images."""

    logits: np.ndarray
    labels: np.ndarray
    """Class of each image; `classes.UNKNOWN` where it has no label."""
    val: np.ndarray
    """Which rows are validation images whose class is known."""
    test: np.ndarray
    temperature: float
    loss: np.ndarray
    """Cross-entropy of each image at that temperature, float64; NaN without a class."""
    correct: np.ndarray
    """Whether the network puts the class first."""


def held_out_rows(run: Run, parts: Sequence[str], columns: list[str]) -> pa.Table:
    """Rows of the images table of validation and test images, and the shard of each."""
    tables = []
    for number, part in enumerate(parts):
        rows = run.folder.read_table(part, [*columns, "split"])
        rows = rows.filter(pc.is_in(rows["split"], value_set=pa.array(HELD_OUT)))
        tables.append(rows.append_column("shard", pa.array([number] * rows.num_rows, pa.int32())))
    return pa.concat_tables(tables)


def training_mean(run: Run, shards: Shards, parts: Sequence[str], column: str) -> Any:
    """Reference to the mean of each neuron on training images, float64."""
    return ray.remote(_training_mean).remote(run.folder, shards, parts, column)


def _training_mean(folder: Folder, shards: Shards, parts: Sequence[str], column: str) -> np.ndarray:
    total, count = np.zeros(0), 0
    for number, part in enumerate(parts):
        values = read_rows(folder, shards, number, part, [column])[column]
        values = values[shards.rows(folder, number, "train")]
        total = values.sum(axis=0, dtype=np.float64) + (total if total.size else 0.0)
        count += len(values)
    mean: np.ndarray = total / count
    return mean


@dataclass(frozen=True)
class Simulations:
    """What an explainer's chosen explanations predict, by each simulator."""

    explainer: str
    rows: pa.Table
    """Chosen explanations that have terms, of all layers."""
    places: Any
    """Reference to the column of each concept in the levels."""
    sharpness: Mapping[tuple[str, str], Sharpness]
    levels: dict[str, tuple[Any, bool]]
    """By simulator: reference to levels of all images, and whether they are logits."""
    stored: StoredMoments

    def explanations(self, column: Column) -> pa.Table:
        """Chosen explanations of one layer and pooling, one a neuron that has terms."""
        here = pc.and_(
            pc.equal(self.rows["layer"], column.layer),
            pc.equal(self.rows["pooling"], column.pooling),
        )
        return self.rows.filter(here).combine_chunks()

    def of(self, column: Column) -> dict[str, Any]:
        """By simulator, a reference to simulated activations (images, neurons) float32.

        Columns of neurons without terms are NaN.
        """
        rows = self.explanations(column)
        sharpness = self.sharpness[column.layer, column.pooling]
        task = ray.remote(_simulate)
        return {
            name: task.remote(
                rows, self.places, levels, sharpness if logits else None, column.neurons
            )
            for name, (levels, logits) in self.levels.items()
        }


def simulations(run: Run, plan: Plan, explainer: ExplainerPlan) -> Simulations:
    """Everything that an explainer's simulated activations are made from, read by tasks."""
    shards = shards_of(run, plan)
    stored = StoredMoments(run, plan, explainer)
    own = explainer_source(run, plan, explainer)
    sources = {OWN_SCORE: own} | {
        s.name: model_source(run, plan.clips[s.name], stored.texts) for s in plan.config.simulators
    }
    levels = {}
    for name, source in sources.items():
        values = rows_of_splits(run, shards, source.parts, source.column, HELD_OUT)
        positions = stored.positions if source is own else None
        made = ray.remote(ScoreSource.levels).remote(source, run.folder, values, positions)
        levels[name] = (made, source.texts is not None)
    rows = run.read(EXPLANATIONS)
    marked = pc.and_(rows["chosen"], pc.greater(rows["length"], 0))
    rows = rows.filter(pc.and_(marked, pc.equal(rows["explainer"], explainer.name)))
    places = ray.put({text: row for row, text in enumerate(stored.texts)})
    return Simulations(explainer.name, rows, places, stored.sharpness, levels, stored)


def _simulate(
    explanations: pa.Table,
    places: Mapping[str, int],
    levels: np.ndarray,
    sharpness: Sharpness | None,
    neurons: int,
) -> np.ndarray:
    weights, used = sparse_weights(explanations, places)
    known = levels[:, used]
    known = known if sharpness is None else sharpened(known, sharpness)
    simulated = np.full((len(levels), neurons), np.nan, np.float32)
    simulated[:, explanations["neuron"].to_numpy()] = simulated_activations(
        explanations, weights, known
    )
    return simulated


def read_logits(run: Run, parts: Sequence[str]) -> np.ndarray:
    """Logits of validation and test images, (images, classes) float32."""
    return np.concatenate([matrix(run.folder.read_table(p, ["logits"])["logits"]) for p in parts])
