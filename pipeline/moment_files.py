"""Which files an explainer's moments lie in, and what is still to be summed, given those that are there.

A file holds the total of one block over the first lanes of the images, and its name carries the
fingerprint of everything that it was made from: the images of those lanes, the concepts, their sharpness
and the column. So a run that has more images, layers or concepts than an earlier one finds what it can
go on from by asking for names, and nothing stale is ever read. Of a finished table the totals over all
lanes and over all but the last stay: the last lane is the one that further images fill up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from core.moments import ConceptMoments, CrossMoments
from core.sharpness import Sharpness
from pipeline.concepts import embed_texts
from pipeline.expected import Expected, moments_table
from pipeline.explainers import ExplainerPlan, image_scores
from pipeline.fingerprints import fingerprint
from pipeline.plan import Plan
from pipeline.rundir import Run, part_name
from pipeline.scores import Shards, divided, read_sharpness
from pipeline.storage import Folder
from pipeline.targets import Column, columns_of

#: Shards of a lane, and lanes that are added to the totals at a time: while moments are taken, the
#: sums of about twice so many lanes are on disk.
LANE, WAVE = 64, 32


@dataclass(frozen=True)
class Block:
    """What one file of moments holds."""

    sharpness: Sharpness
    """That of the concept scores."""
    subset: str
    column: Column | None
    """The neurons; None for the concepts among themselves."""


def blocks_of(
    plan: Plan, shards: Shards, chosen: Mapping[tuple[str, str], Sharpness]
) -> list[Block]:
    """Every block of an explainer's moments, in the order of the files."""
    found = [
        Block(sharpness, subset, None)
        for sharpness in sorted(set(chosen.values()), reverse=True)
        for subset in shards.subsets
    ]
    for column in columns_of(plan):
        sharpness = chosen[column.layer, column.pooling]
        found += [Block(sharpness, subset, column) for subset in shards.subsets]
    return found


def lanes_of(shards: int) -> list[range]:
    """Consecutive shards that are summed together: a function of their positions alone.

    Lanes double with the images, but for the first `2 * WAVE` of them: none is longer than a 32nd of
    what lies before it, and their number grows with the logarithm of the number of images.
    """
    lanes, start = [], 0
    while start < shards:
        length = LANE << max(0, (start // (WAVE * LANE)).bit_length() - 1)
        lanes.append(range(start, min(start + length, shards)))
        start += length
    return lanes


@dataclass(frozen=True, eq=False)
class Growth:
    """How a list of concepts follows from an older one, of which there are totals."""

    older: str
    """Fingerprint of the older list."""
    old: np.ndarray
    """Places in the older list of the concepts that are in both."""
    kept: np.ndarray
    """Their places in the list."""
    new: np.ndarray
    """Places in the list of the other concepts."""

    @classmethod
    def between(cls, older: Sequence[str], concepts: Sequence[str]) -> Growth:
        """From one list of what concepts are made from to another."""
        places = {concept: place for place, concept in enumerate(older)}
        known = np.array([concept in places for concept in concepts])
        kept = np.flatnonzero(known)
        old = np.array(
            [places[concept] for concept in concepts if concept in places], dtype=np.intp
        )
        return cls(fingerprint(list(older)), old, kept, np.flatnonzero(~known))


@dataclass(frozen=True, eq=False)
class Stretch:
    """Consecutive lanes over which a block is still to be summed, and the files that come of it."""

    block: Block
    first: int
    lanes: list[str]
    """A file for each lane, from the first on; none where everything is taken from older totals."""
    totals: list[str]
    """Files of the totals over the first 0, 1, 2, … lanes, up to the last lane of the stretch."""
    lasting: frozenset[int] = frozenset()
    """Numbers of lanes of the totals that stay."""
    growth: Growth | None = None
    """Where totals of older concepts are there: products with new concepts alone are summed."""
    grown: Mapping[int, tuple[str, str]] | None = None
    """With a growth, by the number of lanes: the older total, and the file in which it is put
    together with what was summed."""

    @property
    def stop(self) -> int:
        """The lane after the last."""
        return len(self.totals) - 1

    @property
    def new(self) -> np.ndarray | None:
        """Places of the concepts whose products are summed; None for all."""
        return None if self.growth is None else self.growth.new

    def lane(self, number: int) -> str | None:
        """The file of a lane, if it is summed."""
        place = number - self.first
        return self.lanes[place] if 0 <= place < len(self.lanes) else None


def waves_of(stretches: Sequence[Stretch]) -> list[range]:
    """The lanes of all stretches, `WAVE` at a time."""
    if not stretches:
        return []
    first, stop = min(s.first for s in stretches), max(s.stop for s in stretches)
    return [range(start, min(start + WAVE, stop)) for start in range(first, stop, WAVE)]


@dataclass(frozen=True)
class Layout:
    """The files of an explainer's moments."""

    path: str
    contents: str
    """File of the positions of the concepts and the names of the other files."""
    positions: np.ndarray
    """Positions in the explainer's list of the concepts of the moments, ascending."""
    concepts: list[str]
    """What the scores of each of them are made from."""
    blocks: list[Block]
    origins: list[str]
    """What each block is made from, beside images and concepts."""
    shards: list[str]
    """What each shard brings to the sums."""

    @cached_property
    def lanes(self) -> list[range]:
        """Shards of each lane."""
        return lanes_of(len(self.shards))

    @cached_property
    def names(self) -> list[str]:
        """Files of the blocks, in their order."""
        return [self._total(number, len(self.lanes)) for number in range(len(self.blocks))]

    @property
    def lasting(self) -> list[str]:
        """All files that stay."""
        before = len(self.lanes) - 1
        checkpoints = [self._total(n, before) for n in range(len(self.blocks))] if before else []
        return [self.contents, *self.names, *checkpoints]

    @property
    def of_concepts(self) -> list[str]:
        """Those that stay and hold concepts among themselves, which no network has a part in."""
        alone = [number for number, block in enumerate(self.blocks) if block.column is None]
        count = len(self.lanes)
        return [self._total(n, lanes) for n in alone for lanes in (count, count - 1) if lanes]

    def arrays(self) -> dict[str, np.ndarray]:
        """What the file of contents holds."""
        files = np.array([name.rsplit("/", 1)[-1] for name in self.names])
        return {"positions": self.positions, "concepts": np.array(self.concepts), "files": files}

    def lacking(self, run: Run) -> list[Stretch]:
        """What is still to be summed: of each block the lanes that no total covers.

        Where a total of an older list of concepts goes further, it is first brought to this list.
        """
        there = {f"{self.path}/{name}" for name in run.part_files(self.path)}
        growths = [Growth.between(older, self.concepts) for older in self._older_lists(run)]
        grown: list[Stretch] = []
        whole: list[Stretch] = []
        for number in range(len(self.blocks)):
            first = self._reach(number, there, self._listed, len(self.lanes))
            most, best = first * len(self.concepts), None
            for growth in growths:
                reach = self._reach(number, there, growth.older, len(self.lanes))
                if reach > first and reach * len(growth.kept) > most:
                    most, best = reach * len(growth.kept), (growth, reach)
            if best is not None:
                grown.append(self._grown(number, *best, there))
                first = best[1]
            if first < len(self.lanes):
                whole.append(self._whole(number, first))
        return grown + whole

    def summed(self, run: Run) -> set[str]:
        """Files of lanes that are there."""
        path = f"{self.path}/lanes"
        return {f"{path}/{name}" for name in run.part_files(path)}

    def _reach(self, block: int, there: set[str], concepts: str, most: int) -> int:
        """How many lanes the longest total covers that is there."""
        covering = (n for n in range(most, 0, -1) if self._total(block, n, concepts) in there)
        return next(covering, 0)

    def _whole(self, number: int, first: int) -> Stretch:
        """All concepts over the lanes from one on; where there is one alone, it is the total."""
        count = len(self.lanes)
        totals = [self._total(number, lanes) for lanes in range(count + 1)]
        lanes = [self._lane(number, lane, self._listed) for lane in range(first, count)]
        lasting = frozenset((count - 1, count))
        lanes = totals[1:] if count == 1 else lanes
        return Stretch(self.blocks[number], first, lanes, totals, lasting)

    def _grown(self, number: int, growth: Growth, reach: int, there: set[str]) -> Stretch:
        """New concepts over the lanes that a total of older ones covers."""
        grown = {
            lanes: (self._total(number, lanes, growth.older), self._total(number, lanes))
            for lanes in {len(self.lanes) - 1, reach}
            if lanes and self._total(number, lanes, growth.older) in there
        }
        beside = fingerprint("beside", growth.older, self._listed)
        lanes: list[str] = []
        if len(growth.new):
            first = self._reach(number, there, beside, reach)
            lanes = [self._lane(number, lane, beside) for lane in range(first, reach)]
        else:
            first = min(grown) - 1
        totals = [self._total(number, lanes, beside) for lanes in range(reach + 1)]
        return Stretch(self.blocks[number], first, lanes, totals, growth=growth, grown=grown)

    def _total(self, block: int, lanes: int, concepts: str | None = None) -> str:
        made = fingerprint(self.origins[block], concepts or self._listed, self._covered[lanes])
        return part_name(self.path, lanes, made, "npz")

    def _lane(self, block: int, lane: int, concepts: str) -> str:
        inside = self._of_lanes[lane]
        made = fingerprint(self.origins[block], concepts, inside)
        return part_name(f"{self.path}/lanes", lane, made, "npz")

    @cached_property
    def _listed(self) -> str:
        return fingerprint(self.concepts)

    @cached_property
    def _of_lanes(self) -> list[str]:
        return [fingerprint(self.shards[lane.start : lane.stop]) for lane in self.lanes]

    @cached_property
    def _covered(self) -> list[str]:
        """What the first 0, 1, 2, … lanes are made from."""
        covered = [fingerprint()]
        for lane in self._of_lanes:
            covered.append(fingerprint(covered[-1], lane))
        return covered

    def _older_lists(self, run: Run) -> list[list[str]]:
        """Lists of concepts of which there may be totals."""
        names = (f"{self.path}/{name}" for name in run.part_files(self.path))
        first = part_name(self.path, 0, "")[: -len(".parquet")]
        others = [name for name in names if name.startswith(first) and name != self.contents]
        found = [run.folder.read_arrays(name, "concepts").get("concepts") for name in others]
        return [concepts.tolist() for concepts in found if concepts is not None]


def contents_file(explainer: str, expected: Expected) -> str:
    """Name of the file of contents of an explainer's moments."""
    table = moments_table(explainer)
    return part_name(table, 0, expected.tables[table], "npz")


def layout_of(
    run: Run, plan: Plan, expected: Expected, explainer: ExplainerPlan, positions: np.ndarray
) -> Layout:
    """Where an explainer's moments lie: a function of what they are made from, not of the workers.

    Args:
        run: The run; which concepts are active and how sharp must be decided.
        plan: Its plan.
        expected: What its tables are made from.
        explainer: One of its explainers.
        positions: The concepts to take, ascending.
    """
    blocks = blocks_of(plan, divided(plan, []), read_sharpness(run, explainer.name))
    scored = expected.summed[explainer.name]
    origins = []
    for block in blocks:
        column = expected.summed[block.column.name] if block.column else None
        origins.append(fingerprint(scored, block.sharpness, block.subset, column))
    return Layout(
        moments_table(explainer.name),
        contents_file(explainer.name, expected),
        positions,
        _concepts(run, plan, explainer, positions),
        blocks,
        origins,
        _shards(plan, explainer),
    )


def _concepts(run: Run, plan: Plan, explainer: ExplainerPlan, positions: np.ndarray) -> list[str]:
    """What the scores of each concept are made from, beside the images."""
    if explainer.kind == "open_clip":
        name = embed_texts(run, plan.clips[explainer.name], explainer.concepts)
        texts = run.folder.read_arrays(name)["embedding"]
        return [_digest(texts[position]) for position in positions]
    if explainer.labels is not None:
        labels: dict[int, list[str]] = {}
        for label, true in sorted(explainer.labels.members.items()):
            for position in true:
                labels.setdefault(position, []).append(label)
        return [fingerprint(labels[position]) for position in positions]
    return [fingerprint(explainer.concepts[position]) for position in positions]


def _shards(plan: Plan, explainer: ExplainerPlan) -> list[str]:
    """What each shard brings to the sums: its images, splits and labels; scores that come from elsewhere.

    Of attributes all that could be concepts, so that concepts may come and go.
    """
    if explainer.kind == "attributes":
        return [fingerprint(shard.rows, shard.attributes) for shard in plan.shards]
    if explainer.path is None:
        return [shard.rows for shard in plan.shards]
    scores = image_scores(plan.index, explainer)
    image_ids = plan.index.rows["image_id"]
    some = (image_ids.slice(s.start, s.stop - s.start).to_pylist() for s in plan.shards)
    return [
        fingerprint(shard.rows, _digest(scores.of(ids)))
        for shard, ids in zip(plan.shards, some, strict=True)
    ]


def _digest(values: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=12).hexdigest()


def read_moments(folder: Folder, name: str) -> ConceptMoments | CrossMoments:
    """Moments from their file: of concepts among themselves, or with neurons."""
    arrays: dict[str, Any] = folder.read_arrays(name)
    kind = ConceptMoments if "scatter" in arrays else CrossMoments
    return kind(**(arrays | {"count": int(arrays["count"])}))


def write_moments(folder: Folder, name: str, moments: ConceptMoments | CrossMoments) -> int:
    """Write moments to a file, an array a field; returns its bytes."""
    fields = type(moments).__dataclass_fields__
    return folder.write_arrays(name, **{f: np.asarray(getattr(moments, f)) for f in fields})
