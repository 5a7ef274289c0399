"""Recording in a stream: shards of images through decode tasks to recording actors.

Ray Data streams the rows of the index, one block a shard, through decode tasks on CPUs to recording
actors, which hold the target and every vision-language model. An actor writes each table's part of
a shard whole, so that what is done can be seen from one listing, and a shard that is lost with its
worker is recorded again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from actors.undecoded import MAX_BYTES
from actors.views import View
from core.errors import NeuroscribeError, RecordingError, StoppedEarly, ThresholdError
from pipeline.concepts import kept_images
from pipeline.decoding import ON_CPUS, ON_DEVICE, PADDING, DecodeShard
from pipeline.engine import Workers, data_context
from pipeline.expected import (
    ACTIVATIONS,
    IMAGES,
    QUARANTINE,
    Expected,
    embeddings_table,
)
from pipeline.images_table import missing_parts, rows_of, write_images
from pipeline.log import say
from pipeline.plan import MIN_SPLIT_IMAGES, ClipPlan, Plan, Shard, TargetPlan
from pipeline.progress import Progress
from pipeline.rundir import Run
from pipeline.shards import RecordShard
from pipeline.sources import count_splits
from pipeline.store import keep_place

#: Shards that an actor has under way: a GPU computes one while another is written.
AT_ONCE = {"cpu": 1, "cuda": 2}

#: Small files that are read at once.
READERS = 16


def record_tables(
    run: Run,
    plan: Plan,
    expected: Expected,
    workers: Workers,
    dtype: str,
    facts: dict[str, Any],
    label: str = "record",
) -> None:
    """Record the parts of tables that are not there, and commit the tables.

    Progress is shown under a label, and what it has cost is added to the facts.

    Raises:
        ThresholdError: More images cannot be used than the configuration allows.
        StoppedEarly: The cluster was lost.
    """
    pending = pending_shards(run, plan, expected)
    withdraw_pending(run, pending)
    bad = read_quarantine(run, expected)
    refuse_above(run, plan, bad.num_rows)
    if pending:
        try:
            _stream(run, plan, workers, dtype, expected, pending, bad.num_rows, facts, label)
        finally:
            bad = read_quarantine(run, expected)
            run.folder.write_table("quarantine.parquet", bad)
    refuse_above(run, plan, bad.num_rows)
    write_images(run, plan, expected)
    _commit(run, plan, expected, bad)


def withdraw_pending(run: Run, pending: Mapping[int, list[str]]) -> None:
    """Take tables out of the manifest of which parts are about to be made."""
    for table in {table for tables in pending.values() for table in tables}:
        run.withdraw(table)


def decoded_tables(plan: Plan) -> list[str]:
    """Tables whose parts need the pixels: what cannot be used, and what each model makes of them."""
    return [QUARANTINE, ACTIVATIONS, *(embeddings_table(name) for name in plan.clips)]


def pending_shards(run: Run, plan: Plan, expected: Expected) -> dict[int, list[str]]:
    """Shards that need decoding, with the tables whose parts they lack."""
    pending: dict[int, list[str]] = {}
    for table in decoded_tables(plan):
        for number in missing_parts(run, table, expected):
            pending.setdefault(number, []).append(table)
    return dict(sorted(pending.items()))


def read_quarantine(run: Run, expected: Expected) -> pa.Table:
    """Every image that is known to be unusable so far."""
    lacking = set(missing_parts(run, QUARANTINE, expected))
    names = [n for number, n in enumerate(expected.parts[QUARANTINE]) if number not in lacking]
    schema = pa.schema([(name, pa.string()) for name in ("image_id", "path", "reason")])
    with ThreadPoolExecutor(READERS) as pool:  # of a million images there are thousands of parts
        parts = [part.cast(schema) for part in pool.map(run.folder.read_table, names)]
    return pa.concat_tables([schema.empty_table(), *parts])


def refuse_above(run: Run, plan: Plan, bad: int) -> None:
    """Stop when more images cannot be used than the configuration allows."""
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
    label: str,
) -> None:
    """Run the pending shards through decode tasks and recording actors."""
    size, keep = plan.config.recordings.shard_size, plan.config.recordings.keep
    models = models_of(plan, {table for tables in pending.values() for table in tables})
    data_context(size * (models.largest_bytes + 1024))
    todo = [plan.shards[number] for number in pending]
    parts = {
        number: {table: expected.parts[table][number] for table in (QUARANTINE, *tables)}
        for number, tables in pending.items()
    }
    lacked = {number for number, tables in pending.items() if QUARANTINE in tables}
    progress = record_progress(run, plan, pending, label)
    stages = (
        _source(plan, pending, parts)
        .map_batches(
            DecodeShard(models.views, models.undecoded, expected.views if lacked else {}),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=1,
            # Declared for admission; it also keeps Ray Data from fusing decoding into the actors.
            memory=3 * size * models.image_bytes,
        )
        .map_batches(
            RecordShard,
            fn_constructor_kwargs={
                "folder": run.folder,
                "targets": models.targets,
                "clips": models.clips,
                "workers": workers,
                "dtype": dtype,
                "batch_size": plan.config.target.batch_size,
                "compiled": plan.config.recordings.compile,
                "keep": keep,
            },
            compute=ray.data.ActorPoolStrategy(
                size=min(workers.actors, len(todo)),
                # In the actor's own thread: in a second one a CPU's forward pass takes twice as long
                # (see actors.allocator; OpenMP's threads would sleep too).
                enable_true_multi_threading=True,
                max_concurrent_calls_per_actor=AT_ONCE[workers.device],
            ),
            batch_size=size,
            batch_format="pyarrow",
            num_gpus=workers.gpus or None,
            num_cpus=1,
        )
    )
    with closing(_reported(stages)) as told:  # a stream that is left early ends here, not later
        for row in told:
            count(facts, row)
            bad += row["quarantined"] if row["shard"] in lacked else 0
            refuse_above(run, plan, bad)
            shard = plan.shards[row["shard"]]
            progress.advance(shard.stop - shard.start)
    progress.close(f"{bad:,} quarantined" if bad else "")


def _source(
    plan: Plan, pending: Mapping[int, list[str]], parts: Mapping[int, Mapping[str, str]]
) -> Any:
    """The rows of the pending shards, one block each, in Ray's store: none stay with the driver."""
    keep = plan.config.recordings.keep
    blocks = []
    for number, tables in pending.items():
        rows = rows_of(plan, plan.shards[number])
        if keep != "all" and QUARANTINE not in tables:
            # Which images can be used is known: no other need be decoded than those that are kept.
            kept = rows.filter(pc.equal(rows["split"], keep))
            rows = kept if kept.num_rows else rows.slice(0, 1)
        block = block_of(rows, plan.shards[number], parts[number])
        blocks.append(_padded(block, plan.config.recordings.shard_size))
    return ray.data.from_arrow(blocks)


@dataclass(frozen=True)
class Models:
    """The models that some tables need, by table."""

    targets: dict[str, TargetPlan]
    clips: dict[str, ClipPlan]
    undecoded: bool = False
    """Whether files that a device can decode travel as they are, for the models whose views are plain."""

    @property
    def views(self) -> dict[str, View]:
        """What images are laid out for, by key."""
        plans: list[TargetPlan | ClipPlan] = [*self.targets.values(), *self.clips.values()]
        return {p.preprocess.view.key: p.preprocess.view for p in plans}

    @property
    def image_bytes(self) -> int:
        """Bytes of an image as it travels, a usual one where it travels undecoded."""
        return self._bytes(MAX_BYTES // 4)

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest image that may travel."""
        return self._bytes(MAX_BYTES)

    def _bytes(self, file: int) -> int:
        """Bytes of an image, of which a file of some size stands for all plain views or none."""
        views = self.views.values()
        plain = sum(_view_bytes(view) for view in views if view.plain)
        others = sum(_view_bytes(view) for view in views if not view.plain)
        return others + (max(plain, file) if self.undecoded and (plain or not others) else plain)


def models_of(plan: Plan, tables: Collection[str]) -> Models:
    """The models that make these tables."""
    targets = {ACTIVATIONS: plan.target} if ACTIVATIONS in tables else {}
    named = {embeddings_table(name): clip for name, clip in plan.clips.items()}
    clips = {table: clip for table, clip in named.items() if table in tables}
    return Models(targets, clips, plan.config.recordings.decode == "gpu")


def record_progress(run: Run, plan: Plan, shards: Iterable[int], label: str = "record") -> Progress:
    """Progress over all images, of which those of some shards are yet to come."""
    progress = Progress(
        label,
        plan.index.rows.num_rows,
        "images",
        keep=lambda line: run.note("record", progress=line),
    )
    todo = sum(plan.shards[number].stop - plan.shards[number].start for number in shards)
    progress.resume_from(plan.index.rows.num_rows - todo)
    return progress


def count(facts: dict[str, Any], row: Mapping[str, Any]) -> None:
    """Add what an actor reports of a shard to the facts of the stage."""
    facts["rows"] += row["images"]
    facts["bytes"] += row["bytes"]
    facts["overflowed"] = facts.get("overflowed", 0) + row["overflowed"]
    for key in (ON_DEVICE, ON_CPUS):
        if key in row:
            facts[key] = facts.get(key, 0) + row[key]
    if (size := row["batch_size"]) != (known := facts.setdefault("batch_size", size)):
        facts["batch_size"] = min(size, known)
        if size < known:
            say(
                f"memory ran out with {known} images in a pass: an actor goes on with {size}; activations "
                "of passes of other sizes differ in their last bits, which target.batch_size settles",
                "batch_size",
                level="warning",
                before=known,
                after=size,
            )
    for key in (key for key in row if key.endswith("_seconds")):
        facts[key] = round(facts.get(key, 0.0) + row[key], 3)


def _view_bytes(view: View) -> int:
    return int(np.prod(view.shape)) * (4 if view.whole else 1)


def _reported(dataset: Any) -> Generator[dict[str, Any]]:
    """The rows that the actors report, with errors of our own as they were raised."""
    try:
        yield from dataset.iter_rows()
    except ray.exceptions.RayTaskError as error:
        raise own_error(error) from None
    except ray.exceptions.RayError as error:
        raise lost(error) from error


def lost(error: Any) -> NeuroscribeError:
    """What Ray's word of a lost actor or worker means: the models' fault, or the cluster's."""
    if getattr(error, "actor_init_failed", False):
        return RecordingError(
            f"models that load where neuroscribe was started do not load on a worker: {error}; give "
            "every node the same packages and files"
        )
    return StoppedEarly(f"the cluster lost its workers ({error}); run again to resume")


def own_error(error: BaseException) -> BaseException:
    """The error of ours inside what Ray wrapped around it, or else Ray's own.

    Too little memory passes: it stops the run in order.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, NeuroscribeError):
            return seen
        if isinstance(seen, MemoryError) and getattr(seen, "cause", None) is None:
            return StoppedEarly(
                f"a worker had too little memory ({seen}); run again to resume, with fewer workers or "
                "smaller shards if it comes back"
            )
        seen = getattr(seen, "cause", None) or seen.__cause__
    return error


def block_of(rows: pa.Table, shard: Shard, parts: Mapping[str, str]) -> pa.Table:
    """Rows of one shard as actors take them; the first carries the names of the parts, as JSON."""
    numbers = pa.array([shard.number] * rows.num_rows, pa.int32())
    todo = pa.array([json.dumps(parts)] + [None] * (rows.num_rows - 1), pa.string())
    return rows.append_column("shard", numbers).append_column("parts", todo).combine_chunks()


def _padded(block: pa.Table, size: int) -> pa.Table:
    """A block filled up with padding, so that every block has the same length."""
    missing = size - block.num_rows
    if not missing:
        return block
    empty = pa.Table.from_pylist([{"shard": PADDING}] * missing, schema=block.schema)
    return pa.concat_tables([block, empty]).combine_chunks()


def _commit(run: Run, plan: Plan, expected: Expected, bad: pa.Table) -> None:
    """Name the finished tables in the manifest and drop parts that are stale."""
    for table, made in expected.of_stage("record").items():
        names = expected.parts[table]
        fresh = run.is_fresh(table, made)
        if not fresh:  # the manifest must not name a table while parts of it go
            run.withdraw(table)
        run.prune(expected.places[table], names)
        if fresh:
            continue
        if table == QUARANTINE:
            keep_place(run, expected)
            run.write(QUARANTINE, "quarantine.parquet", bad, made)
        else:
            used = plan.index.rows.num_rows - bad.num_rows
            kept = used if table == IMAGES else kept_images(run, plan, ["split"]).num_rows
            run.commit(table, expected.places[table], made, kept, names)


def refuse_small_splits(run: Run) -> None:
    """Refuse to go on with a split of which too few images can be used."""
    counts = count_splits(run.read(IMAGES, ["split"]))
    for split in ("train", "val", "test"):
        if counts[split] < MIN_SPLIT_IMAGES:
            raise ThresholdError(
                f"{counts[split]} images of the {split} split can be used, expected at least "
                f"{MIN_SPLIT_IMAGES}; {run.folder.path('quarantine.parquet')} says why the others "
                "cannot"
            )
