"""The report stage: every table of a run → the atlas, the page that people look at."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.decode import decode
from core.errors import UnreadableImage
from pipeline.atlas.build import build_atlas
from pipeline.atlas.data import AtlasData
from pipeline.columns import activation_column, matrix
from pipeline.engine import run_tasks
from pipeline.expected import (
    ABLATIONS,
    ACTIVATIONS,
    ATLAS,
    COMPARISON,
    CONCEPTS,
    EXPLANATIONS,
    IMAGES,
    IMPORTANCE,
    REPLACEMENTS,
    SANITY,
    SCORES,
    SHARPNESS,
    SYNONYMS,
    Expected,
)
from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.rundir import Run
from pipeline.scores import ScoreSource, Shards, explainer_source, read_rows, shards_of
from pipeline.sources import fetch
from pipeline.storage import Folder

#: Longer side of an image in the atlas, in pixels, and its JPEG quality.
THUMBNAIL_SIDE, THUMBNAIL_QUALITY = 112, 82

#: Images that one task makes small.
THUMBNAILS_PER_TASK = 256

#: Shards that one task reads rows of.
LANE = 64


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
    parts = [run.folder.read_table(part) for part in run.parts(IMAGES)]
    if (keep := plan.config.recordings.keep) != "all":  # only these have rows in recorded tables
        parts = [part.filter(pc.equal(part["split"], keep)) for part in parts]
    images = pa.concat_tables(parts)
    sizes = [len(part) for part in parts]
    explainers = {explainer.name: explainer for explainer in plan.explainers}

    def activations(layer: str, pooling: str) -> np.ndarray:
        column = activation_column(layer, pooling)
        return matrix(run.read(ACTIVATIONS, [column])[column])

    @lru_cache(maxsize=1)  # an atlas asks for one explainer after the other
    def shared(explainer: str) -> SharedRows:
        own = explainers[explainer]
        source = explainer_source(run, plan, own)
        return SharedRows(run.folder, shards_of(run, plan), source, sizes, len(own.concepts))

    def thumbnails(rows: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        return _thumbnails(plan, images, rows)

    return AtlasData(
        title=f"{plan.config.target.model.partition(':')[2]} explained",
        provenance=_provenance(run, plan),
        explanations=run.read(EXPLANATIONS),
        scores=_with_ablations(run),
        concepts=run.read(CONCEPTS),
        sharpness=run.read(SHARPNESS),
        degenerate=run.read(SYNONYMS),
        images=images,
        activations=activations,
        concept_scores=lambda explainer, factor: ConceptScores(shared(explainer), factor),
        thumbnails=thumbnails if plan.config.atlas.images else None,
        sanity=run.read(SANITY),
        comparison=_table(run, COMPARISON),
        replacements=_table(run, REPLACEMENTS),
        importance=_table(run, IMPORTANCE),
        folds=plan.config.fit.resolved.folds,
    )


def _table(run: Run, name: str) -> pa.Table | None:
    """A table that not every run has."""
    return run.read(name) if name in run.tables() else None


def _with_ablations(run: Run) -> pa.Table:
    """The scores, with a column for each kind of ablation score where there are some."""
    scores, ablations = run.read(SCORES), _table(run, ABLATIONS)
    if ablations is None:
        return scores
    keys = ["layer", "pooling", "neuron", "explainer", "length", "simulator"]
    rows = list(zip(*(scores[key].to_pylist() for key in keys), strict=True))
    for kind in sorted(set(ablations["kind"].to_pylist())):
        mine = ablations.filter(pc.equal(ablations["kind"], kind)).select([*keys, "score"])
        known = {tuple(row[key] for key in keys): row["score"] for row in mine.to_pylist()}
        column = pa.array([known.get(row) for row in rows], pa.float64())
        scores = scores.append_column(f"ablation_{kind}", column)
    return scores


class SharedRows:
    """Rows of what an explainer's concept scores are made from, read where they are asked for.

    Rows of embeddings are kept, since they serve every sharpness: an atlas asks for the same ten
    thousand or so each time.
    """

    def __init__(
        self,
        folder: Folder,
        shards: Shards,
        source: ScoreSource,
        sizes: Sequence[int],
        concepts: int,
    ) -> None:
        self.folder, self.source = folder, source
        self.shape = (sum(sizes), concepts)
        self._shards = shards
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._kept: dict[bytes, np.ndarray] = {}

    def read(self, rows: np.ndarray, concepts: np.ndarray) -> np.ndarray:
        """Embeddings of ascending rows, or their stored scores of some concepts."""
        if self.source.texts is None:
            return self._read(rows, concepts)
        key = rows.tobytes()
        if key not in self._kept:
            self._kept[key] = self._read(rows, None)
        return self._kept[key]

    def _read(self, rows: np.ndarray, concepts: np.ndarray | None) -> np.ndarray:
        cuts = np.searchsorted(rows, self._starts)
        reads = [
            (number, rows[start:stop] - self._starts[number])
            for number, (start, stop) in enumerate(pairwise(cuts.tolist()))
            if stop > start
        ]
        calls = [
            (self.folder, self._shards, self.source, reads[start : start + LANE], concepts)
            for start in range(0, len(reads), LANE)
        ]
        pieces = dict(run_tasks(_read_values, calls))
        return np.concatenate([pieces[position] for position in range(len(calls))])


@dataclass(frozen=True)
class ConceptScores:
    """Concept scores of an explainer at one sharpness: a matrix of which parts are read."""

    rows: SharedRows
    factor: float

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of images and of concepts."""
        return self.rows.shape

    def __getitem__(self, places: tuple[np.ndarray, ...]) -> np.ndarray:
        """``scores[np.ix_(rows, concepts)]`` for ascending rows, float32."""
        rows, concepts = (np.ravel(place) for place in places)
        values = self.rows.read(rows, concepts)
        source = self.rows.source
        # Stored scores come with the concepts picked already.
        picked = None if source.texts is None else concepts
        return source.scores(source.levels(self.rows.folder, values, picked), self.factor)


def _read_values(
    folder: Folder,
    shards: Shards,
    source: ScoreSource,
    reads: Sequence[tuple[int, np.ndarray]],
    concepts: np.ndarray | None,
) -> np.ndarray:
    pieces = []
    for number, inside in reads:
        part = read_rows(folder, shards, number, source.parts[number], [source.column])
        values = part[source.column][inside]
        pieces.append(values if concepts is None else values[:, concepts])
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
            ["url", "offset", "length", "stamp"]
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
            name: _version(name)
            for name in ("neuroscribe", "torch", "ray", "timm", "open_clip_torch", "pyarrow")
        },
        "command": f"neuroscribe run CONFIG.yaml --out {run.folder.url}",
        "seconds": {name: stage["seconds"] for name, stage in stages.items() if "seconds" in stage},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # sent along with a job, not installed
        return "not installed"
