"""The images table: the rows of the index that can be used, derived where it is known which those are."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import run_tasks
from pipeline.expected import IMAGES, QUARANTINE, Expected
from pipeline.plan import Plan, Shard
from pipeline.rundir import Run
from pipeline.storage import Folder

#: Shards whose rows of the images table one task writes.
LANE = 64


def missing_parts(run: Run, table: str, expected: Expected) -> list[int]:
    """Numbers of the shards that lack their part of a table."""
    there = set(run.part_files(expected.places[table]))
    names = (name.rsplit("/", 1)[-1] for name in expected.parts[table])
    return [number for number, name in enumerate(names) if name not in there]


def rows_of(plan: Plan, shard: Shard) -> pa.Table:
    """The index's rows of a shard."""
    return plan.index.rows.slice(shard.start, shard.stop - shard.start)


def write_images(run: Run, plan: Plan, expected: Expected) -> None:
    """Write the parts of the images table: the rows of the index that are not in quarantine."""
    jobs = [
        (
            expected.parts[IMAGES][number],
            expected.parts[QUARANTINE][number],
            rows_of(plan, shard).select(["image_id", "path", "split", "label"]).combine_chunks(),
        )
        for number, shard in ((n, plan.shards[n]) for n in missing_parts(run, IMAGES, expected))
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
