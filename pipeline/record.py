"""The record stage: images → activations and embeddings, one pass, one decode an image.

Ray Data streams the rows of the index, one block a shard, through decode tasks on CPUs to recording
actors, which hold the target and every vision-language model. An actor writes each table's part of
a shard whole, so that what is done can be seen from one listing, and a shard that is lost with its
worker is recorded again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray

from actors.clip import load_clip
from actors.decode import Decoder
from actors.recorder import ClipPart, Recorder, TargetPart, resolve_dtype
from actors.targets import load_target
from actors.views import View
from core.errors import RecordingError, StoppedEarly, ThresholdError
from pipeline.engine import Workers, data_context, recording_workers
from pipeline.fingerprints import fingerprint
from pipeline.plan import ClipPlan, Plan, Shard, TargetPlan, clip_fingerprint, target_fingerprint
from pipeline.progress import Progress
from pipeline.rundir import Run, part_name
from pipeline.sources import fetch
from pipeline.storage import Folder

IMAGES, QUARANTINE, ACTIVATIONS = "images", "quarantine", "activations"

#: Shard number of the rows that fill the last block up to the size of the others.
_PADDING = -1


def embeddings_table(name: str) -> str:
    """Name of the table of a model's image embeddings."""
    return f"embeddings/{name}"


def table_path(table: str) -> str:
    """Folder of a recorded table, relative to the run."""
    return f"recordings/{table}"


def activation_column(layer: str, pooling: str) -> str:
    """Column of a layer's activations."""
    return f"act.{layer}.{pooling}"


def shard_fingerprints(plan: Plan, dtype: str) -> dict[str, list[str]]:
    """For every table that this stage writes, the fingerprint of each shard's part."""
    tables = {IMAGES: [fingerprint(IMAGES, shard.rows) for shard in plan.shards]}
    layers = {name: list(poolings) for name, poolings in plan.target.layers.items()}
    made_by = {ACTIVATIONS: (plan.target.fingerprint, layers, dtype)} | {
        embeddings_table(name): (clip.fingerprint, dtype) for name, clip in plan.clips.items()
    }
    for table, facts in made_by.items():
        tables[table] = [fingerprint(table.split("/")[0], s.pixels, *facts) for s in plan.shards]
    return tables


def record(run: Run, plan: Plan) -> dict[str, str]:
    """Record what is not recorded yet; commit every table of recordings.

    Returns:
        The fingerprint of each table.

    Raises:
        ThresholdError: More images cannot be used than the configuration allows.
        StoppedEarly: The cluster was lost.
    """
    workers = recording_workers(plan.config.ray)
    dtype = _resolved_dtype(plan.config.target.dtype, workers)
    wanted = shard_fingerprints(plan, dtype)
    made = {table: fingerprint(table, parts) for table, parts in wanted.items()}
    with run.stage("record") as facts:
        facts |= {"rows": 0, "bytes": 0, "workers": workers.actors, "dtype": dtype}
        pending = _pending(run, wanted)
        if pending:
            for table in {table for tables in pending.values() for table in tables}:
                run.withdraw(table)
            _stream(run, plan, workers, dtype, wanted, pending, facts)
        _commit(run, plan, wanted, made)
    return made


def _resolved_dtype(dtype: str, workers: Workers) -> str:
    """The number format that `auto` stands for, asked of a worker of the kind that will record."""
    task = ray.remote(resolve_dtype).options(num_cpus=0, num_gpus=workers.gpus)
    return str(ray.get(task.remote(workers.device, dtype))).removeprefix("torch.")


def _pending(run: Run, wanted: Mapping[str, list[str]]) -> dict[int, list[str]]:
    """Shards that lack a part of some table, with the tables that they lack."""
    pending: dict[int, list[str]] = {}
    for table, parts in wanted.items():
        there = set(run.part_files(table_path(table)))
        for number, made in enumerate(parts):
            if part_name(table, number, made).rsplit("/", 1)[-1] not in there:
                pending.setdefault(number, []).append(table)
    return dict(sorted(pending.items()))


def _stream(
    run: Run,
    plan: Plan,
    workers: Workers,
    dtype: str,
    wanted: Mapping[str, list[str]],
    pending: Mapping[int, list[str]],
    facts: dict[str, Any],
) -> None:
    """Run the pending shards through decode tasks and recording actors."""
    size = plan.config.recordings.shard_size
    models = sorted({table for tables in pending.values() for table in tables} - {IMAGES})
    targets = {ACTIVATIONS: plan.target} if ACTIVATIONS in models else {}
    clips: dict[str, ClipPlan] = {
        table: clip
        for name, clip in plan.clips.items()
        if (table := embeddings_table(name)) in models
    }
    plans: list[TargetPlan | ClipPlan] = [*targets.values(), *clips.values()]
    views = {p.preprocess.view.key: p.preprocess.view for p in plans}
    image_bytes = sum(_view_bytes(view) for view in views.values())
    data_context(size * (image_bytes + 1024))
    todo = [plan.shards[number] for number in pending]
    parts = {
        number: {
            table: part_name(table_path(table), number, wanted[table][number]) for table in tables
        }
        | {IMAGES: part_name(table_path(IMAGES), number, wanted[IMAGES][number])}
        for number, tables in pending.items()
    }
    progress = Progress("record", plan.index.rows.num_rows, "images")
    progress.resume_from(plan.index.rows.num_rows - sum(s.stop - s.start for s in todo))
    stages = (
        ray.data.from_arrow([_block(plan, s, size, parts[s.number]) for s in todo])
        .map_batches(
            DecodeShard(views),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=1,
            # Declared for admission; it also keeps Ray Data from fusing decoding into the actors.
            memory=3 * size * image_bytes,
        )
        .map_batches(
            RecordShard,
            fn_constructor_kwargs={
                "folder": run.folder,
                "targets": targets,
                "clips": clips,
                "workers": workers,
                "dtype": dtype,
                "batch_size": plan.config.target.batch_size,
            },
            compute=ray.data.ActorPoolStrategy(size=min(workers.actors, len(todo))),
            batch_size=size,
            batch_format="pyarrow",
            num_gpus=workers.gpus or None,
            num_cpus=1,
        )
    )
    allowed = plan.config.recordings.max_quarantined * plan.index.rows.num_rows
    bad = overflowed = 0
    for row in _rows_of(stages):
        facts["rows"] += row["images"]
        facts["bytes"] += row["bytes"]
        for key in ("infer_seconds", "write_seconds"):
            facts[key] = round(facts.get(key, 0.0) + row[key], 3)
        bad += row["quarantined"]
        overflowed += row["overflowed"]
        if bad > allowed:
            raise ThresholdError(
                f"{bad:,} images cannot be used so far, more than recordings.max_quarantined "
                f"({plan.config.recordings.max_quarantined:g}) of {plan.index.rows.num_rows:,}; "
                f"see {run.folder.path(table_path(QUARANTINE))}, mend the images or raise the limit"
            )
        progress.advance(row["images"] + row["quarantined"])
    facts["overflowed"] = overflowed
    progress.close(f"{bad:,} quarantined" if bad else "")


def _view_bytes(view: View) -> int:
    return int(np.prod(view.shape)) * (4 if view.whole else 1)


def _rows_of(dataset: Any) -> Iterable[dict[str, Any]]:
    """The rows that the actors report, with errors of our own as they were raised."""
    try:
        yield from dataset.iter_rows()
    except ray.exceptions.RayTaskError as error:
        raise _cause(error) from None
    except (ray.exceptions.RayActorError, ray.exceptions.RaySystemError) as error:
        raise StoppedEarly(
            f"the cluster lost its workers ({error}); run again to resume"
        ) from error


def _cause(error: Any) -> BaseException:
    """The error of ours inside what Ray wrapped around it, or Ray's own."""
    seen: BaseException | None = error
    while seen is not None:
        inner = getattr(seen, "cause", None) or seen.__cause__
        if inner is None or inner is seen:
            return seen
        seen = inner
    return RuntimeError(str(error))


def _block(plan: Plan, shard: Shard, size: int, parts: Mapping[str, str]) -> pa.Table:
    """Rows of one shard, filled up with padding so that every block has the same length.

    The first row carries the names of the parts to write, as JSON.
    """
    rows = plan.index.rows.slice(shard.start, shard.stop - shard.start)
    numbers = [shard.number] * rows.num_rows
    if missing := size - rows.num_rows:
        empty = pa.Table.from_pylist([{}] * missing, schema=rows.schema)
        rows = pa.concat_tables([rows, empty])
        numbers += [_PADDING] * missing
    todo = pa.array([json.dumps(parts)] + [None] * (size - 1), pa.string())
    rows = rows.append_column("shard", pa.array(numbers, pa.int32())).append_column("parts", todo)
    return rows.combine_chunks()


class DecodeShard:
    """Maps a block of index rows to the same rows with a reason and a column for every view."""

    def __init__(self, views: Mapping[str, View]) -> None:
        self.views = dict(views)
        self.__name__ = "decode"

    def __call__(self, block: pa.Table) -> pa.Table:
        """Fetch and decode each image once; one that cannot be used gets a reason and no pixels."""
        rows = block.to_pylist()
        decoder = Decoder(self.views, fetch)
        real = [row for row in rows if row["shard"] != _PADDING]
        decoded = iter(decoder(real))
        arrays = {
            key: np.zeros((len(rows), *view.shape), np.float32 if view.whole else np.uint8)
            for key, view in self.views.items()
        }
        reasons: list[str | None] = []
        for position, row in enumerate(rows):
            reason, pixels = ("padding", {}) if row["shard"] == _PADDING else next(decoded)
            reasons.append(reason)
            for key, array in pixels.items():
                arrays[key][position] = array
        block = block.select(["shard", "parts", "image_id", "path", "label", "split"])
        block = block.append_column("reason", pa.array(reasons, pa.string()))
        for number, array in enumerate(arrays.values()):
            block = block.append_column(f"view{number}", _binary_column(array))
        return block


def _binary_column(array: np.ndarray) -> pa.Array:
    """Arrays of one shape as a column, without a copy."""
    width = array[0].nbytes
    buffer = pa.py_buffer(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(array), [None, buffer])


def _array_of(column: pa.ChunkedArray, view: View) -> np.ndarray:
    """The inverse of `_binary_column`, without a copy where the column is one piece."""
    dtype = np.float32 if view.whole else np.uint8
    pieces = [np.zeros((0, *view.shape), dtype)] if not len(column) else []
    for chunk in column.chunks:
        width = chunk.type.byte_width
        data = np.frombuffer(chunk.buffers()[1], np.uint8)
        data = data[chunk.offset * width : (chunk.offset + len(chunk)) * width]
        pieces.append(data.view(dtype).reshape(len(chunk), *view.shape))
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class RecordShard:
    """Holds the models; maps a block of decoded images to written parts and a row of figures."""

    def __init__(
        self,
        folder: Folder,
        targets: Mapping[str, TargetPlan],
        clips: Mapping[str, ClipPlan],
        workers: Workers,
        dtype: str,
        batch_size: int | Literal["auto"],
    ) -> None:
        import torch

        if workers.device == "cpu":
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers.per_node))
        self.folder = folder
        plans: dict[str, TargetPlan | ClipPlan] = {**targets, **clips}
        self.views = {p.preprocess.view.key: p.preprocess.view for p in plans.values()}
        self.recorders = {
            table: Recorder(
                [_load_target(p) if isinstance(p, TargetPlan) else _load_clip(p)],
                device=workers.device,
                dtype=dtype,
                batch_size=batch_size,
            )
            for table, p in plans.items()
        }

    def __call__(self, block: pa.Table) -> pa.Table:
        """Record one shard and write the parts that it lacks."""
        block = block.filter(pa.compute.not_equal(block["shard"], _PADDING))
        numbers = block["shard"].unique().to_pylist()
        if len(numbers) != 1:
            raise RecordingError(
                f"a block holds shards {numbers}, expected one: a fault in streaming"
            )
        parts: dict[str, str] = json.loads(block["parts"][0].as_py())
        good = pa.compute.is_null(block["reason"])
        images = block.filter(good)
        bad = block.filter(pa.compute.invert(good)).select(["image_id", "path", "reason"])
        written = self._write_rows(numbers[0], images, bad, parts)
        views = {
            key: _array_of(images[f"view{number}"], view)
            for number, (key, view) in enumerate(self.views.items())
        }
        infer = write = 0.0
        overflowed = 0
        for table in parts:
            if table == IMAGES:
                continue
            begun = time.perf_counter()
            columns, beyond = self._columns(table, views, images.num_rows)
            overflowed += beyond
            inferred = time.perf_counter()
            content = pa.table({"image_id": images["image_id"], **columns})
            written += self.folder.write_table(parts[table], content)
            infer += inferred - begun
            write += time.perf_counter() - inferred
        return pa.table(
            {
                "shard": numbers,
                "images": [images.num_rows],
                "quarantined": [bad.num_rows],
                "overflowed": [overflowed],
                "bytes": [written],
                "infer_seconds": [infer],
                "write_seconds": [write],
            }
        )

    def _write_rows(
        self, number: int, images: pa.Table, bad: pa.Table, parts: Mapping[str, str]
    ) -> int:
        """Commit which images are used, once; a later pass must find the same ones usable."""
        rows = images.select(["image_id", "path", "split", "label"])
        if self.folder.exists(parts[IMAGES]):
            known = self.folder.read_table(parts[IMAGES], ["image_id"])["image_id"]
            if known.to_pylist() != rows["image_id"].to_pylist():
                raise RecordingError(
                    f"shard {number}: {rows.num_rows} images can be used now and {len(known)} could "
                    "when it was first recorded, yet the files look unchanged; run again when the "
                    "storage is well, or record into a new run directory"
                )
            return 0
        written = 0
        if bad.num_rows:
            name = parts[IMAGES].replace(table_path(IMAGES), table_path(QUARANTINE))
            written += self.folder.write_table(name, bad)
        return written + self.folder.write_table(parts[IMAGES], rows)

    def _columns(
        self, table: str, views: Mapping[str, np.ndarray], images: int
    ) -> tuple[dict[str, pa.Array], int]:
        """What one model makes of a shard, as columns of fixed-size lists of float16."""
        recorded = self.recorders[table].record(views)
        if table == ACTIVATIONS:
            columns = {
                activation_column(layer, pooling): vectors(values)
                for (layer, pooling), values in recorded.activations.items()
            }
        else:
            (values,) = recorded.embeddings.values()
            columns = {"embedding": vectors(values)}
        return columns, recorded.overflowed


def vectors(values: np.ndarray) -> pa.FixedSizeListArray:
    """Rows of a matrix as a column of fixed-size lists."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A column of fixed-size lists as the matrix it was made from."""
    width = column.type.list_size
    pieces = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    flat = pieces[0] if len(pieces) == 1 else np.concatenate(pieces) if pieces else np.zeros(0)
    return flat.astype(column.type.value_type.to_pandas_dtype(), copy=False).reshape(-1, width)


def _load_target(plan: TargetPlan) -> TargetPart:
    target = load_target(plan.model, plan.weights, base=plan.base)
    if target_fingerprint(target, plan.preprocess) != plan.fingerprint:
        raise RecordingError(_differs(plan.model))
    return TargetPart(target, plan.layers)


def _load_clip(plan: ClipPlan) -> ClipPart:
    clip = load_clip(plan.model, base=plan.base)
    if clip_fingerprint(clip, plan.preprocess) != plan.fingerprint:
        raise RecordingError(_differs(plan.model))
    return ClipPart(clip, plan.name)


def _differs(model: str) -> str:
    return (
        f"{model!r} has other weights on this worker than where the run was planned; "
        "give every node the same files"
    )


def _commit(run: Run, plan: Plan, wanted: Mapping[str, list[str]], made: Mapping[str, str]) -> None:
    """Name the finished tables in the manifest and drop parts that are stale."""
    path = table_path(QUARANTINE)
    keep = [part_name(path, n, made_from) for n, made_from in enumerate(wanted[IMAGES])]
    run.prune(path, keep)
    names = [f"{path}/{file}" for file in run.part_files(path)]
    schema = pa.schema([(name, pa.string()) for name in ("image_id", "path", "reason")])
    bad = pa.concat_tables(
        [schema.empty_table(), *(run.folder.read_table(n).cast(schema) for n in names)]
    )
    if not run.is_fresh(QUARANTINE, made[IMAGES]):
        run.write(QUARANTINE, "quarantine.parquet", bad, made[IMAGES])
    used = plan.index.rows.num_rows - bad.num_rows
    for table, parts in wanted.items():
        keep = [part_name(table_path(table), n, made_from) for n, made_from in enumerate(parts)]
        run.prune(table_path(table), keep)
        if not run.is_fresh(table, made[table]):
            run.commit(table, table_path(table), made[table], used)
