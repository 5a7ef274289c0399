"""Ablation of one layer: exactly where a linear head follows, else by running the rest again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from actors.replay import Head
from core.joint_replacement import JointLosses
from pipeline.ablation_blocks import BLOCK, Block, normed, replace_all, score_block
from pipeline.ablation_config import AblationConfig
from pipeline.ablation_tables import (
    ABLATION_SCHEMA,
    IMPORTANCE_SCHEMA,
    REPLACEMENT_SCHEMA,
    importance_rows,
    replacement_rows,
    score_rows,
)
from pipeline.curves import Rerun, Together, Values
from pipeline.engine import run_tasks
from pipeline.expected import ACTIVATIONS
from pipeline.fingerprints import fingerprint
from pipeline.held_out import HELD_OUT, Known, Simulations, training_mean
from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.replays import Replacements, Replayers
from pipeline.rundir import Run, part_name
from pipeline.scores import rows_of_splits, shards_of
from pipeline.targets import Column

WORK = "work/ablation"


class Work:
    """Names of the parts of what is under way, and which of them an earlier start has left."""

    def __init__(self, run: Run, made: str) -> None:
        self._made, self._count = made, 0
        self._there = {f"{WORK}/{name}" for name in run.part_files(WORK)}

    def name(self, *words: Any, suffix: str = "parquet") -> str:
        """Name of the next part; asked for in the same order, the same in every start."""
        self._count += 1
        return part_name(WORK, self._count, fingerprint(self._made, *words), suffix)

    def lacks(self, *names: str) -> bool:
        """Whether one of these parts is yet to be made."""
        return not set(names) <= self._there


@dataclass(frozen=True)
class Scored:
    """A layer's rows of the tables."""

    name: str
    ablations: pa.Table
    importance: pa.Table | None
    replacements: pa.Table | None
    error: float | None = None
    """Error of loss curves at recorded activations, as a share of the change of loss at the mean."""


class Layer:
    """One layer with one pooling, and everything that is known of it."""

    def __init__(
        self,
        run: Run,
        plan: Plan,
        column: Column,
        known: Known,
        settings: AblationConfig,
        sources: Sequence[Simulations],
        work: Work,
    ) -> None:
        self.run, self.column, self.known, self.settings = run, column, known, settings
        self.seed = plan.config.images.split.seed
        self.work = work
        shards, parts = shards_of(run, plan), run.parts(ACTIVATIONS)
        self._recorded = rows_of_splits(run, shards, parts, column.name, HELD_OUT)
        self._mean = training_mean(run, shards, parts, column.name)
        self._known = ray.put(known)
        self._lengths = {s.explainer: self._lengths_of(s) for s in sources}
        self._sought: list[tuple[str, str]] = []
        self._simulated: list[Any] = []
        for source in sources:
            for simulator, simulated in source.of(column).items():
                self._sought.append((source.explainer, simulator))
                self._simulated.append(simulated)

    def exactly(self, head: Head) -> Scored:
        """Score all neurons by algebra."""
        neurons = np.arange(self.column.neurons)
        weight = ray.put(head.weight)
        shared = (self._known, self._recorded, self._mean, weight)
        blocks = self._blocks(neurons)
        calls = [
            (self.run.folder, block, *shared, *self._simulated)
            for block in blocks
            if self.work.lacks(*(n for n in (block.scores, block.importance) if n is not None))
        ]
        progress = Progress(f"ablate: {self.column.layer}", len(neurons), "neurons")
        progress.resume_from(len(neurons) - sum(len(call[1].neurons) for call in calls))
        for _, count in run_tasks(score_block, calls):
            progress.advance(count)
        progress.close(f"{len(self._sought)} simulations, own scores included")
        read = self.run.folder.read_table
        found = None
        if self.settings.joint:
            jobs = [(*shared, target) for target in self._normed()]
            replaced = dict(run_tasks(replace_all, jobs))
            found = self._together([replaced[n] for n in range(len(jobs))])
        shares = [read(block.importance) for block in blocks if block.importance is not None]
        return Scored(
            name=self.column.name,
            ablations=pa.concat_tables([read(block.scores) for block in blocks]),
            importance=pa.concat_tables(shares) if shares else None,
            replacements=found,
        )

    def again(
        self,
        pool: Replayers,
        rows: Callable[[int], pa.Table],
        shards: np.ndarray,
        expand: bool,
    ) -> Scored:
        """Score neurons by running the rest of the network again.

        Args:
            pool: Actors that hold the network.
            rows: Rows of the index of a shard's validation and test images.
            shards: Shard of each known image.
            expand: As `Replay.expand`.
        """
        neurons = self._sample()
        if not len(neurons):
            schemas = (ABLATION_SCHEMA, IMPORTANCE_SCHEMA, REPLACEMENT_SCHEMA)
            return Scored(self.column.name, *(schema.empty_table() for schema in schemas))
        recorded, mean = ray.get([self._recorded, self._mean])
        values = Values(
            column=self.column,
            neurons=neurons,
            recorded=recorded[:, neurons].astype(np.float64),
            mean=mean[neurons],
            simulated=[s[:, neurons] for s in ray.get(self._simulated)],
        )
        together = None
        if self.settings.joint:
            means = np.broadcast_to(mean.astype(np.float32), recorded.shape)
            together = Together(recorded, [*ray.get(self._normed()), means])
        rerun = Rerun(values, self.known, shards, self.settings, self.seed, expand, together)

        def carried_out(what: str, asked: Callable[[int], Replacements]) -> list[Any]:
            """The parts of all shards, those that are not there yet from the actors."""
            numbers = np.unique(shards).tolist()
            names = [self.work.name(what, self.column.name, n, suffix="npz") for n in numbers]
            lacking = [
                pair for pair in zip(numbers, names, strict=True) if self.work.lacks(pair[1])
            ]
            progress = Progress(f"ablate: {what} {self.column.layer}", len(numbers), "shards")
            progress.resume_from(len(numbers) - len(lacking))
            calls = ((rows(n), (self.run.folder, name, asked(n))) for n, name in lacking)
            for _ in pool.map("losses", calls):
                progress.advance(1)
            progress.close(f"{len(neurons):,} neurons")
            return [self.run.folder.read_arrays(name) for name in names]

        error = None
        if "optim" in self.settings.scores:
            error = rerun.fit(carried_out("fit lines of", rerun.for_lines))
        parts = carried_out("score", rerun.for_scores)
        tables = []
        for (n, kind), found in rerun.scores(parts).items():
            if kind in self.settings.scores:
                about = (self.column, neurons, self._lengths[self._sought[n][0]], self._sought[n])
                line, draws = rerun.lines[n, kind], rerun.test
                tables.append(score_rows(*about, kind, line, found, draws.images(), draws.exact))
        importance = None
        if self.settings.importance:
            importance = importance_rows(self.column, neurons, rerun.shares(parts))
        return Scored(
            name=self.column.name,
            ablations=pa.concat_tables(tables),
            importance=importance,
            replacements=self._together(rerun.joint(parts)) if together else None,
            error=error,
        )

    def _lengths_of(self, source: Simulations) -> np.ndarray:
        rows = source.explanations(self.column)
        lengths = np.zeros(self.column.neurons, np.int32)
        lengths[rows["neuron"].to_numpy()] = rows["length"].to_numpy()
        return lengths

    def _sample(self) -> np.ndarray:
        """Neurons that have an explanation, at most as many as asked for, ascending."""
        found = np.flatnonzero(np.any(list(self._lengths.values()), axis=0))
        most = self.settings.neurons
        if most is None or most >= len(found):
            return found
        words = fingerprint("neurons", self.seed, self.column.name)
        rng = np.random.default_rng(int(words, 16))
        return np.sort(rng.choice(found, most, replace=False))

    def _blocks(self, neurons: np.ndarray) -> list[Block]:
        blocks = []
        for start in range(0, len(neurons), BLOCK):
            words = (self.column.name, start)
            importance = self.work.name("importance", *words)
            blocks.append(
                Block(
                    column=self.column,
                    neurons=neurons[start : start + BLOCK],
                    kinds=self.settings.scores,
                    sought=self._sought,
                    lengths=self._lengths,
                    scores=self.work.name("scores", *words),
                    importance=importance if self.settings.importance else None,
                )
            )
        return blocks

    def _normed(self) -> list[Any]:
        """References to what all neurons take by `norm`, for each simulation."""
        task = ray.remote(normed)
        return [
            task.remote(self._known, self._recorded, self._mean, simulated)
            for simulated in self._simulated
        ]

    def _together(self, found: Sequence[JointLosses]) -> pa.Table:
        images = int(self.known.test.sum())
        return replacement_rows(self.column, self._lengths, self._sought, found, images)
