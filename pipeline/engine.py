"""Ray: starting it, choosing actors for what the cluster has, and running many tasks in a window."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import ray

from actors.allocator import keep_freed_memory
from core.errors import ConfigError, NeuroscribeError, StoppedEarly
from pipeline.config import RayConfig
from pipeline.signals import deferred_signals, raise_if_stopped

#: A local Ray promises at least this many logical CPUs: with fewer, Ray Data can wait for itself.
MIN_LOGICAL_CPUS = 4
LOCAL_OBJECT_STORE_BYTES = 2 * 1024**3

#: Seconds that a stream which was left early may take to end.
STREAM_SECONDS = 30.0


@contextmanager
def engine(config: RayConfig) -> Iterator[None]:
    """Connect to the cluster, or start a local Ray, for the length of a `with` block.

    A Ray that the process is connected to already is used as it is and left running.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if config.address is None:
        # Threads of a forward pass that wait for each other awake keep decoders from the cores.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        # Ray's C++ side writes alarming lines to stderr about its own restarts; they are in its logs.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        options |= {
            "address": "local",
            "num_cpus": max(MIN_LOGICAL_CPUS, os.cpu_count() or 1),
            "include_dashboard": False,
            "object_store_memory": LOCAL_OBJECT_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
        }
    else:
        options["address"] = config.address
    try:
        with deferred_signals(), _silent_stderr() if config.address is None else nullcontext():
            ray.init(**options)
    except SystemExit as error:
        # While it starts, Ray answers SIGTERM by leaving the program.
        raise StoppedEarly("stopped while Ray was starting; run again to resume") from error
    except ConnectionError as error:
        raise ConfigError(
            f"no Ray cluster answers at ray.address {config.address!r} ({error}); "
            "start one, set the same RAY_AUTH_MODE=token and RAY_AUTH_TOKEN on both sides, or leave "
            "ray.address out to work on this machine"
        ) from error
    try:
        raise_if_stopped()
        yield
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        raise StoppedEarly(f"the cluster was lost ({error}); run again to resume") from error
    finally:
        _end_streams()
        ray.shutdown()


def _end_streams() -> None:
    """Wait for the threads of streams that were left early.

    One that outlives Ray asks it for news, by which Ray starts anew, in a program that is about to end.
    """
    for thread in threading.enumerate():
        if thread.name.startswith("StreamingExecutor"):
            thread.join(STREAM_SECONDS)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop what C++ writes to file descriptor 2; errors still come as exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@dataclass(frozen=True)
class Workers:
    """How many recording actors to start and what each of them holds."""

    actors: int
    gpus: float
    per_node: int
    """Actors that share a node's cores, at most."""

    @property
    def device(self) -> str:
        """Device that an actor computes on."""
        return "cuda" if self.gpus > 0 else "cpu"

    def settle(self) -> None:
        """Make the process that this is called in one of these workers: its threads and its memory."""
        import torch  # what plans need not import

        if self.device == "cpu":
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // self.per_node))
        keep_freed_memory()


def recording_workers(config: RayConfig) -> Workers:
    """Actors for what the cluster has: one per GPU (or share of one), else one per node.

    Raises:
        ConfigError: More GPU is asked for than this machine has.
    """
    gpus = float(ray.cluster_resources().get("GPU", 0.0))
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = max(1, sum(1 for resources in alive if resources.get("CPU")))
    share = (1.0 if gpus else 0.0) if config.gpus_per_actor == "auto" else config.gpus_per_actor
    # Each actor holds a CPU; decoding needs at least one that is left.
    cpus = int(ray.cluster_resources().get("CPU", 1.0))
    most = max(1, int(gpus / share)) if share else min(nodes, max(1, cpus - 1))
    actors = most if config.actors == "auto" else config.actors
    # A cluster may grow when GPUs are asked for; this machine does not.
    if config.address is None and actors * share > gpus:
        raise ConfigError(
            f"{actors} recording actors with {share:g} GPUs each were asked for, and this machine "
            f"has {gpus:g} GPUs; leave ray.actors and ray.gpus_per_actor out, or set the latter to 0 "
            "to record on CPUs"
        )
    if config.address is None and actors >= cpus:
        raise ConfigError(
            f"ray.actors is {actors}, and this machine's {cpus} logical CPUs leave none to decode "
            f"images; use at most {cpus - 1}"
        )
    return Workers(actors=actors, gpus=share, per_node=-(-actors // nodes))


def data_context(block_bytes: int) -> None:
    """Set Ray Data up for shards: one block each, no chatter."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    context.target_max_block_size = max(128 * 1024**2, 2 * block_bytes)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised as well


def ready(references: list[Any], timeout: float | None = None) -> list[Any]:
    """Those of some references that are there: the first, or none when the seconds are over.

    Raises:
        StoppedEarly: A stop was asked for.
    """
    raise_if_stopped()
    try:
        return list(ray.wait(references, num_returns=1, timeout=timeout)[0])
    except SystemError:  # what Ray makes of a signal that comes as it returns
        raise_if_stopped()
        raise


def remote_task(function: Callable[..., Any], gpus: float = 0.0, **options: Any) -> Any:
    """A function as a Ray task.

    Args:
        function: What to do.
        gpus: Share of a GPU that it computes on, 0 for none.
        options: More options of a task.
    """
    # A process that has computed on a GPU keeps its memory, and keeps to that GPU whatever it is given
    # later: it ends with its task. Ray takes this from the decorator alone.
    made: Any = ray.remote(max_calls=1)(function) if gpus else ray.remote(function)
    return made.options(num_gpus=gpus or None, **options)


def run_tasks(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    *,
    memory: int = 0,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
) -> Iterator[tuple[int, Any]]:
    """Run `function(*call)` as Ray tasks and yield (position, result) as they finish.

    At most a window of tasks is under way, so that a million calls do not fill the scheduler. Object
    references in a call are passed on without a copy. Errors of the function itself are raised here
    and cancel what is left; lost workers and nodes are retried by Ray.

    Raises:
        ConfigError: No node has the memory that one task declares.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    largest = max((node.get("memory", 0.0) for node in nodes), default=0.0)
    if memory > largest:
        raise ConfigError(
            f"one task needs {memory / 1024**3:.1f} GiB and the largest node offers "
            f"{largest / 1024**3:.1f} GiB; use larger nodes, fewer concepts or smaller shards"
        )
    window = max(4, 2 * int(sum(node.get("CPU", 0.0) for node in nodes)))
    remote = remote_task(
        function, num_gpus, num_cpus=num_cpus, memory=memory or None, max_retries=3
    )
    waiting = list(enumerate(calls))[::-1]
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < window:
                position, call = waiting.pop()
                running[remote.remote(*call)] = position
            for reference in ready(list(running)):
                position = running.pop(reference)
                try:
                    yield position, ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, NeuroscribeError):
                        raise error.cause from None
                    raise
                except ray.exceptions.RayError as error:
                    raise StoppedEarly(
                        f"the cluster lost a task and its retries ({error}); run again to resume"
                    ) from error
    except StoppedEarly:
        # The program ends and its tasks with it. Ray ends a program with code 1 when a task that was
        # cancelled reports at that very moment ("Tried to complete task that was not pending").
        running.clear()
        raise
    finally:
        for reference in running:
            ray.cancel(reference, force=False)
