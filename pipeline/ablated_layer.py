"""Ablation of one layer: exactly where a linear head follows, else by running the rest again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from actors.replay import Head
from core.ablation import norm_lines
from core.joint_replacement import JointLosses, joint_losses
from pipeline.ablation_blocks import BLOCK, Block, score_by_curves, score_exactly
from pipeline.ablation_config import AblationConfig
from pipeline.curves import Rerun, Values, block_of, finite
from pipeline.engine import run_tasks
from pipeline.expected import ACTIVATIONS
from pipeline.fingerprints import fingerprint
from pipeline.held_out import Known, Simulations, held_out, training_mean
from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.replays import Replayers
from pipeline.rundir import Run, part_name
from pipeline.scores import shards_of
from pipeline.targets import Column

WORK = "work/ablation"

JOINT_SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("pooling", pa.string()),
        ("explainer", pa.string()),
        ("simulator", pa.string()),
        ("neurons", pa.int32()),
        ("images", pa.int32()),
        *(
            (name, pa.float64())
            for name in (
                "accuracy",
                "accuracy_replaced",
                "accuracy_mean",
                "loss",
                "loss_replaced",
                "loss_mean",
                "accuracy_kept",
                "loss_kept",
            )
        ),
    ]
)


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
    joint: pa.Table | None
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
        self._recorded = held_out(run, shards, parts, column.name)
        self._mean = training_mean(run, shards, parts, column.name)
        self._known = ray.put(known)
        self._lengths = {s.explainer: self._lengths_of(s) for s in sources}
        self._sought: list[tuple[str, str]] = []
        self._simulated: list[Any] = []
        for source in sources:
            for simulator, simulated in source.of(column).items():
                self._sought.append((source.explainer, simulator))
                self._simulated.append(simulated)
        # Needed by all: a layer that cannot be read fails here, not in every task.
        self._normed = [
            ray.remote(_normed).remote(self._known, self._recorded, self._mean, simulated)
            for simulated in self._simulated
        ]

    def exactly(self, head: Head) -> Scored:
        """Score all neurons by algebra."""
        neurons = np.arange(self.column.neurons)
        weight = ray.put(head.weight)
        shared = (self._known, self._recorded, self._mean, weight, *self._simulated)
        blocks = self._blocks(neurons)
        calls = [(self.run.folder, block, *shared) for block in blocks if self._lacks(block)]
        self._carry_out(score_exactly, calls, len(neurons))
        joint = None
        if self.settings.joint:
            jobs = [
                (self._known, self._recorded, self._mean, weight, normed) for normed in self._normed
            ]
            joint = self._joint(dict(run_tasks(_replace_all, jobs)))
        return self._scored(blocks, joint)

    def by_curves(
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
        recorded, mean = ray.get([self._recorded, self._mean])
        values = Values(self.column, recorded, mean, ray.get(self._normed))
        rerun = Rerun(values, neurons, self.known, shards, self.settings, self.seed)
        numbers = np.unique(shards).tolist()
        names = [self.work.name("curves", self.column.name, n, suffix="npz") for n in numbers]
        todo = [(n, name) for n, name in zip(numbers, names, strict=True) if self.work.lacks(name)]
        progress = Progress(f"ablate: {self.column.layer} again", len(numbers), "shards")
        progress.resume_from(len(numbers) - len(todo))
        calls = ((rows(n), (self.run.folder, name, rerun.of_shard(n, expand))) for n, name in todo)
        for _ in pool.map("losses", calls):
            progress.advance(1)
        progress.close(f"{rerun.passes():,} replacements")
        parts = [self.run.folder.read_arrays(name) for name in names]
        curves = rerun.curves(parts)
        blocks = self._blocks(neurons)
        calls_of_blocks = [
            (
                *(self.run.folder, block, self._known, self._recorded, self._mean),
                *(ray.put(block_of(curves, slice(start, start + BLOCK))), *self._simulated),
            )
            for start, block in zip(range(0, len(neurons), BLOCK), blocks, strict=True)
            if self._lacks(block)
        ]
        self._carry_out(score_by_curves, calls_of_blocks, len(neurons))
        joint = None
        if self.settings.joint:
            joint = self._joint(dict(enumerate(rerun.joint(parts))))
        return self._scored(blocks, joint, rerun.error(curves))

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
                    simulated=self._sought,
                    lengths=self._lengths,
                    scores=self.work.name("scores", *words),
                    importance=importance if self.settings.importance else None,
                )
            )
        return blocks

    def _lacks(self, block: Block) -> bool:
        return self.work.lacks(*(n for n in (block.scores, block.importance) if n is not None))

    def _carry_out(self, task: Any, calls: Sequence[tuple[Any, ...]], total: int) -> None:
        progress = Progress(f"ablate: {self.column.layer}", total, "neurons")
        progress.resume_from(total - sum(len(call[1].neurons) for call in calls))
        for position, _ in run_tasks(task, calls):
            progress.advance(len(calls[position][1].neurons))
        progress.close(f"{len(self._sought)} simulations, own scores included")

    def _joint(self, found: Mapping[int, JointLosses]) -> pa.Table:
        rows = [
            {
                "layer": self.column.layer,
                "pooling": self.column.pooling,
                "explainer": explainer,
                "simulator": simulator,
                "neurons": int((self._lengths[explainer] > 0).sum()),
                "images": int(self.known.test.sum()),
                **asdict(found[n]),
                "accuracy_kept": _number(found[n].accuracy_kept),
                "loss_kept": _number(found[n].loss_kept),
            }
            for n, (explainer, simulator) in enumerate(self._sought)
        ]
        return pa.Table.from_pylist(rows, schema=JOINT_SCHEMA)

    def _scored(
        self, blocks: Sequence[Block], joint: pa.Table | None, error: float | None = None
    ) -> Scored:
        read = self.run.folder.read_table
        ablations = pa.concat_tables([read(block.scores) for block in blocks])
        importance = [read(block.importance) for block in blocks if block.importance is not None]
        whole = pa.concat_tables(importance) if importance else None
        return Scored(self.column.name, ablations, whole, joint, error)


def _normed(
    known: Known, recorded: np.ndarray, mean: np.ndarray, simulated: np.ndarray
) -> np.ndarray:
    """Simulated activations by `norm`, (images, neurons) float32; the mean where there are none."""
    out = np.empty(simulated.shape, np.float32)
    for start in range(0, simulated.shape[1], BLOCK):
        some = slice(start, start + BLOCK)
        q, s = (torch.from_numpy(v[:, some].astype(np.float64)) for v in (recorded, simulated))
        found = norm_lines(q[known.val], s[known.val]).values(s).numpy()
        out[:, some] = np.where(np.isfinite(found), found, mean[some])
    return out


def _replace_all(
    known: Known, recorded: np.ndarray, mean: np.ndarray, weight: np.ndarray, normed: np.ndarray
) -> JointLosses:
    """Accuracy and loss of test images with all neurons before a linear head replaced."""
    columns = torch.from_numpy(weight).double()
    actual = recorded[known.test].astype(np.float64)
    logits, labels = (torch.from_numpy(v[known.test]) for v in (known.logits, known.labels))
    replaced, at_mean = (
        logits.double() + torch.from_numpy(finite(values - actual)) @ columns.T
        for values in (normed[known.test], mean)
    )
    return joint_losses(logits, replaced, at_mean, labels, known.temperature)


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
