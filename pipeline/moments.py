"""The moments stage: recordings → centred second moments of the train and validation splits.

Lanes of consecutive shards are summed each by one task, and the lanes are merged in their order, so
that the result is the same bits whatever the workers. From here on the fit reads no image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.moments import ConceptMoments, CrossMoments, merged
from pipeline.columns import activation_column
from pipeline.concepts import read_split
from pipeline.engine import run_tasks
from pipeline.expected import ACTIVATIONS, CONCEPTS, IMAGES, Expected, moments_table, scores_table
from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.rundir import Run, part_name
from pipeline.storage import Folder

SPLITS = ("train", "val")

#: Most lanes, which bounds what lies on disk between the two passes: each holds a concept block.
MAX_LANES = 32

#: Shards whose rows are multiplied at once; a lane is at least so long.
GROUP = 16


@dataclass(frozen=True)
class Column:
    """One layer with one pooling: a column of the activations table."""

    layer: str
    pooling: str
    neurons: int

    @property
    def name(self) -> str:
        """Name of the column."""
        return activation_column(self.layer, self.pooling)


def columns_of(plan: Plan) -> list[Column]:
    """The columns of the activations table, in the order of the network."""
    target = plan.target
    return [
        Column(layer, pooling, target.infos[layer].neurons)
        for layer, poolings in target.layers.items()
        for pooling in poolings
    ]


def gather_moments(run: Run, plan: Plan, expected: Expected) -> None:
    """Take the moments that are not there yet, for every explainer, and commit them."""
    with run.stage("moments") as facts:
        facts["rows"] = facts["bytes"] = 0
        for explainer in plan.explainers:
            table = moments_table(explainer.name)
            made = expected.tables[table]
            if not run.is_fresh(table, made):
                run.withdraw(table)
                facts["rows"] += run.entry(IMAGES).rows
                facts["bytes"] += _gather(run, plan, explainer.name, made)
                run.commit(table, table, made, len(columns_of(plan)) + 1)


def active_positions(run: Run, explainer: str) -> np.ndarray:
    """Positions of an explainer's active concepts in its list, ascending."""
    table = run.read(CONCEPTS, ["explainer", "position", "active"])
    mine = np.asarray(table["explainer"]) == explainer
    active = np.asarray(table["active"])
    positions: np.ndarray = np.asarray(table["position"])[mine & active]
    return positions


def _gather(run: Run, plan: Plan, explainer: str, made_from: str) -> int:
    columns = [column.name for column in columns_of(plan)]
    path = moments_table(explainer)
    active = active_positions(run, explainer)
    shards = list(
        zip(
            run.parts(IMAGES),
            run.parts(ACTIVATIONS),
            run.parts(scores_table(explainer)),
            strict=True,
        )
    )
    size = max(GROUP, -(-len(shards) // MAX_LANES))
    jobs = [shards[start : start + size] for start in range(0, len(shards), size)]
    names = [part_name(f"{path}/lanes", n, made_from, "npz") for n in range(len(jobs))]
    there = set(run.part_files(f"{path}/lanes"))
    pending = [n for n, name in enumerate(names) if name.rsplit("/", 1)[-1] not in there]
    calls = [(run.folder, names[n], jobs[n], columns, active) for n in pending]
    neurons = sum(column.neurons for column in columns_of(plan))
    memory = _lane_bytes(len(active), neurons, GROUP * plan.config.recordings.shard_size)
    progress = Progress(f"moments {explainer}", len(names), "lanes")
    progress.resume_from(len(names) - len(pending))
    for _ in run_tasks(_sum_lane, calls, memory=memory):
        progress.advance(1)
    progress.close(f"{len(active):,} active concepts, {neurons:,} neurons")
    finals = [part_name(path, n, made_from, "npz") for n in range(len(columns) + 1)]
    merges: list[tuple[Any, ...]] = [(run.folder, finals[0], names, None)]
    merges += [(run.folder, final, names, c) for final, c in zip(finals[1:], columns, strict=True)]
    written = sum(int(size) for _, size in run_tasks(_merge_lanes, merges, memory=memory))
    run.prune(path, finals)
    run.prune(f"{path}/lanes", [])
    return written


def _lane_bytes(concepts: int, neurons: int, images: int) -> int:
    """Memory of one task: both splits' moments, as much again to merge them, and a group's rows."""
    return 16 * concepts * (concepts + neurons) * len(SPLITS) + 16 * images * (concepts + neurons)


_Shards = Sequence[tuple[str, str, str]]


def _sum_lane(
    folder: Folder, name: str, shards: _Shards, columns: Sequence[str], active: np.ndarray
) -> None:
    """Moments of consecutive shards, one file."""
    concepts: dict[str, list[ConceptMoments]] = {split: [] for split in SPLITS}
    cross: dict[tuple[str, str], list[CrossMoments]] = {}
    for start in range(0, len(shards), GROUP):
        group = shards[start : start + GROUP]
        scores = [read_split(folder, images, table, ["score"]) for images, _, table in group]
        recorded = [read_split(folder, images, table, columns) for images, table, _ in group]
        for split in SPLITS:
            p = np.concatenate([part[split]["score"] for part in scores])[:, active]
            concepts[split] = [merged([*concepts[split], ConceptMoments.of(p)])]
            for column in columns:
                q = np.concatenate([part[split][column] for part in recorded])
                before = cross.get((split, column), [])
                cross[split, column] = [merged([*before, CrossMoments.of(p, q)])]
    arrays: dict[str, np.ndarray] = {}
    for split, (moments,) in concepts.items():
        arrays |= _named(f"{split}/concepts", moments)
    for (split, column), (moments_of_column,) in cross.items():
        arrays |= _named(f"{split}/{column}", moments_of_column)
    folder.write_arrays(name, **arrays)


def _merge_lanes(folder: Folder, name: str, lanes: Sequence[str], column: str | None) -> int:
    """Merge one column of all lanes (or, without one, the concepts), in the order of the lanes."""
    arrays: dict[str, np.ndarray] = {}
    for split in SPLITS:
        prefix = f"{split}/{column or 'concepts'}"
        read = _cross_moments if column else _concept_moments
        total: list[Any] = []
        for lane in lanes:
            total = [merged([*total, read(folder.read_arrays(lane, prefix + "/"), prefix)])]
        arrays |= _named(split, total[0])
    return folder.write_arrays(name, **arrays)


def _named(prefix: str, moments: ConceptMoments | CrossMoments) -> dict[str, np.ndarray]:
    fields = type(moments).__dataclass_fields__
    return {f"{prefix}/{field}": np.asarray(getattr(moments, field)) for field in fields}


def _concept_moments(arrays: Mapping[str, np.ndarray], prefix: str) -> ConceptMoments:
    values = {f: arrays[f"{prefix}/{f}"] for f in ConceptMoments.__dataclass_fields__}
    return ConceptMoments(**(values | {"count": int(values["count"])}))  # type: ignore[arg-type]


def _cross_moments(arrays: Mapping[str, np.ndarray], prefix: str) -> CrossMoments:
    values = {f: arrays[f"{prefix}/{f}"] for f in CrossMoments.__dataclass_fields__}
    return CrossMoments(**(values | {"count": int(values["count"])}))  # type: ignore[arg-type]


def read_concept_moments(run: Run, explainer: str) -> dict[str, ConceptMoments]:
    """Moments of an explainer's active concepts, by split."""
    arrays = run.folder.read_arrays(run.parts(moments_table(explainer))[0])
    return {split: _concept_moments(arrays, split) for split in SPLITS}


def read_cross_moments(run: Run, explainer: str, column: int) -> dict[str, CrossMoments]:
    """Moments of one column's neurons with an explainer's active concepts, by split."""
    arrays = run.folder.read_arrays(run.parts(moments_table(explainer))[column + 1])
    return {split: _cross_moments(arrays, split) for split in SPLITS}
