"""The record stage: images → activations and embeddings, one pass, one decode an image.

Ray Data streams the rows of the index, one block a shard, through decode tasks on CPUs to recording
actors, which hold the target and every vision-language model. An actor writes each table's part of
a shard whole, so that what is done can be seen from one listing, and a shard that is lost with its
worker is recorded again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from actors.recorder import resolve_dtype
from actors.views import View
from core.errors import StoppedEarly, ThresholdError
from pipeline.engine import Workers, data_context, recording_workers
from pipeline.fingerprints import fingerprint
from pipeline.plan import ClipPlan, Plan, Shard, TargetPlan
from pipeline.progress import Progress
from pipeline.rundir import Run, part_name
from pipeline.shards import (
    ACTIVATIONS,
    IMAGES,
    PADDING,
    QUARANTINE,
    DecodeShard,
    RecordShard,
    embeddings_table,
    table_path,
)


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
    progress = Progress(
        "record",
        plan.index.rows.num_rows,
        "images",
        keep=lambda done, total: run.note("record", progress=f"{done:,} of {total:,} images"),
    )
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
        numbers += [PADDING] * missing
    todo = pa.array([json.dumps(parts)] + [None] * (size - 1), pa.string())
    rows = rows.append_column("shard", pa.array(numbers, pa.int32())).append_column("parts", todo)
    return rows.combine_chunks()


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
