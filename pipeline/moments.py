"""The moments stage: recordings → centred second moments of folds of training and of validation images.

One file holds one block: the concepts of an explainer at one sharpness, or one layer's neurons with
them, over one subset of the images. Lanes of consecutive shards are summed each by one task, and added
up in their order, so that the result is the same bits whatever the workers, and the same whether all
images were there at once or came one after the other. From here on the fit reads no image. With
``recordings.keep: test`` the lanes are summed while they are recorded (`pipeline.fused`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from core.moment_sums import MomentSum
from core.moments import ConceptMoments, CrossMoments, Moments
from core.sharpness import Sharpness
from pipeline.concepts import made_while_recording
from pipeline.engine import run_tasks
from pipeline.expected import ACTIVATIONS, Expected, moments_table
from pipeline.explainers import ExplainerPlan
from pipeline.moment_files import (
    Block,
    Layout,
    Stretch,
    blocks_of,
    contents_file,
    layout_of,
    read_moments,
    waves_of,
    write_moments,
)
from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.rundir import Run, part_name
from pipeline.running_totals import RunningTotals
from pipeline.scores import (
    ScoreSource,
    Shards,
    active_positions,
    explainer_source,
    read_rows,
    read_sharpness,
    shards_of,
)
from pipeline.screening import screened
from pipeline.storage import Folder
from pipeline.store import fetch_moments, share_moments
from pipeline.targets import Column, columns_of

#: Rows that are multiplied at once, at least.
ROWS = 2048

#: A file to write of a lane, its block, and the places of the concepts whose products alone are summed.
Output = tuple[str, Block, np.ndarray | None]


def gather_moments(run: Run, plan: Plan, expected: Expected) -> None:
    """Take the moments that are not there yet, for every explainer, and commit them.

    Raises:
        ConfigError: Moments that can be taken only while images are recorded.
    """
    with run.stage("moments") as facts:
        facts["rows"] = facts["bytes"] = facts["blocks"] = 0
        for explainer in plan.explainers:
            table = moments_table(explainer.name)
            made = expected.tables[table]
            if not run.is_fresh(table, made):
                run.withdraw(table)
                layout = _gather(run, plan, expected, explainer, facts)
                share_moments(run, layout)
                run.prune(layout.path, layout.lasting)
                run.prune(f"{layout.path}/lanes", [])
                run.commit(table, table, made, len(layout.names))


def _gather(
    run: Run, plan: Plan, expected: Expected, explainer: ExplainerPlan, facts: dict[str, Any]
) -> Layout:
    """Sum what is lacking of an explainer's moments, unless that is done while recording."""
    contents = contents_file(explainer.name, expected)
    keep_all = plan.config.recordings.keep == "all"
    if run.folder.exists(contents):
        positions = run.folder.read_arrays(contents)["positions"]
    elif keep_all:
        active = active_positions(run, explainer.name)
        source = explainer_source(run, plan, explainer)
        positions = screened(run, plan, explainer, source, shards_of(run, plan), active)
    else:
        raise made_while_recording(moments_table(explainer.name))
    layout = layout_of(run, plan, expected, explainer, positions)
    fetch_moments(run, layout)
    stretches = layout.lacking(run)
    if stretches and not keep_all:
        raise made_while_recording(layout.path)
    run.folder.write_arrays(layout.contents, **layout.arrays())
    if stretches:
        _sum_stretches(run, plan, explainer, layout, stretches, facts)
    return layout


def _sum_stretches(
    run: Run,
    plan: Plan,
    explainer: ExplainerPlan,
    layout: Layout,
    stretches: Sequence[Stretch],
    facts: dict[str, Any],
) -> None:
    """Sum lanes over the recorded shards, wave by wave, and add them to the totals."""
    shards = shards_of(run, plan)
    source = explainer_source(run, plan, explainer)
    parts = run.parts(ACTIVATIONS)
    memory = lane_memory(plan, len(layout.positions))
    there = layout.summed(run)
    names = [name for stretch in stretches for name in stretch.lanes]
    progress = Progress(f"moments {explainer.name}", len(names), "blocks")
    progress.resume_from(len(there.intersection(names)))
    with RunningTotals(run.folder, stretches, 4 * memory) as totals:
        for wave in waves_of(stretches):
            calls = []
            for lane in wave:
                images = layout.lanes[lane]
                jobs = _jobs(outputs_of(stretches, lane, there), layout.positions)
                if jobs:
                    facts["rows"] += sum(
                        s.stop - s.start for s in plan.shards[images.start : images.stop]
                    )
                calls += [(run.folder, shards, images, source, parts, *job) for job in jobs]
            for place, written in run_tasks(_sum_lane, calls, memory=memory):
                facts["bytes"] += written
                facts["blocks"] += len(calls[place][-1])
                progress.advance(len(calls[place][-1]))
            totals.add(wave)
    facts["bytes"] += totals.written
    progress.close(f"{len(layout.positions):,} active concepts, {plan.target.neurons:,} neurons")


def lane_memory(plan: Plan, concepts: int) -> int:
    """Bytes that a task needs to sum the largest blocks of a lane."""
    neurons = max(sum(c.neurons for c in columns_of(plan)), concepts)
    return 8 * concepts * neurons + 64 * ROWS * (concepts + neurons)


def outputs_of(stretches: Sequence[Stretch], lane: int, there: Collection[str]) -> list[Output]:
    """What is to be summed over a lane, but for files that are there."""
    named = [(stretch.lane(lane), stretch.block, stretch.new) for stretch in stretches]
    return [(n, block, new) for n, block, new in named if n is not None and n not in there]


def _jobs(
    outputs: Sequence[Output], positions: np.ndarray
) -> list[tuple[np.ndarray, list[Output]]]:
    """What one task each sums over a lane: a concept block, or all layers of one sharpness and
    subset; and the positions of the concepts that it looks at."""
    jobs: dict[tuple[Any, ...], tuple[np.ndarray, list[Output]]] = {}
    for name, block, new in outputs:
        if block.column is None:
            jobs[(name,)] = positions, [(name, block, new)]
        else:
            key = (block.sharpness, block.subset, None if new is None else new.tobytes())
            seen = positions if new is None else positions[new]
            jobs.setdefault(key, (seen, []))[1].append((name, block, None))
    return list(jobs.values())


def _sum_lane(
    folder: Folder,
    shards: Shards,
    numbers: Sequence[int],
    source: ScoreSource,
    parts: Sequence[str],
    positions: np.ndarray,
    outputs: Sequence[Output],
) -> int:
    """Sum some blocks of one sharpness and subset over consecutive shards; write a file for each."""
    first = outputs[0][1]
    sums = BlockSums(len(positions), [(block, new) for _, block, new in outputs])
    columns = [block.column.name for _, block, _ in outputs if block.column is not None]
    for rows in _batches(folder, shards, numbers, source, parts, columns, first.subset):
        levels = source.levels(folder, rows[source.column], positions)
        scores = source.scores(levels, first.sharpness)
        sums.add(first.subset, first.sharpness, scores, rows)
    return sums.write(folder, [name for name, _, _ in outputs])


class BlockSums:
    """Sums of several blocks over the same images."""

    def __init__(
        self,
        concepts: int,
        wanted: Sequence[tuple[Block, np.ndarray | None]],
        device: str = "cpu",
    ) -> None:
        """Start without images.

        Args:
            concepts: Number of concepts.
            wanted: Blocks, each with the places of the concepts whose products alone are summed:
                those with all concepts, or with the neurons. None for all concepts.
            device: Where the sums are kept until they are written.
        """
        self._wanted = list(wanted)
        self._sums: list[MomentSum | None] = []
        for block, new in wanted:
            left, right = concepts, None if new is None else len(new)
            if block.column is not None:
                left, right = concepts if right is None else right, block.column.neurons
            self._sums.append(MomentSum(left, right, device))

    def add(
        self, subset: str, sharpness: Sharpness, scores: Any, rows: Mapping[str, np.ndarray]
    ) -> None:
        """Add images of a subset to its blocks.

        Args:
            subset: A subset of the images.
            sharpness: That of the scores.
            scores: Concept scores (images, concepts), an array or tensor.
            rows: Activations (images, neurons) by column.
        """
        for (block, new), total in zip(self._wanted, self._sums, strict=True):
            if (block.sharpness, block.subset) != (sharpness, subset):
                continue
            assert total is not None
            some = scores if new is None else scores[:, new]
            if block.column is not None:
                total.add(some, rows[block.column.name])
            elif new is None:
                total.add(scores)
            else:
                total.add(scores, some)

    def write(self, folder: Folder, names: Sequence[str]) -> int:
        """Write the moments, a file a block; each sum is let go once it is read."""
        written = 0
        for place, (name, (block, new)) in enumerate(zip(names, self._wanted, strict=True)):
            total, self._sums[place] = self._sums[place], None
            assert total is not None
            alone = block.column is None and new is None
            kind = ConceptMoments if alone else CrossMoments
            written += write_moments(folder, name, kind.from_sum(total))
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


class StoredMoments:
    """An explainer's moments as the fit reads them, block by block."""

    def __init__(self, run: Run, plan: Plan, explainer: ExplainerPlan) -> None:
        self._folder = run.folder
        self.sharpness = read_sharpness(run, explainer.name)
        entry = run.entry(moments_table(explainer.name))
        path = entry.path
        contents = run.folder.read_arrays(part_name(path, 0, entry.fingerprint, "npz"))
        blocks = blocks_of(plan, shards_of(run, plan), self.sharpness)
        files = [f"{path}/{file}" for file in contents["files"]]
        self._files = list(zip(blocks, files, strict=True))
        positions = contents["positions"]
        self.positions = positions
        """Positions in the explainer's list of the concepts of the moments, ascending."""
        self.texts = [explainer.concepts[position] for position in positions]

    def concepts(self, sharpness: Sharpness) -> dict[str, ConceptMoments]:
        """Moments of the concepts at one sharpness, by subset."""
        return {
            block.subset: self._read(ConceptMoments, file)
            for block, file in self._files
            if block.column is None and block.sharpness == sharpness
        }

    def cross(self, column: Column) -> dict[str, CrossMoments]:
        """Moments of one layer's neurons with the concepts at the layer's sharpness, by subset."""
        return {
            block.subset: self._read(CrossMoments, file)
            for block, file in self._files
            if block.column == column
        }

    def _read(self, kind: type[Moments], file: str) -> Moments:
        moments = read_moments(self._folder, file)
        assert isinstance(moments, kind)
        return moments
