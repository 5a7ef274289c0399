"""The moments stage: recordings → centred second moments of folds of training and of validation images.

One file holds one block: the concepts of an explainer at one sharpness, or one layer's neurons with
them, over one subset of the images. Lanes of consecutive shards are summed each by one task, and merged
in their order, so that the result is the same bits whatever the workers. From here on the fit reads no
image. With ``recordings.keep: test`` the lanes are summed while they are recorded (`pipeline.fused`),
and only merged here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.moment_sums import MomentSum
from core.moments import ConceptMoments, CrossMoments
from pipeline.concepts import made_while_recording
from pipeline.engine import run_tasks
from pipeline.expected import ACTIVATIONS, IMAGES, Expected, moments_table
from pipeline.explainers import ExplainerPlan
from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.rundir import Run, part_name
from pipeline.scores import (
    ScoreSource,
    Shards,
    active_positions,
    explainer_source,
    read_factors,
    read_rows,
    shards_of,
)
from pipeline.screening import screened
from pipeline.storage import Folder
from pipeline.targets import Column, columns_of

#: Most lanes, which bounds what lies on disk between the two passes: each holds its blocks.
MAX_LANES = 32

#: Shards of a lane, at least, and rows that are multiplied at once, at least.
LANE, ROWS = 64, 2048


@dataclass(frozen=True)
class Block:
    """What one file of moments holds."""

    factor: float
    """Sharpness of the concept scores."""
    subset: str
    column: Column | None
    """The neurons; None for the concepts among themselves."""


def blocks_of(plan: Plan, shards: Shards, factors: Mapping[tuple[str, str], float]) -> list[Block]:
    """Every block of an explainer's moments, in the order of the files."""
    columns = columns_of(plan)
    found = [
        Block(factor, subset, None)
        for factor in sorted(set(factors.values()), reverse=True)
        for subset in shards.subsets
    ]
    for column in columns:
        factor = factors[column.layer, column.pooling]
        found += [Block(factor, subset, column) for subset in shards.subsets]
    return found


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
                files, size = _gather(run, plan, explainer, made)
                facts["bytes"] += size
                run.commit(table, table, made, files)


@dataclass(frozen=True)
class Layout:
    """Which files an explainer's moments lie in; they are summed in lanes of consecutive shards."""

    path: str
    blocks: list[Block]
    names: list[str]
    """Files of the table: the positions of its concepts, then one a block."""
    lanes: list[range]
    lane_names: list[list[str]]
    """For each lane a file a block: those of the table itself where there is one lane."""

    def there(self, run: Run) -> set[str]:
        """Files of the table and of its lanes that are there."""
        files = {f"{self.path}/{name}" for name in run.part_files(self.path)}
        return files | {f"{self.path}/lanes/{n}" for n in run.part_files(f"{self.path}/lanes")}

    def lacking(self, run: Run) -> list[int]:
        """Lanes that must be summed (again), since neither their files nor the table's are there."""
        there = self.there(run)
        if set(self.names) <= there:
            return []
        return [n for n, names in enumerate(self.lane_names) if not set(names) <= there]


def layout_of(
    plan: Plan,
    explainer: str,
    shards: Shards,
    factors: Mapping[tuple[str, str], float],
    made: str,
) -> Layout:
    """Where an explainer's moments lie: a function of the shards, whatever the workers."""
    path = moments_table(explainer)
    blocks = blocks_of(plan, shards, factors)
    names = [part_name(path, number, made, "npz") for number in range(len(blocks) + 1)]
    count = len(shards.images)
    length = max(LANE, -(-count // MAX_LANES))
    lanes = [range(start, min(start + length, count)) for start in range(0, count, length)]
    lane_names = [names[1:]]
    if len(lanes) > 1:
        lane_names = [
            [
                part_name(f"{path}/lanes", lane * len(blocks) + n, made, "npz")
                for n in range(len(blocks))
            ]
            for lane in range(len(lanes))
        ]
    return Layout(path, blocks, names, lanes, lane_names)


def _gather(run: Run, plan: Plan, explainer: ExplainerPlan, made: str) -> tuple[int, int]:
    shards = shards_of(run, plan)
    layout = layout_of(plan, explainer.name, shards, read_factors(run, explainer.name), made)
    there = layout.there(run)
    size = 0
    if not set(layout.names) <= there:
        if plan.config.recordings.keep == "all":
            size += _sum_lanes(run, plan, explainer, shards, layout, there)
        elif layout.lacking(run):
            raise made_while_recording(layout.path)
        if len(layout.lanes) > 1:
            merges = [
                (run.folder, layout.names[n + 1], [lane[n] for lane in layout.lane_names], block)
                for n, block in enumerate(layout.blocks)
            ]
            (positions,) = run.folder.read_arrays(layout.names[0]).values()
            memory = 4 * _lane_memory(plan, len(positions))
            size += sum(int(s) for _, s in run_tasks(_merge_lanes, merges, memory=memory))
    run.prune(layout.path, layout.names)
    run.prune(f"{layout.path}/lanes", [])
    return len(layout.names), size


def _sum_lanes(
    run: Run,
    plan: Plan,
    explainer: ExplainerPlan,
    shards: Shards,
    layout: Layout,
    there: set[str],
) -> int:
    """Sum what is not there of each lane over its recorded shards; returns the bytes written."""
    source = explainer_source(run, plan, explainer)
    active = active_positions(run, explainer.name)
    positions = screened(run, plan, explainer, source, shards, active)
    size = run.folder.write_arrays(layout.names[0], positions=positions)
    parts = run.parts(ACTIVATIONS)
    jobs = []
    for lane, numbers in enumerate(layout.lanes):
        for members in _jobs(layout.blocks):
            outputs = [(layout.lane_names[lane][n], layout.blocks[n]) for n in members]
            if not {name for name, _ in outputs} <= there:
                jobs.append((run.folder, shards, numbers, source, positions, parts, outputs))
    total = len(layout.lanes) * len(_jobs(layout.blocks))
    progress = Progress(f"moments {explainer.name}", total, "blocks")
    progress.resume_from(total - len(jobs))
    for _, written in run_tasks(_sum_lane, jobs, memory=_lane_memory(plan, len(positions))):
        size += written
        progress.advance(1)
    progress.close(f"{len(positions):,} active concepts, {plan.target.neurons:,} neurons")
    return size


def _lane_memory(plan: Plan, concepts: int) -> int:
    """Bytes that a task needs to sum the largest blocks of a lane."""
    neurons = max(sum(c.neurons for c in columns_of(plan)), concepts)
    return 8 * concepts * neurons + 64 * ROWS * (concepts + neurons)


def _jobs(blocks: Sequence[Block]) -> list[list[int]]:
    """Blocks that one task sums: a concept block, or all layers of one sharpness and subset."""
    jobs = [[n] for n, block in enumerate(blocks) if block.column is None]
    together: dict[tuple[float, str], list[int]] = {}
    for n, block in enumerate(blocks):
        if block.column is not None:
            together.setdefault((block.factor, block.subset), []).append(n)
    return jobs + list(together.values())


def _sum_lane(
    folder: Folder,
    shards: Shards,
    numbers: Sequence[int],
    source: ScoreSource,
    positions: np.ndarray,
    parts: Sequence[str],
    outputs: Sequence[tuple[str, Block]],
) -> int:
    """Sum some blocks of one sharpness and subset over consecutive shards; write a file for each."""
    columns = [block.column for _, block in outputs if block.column is not None]
    sums = {c.name: MomentSum(len(positions), c.neurons) for c in columns}
    alone = None if columns else MomentSum(len(positions))
    first = outputs[0][1]
    for rows in _batches(folder, shards, numbers, source, parts, list(sums), first.subset):
        levels = source.levels(folder, rows[source.column], positions)
        scores = source.scores(levels, first.factor)
        if alone is not None:
            alone.add(scores)
        for name, total in sums.items():
            total.add(scores, rows[name])
    written = 0
    for name, block in outputs:
        moments: ConceptMoments | CrossMoments
        if block.column is None:
            assert alone is not None
            moments = ConceptMoments.from_sum(alone)
        else:
            moments = CrossMoments.from_sum(sums[block.column.name])
        written += folder.write_arrays(name, **named_arrays(moments))
    return written


def _batches(
    folder: Folder,
    shards: Shards,
    numbers: Sequence[int],
    source: ScoreSource,
    parts: Sequence[str],
    columns: Sequence[str],
    subset: str,
) -> Iterator[dict[str, np.ndarray]]:
    """A subset's rows of the source and of some layers, at least `ROWS` at a time but the last."""
    gathered: list[dict[str, np.ndarray]] = []
    count = 0
    for number in numbers:
        inside = shards.rows(folder, number, subset)
        rows = read_rows(folder, shards, number, source.parts[number], [source.column])
        if columns:
            rows |= read_rows(folder, shards, number, parts[number], columns)
        gathered.append({name: values[inside] for name, values in rows.items()})
        count += int(inside.sum())
        if count >= ROWS or number == numbers[-1]:
            yield {name: np.concatenate([g[name] for g in gathered]) for name in gathered[0]}
            gathered, count = [], 0


def _merge_lanes(folder: Folder, name: str, lanes: Sequence[str], block: Block) -> int:
    """Merge one block of all lanes, in their order."""
    read = _concept_moments if block.column is None else _cross_moments
    total: Any = read(folder.read_arrays(lanes[0]))
    for lane in lanes[1:]:
        total = total.merge(read(folder.read_arrays(lane)))
    return folder.write_arrays(name, **named_arrays(total))


def named_arrays(moments: ConceptMoments | CrossMoments) -> dict[str, np.ndarray]:
    """Moments as the arrays of their file."""
    fields = type(moments).__dataclass_fields__
    return {field: np.asarray(getattr(moments, field)) for field in fields}


def _concept_moments(arrays: Mapping[str, np.ndarray]) -> ConceptMoments:
    values = {f: arrays[f] for f in ConceptMoments.__dataclass_fields__}
    return ConceptMoments(**(values | {"count": int(values["count"])}))  # type: ignore[arg-type]


def _cross_moments(arrays: Mapping[str, np.ndarray]) -> CrossMoments:
    values = {f: arrays[f] for f in CrossMoments.__dataclass_fields__}
    return CrossMoments(**(values | {"count": int(values["count"])}))  # type: ignore[arg-type]


class StoredMoments:
    """An explainer's moments as the fit reads them, block by block."""

    def __init__(self, run: Run, plan: Plan, explainer: ExplainerPlan) -> None:
        self._folder = run.folder
        self._files = run.parts(moments_table(explainer.name))
        self.factors = read_factors(run, explainer.name)
        self._blocks = blocks_of(plan, shards_of(run, plan), self.factors)
        positions = run.folder.read_arrays(self._files[0])["positions"]
        self.positions = positions
        """Positions in the explainer's list of the concepts of the moments, ascending."""
        self.texts = [explainer.concepts[position] for position in positions]

    def concepts(self, factor: float) -> dict[str, ConceptMoments]:
        """Moments of the concepts at one sharpness, by subset."""
        return {
            block.subset: _concept_moments(self._folder.read_arrays(self._files[n + 1]))
            for n, block in enumerate(self._blocks)
            if block.column is None and block.factor == factor
        }

    def cross(self, column: Column) -> dict[str, CrossMoments]:
        """Moments of one layer's neurons with the concepts at the layer's sharpness, by subset."""
        return {
            block.subset: _cross_moments(self._folder.read_arrays(self._files[n + 1]))
            for n, block in enumerate(self._blocks)
            if block.column == column
        }
