"""The pilot: a sample of the images, recorded first, that says what moments to take of all of them.

Moments that are taken while images pass by need to be told beforehand which concepts are active and how
sharp their scores should be. Both are decided here, by the code that decides them where all images are
kept, on the sample that the sharpness is chosen with anyway: where that is every training and validation
image, the answers are the same. Where the sample is a good part of the images, its shards are cut along
those of the run, and what was recorded of them is not recorded again. The sample's recordings are deleted
when the moments are taken.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from core.splits import in_sample
from pipeline.concepts import (
    activity_rows,
    embed_texts,
    known_activity_rows,
    score_tables,
)
from pipeline.engine import Workers
from pipeline.expected import (
    ACTIVATIONS,
    CONCEPTS,
    IMAGES,
    QUARANTINE,
    SHARPNESS,
    Expected,
    embeddings_table,
    expect,
    scores_table,
    table_path,
    views_of,
)
from pipeline.explainers import ExplainerPlan
from pipeline.images_table import missing_parts
from pipeline.plan import Plan, cut_at, cut_shards
from pipeline.rundir import Run
from pipeline.scores import active_positions, explainer_source, shards_of
from pipeline.screening import screened
from pipeline.sharpen import IMAGES_TRIED, sharpen
from pipeline.sources import AT_ONCE
from pipeline.stream import record_tables

FOLDER = "recordings/pilot"

#: Least share of all images at which a pilot's recordings are used again: below it they save little, and
#: shards cut along those of the run would be many and small.
REUSED = 0.1


@dataclass(frozen=True)
class Taken:
    """What a pilot has recorded of a shard of the run."""

    drawn: pa.Array
    """Which of the shard's images these are, bool."""
    parts: dict[str, str]
    """Files in the run, by table."""


class Pilot:
    """A small run within the run, of a sample of its training and validation images."""

    def __init__(self, run: Run, plan: Plan, workers: Workers, dtype: str) -> None:
        self._whole, self._whole_plan = run, plan
        self._workers, self._dtype = workers, dtype
        self.run = Run(run.folder.path(FOLDER), run.store)
        self._recorded: tuple[Plan, Expected] | None = None
        self.facts: dict[str, Any] = {"rows": 0, "bytes": 0}
        """What recording it has cost in this start."""

    @cached_property
    def _sample(self) -> _Sample:
        return _sampled(self._whole_plan)

    def decide(self, expected: Expected) -> None:
        """Commit which concepts are active, and the sharpness of each layer, unless they are known."""
        run, plan = self._whole, self._whole_plan
        made = {table: expected.tables[table] for table in (CONCEPTS, SHARPNESS)}
        if all(run.is_fresh(table, fingerprint) for table, fingerprint in made.items()):
            return
        run.withdraw(SHARPNESS)
        own, own_expected = self.recorded()
        if not run.is_fresh(CONCEPTS, made[CONCEPTS]):
            unusable = set(self.run.read(QUARANTINE, ["image_id"])["image_id"].to_pylist())
            rows = [
                activity_rows(self.run, e)
                if e.kind == "open_clip"
                else known_activity_rows(plan, e, unusable)
                for e in plan.explainers
            ]
            run.write(CONCEPTS, "concepts.parquet", pa.concat_tables(rows), made[CONCEPTS])
        rows_of_all = run.read(CONCEPTS)
        self.run.write(CONCEPTS, "concepts.parquet", rows_of_all, own_expected.tables[CONCEPTS])
        sharpen(self.run, own, own_expected)
        table = self.run.read(SHARPNESS)
        run.write(SHARPNESS, "sharpness.parquet", table, made[SHARPNESS])

    def positions(self, explainer: ExplainerPlan, most: int) -> np.ndarray:
        """Positions of the concepts that an explainer's moments keep, ascending."""
        active = active_positions(self._whole, explainer.name)
        if len(active) <= most:
            return active
        own, _ = self.recorded()
        source = explainer_source(self.run, own, explainer)
        return screened(self.run, own, explainer, source, shards_of(self.run, own), active)

    def recorded(self) -> tuple[Plan, Expected]:
        """Record and score the sample, as far as that is not done."""
        if self._recorded is None:
            own = self._sample.plan
            expected = self._expected(own)
            record_tables(self.run, own, expected, self._workers, self._dtype, self.facts, "pilot")
            self._share_texts(own.explainers)
            score_tables(self.run, own, expected, self.facts)
            self._recorded = own, expected
        return self._recorded

    def _expected(self, own: Plan) -> Expected:
        """What the sample's tables are made from; simulators decide too which images can be used."""
        return expect(own, self._dtype, views_of(self._whole_plan))

    def taken(self, tables: Collection[str]) -> dict[int, Taken]:
        """By number of a shard of the run: what is there of it in all of some tables.

        In a start that did not need to decide anything that is what an earlier one has left.
        """
        if not _reused(self._whole_plan):
            return {}
        sample = self._sample
        expected = self._recorded[1] if self._recorded else self._expected(sample.plan)
        wanted = [QUARANTINE, *tables]
        lacking = {n for table in wanted for n in missing_parts(self.run, table, expected)}
        found = {}
        for number, own in sample.places.items():
            if own not in lacking:
                shard = self._whole_plan.shards[number]
                parts = {table: f"{FOLDER}/{expected.parts[table][own]}" for table in wanted}
                found[number] = Taken(pa.array(sample.drawn[shard.start : shard.stop]), parts)
        return found

    def _share_texts(self, explainers: Sequence[ExplainerPlan]) -> None:
        """Embed concept texts once, for the run and for its pilot."""
        for explainer in explainers:
            if explainer.kind == "open_clip":
                clip = self._whole_plan.clips[explainer.name]
                name = embed_texts(self._whole, clip, explainer.concepts)
                if not self.run.folder.exists(name):
                    self.run.folder.write(name, self._whole.folder.read(name))

    def discard(self) -> None:
        """Delete the sample's recordings: what they were for has been decided."""
        plan = self._whole_plan
        tables = [QUARANTINE, IMAGES, ACTIVATIONS]
        tables += [embeddings_table(name) for name in plan.clips]
        tables += [scores_table(explainer.name) for explainer in plan.explainers]
        for table in tables:
            self.run.prune(table_path(table), [])
        folder = self.run.folder
        for name in folder.names("recordings/texts"):
            folder.delete(f"recordings/texts/{name}")
        whole = (CONCEPTS, SHARPNESS, QUARANTINE)
        for name in ("manifest.json", "ledger.json", *(f"{table}.parquet" for table in whole)):
            folder.delete(name)


@dataclass(frozen=True)
class _Sample:
    """The images of a pilot."""

    plan: Plan
    drawn: np.ndarray
    """Which images of the run these are."""
    places: dict[int, int]
    """By number of a shard of the run, the shard of the sample that is cut along it; else empty."""


def _reused(plan: Plan) -> bool:
    """Whether a pilot's recordings are used again."""
    images: int = plan.index.rows.num_rows
    return images * REUSED <= IMAGES_TRIED


def _sampled(plan: Plan) -> _Sample:
    """The same plan for the sample alone, everything of which is kept; its simulators are left out.

    What is recorded of a sample is of no use to other runs, and lies in the run.
    """
    config = plan.config
    used = pc.not_equal(plan.index.rows["split"], "test").to_numpy()
    share = min(1.0, IMAGES_TRIED / max(1, int(used.sum())))
    drawn = used.copy()
    for start in range(0, len(drawn), AT_ONCE):
        ids = plan.index.rows["image_id"].slice(start, AT_ONCE).to_pylist()
        drawn[start : start + AT_ONCE] &= in_sample(ids, share, config.images.split.seed)
    rows = pa.array(np.flatnonzero(drawn))
    attributes = plan.index.attributes
    index = replace(
        plan.index,
        rows=plan.index.rows.take(rows).combine_chunks(),
        attributes=attributes.take(rows).combine_chunks() if attributes.num_columns else attributes,
    )
    # The limit on images that cannot be used is for all images, not for a sample.
    kept = {"keep": "all", "max_quarantined": 1.0}
    recordings = config.recordings.model_copy(update=kept)
    places: dict[int, int] = {}
    if _reused(plan):
        counts = [int(drawn[shard.start : shard.stop].sum()) for shard in plan.shards]
        shards = cut_at(index, [0, *np.cumsum(counts).tolist()])
        places = {number: own for own, number in enumerate(np.flatnonzero(counts).tolist())}
    else:
        shards = cut_shards(index, recordings.shard_size)
    explained = {explainer.name for explainer in plan.explainers}
    own = replace(
        plan,
        config=config.model_copy(
            update={"recordings": recordings, "simulators": [], "store": None}
        ),
        index=index,
        shards=shards,
        clips={name: clip for name, clip in plan.clips.items() if name in explained},
    )
    return _Sample(own, drawn, places)
