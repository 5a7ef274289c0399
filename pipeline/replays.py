"""Actors that run the target again over decoded shards, and the stream of shards to them.

Tasks decode the images of a shard; an actor computes what is asked of it. What an actor gives depends
on the shard alone, so that shards may come in any order and to any actor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from actors.replay import Head, Replay
from actors.views import View
from core.errors import RecordingError, StoppedEarly
from pipeline.columns import array_of, vectors
from pipeline.decoding import DecodeShard
from pipeline.engine import Workers, ready
from pipeline.loading import planned_target
from pipeline.plan import TargetPlan
from pipeline.storage import Folder
from pipeline.stream import lost, own_error
from pipeline.targets import Column


@dataclass(frozen=True)
class Replacements:
    """What is replaced in the images of a shard at one layer; rows are those of its images."""

    column: str
    expand: bool
    """As `Replay.expand`, found out once for all shards."""
    labels: np.ndarray
    """Class of each image."""
    temperature: float
    rows: np.ndarray
    """Image of each pair of an image and a neuron."""
    neurons: np.ndarray
    """Neuron of each pair."""
    shifts: np.ndarray
    """(pairs, values): what is added to the neuron in the image, for each value that it takes."""
    zero_rows: np.ndarray
    """Images in which each of some neurons is set to zero."""
    zero_neurons: np.ndarray
    joint_rows: np.ndarray
    """Images in which all neurons are shifted at once, once for each variant."""
    joint_shifts: np.ndarray
    """(variants, neurons)."""


class Replayer:
    """Holds the target; runs it over the images of decoded shards."""

    def __init__(self, plan: TargetPlan, columns: Sequence[Column], workers: Workers) -> None:
        workers.settle()
        target = planned_target(plan)
        self._replays = {
            c.name: Replay(target, c.layer, c.pooling, device=workers.device) for c in columns
        }

    def logits(self, shard: pa.Table, folder: Folder, name: str) -> int:
        """Write the logits of the images, float32; returns the bytes of the part."""
        replay = next(iter(self._replays.values()))
        found = replay.logits(_pixels(replay, shard)).cpu().numpy()
        content = {"image_id": shard["image_id"], "logits": vectors(found)}
        return folder.write_table(name, pa.table(content))

    def examine(self, shard: pa.Table) -> dict[str, tuple[bool, Head | None]]:
        """How replacements at each layer are computed, found out on some images.

        Returns:
            By name of the column, `Replay.expand` and the linear head, if there is one.
        """
        found = {}
        for name, replay in self._replays.items():
            head = replay.examine(_pixels(replay, shard))
            assert replay.expand is not None
            found[name] = (replay.expand, head)
        return found

    def losses(self, shard: pa.Table, folder: Folder, name: str, wanted: Replacements) -> int:
        """Write losses and whether answers are right after replacements; returns the bytes.

        The file holds `pairs` (pairs, values) and, where they are asked for, `zero` and `zero_correct`
        (images and neurons as given), `joint` and `joint_correct` (variants).
        """
        replay = self._replays[wanted.column]
        replay.expand = wanted.expand
        images = _pixels(replay, shard)
        labels = torch.from_numpy(wanted.labels).to(replay.device)

        def judge(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            right = labels[rows]
            scaled = logits.double() / wanted.temperature
            loss = torch.nn.functional.cross_entropy(scaled, right, reduction="none")
            best = logits.gather(1, right[:, None]) >= logits.amax(dim=1, keepdim=True)
            return torch.stack([loss, best[:, 0].double()], dim=1)

        pairs, values = wanted.shifts.shape
        found = {"pairs": np.zeros((pairs, values))}
        if pairs:
            rows, neurons = (np.repeat(v, values) for v in (wanted.rows, wanted.neurons))
            judged = replay.shifted(images, rows, neurons, wanted.shifts.ravel(), judge)
            found["pairs"] = judged[:, 0].cpu().numpy().reshape(pairs, values)
        if len(wanted.zero_rows):
            judged = replay.zeroed(images, wanted.zero_rows, wanted.zero_neurons, judge)
            found["zero"], found["zero_correct"] = judged.cpu().numpy().T
        if len(wanted.joint_rows):
            judged = replay.shifted_together(images, wanted.joint_rows, wanted.joint_shifts, judge)
            found["joint"], found["joint_correct"] = judged.cpu().numpy().T
        return folder.write_arrays(name, **found)


def _pixels(replay: Replay, shard: pa.Table) -> np.ndarray:
    bad = shard.filter(pc.is_valid(shard["reason"]))
    if bad.num_rows:
        raise RecordingError(
            f"{bad.num_rows} images that could be used when they were recorded cannot be used now, "
            f"for instance {bad['path'][0].as_py()!r} ({bad['reason'][0].as_py()}), yet the files look "
            "unchanged; run again when the storage is well"
        )
    return array_of(shard["view0"], replay.view)


class Replayers:
    """A pool of actors, and tasks that decode for them."""

    def __init__(self, actors: Sequence[Any], view: View) -> None:
        self._actors = list(actors)
        self._decode = ray.remote(_decode).options(num_cpus=1, max_retries=3)
        self._decoder = ray.put(DecodeShard({view.key: view}))

    def map(self, method: str, calls: Iterable[tuple[pa.Table, tuple[Any, ...]]]) -> Iterator[Any]:
        """Call a method of `Replayer` for shards; yield what it returns, in any order.

        Args:
            method: Its name.
            calls: Rows of the index of each shard, and the other arguments; taken as actors get free.

        Raises:
            StoppedEarly: Actors were lost again and again.
        """
        idle, upcoming = deque(self._actors), iter(calls)
        decoded: deque[tuple[Any, tuple[Any, ...]]] = deque()
        running: dict[Any, Any] = {}
        ahead = 2 * len(self._actors)
        try:
            while True:
                for rows, arguments in islice(upcoming, ahead - len(decoded)):
                    decoded.append((self._decode.remote(self._decoder, rows), arguments))
                while idle and decoded:
                    shard, arguments = decoded.popleft()
                    actor = idle.popleft()
                    running[getattr(actor, method).remote(shard, *arguments)] = actor
                if not running:
                    return
                (reply,) = ready(list(running))
                idle.append(running.pop(reply))
                yield ray.get(reply)
        except StoppedEarly:
            running.clear()  # as in `engine.run_tasks`; the actors are ended anyway
            raise
        except ray.exceptions.RayTaskError as error:
            raise own_error(error) from None
        except ray.exceptions.RayError as error:
            raise lost(error) from error
        finally:
            for reply in running:
                ray.cancel(reply, force=False)


@contextmanager
def replayers(plan: TargetPlan, columns: Sequence[Column], workers: Workers) -> Iterator[Replayers]:
    """Actors for the length of a `with` block, each with the target and some of its layers."""
    made = ray.remote(Replayer).options(
        num_cpus=1, num_gpus=workers.gpus, max_restarts=3, max_task_retries=3
    )
    actors = [made.remote(plan, columns, workers) for _ in range(workers.actors)]
    try:
        yield Replayers(actors, plan.preprocess.view)
    finally:
        for actor in actors:
            ray.kill(actor)


def _decode(decoder: DecodeShard, rows: pa.Table) -> pa.Table:
    numbers = pa.array([0] * rows.num_rows, pa.int32())
    block = rows.append_column("shard", numbers)
    return decoder(block.append_column("parts", pa.nulls(rows.num_rows, pa.string())))
