"""The record stage: images → activations and embeddings, one pass, one decode an image.

With ``recordings.keep: all`` everything is kept and later stages read it again. With ``test`` moments
are taken on the way, and rows of test images alone are kept.
"""

from __future__ import annotations

import ray

from actors.gpu_decode import check_decoder
from core.errors import ConfigError
from pipeline.engine import Workers, remote_task
from pipeline.expected import Expected
from pipeline.fused import take_moments
from pipeline.plan import Plan
from pipeline.rundir import Run
from pipeline.store import move_tables
from pipeline.stream import own_error, record_tables, refuse_small_splits

NO_GPU = (
    "recordings.decode is 'gpu', and recording workers have no GPU; record on nodes that have GPUs (on a "
    "cluster that grows from zero GPUs set ray.gpus_per_actor), set recordings.decode to 'cpu', or name "
    "later stages alone with --stage"
)


def record(run: Run, plan: Plan, expected: Expected, workers: Workers, dtype: str) -> None:
    """Record what is not recorded yet; commit every table of recordings.

    Raises:
        ThresholdError: More images cannot be used than the configuration allows, or too few are
            left in a split.
        ConfigError: Moments that are taken on the way do not fit into memory.
        StoppedEarly: The cluster was lost.
    """
    with run.stage("record") as facts:
        facts |= {"rows": 0, "bytes": 0, "workers": workers.actors, "dtype": dtype}
        move_tables(run, expected)
        if plan.config.recordings.keep == "test":
            take_moments(run, plan, expected, workers, dtype, facts)
        record_tables(run, plan, expected, workers, dtype, facts)
        refuse_small_splits(run)


def refuse_decoding(decode: str, workers: Workers) -> None:
    """Refuse to decode on GPUs where there are none, or no library for it; asked of a worker.

    Raises:
        ConfigError: Recording workers cannot decode as `recordings.decode` says.
    """
    if decode != "gpu":
        return
    if workers.device == "cpu":
        raise ConfigError(NO_GPU)
    task = remote_task(check_decoder, workers.gpus, num_cpus=0)
    try:
        ray.get(task.remote(workers.device))
    except ray.exceptions.RayTaskError as error:
        raise own_error(error) from None
