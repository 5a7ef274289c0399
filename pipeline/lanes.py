"""Recording a lane of shards into moments: what an actor does where only test images are kept.

The shards of a lane come to one actor in their order. Each is recorded as anywhere else; rows of test
images are written, and rows of the others are added to sums that stay in the actor, on its GPU if it has
one. Rows that a pilot has recorded are read instead. On a CPU the sums are those of `pipeline.moments`,
batch for batch and bit for bit; on a GPU, where concept scores are made too, up to rounding in float64.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from core.errors import RecordingError
from core.sharpness import Sharpness
from pipeline.columns import matrix
from pipeline.engine import Workers
from pipeline.expected import ACTIVATIONS, QUARANTINE
from pipeline.explainers import ImageScores
from pipeline.moments import ROWS, BlockSums, Output
from pipeline.pilot import Taken
from pipeline.plan import ClipPlan, TargetPlan
from pipeline.scorers import GpuScorer, Scorer
from pipeline.scores import Shards
from pipeline.shards import Among, RecordShard
from pipeline.storage import Folder

#: What is known of no images.
_NOTHING = {name: pa.array([], pa.string()) for name in ("image_id", "path", "split", "reason")}


@dataclass(frozen=True)
class Sought:
    """The moments that are taken for one explainer."""

    explainer: str
    table: str | None
    """Table of the image embeddings that its scores are made from; None where they are known."""
    texts: str | None
    """npz of the embeddings of all its concepts; None where scores are known."""
    slope: float
    shift: float
    positions: np.ndarray
    """Positions of the concepts of the moments in its list, ascending."""


@dataclass(frozen=True)
class LaneShard:
    """What is to be done with one shard of a lane."""

    number: int
    rows: pa.Table
    """All its images in their order: image_id, split."""
    parts: dict[str, str]
    """Parts to write, by table; that of the quarantine always."""
    last: bool
    """Whether it is the lane's last."""
    taken: Taken | None = None
    """What a pilot has of it."""


class _Read:
    """What a pilot has recorded of a shard, read."""

    def __init__(self, folder: Folder, shard: LaneShard, tables: Sequence[str]) -> None:
        self.rows: dict[str, dict[str, np.ndarray]] = {}
        """Columns of what models made of the images, by table."""
        self.images = shard.rows.slice(0, 0)
        bad = pa.table(_NOTHING).drop_columns(["split"])
        if shard.taken is not None:
            bad = folder.read_table(shard.taken.parts[QUARANTINE])
            drawn = shard.rows.filter(shard.taken.drawn)
            lost = pc.is_in(drawn["image_id"], value_set=bad["image_id"].combine_chunks())
            self.images = drawn.filter(pc.invert(lost))
            for table in tables:
                part = folder.read_table(shard.taken.parts[table]).drop_columns(["image_id"])
                self.rows[table] = {name: matrix(part[name]) for name in part.column_names}
        self.among = Among(shard.rows["image_id"].combine_chunks(), bad)

    def with_others(self, table: str, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Columns of the images that were read, and after them those of the others."""
        if table not in self.rows:
            return dict(columns)
        known = self.rows[table]
        return {name: np.concatenate([known[name], values]) for name, values in columns.items()}


class RecordLane(RecordShard):
    """Holds the models and the sums; takes the shards of one lane after the other."""

    def __init__(
        self,
        folder: Folder,
        targets: Mapping[str, TargetPlan],
        clips: Mapping[str, ClipPlan],
        workers: Workers,
        dtype: str,
        batch_size: int | Literal["auto"],
        compiled: bool,
        shards: Shards,
        sought: Sequence[Sought],
        *known: ImageScores,
    ) -> None:
        super().__init__(folder, targets, clips, workers, dtype, batch_size, compiled, keep="test")
        self.shards, self.sought = shards, list(sought)
        scores = iter(known)
        self.scorers: list[Scorer | _Known] = [
            _scorer(folder, one, workers.device) if one.table else _Known(next(scores), one)
            for one in self.sought
        ]
        self._expected = 0
        self._outputs: list[list[Output]] = []
        self._sums: list[BlockSums] = []
        self._batches = Batches(())

    def begin(self, first: int, outputs: list[list[Output]]) -> None:
        """Forget what was summed, and wait for the shards from this one on.

        Args:
            first: Number of the lane's first shard.
            outputs: What to sum for each explainer.
        """
        self._sums = []  # before new ones are made: a GPU may hold only one set
        self._outputs = outputs
        self._sums = [
            BlockSums(len(one.positions), [(block, new) for _, block, new in some], self.device)
            for one, some in zip(self.sought, outputs, strict=True)
        ]
        self._batches = Batches(self.shards.subsets)
        self._expected = first

    def add(self, shard: LaneShard, block: pa.Table | None) -> dict[str, Any]:
        """Record one shard: write its test rows, add the others; returns figures for the ledger.

        Args:
            shard: What to do.
            block: The decoded images; None where there are none to decode.

        Raises:
            RecordingError: A shard out of its turn.
        """
        if shard.number != self._expected:
            raise RecordingError(
                f"shard {shard.number} came where {self._expected} was expected: a fault in streaming"
            )
        self._expected += 1
        begun = time.perf_counter()
        parts = shard.parts
        needed = [ACTIVATIONS, *dict.fromkeys(one.table for one in self.sought if one.table)]
        known = _Read(self.folder, shard, needed)
        block = self._nothing() if block is None else block
        block, decoded, places = self.files_decoded(block)
        images, bad, written = self.usable(shard.number, block, parts[QUARANTINE], known.among)
        test = images["split"].to_numpy() == "test"
        views = self.pixels(images, decoded)
        rows: dict[str, np.ndarray] = {}
        overflowed, write = 0, 0.0
        for table in [*needed, *(t for t in parts if t not in (*needed, QUARANTINE))]:
            whole = table in needed
            if whole and not images.num_rows and known.rows:
                columns, beyond = {name: v[:0] for name, v in known.rows[table].items()}, 0
            else:
                seen = views if whole else {key: pixels[test] for key, pixels in views.items()}
                columns, beyond = self.columns(table, seen)
            overflowed += beyond
            if whole:
                both = known.with_others(table, columns)
                rows |= both if table == ACTIVATIONS else {table: both["embedding"]}
            if table in parts:
                started = time.perf_counter()
                kept = {name: values[test] if whole else values for name, values in columns.items()}
                written += self.write(parts[table], images["image_id"].filter(pa.array(test)), kept)
                write += time.perf_counter() - started
        together = pa.concat_tables([known.images, images.select(["image_id", "split"])])
        order = known.among.order(together["image_id"])
        image_ids = together["image_id"].take(order).to_pylist()
        splits = together["split"].take(order).to_numpy()
        rows = {name: values[order.to_numpy()] for name, values in rows.items()}
        for one, scorer in zip(self.sought, self.scorers, strict=True):
            if isinstance(scorer, _Known):
                rows[_known_rows(one)] = scorer.of(image_ids)
        recorded = time.perf_counter()
        masks = {s: self.shards.inside(image_ids, splits, s) for s in self.shards.subsets}
        for subset, batch in self._batches.add(rows, masks, shard.last):
            self._add(subset, batch)
        return {
            "images": len(splits),
            "quarantined": bad,
            "overflowed": overflowed,
            "batch_size": self.batch_size,
            "bytes": written,
            "infer_seconds": recorded - begun - write,
            "write_seconds": write,
            "sum_seconds": time.perf_counter() - recorded,
            **places,
        }

    def _nothing(self) -> pa.Table:
        """A block without images."""
        empty = pa.array([], pa.binary(1))
        return pa.table(
            {**_NOTHING, **{f"view{number}": empty for number in range(len(self.views))}}
        )

    def _add(self, subset: str, batch: Mapping[str, np.ndarray]) -> None:
        """Add images of a subset to the sums of every explainer."""
        for one, scorer, outputs, sums in zip(
            self.sought, self.scorers, self._outputs, self._sums, strict=True
        ):
            wanted = {block.sharpness for _, block, _ in outputs if block.subset == subset}
            if wanted:
                levels = scorer.levels(batch[one.table or _known_rows(one)])
            for sharpness in wanted:
                sums.add(subset, sharpness, scorer.scores(levels, sharpness), batch)

    def finish(self) -> int:
        """Write the lane's files of every explainer; returns their bytes."""
        written = 0
        for outputs, sums in zip(self._outputs, self._sums, strict=True):
            written += sums.write(self.folder, [name for name, _, _ in outputs])
        self._sums = []
        return written


class Batches:
    """Gathers rows shard by shard and gives them out in the batches of the stored path."""

    def __init__(self, subsets: Sequence[str]) -> None:
        self._gathered: dict[str, list[dict[str, np.ndarray]]] = {s: [] for s in subsets}

    def add(
        self, rows: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray], last: bool
    ) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Take the rows of a shard; for each subset, give those so far once there are enough.

        Args:
            rows: Arrays by name, all of the same images.
            masks: For each subset, which images belong to it.
            last: Whether no more shards come, so that what there is must do.
        """
        for subset, gathered in self._gathered.items():
            inside = masks[subset]
            gathered.append({name: values[inside] for name, values in rows.items()})
            if last or sum(len(next(iter(some.values()))) for some in gathered) >= ROWS:
                batch = {name: np.concatenate([g[name] for g in gathered]) for name in rows}
                gathered.clear()
                yield subset, batch


def _known_rows(sought: Sought) -> str:
    """Key of an explainer's known scores among the rows of a shard."""
    return f"score/{sought.explainer}"


class _Known:
    """Looks scores up that are known beforehand."""

    def __init__(self, source: ImageScores, sought: Sought) -> None:
        self._source, self._positions = source, sought.positions

    def of(self, image_ids: list[str]) -> np.ndarray:
        """Scores of the concepts of the moments on these images."""
        return self._source.of(image_ids)[:, self._positions]

    def levels(self, values: np.ndarray) -> np.ndarray:
        """The scores themselves, in single precision."""
        return values.astype(np.float32)

    def scores(self, levels: np.ndarray, _sharpness: Sharpness) -> np.ndarray:
        """Known scores have one sharpness alone."""
        return levels


def _scorer(folder: Folder, sought: Sought, device: str) -> Scorer:
    assert sought.texts is not None
    texts = folder.read_arrays(sought.texts)["embedding"][sought.positions]
    made = Scorer if device == "cpu" else partial(GpuScorer, device=device)
    return made(texts, sought.slope, sought.shift)
