"""One run: the stages in their order, each doing only what is not fresh."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow.compute as pc
import yaml

from core.errors import ConfigError, StoppedEarly, close_names
from pipeline.concepts import score_concepts
from pipeline.config import OWN_SCORE, Config
from pipeline.engine import engine
from pipeline.fit import EXPLANATIONS, fit
from pipeline.moments import gather_moments
from pipeline.plan import Plan, prepare
from pipeline.record import record
from pipeline.report import report
from pipeline.rundir import Run
from pipeline.shards import QUARANTINE
from pipeline.simulate import SCORES, simulate

STAGES = ("record", "concepts", "moments", "fit", "simulate", "report")

#: Exit codes of the command line.
DONE, USAGE, DONE_WITH_FAILURES, ABOVE_THRESHOLD, STOPPED = 0, 2, 3, 4, 75


@dataclass(frozen=True)
class MeanScore:
    """Mean test correlation of the chosen explanations of one layer."""

    layer: str
    pooling: str
    explainer: str
    simulator: str
    neurons: int
    length: float
    correlation: float


@dataclass(frozen=True)
class Summary:
    """What a run has come to."""

    url: str
    images: int
    quarantined: int
    neurons: dict[str, int]
    means: list[MeanScore] = field(default_factory=list)
    atlas: str | None = None
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0, or 3 where an image was quarantined or a neuron failed."""
        failed = self.quarantined or self.neurons.get("failed", 0)
        return DONE_WITH_FAILURES if failed else DONE


def execute(config: Config, out: str | Path, stages: Sequence[str] | None = None) -> Summary:
    """Carry out a configuration, all stages or those named; start again to resume.

    Args:
        config: What to do.
        out: The run directory, local or any fsspec URL.
        stages: Names of stages; those that they read from must be done already.

    Raises:
        UsageError: Nothing was started.
        ThresholdError: Too many images cannot be used.
        StoppedEarly: A signal, or the cluster was lost; run again to resume.
    """
    for stage in stages or ():
        if stage not in STAGES:
            raise ConfigError(
                f"there is no stage {stage!r}{close_names(stage, STAGES)}; the stages are "
                f"{', '.join(STAGES)}"
            )
    begun = time.monotonic()
    plan = prepare(config)
    print(plan_line(plan), file=sys.stderr, flush=True)
    run = Run(out)
    run.folder.write("run.yaml", resolved_yaml(config).encode())
    with engine(config.ray), stop_signals():
        carry_out(run, plan, stages or STAGES)
    return summarise(run, seconds=time.monotonic() - begun)


def plan_line(plan: Plan) -> str:
    """What is about to be done, in a line."""
    splits = plan.index.rows["split"].value_counts().to_pylist()
    counts = {entry["values"]: entry["counts"] for entry in splits}
    shares = ", ".join(f"{counts[split]:,} {split}" for split in ("train", "val", "test"))
    concepts = ", ".join(f"{len(e.concepts):,} concepts of {e.name}" for e in plan.explainers)
    return (
        f"plan: {plan.index.rows.num_rows:,} images ({shares}), {plan.target.neurons:,} neurons of "
        f"{plan.target.model} in {len(plan.target.layers)} layers, {concepts}"
    )


def carry_out(run: Run, plan: Plan, stages: Sequence[str]) -> dict[str, str]:
    """Run the named stages on a Ray that is up; returns the fingerprints of all tables."""
    made: dict[str, str] = {}
    steps: dict[str, Any] = {
        "record": lambda: record(run, plan),
        "concepts": lambda: score_concepts(run, plan, made),
        "moments": lambda: gather_moments(run, plan, made),
        "fit": lambda: fit(run, plan, made),
        "simulate": lambda: simulate(run, plan, made),
        "report": lambda: report(run, plan, made),
    }
    committed = {name: entry.fingerprint for name, entry in run.tables().items()}
    for stage in STAGES:
        if stage in stages:
            made |= steps[stage]()
        else:
            made |= {n: f for n, f in committed.items() if n not in made and _made_by(n) == stage}
    return made


def _made_by(table: str) -> str:
    """The stage that makes a table."""
    head = table.partition("/")[0]
    return {
        "concept_scores": "concepts",
        "concepts": "concepts",
        "moments": "moments",
        EXPLANATIONS: "fit",
        SCORES: "simulate",
        "atlas": "report",
    }.get(head, "record")


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGINT into `StoppedEarly`, which stages pass through in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        raise StoppedEarly(f"stopped by {signal.Signals(number).name}; run again to resume")

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def resolved_yaml(config: Config) -> str:
    """The whole configuration with its defaults; it holds no secret, since no key takes one."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def summarise(run: Run, seconds: float = 0.0) -> Summary:
    """What the tables of a run say so far."""
    tables = run.tables()
    stages = run.ledger()["stages"]
    return Summary(
        url=run.folder.url,
        images=tables["images"].rows if "images" in tables else 0,
        quarantined=tables[QUARANTINE].rows if QUARANTINE in tables else 0,
        neurons=dict(stages.get("fit", {}).get("neurons", {})) if EXPLANATIONS in tables else {},
        means=mean_scores(run) if SCORES in tables else [],
        atlas=run.folder.path(tables["atlas"].path) if "atlas" in tables else None,
        seconds=seconds,
    )


def mean_scores(run: Run) -> list[MeanScore]:
    """Mean test correlation of chosen explanations, by layer, explainer and simulator."""
    scores = run.read(SCORES)
    scores = scores.filter(pc.and_(scores["chosen"], pc.is_valid(scores["correlation"])))
    keys = ["layer", "pooling", "explainer", "simulator"]
    means = scores.group_by(keys, use_threads=False).aggregate(
        [("correlation", "mean"), ("length", "mean"), ("neuron", "count")]
    )
    rows = [
        MeanScore(
            row["layer"],
            row["pooling"],
            row["explainer"],
            row["simulator"],
            row["neuron_count"],
            row["length_mean"],
            row["correlation_mean"],
        )
        for row in means.to_pylist()
    ]
    layers = {row.layer: number for number, row in reversed(list(enumerate(rows)))}
    return sorted(
        rows,
        key=lambda r: (
            r.explainer,
            r.simulator != OWN_SCORE,
            r.simulator,
            layers[r.layer],
            r.pooling,
        ),
    )
