"""What a run would take, before it is started: images, seconds, bytes, memory of every stage, and price.

The work of the stages (`pipeline.work`) at the pace of this machine (`pipeline.pace`). With a run directory
only what is not fresh there is counted. Nothing is written.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from actors.gpu_decode import check_decoder
from core.errors import ConfigError
from pipeline.ablation_plan import refuse_impossible_ablation
from pipeline.baselines import check_baselines
from pipeline.config import Config
from pipeline.engine import Workers
from pipeline.expected import expect
from pipeline.fit import refuse_without_gpu
from pipeline.number_format import format_note, tried_format
from pipeline.pace import measure
from pipeline.planning import prepare
from pipeline.price import Cost, Prices, costs
from pipeline.record import NO_GPU
from pipeline.rundir import Run
from pipeline.work import ACTOR, StageEstimate, Work

#: Seconds to start Ray and to leave it, on two cores with nothing else at work.
RAY = 6.0


@dataclass(frozen=True)
class Estimate:
    """What a run would take on this machine."""

    images: int
    neurons: int
    device: str
    cores: int
    machine_memory: int
    preparing: float
    """Seconds before the first stage: listing images, loading models once, starting Ray."""
    stages: list[StageEstimate]
    notes: list[str]
    costs: list[Cost]
    prices: str
    """Date and source of the prices."""
    measured: float
    """Seconds that the measurement took."""

    @property
    def seconds(self) -> float:
        """From start to end."""
        return self.preparing + sum(stage.seconds for stage in self.stages)

    @property
    def written(self) -> int:
        """Bytes of all tables and the atlas."""
        return sum(stage.written for stage in self.stages)


def estimate(config: Config, prices: Prices, out: str | None = None) -> Estimate:
    """Say what a run would take.

    Args:
        config: What to do.
        prices: What machines cost.
        out: A run directory, of which only what is not fresh is counted.

    Raises:
        UsageError: The run could not be started.
    """
    notes = _busy_notes()
    begun = time.perf_counter()
    plan = prepare(config)
    refuse_impossible_ablation(plan)
    check_baselines(config.simulate.baselines, config.recordings.keep)
    prepared = time.perf_counter() - begun
    device = "cuda" if torch.cuda.is_available() and config.ray.gpus_per_actor != 0 else "cpu"
    workers = Workers(actors=1, gpus=1.0 if device == "cuda" else 0.0, per_node=1)
    refuse_without_gpu(config.fit, workers)
    if config.recordings.decode == "gpu":
        if device == "cpu":
            raise ConfigError(NO_GPU)
        check_decoder(device)
        notes.append(
            "images were decoded on processors here; with recordings.decode 'gpu' most JPEG files are "
            "not, so that recording takes less of them"
        )
    begun = time.perf_counter()
    dtype, trial = tried_format(plan, device)
    pace = measure(plan, device, dtype)
    measured = time.perf_counter() - begun
    work = Work(plan, expect(plan, dtype), pace, Run(out) if out else None)
    stages = work.stages()
    fixed = prepared + RAY + pace.load + ACTOR
    models, other = (sum(getattr(s, kind) for s in stages) for kind in ("models", "other"))
    found = costs(prices, models, other, fixed, on_gpu=device == "cuda")
    notes += work.notes + _memory_notes(stages) + ([format_note(trial)] if trial else [])
    return Estimate(
        images=plan.index.rows.num_rows,
        neurons=plan.target.neurons,
        device=device,
        cores=pace.cores,
        machine_memory=machine_memory(),
        preparing=prepared + RAY,
        stages=stages,
        notes=notes,
        costs=found,
        prices=f"{prices.date}: {prices.source}",
        measured=measured,
    )


def machine_memory() -> int:
    """Bytes of main memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _busy_notes() -> list[str]:
    """What to say where others use the processors: a run at another time would be faster."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load < cores:
        return []
    return [
        f"this machine is busy (load {load:.1f} on {cores} logical CPUs): alone it would be faster, and "
        "what others do while the run goes on cannot be foretold"
    ]


def _memory_notes(stages: Iterable[StageEstimate]) -> list[str]:
    there = machine_memory()
    return [
        f"{stage.stage} needs about {stage.memory / 1e9:,.1f} GB and this machine has "
        f"{there / 1e9:,.1f} GB: take a larger one, fewer concepts (fit.max_concepts) or fit.folds: 0"
        for stage in stages
        if stage.memory > 0.9 * there
    ]
