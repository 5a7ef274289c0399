"""One run: the stages in their order, each doing only what is not fresh."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from core.errors import ConfigError, close_names
from pipeline.ablate import ablate
from pipeline.ablation_plan import refuse_impossible_ablation
from pipeline.account import accounted, refusals_accounted
from pipeline.baselines import check_baselines
from pipeline.calibration import calibrated
from pipeline.concepts import score_concepts
from pipeline.config import Config
from pipeline.degenerate import name_degenerate
from pipeline.engine import engine, recording_workers
from pipeline.expected import PATHS, STAGES, SYNONYMS, Expected, expect, image_parts
from pipeline.fit import fit, refuse_without_gpu
from pipeline.force import discard
from pipeline.kept_config import keep_config, kept_config
from pipeline.lock import RunLock, locked
from pipeline.log import say
from pipeline.moments import gather_moments
from pipeline.number_format import number_format
from pipeline.outcome import Summary, summarise
from pipeline.plan import Plan
from pipeline.planning import prepare
from pipeline.record import record, refuse_decoding
from pipeline.report import report
from pipeline.rundir import Run
from pipeline.sharpen import sharpen
from pipeline.signals import stop_signals, time_limit
from pipeline.simulate import simulate


def execute(
    config: Config,
    out: str | Path,
    stages: Sequence[str] | None = None,
    max_seconds: float | None = None,
    force: bool = False,
) -> Summary:
    """Carry out a configuration, all stages or those named; start again to resume.

    Args:
        config: What to do.
        out: The run directory, local or any fsspec URL.
        stages: Names of stages; those that they read from must be done already.
        max_seconds: Stop in order after so many seconds, counted from this call.
        force: Make the tables of these stages anew although they are fresh.

    Raises:
        UsageError: Something cannot work; most often known before anything was started.
        ThresholdError: Too many images cannot be used.
        StoppedEarly: A signal, the time limit, a lost cluster, or another run at work in this
            directory; run again to resume.
    """
    for stage in stages or ():
        if stage not in STAGES:
            raise ConfigError(
                f"there is no stage {stage!r}{close_names(stage, STAGES)}; the stages are "
                f"{', '.join(STAGES)}"
            )
    if max_seconds is not None and max_seconds <= 0:
        raise ConfigError(f"--max-seconds is {max_seconds:g}, expected more than 0")
    begun = time.monotonic()
    until = None if max_seconds is None else begun + max_seconds
    run = Run(out, config.store)
    if run.folder.is_file():
        raise ConfigError(f"--out {str(out)!r} is a file; give a folder, new or of an earlier run")
    RunLock(run.folder).refuse_if_held()
    with refusals_accounted(run):
        plan = prepare(config)
        refuse_impossible_ablation(plan)
        check_baselines(config.simulate.baselines, config.recordings.keep)
    say(plan_line(plan), "plan", images=plan.index.rows.num_rows, neurons=plan.target.neurons)
    with locked(run.folder) as lock, accounted(run, image_parts(plan), lock.renew):
        run.begin()
        keep_config(run, config)
        with engine(config.ray), stop_signals(), time_limit(until):
            carry_out(run, plan, stages or STAGES, force)
    return summarise(run, time.monotonic() - begun, config.simulate.confidence)


def refit_length(url: str | Path, by: str | None = None, tolerance: float | None = None) -> Summary:
    """Choose other lengths in a finished run: its own configuration with another rule.

    Args:
        url: The run directory.
        by: Rule, as `fit.length`; by default the one that the run has.
        tolerance: As `fit.tolerance`.

    Raises:
        ConfigError: There is no such run, or the paths that lengths are chosen from are not there.
    """
    run = Run.open(url)
    given = {"length": by, "tolerance": tolerance}
    changed = {key: value for key, value in given.items() if value is not None}
    if not changed:
        raise ConfigError("nothing to change: give --by RULE, --tolerance NUMBER, or both")
    config = kept_config(run, changed)
    if PATHS not in run.tables():
        raise ConfigError(
            f"{run.folder.url!r} has no paths to choose from yet; 'neuroscribe run' makes them"
        )
    return execute(config, url, ["fit", "simulate", "ablate", "report"])


def plan_line(plan: Plan) -> str:
    """What is about to be done, in a line."""
    counts = plan.index.split_counts
    shares = ", ".join(f"{counts[split]:,} {split}" for split in ("train", "val", "test"))
    concepts = ", ".join(f"{len(e.concepts):,} concepts of {e.name}" for e in plan.explainers)
    return (
        f"plan: {plan.index.rows.num_rows:,} images ({shares}), {plan.target.neurons:,} neurons of "
        f"{plan.target.model} in {len(plan.target.layers)} layers, {concepts}"
    )


def carry_out(run: Run, plan: Plan, stages: Sequence[str] = STAGES, force: bool = False) -> None:
    """Run the named stages on a Ray that is up; with `force` what they made is discarded first.

    Raises:
        ConfigError: A stage that is not named has left a table that a named one would read stale.
    """
    workers = recording_workers(plan.config.ray)
    if "record" in stages:
        refuse_decoding(plan.config.recordings.decode, workers)
    if "fit" in stages:
        refuse_without_gpu(plan.config.fit, workers)
    dtype = number_format(run, plan, workers)
    expected = expect(plan, dtype)
    if force:
        discard(run, plan, expected, stages)
    steps = {
        "record": lambda: record(run, plan, expected, workers, dtype),
        "concepts": lambda: score_concepts(run, plan, expected),
        "sharpen": lambda: sharpen(run, plan, expected),
        "moments": lambda: _moments(run, plan, expected),
        "fit": lambda: fit(run, plan, expected),
        "simulate": lambda: simulate(run, plan, expected),
        "ablate": lambda: ablate(run, plan, expected, workers),
        "report": lambda: report(run, plan, expected),
    }
    last = max(STAGES.index(stage) for stage in stages)
    for stage in STAGES[: last + 1]:
        made = expected.of_stage(stage)
        stale = [table for table, m in made.items() if not run.is_fresh(table, m)]
        if stage == "concepts" and (stage in stages or not stale):
            plan = calibrated(run, plan, expected)
        if stage in stages:
            steps[stage]()
        elif stale:
            raise ConfigError(
                f"stage {STAGES[last]!r} builds on {stale[0]!r}, which is missing or was made with "
                f"another configuration; add --stage {stage}, or leave --stage out"
            )


def _moments(run: Run, plan: Plan, expected: Expected) -> None:
    gather_moments(run, plan, expected)
    name_degenerate(run, plan, expected.tables[SYNONYMS])
