"""The report stage: every table of a run → the atlas, the page that people look at."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib import metadata
from typing import Any

import numpy as np
import pyarrow as pa

from actors.decode import decode
from core.errors import UnreadableImage
from pipeline.atlas.build import build_atlas
from pipeline.atlas.data import AtlasData
from pipeline.columns import activation_column, matrix
from pipeline.engine import run_tasks
from pipeline.expected import (
    ACTIVATIONS,
    ATLAS,
    CONCEPTS,
    EXPLANATIONS,
    IMAGES,
    SCORES,
    Expected,
    scores_table,
)
from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.rundir import Run
from pipeline.sources import fetch

#: Longer side of an image in the atlas, in pixels, and its JPEG quality.
THUMBNAIL_SIDE, THUMBNAIL_QUALITY = 112, 82

#: Images that one task makes small.
THUMBNAILS_PER_TASK = 256


def report(run: Run, plan: Plan, expected: Expected) -> None:
    """Build the atlas if a table has changed since it was built."""
    whole = expected.tables[ATLAS]
    with run.stage("report") as facts:
        if not run.is_fresh(ATLAS, whole):
            run.withdraw(ATLAS)
            progress = Progress("report", 0, "files")
            written = 0

            def write(name: str, data: bytes) -> None:
                nonlocal written
                written += len(data)
                run.folder.write(f"{ATLAS}/{name}", data, durable=False)
                progress.total += 1
                progress.advance(1)

            build_atlas(_atlas_data(run, plan), write)
            facts |= {"rows": progress.done, "bytes": written}
            run.commit(ATLAS, f"{ATLAS}/index.html", whole, progress.done)
            progress.close(run.folder.path(f"{ATLAS}/index.html"))


def _atlas_data(run: Run, plan: Plan) -> AtlasData:
    images = run.read(IMAGES)

    def activations(layer: str, pooling: str) -> np.ndarray:
        column = activation_column(layer, pooling)
        return matrix(run.read(ACTIVATIONS, [column])[column])

    def thumbnails(rows: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        return _thumbnails(plan, images, rows)

    return AtlasData(
        title=f"{plan.config.target.model.partition(':')[2]} explained",
        provenance=_provenance(run, plan),
        explanations=run.read(EXPLANATIONS),
        scores=run.read(SCORES),
        concepts=run.read(CONCEPTS),
        images=images,
        activations=activations,
        concept_scores=lambda explainer: PartedMatrix(run, scores_table(explainer), "score"),  # type: ignore[arg-type,return-value]
        thumbnails=thumbnails if plan.config.atlas.images else None,
    )


class PartedMatrix:
    """A column of vectors in many parts, read by slices of rows and never as a whole."""

    def __init__(self, run: Run, table: str, column: str) -> None:
        self._folder, self._column, self._names = run.folder, column, run.parts(table)
        read = lru_cache(maxsize=4)(self._read)
        self._part = read
        sizes = [len(self._read_ids(name)) for name in self._names]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
        first = next((n for n, size in enumerate(sizes) if size), 0)
        values = self._part(first)
        self.shape = (int(self._starts[-1]), values.shape[1])
        self.dtype = values.dtype

    def _read_ids(self, name: str) -> pa.Table:
        return self._folder.read_table(name, ["image_id"])

    def _read(self, number: int) -> np.ndarray:
        return matrix(self._folder.read_table(self._names[number], [self._column])[self._column])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise IndexError("a parted matrix is read by contiguous rows")
        pieces = [np.empty((0, self.shape[1]), self.dtype)]
        for number in range(len(self._names)):
            begin, end = self._starts[number], self._starts[number + 1]
            if begin < stop and end > start:
                pieces.append(self._part(number)[max(start - begin, 0) : stop - begin])
        return np.concatenate(pieces)


def _thumbnails(plan: Plan, images: pa.Table, rows: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """Small pictures of some images, fetched again from where they are."""
    index = plan.index.rows
    places = {image_id: row for row, image_id in enumerate(index["image_id"].to_pylist())}
    image_ids = images["image_id"].to_pylist()
    calls = []
    for start in range(0, len(rows), THUMBNAILS_PER_TASK):
        chunk = [int(row) for row in rows[start : start + THUMBNAILS_PER_TASK]]
        wanted = index.take([places[image_ids[row]] for row in chunk]).select(
            ["url", "offset", "length"]
        )
        calls.append((chunk, wanted.to_pylist()))
    for _, pictures in run_tasks(_make_small, calls):
        yield from pictures


def _make_small(rows: Sequence[int], places: Sequence[dict[str, Any]]) -> list[tuple[int, bytes]]:
    pictures = []
    for row, place in zip(rows, places, strict=True):
        try:
            image = decode(fetch(place))
        except (OSError, UnreadableImage):
            continue
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        sink = io.BytesIO()
        image.save(sink, "JPEG", quality=THUMBNAIL_QUALITY)
        pictures.append((row, sink.getvalue()))
    return pictures


def _provenance(run: Run, plan: Plan) -> dict[str, object]:
    config = plan.config
    fit = config.fit.resolved
    splits = plan.index.rows["split"].value_counts().to_pylist()
    counts = {entry["values"]: entry["counts"] for entry in splits}
    stages = run.ledger()["stages"]
    tables = run.tables()
    return {
        "model": config.target.model,
        "weights": config.target.weights,
        "layers": {
            name: f"{plan.target.infos[name].neurons} neurons, {', '.join(poolings)}"
            for name, poolings in plan.target.layers.items()
        },
        "images": {
            "path": config.images.path,
            **{split: counts.get(split, 0) for split in ("train", "val", "test")},
            "quarantined": tables["quarantine"].rows,
        },
        "explainers": {e.name: f"{e.kind}, {len(e.concepts):,} concepts" for e in plan.explainers},
        "simulators": {s.name: s.model for s in config.simulators},
        "fit": f"{fit.search}, at most {fit.max_length} concepts, length by {fit.length}",
        "fingerprints": {name: entry.fingerprint for name, entry in tables.items()},
        "versions": {
            name: metadata.version(name)
            for name in ("neuroscribe", "torch", "ray", "timm", "open_clip_torch", "pyarrow")
        },
        "command": f"neuroscribe run CONFIG.yaml --out {run.folder.url}",
        "seconds": {name: stage["seconds"] for name, stage in stages.items() if "seconds" in stage},
    }
