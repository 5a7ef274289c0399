"""Taking moments while images are recorded, so that only test images need be kept.

The unit of work is a lane of consecutive shards, the same that `pipeline.moments` sums, because sums
must be added in one order whatever the workers. Tasks decode shards; an actor takes the shards of a lane
in their order (`pipeline.lanes`) and at its end writes the files that the moments stage merges. A lane
whose actor is lost is recorded again by another; a lane whose files are there never is. What a pilot has
recorded of a shard is read, not recorded again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc
import ray

from actors.views import View
from core.errors import ConfigError, StoppedEarly
from pipeline.concepts import embed_texts
from pipeline.decoding import ON_CPUS, ON_DEVICE, DecodeShard
from pipeline.engine import Workers, ready, remote_task
from pipeline.expected import (
    ACTIVATIONS,
    IMAGES,
    QUARANTINE,
    Expected,
    embeddings_table,
    moments_table,
)
from pipeline.explainers import ExplainerPlan, image_scores
from pipeline.images_table import rows_of
from pipeline.lanes import LaneShard, RecordLane, Sought
from pipeline.moment_files import Stretch, contents_file, lanes_of, layout_of, waves_of
from pipeline.moments import lane_memory, outputs_of
from pipeline.pilot import Pilot, Taken
from pipeline.plan import Plan
from pipeline.rundir import Run
from pipeline.running_totals import RunningTotals
from pipeline.scores import divided
from pipeline.store import fetch_moments
from pipeline.stream import (
    Models,
    block_of,
    count,
    models_of,
    own_error,
    pending_shards,
    read_quarantine,
    record_progress,
    refuse_above,
    withdraw_pending,
)

#: How often a lane is given to a new actor before the run stops.
TRIES = 3

#: Shares of a GPU's or node's memory that sums may take, and of the object store that images may.
MEMORY_SHARE, STORE_SHARE = 0.8, 0.4


def take_moments(
    run: Run, plan: Plan, expected: Expected, workers: Workers, dtype: str, facts: dict[str, Any]
) -> None:
    """Record every image into the moments that are not there yet, and write parts of test images.

    Raises:
        ConfigError: The sums do not fit into an actor's memory.
        ThresholdError: More images cannot be used than the configuration allows.
        StoppedEarly: Actors were lost again and again.
    """
    tables = {e.name: moments_table(e.name) for e in plan.explainers}
    stale = [
        e
        for e in plan.explainers
        if not run.is_fresh(tables[e.name], expected.tables[tables[e.name]])
    ]
    pilot = Pilot(run, plan, workers, dtype)
    pilot.decide(expected)
    sought: list[Sought] = []
    stretches: list[list[Stretch]] = []
    there: set[str] = set()
    for explainer in stale:
        contents = contents_file(explainer.name, expected)
        if run.folder.exists(contents):
            positions = run.folder.read_arrays(contents)["positions"]
        else:
            positions = pilot.positions(explainer, plan.config.fit.resolved.max_concepts)
        layout = layout_of(run, plan, expected, explainer, positions)
        # Files of two tables lie in one folder until the moments stage drops those that are stale.
        run.withdraw(tables[explainer.name])
        run.folder.write_arrays(contents, **layout.arrays())
        fetch_moments(run, layout)
        if lacking := layout.lacking(run):
            sought.append(_sought(run, plan, explainer, positions))
            stretches.append(lacking)
            there |= layout.summed(run)
    if sought:
        bad = read_quarantine(run, expected).num_rows
        refuse_above(run, plan, bad)
        try:
            taken = pilot.taken({ACTIVATIONS, *(one.table for one in sought if one.table)})
            recording = _Recording(
                run, plan, expected, workers, dtype, sought, stretches, there, taken
            )
            recording.carry_out(bad, facts)
        finally:
            run.folder.write_table("quarantine.parquet", read_quarantine(run, expected))
    for key in (ON_DEVICE, ON_CPUS):
        if key in pilot.facts:
            facts[key] = facts.get(key, 0) + pilot.facts[key]
    pilot.discard()


def sums_bytes(sought: Sequence[Sought], stretches: Sequence[Sequence[Stretch]]) -> int:
    """Bytes of all sums of a lane: concepts by concepts and neurons, for each subset of the images."""
    total = 0
    for one, lacking in zip(sought, stretches, strict=True):
        concepts = len(one.positions)
        for stretch in lacking:
            column, new = stretch.block.column, stretch.new
            some = concepts if new is None else len(new)
            total += 8 * some * (column.neurons if column else concepts)
    return total


@dataclass
class _Lane:
    """A lane under way at an actor."""

    number: int
    actor: Any
    waiting: deque[int]
    """Shards that are yet to be decoded."""
    replies: deque[tuple[int | None, Any]] = field(default_factory=deque)
    """What the actor was told and has not answered: a shard, or None for the beginning and end."""
    finishing: bool = False
    images: int = 0
    """Images done, to be taken back where the lane starts again."""


class _Recording:
    """The lanes of one start, handed to actors."""

    def __init__(
        self,
        run: Run,
        plan: Plan,
        expected: Expected,
        workers: Workers,
        dtype: str,
        sought: Sequence[Sought],
        stretches: Sequence[Sequence[Stretch]],
        there: Collection[str],
        taken: Mapping[int, Taken],
    ) -> None:
        self.run, self.plan, self.workers, self.taken = run, plan, workers, taken
        self.sought = sought
        self.stretches = [stretch for lacking in stretches for stretch in lacking]
        self.lanes = lanes_of(len(plan.shards))
        self.outputs = {
            lane: outputs
            for lane in range(len(self.lanes))
            if any(outputs := [outputs_of(lacking, lane, there) for lacking in stretches])
        }
        numbers = [number for lane in self.outputs for number in self.lanes[lane]]
        pending = pending_shards(run, plan, expected)
        pending = {number: pending[number] for number in numbers if number in pending}
        withdraw_pending(run, pending)
        self.lacked = {number for number, tables in pending.items() if QUARANTINE in tables}
        self.parts = {
            number: {t: expected.parts[t][number] for t in (QUARANTINE, *pending.get(number, []))}
            for number in numbers
        }
        needed = {ACTIVATIONS, *(one.table for one in sought if one.table)}
        self.models = models_of(plan, needed | {t for tables in pending.values() for t in tables})
        refuse_beyond_memory(plan, workers, sums_bytes(sought, stretches))
        known = [
            ray.put(image_scores(plan.index, explainer))
            for explainer in plan.explainers
            if any(one.explainer == explainer.name and one.table is None for one in sought)
        ]
        models = (self.models.targets, self.models.clips)
        settings = (
            workers,
            dtype,
            plan.config.target.batch_size,
            plan.config.recordings.compile,
        )
        shards = divided(plan, expected.parts[IMAGES])
        self.for_actor = (run.folder, *models, *settings, shards, list(sought), *known)
        deciding = expected.views if self.lacked else {}
        self.decode = _decoder(self.models, plan.config.recordings.shard_size, deciding)
        self.ahead = _blocks_ahead(self.models, plan.config.recordings.shard_size, workers)

    def carry_out(self, bad: int, facts: dict[str, Any]) -> None:
        """Record all lanes, and add each wave of them to the totals once it is recorded."""
        concepts = max(len(one.positions) for one in self.sought)
        memory = 4 * lane_memory(self.plan, concepts)
        waves, left = deque(waves_of(self.stretches)), set(self.outputs)
        with RunningTotals(self.run.folder, self.stretches, memory) as totals:

            def add_waves() -> None:
                while waves and left.isdisjoint(waves[0]):
                    totals.add(waves.popleft())

            add_waves()
            with closing(self._recorded(bad, facts)) as recorded:
                for lane in recorded:
                    left.remove(lane)
                    add_waves()
        facts["bytes"] += totals.written

    def _recorded(self, bad: int, facts: dict[str, Any]) -> Generator[int]:
        """Hand the lanes to actors in their order; numbers of lanes as their files are there."""
        actors = [self._new_actor() for _ in range(min(self.workers.actors, len(self.outputs)))]
        idle, queue, tries = list(actors), deque(self.outputs), Counter[int]()
        under_way: list[_Lane] = []
        progress = record_progress(self.run, self.plan, self.parts)
        counted: set[int] = set()
        try:
            while queue or under_way:
                while queue and idle:
                    under_way.append(self._begin(queue.popleft(), idle.pop()))
                for lane in under_way:
                    self._feed(lane)
                there = ready([lane.replies[0][1] for lane in under_way], timeout=1.0)
                for lane in [lane for lane in under_way if lane.replies[0][1] in there]:
                    shard, reply = lane.replies.popleft()
                    try:
                        row = ray.get(reply)
                    except ray.exceptions.RayTaskError as error:
                        raise own_error(error) from None
                    except ray.exceptions.RayError as error:
                        under_way.remove(lane)
                        progress.advance(-lane.images)
                        ray.kill(lane.actor)
                        actors.remove(lane.actor)
                        tries[lane.number] += 1
                        if tries[lane.number] == TRIES:
                            raise StoppedEarly(
                                f"the actor that recorded shards {self.lanes[lane.number][0]} to "
                                f"{self.lanes[lane.number][-1]} was lost {TRIES} times ({error}); "
                                "run again to resume"
                            ) from error
                        queue.appendleft(lane.number)
                        actors.append(self._new_actor())
                        idle.append(actors[-1])
                        continue
                    if shard is not None:
                        count(facts, row)
                        if shard in self.lacked and shard not in counted:
                            bad += row["quarantined"]
                            counted.add(shard)
                            refuse_above(self.run, self.plan, bad)
                        images = self.plan.shards[shard].stop - self.plan.shards[shard].start
                        lane.images += images
                        progress.advance(images)
                    elif lane.finishing and not lane.replies:
                        facts["bytes"] += row
                        under_way.remove(lane)
                        idle.append(lane.actor)
                        yield lane.number
        finally:
            for actor in actors:
                ray.kill(actor)
        progress.close(f"{bad:,} quarantined" if bad else "")

    def _new_actor(self) -> Any:
        gpus = self.workers.gpus or None
        options = ray.remote(RecordLane).options(num_cpus=1, num_gpus=gpus, max_restarts=0)
        return options.remote(*self.for_actor)

    def _begin(self, number: int, actor: Any) -> _Lane:
        lane = _Lane(number, actor, deque(self.lanes[number]))
        lane.replies.append((None, actor.begin.remote(lane.waiting[0], self.outputs[number])))
        return lane

    def _feed(self, lane: _Lane) -> None:
        """Keep some shards of a lane decoded ahead; calls of one caller are answered in their order."""
        while lane.waiting and len(lane.replies) < self.ahead:
            number = lane.waiting.popleft()
            rows, parts = rows_of(self.plan, self.plan.shards[number]), self.parts[number]
            seen = rows.select(["image_id", "split"]).combine_chunks()
            last, taken = not lane.waiting, self.taken.get(number)
            work = LaneShard(number, seen, parts, last, taken)
            left = rows if taken is None else rows.filter(pc.invert(taken.drawn))
            block = None
            if left.num_rows:
                block = self.decode.remote(block_of(left, self.plan.shards[number], parts))
            lane.replies.append((number, lane.actor.add.remote(work, block)))
        if not lane.waiting and not lane.finishing:
            lane.finishing = True
            lane.replies.append((None, lane.actor.finish.remote()))


def _sought(run: Run, plan: Plan, explainer: ExplainerPlan, positions: np.ndarray) -> Sought:
    """The moments to take for an explainer."""
    if explainer.kind != "open_clip":
        return Sought(explainer.name, None, None, 1.0, 0.0, positions)
    clip = plan.clips[explainer.name]
    texts = embed_texts(run, clip, explainer.concepts)
    table = embeddings_table(explainer.name)
    return Sought(explainer.name, table, texts, clip.slope, clip.shift, positions)


def _decoder(models: Models, size: int, deciding: Mapping[str, View]) -> Any:
    """The task that decodes a block."""
    decode = DecodeShard(models.views, models.undecoded, deciding)

    def decode_shard(block: Any) -> Any:
        return decode(block)

    memory = 3 * size * models.image_bytes
    return ray.remote(decode_shard).options(num_cpus=1, memory=memory, max_retries=3)


def _blocks_ahead(models: Models, size: int, workers: Workers) -> int:
    """Shards of a lane that are decoded ahead: enough for all CPUs, and what the store can hold."""
    resources = ray.cluster_resources()
    wanted = 1 + -(-2 * int(resources.get("CPU", 1)) // workers.actors)
    block = size * (models.image_bytes + 1024)
    room = STORE_SHARE * resources.get("object_store_memory", 0.0) / (workers.actors * block)
    return max(2, min(wanted, int(room)))


def refuse_beyond_memory(plan: Plan, workers: Workers, needed: int) -> None:
    """Refuse sums that an actor cannot hold.

    Raises:
        ConfigError: They are larger than its share of the GPU or of the largest node.
    """
    if workers.gpus > 0:
        task = remote_task(_gpu_bytes, workers.gpus, num_cpus=0)
        there, what = ray.get(task.remote()) * min(1.0, workers.gpus), "of GPU memory"
    else:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        largest = max((node.get("memory", 0.0) for node in nodes), default=0.0)
        there, what = largest / workers.per_node, "of memory"
    if needed > MEMORY_SHARE * there:
        gib = 1024**3
        raise ConfigError(
            f"moments that are taken while images are recorded need {needed / gib:.1f} GiB, and a "
            f"recording actor can have {MEMORY_SHARE * there / gib:.1f} GiB {what}; with "
            f"recordings.keep 'test' lower fit.folds ({plan.config.fit.resolved.folds}) or "
            f"fit.max_concepts ({plan.config.fit.resolved.max_concepts:,}), explain fewer layers at "
            "once, or set recordings.keep to 'all'"
        )


def _gpu_bytes() -> int:
    import torch

    return int(torch.cuda.mem_get_info()[0])  # what others leave
