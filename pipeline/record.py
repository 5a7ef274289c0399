"""The record stage: images → activations and embeddings, one pass, one decode an image.

Ray Data streams the rows of the index, one block a shard, through decode tasks on CPUs to recording
actors, which hold the target and every vision-language model. An actor writes each table's part of
a shard whole, so that what is done can be seen from one listing, and a shard that is lost with its
worker is recorded again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from actors.recorder import resolve_dtype
from actors.views import View
from core.errors import NeuroscribeError, StoppedEarly, ThresholdError
from pipeline.engine import Workers, data_context, run_tasks
from pipeline.expected import (
    ACTIVATIONS,
    IMAGES,
    QUARANTINE,
    Expected,
    embeddings_table,
    table_path,
)
from pipeline.plan import MIN_SPLIT_IMAGES, ClipPlan, Plan, Shard, TargetPlan
from pipeline.progress import Progress
from pipeline.rundir import Run
from pipeline.shards import PADDING, DecodeShard, RecordShard
from pipeline.storage import Folder

#: Shards whose rows of the images table one task writes.
LANE = 64


def record(run: Run, plan: Plan, expected: Expected, workers: Workers, dtype: str) -> None:
    """Record what is not recorded yet; commit every table of recordings.

    Raises:
        ThresholdError: More images cannot be used than the configuration allows, or too few are
            left in a split.
        StoppedEarly: The cluster was lost.
    """
    with run.stage("record") as facts:
        facts |= {"rows": 0, "bytes": 0, "workers": workers.actors, "dtype": dtype}
        pending = _pending(run, plan, expected)
        for table in {table for tables in pending.values() for table in tables}:
            run.withdraw(table)
        bad = _read_quarantine(run, expected)
        _refuse_above(run, plan, bad.num_rows)
        if pending:
            try:
                _stream(run, plan, workers, dtype, expected, pending, bad.num_rows, facts)
            finally:
                bad = _read_quarantine(run, expected)
                run.folder.write_table("quarantine.parquet", bad)
        _refuse_above(run, plan, bad.num_rows)
        _write_images(run, plan, expected)
        _commit(run, plan, expected, bad)


def resolved_dtype(dtype: str, workers: Workers) -> str:
    """The number format that `auto` stands for, asked of a worker of the kind that will record."""
    task = ray.remote(resolve_dtype).options(num_cpus=0, num_gpus=workers.gpus)
    return str(ray.get(task.remote(workers.device, dtype))).removeprefix("torch.")


def _decoded_tables(plan: Plan) -> list[str]:
    """Tables whose parts need the pixels: what cannot be used, and what each model makes of them."""
    return [QUARANTINE, ACTIVATIONS, *(embeddings_table(name) for name in plan.clips)]


def _missing(run: Run, table: str, expected: Expected) -> list[int]:
    """Numbers of the shards that lack their part of a table."""
    there = set(run.part_files(table_path(table)))
    names = (name.rsplit("/", 1)[-1] for name in expected.parts[table])
    return [number for number, name in enumerate(names) if name not in there]


def _pending(run: Run, plan: Plan, expected: Expected) -> dict[int, list[str]]:
    """Shards that need decoding, with the tables whose parts they lack."""
    pending: dict[int, list[str]] = {}
    for table in _decoded_tables(plan):
        for number in _missing(run, table, expected):
            pending.setdefault(number, []).append(table)
    return dict(sorted(pending.items()))


def _read_quarantine(run: Run, expected: Expected) -> pa.Table:
    """Every image that is known to be unusable so far."""
    lacking = set(_missing(run, QUARANTINE, expected))
    names = [n for number, n in enumerate(expected.parts[QUARANTINE]) if number not in lacking]
    schema = pa.schema([(name, pa.string()) for name in ("image_id", "path", "reason")])
    parts = (run.folder.read_table(name).cast(schema) for name in names)
    return pa.concat_tables([schema.empty_table(), *parts])


def _refuse_above(run: Run, plan: Plan, bad: int) -> None:
    share, images = plan.config.recordings.max_quarantined, plan.index.rows.num_rows
    if bad > share * images:
        raise ThresholdError(
            f"{bad:,} of {images:,} images cannot be used, more than recordings.max_quarantined "
            f"({share:g}) allows; {run.folder.path('quarantine.parquet')} lists them with reasons; "
            "mend the images or raise the limit"
        )


def _stream(
    run: Run,
    plan: Plan,
    workers: Workers,
    dtype: str,
    expected: Expected,
    pending: Mapping[int, list[str]],
    bad: int,
    facts: dict[str, Any],
) -> None:
    """Run the pending shards through decode tasks and recording actors."""
    size = plan.config.recordings.shard_size
    models = sorted({table for tables in pending.values() for table in tables} - {QUARANTINE})
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
        number: {table: expected.parts[table][number] for table in (QUARANTINE, *tables)}
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
    lacked = {number for number, tables in pending.items() if QUARANTINE in tables}
    overflowed = 0
    for row in _rows_of(stages):
        facts["rows"] += row["images"]
        facts["bytes"] += row["bytes"]
        for key in ("infer_seconds", "write_seconds"):
            facts[key] = round(facts.get(key, 0.0) + row[key], 3)
        bad += row["quarantined"] if row["shard"] in lacked else 0
        overflowed += row["overflowed"]
        _refuse_above(run, plan, bad)
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
        raise _own_error(error) from None
    except ray.exceptions.RayError as error:
        raise StoppedEarly(
            f"the cluster lost its workers ({error}); run again to resume"
        ) from error


def _own_error(error: BaseException) -> BaseException:
    """The error of ours inside what Ray wrapped around it, or else Ray's own."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, NeuroscribeError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return error


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


def _write_images(run: Run, plan: Plan, expected: Expected) -> None:
    """Write the parts of the images table: the rows of the index that are not in quarantine."""
    jobs = [
        (
            expected.parts[IMAGES][number],
            expected.parts[QUARANTINE][number],
            plan.index.rows.slice(shard.start, shard.stop - shard.start)
            .select(["image_id", "path", "split", "label"])
            .combine_chunks(),
        )
        for number, shard in ((n, plan.shards[n]) for n in _missing(run, IMAGES, expected))
    ]
    if jobs:
        run.withdraw(IMAGES)
    calls = [(run.folder, jobs[start : start + LANE]) for start in range(0, len(jobs), LANE)]
    for _ in run_tasks(_derive_images, calls):
        pass


def _derive_images(folder: Folder, jobs: Sequence[tuple[str, str, pa.Table]]) -> None:
    for name, quarantine, rows in jobs:
        bad = folder.read_table(quarantine, ["image_id"])["image_id"].combine_chunks()
        folder.write_table(name, rows.filter(pc.invert(pc.is_in(rows["image_id"], value_set=bad))))


def _commit(run: Run, plan: Plan, expected: Expected, bad: pa.Table) -> None:
    """Name the finished tables in the manifest and drop parts that are stale."""
    for table, made in expected.of_stage("record").items():
        run.prune(table_path(table), expected.parts[table])
        if run.is_fresh(table, made):
            continue
        if table == QUARANTINE:
            run.write(QUARANTINE, "quarantine.parquet", bad, made)
        else:
            used = plan.index.rows.num_rows - bad.num_rows
            run.commit(table, table_path(table), made, used)
    splits = run.read(IMAGES, ["split"])["split"].value_counts().to_pylist()
    counts = {entry["values"]: entry["counts"] for entry in splits}
    for split in ("train", "val", "test"):
        if counts.get(split, 0) < MIN_SPLIT_IMAGES:
            raise ThresholdError(
                f"{counts.get(split, 0)} images of the {split} split can be used, expected at least "
                f"{MIN_SPLIT_IMAGES}; {run.folder.path('quarantine.parquet')} says why the others "
                "cannot"
            )
