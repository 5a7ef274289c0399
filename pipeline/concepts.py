"""The concepts stage: recordings → concept scores of every explainer, and which concepts are active.

Concept scores of vision-language models come from stored image embeddings, so that a new concept
list or calibration needs no image. Parts follow the shards of the images table, row for row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from actors.clip import load_clip
from core.concept_scores import ConceptActivity, sigmoid_scores
from core.errors import ConceptError
from pipeline.columns import matrix, vectors
from pipeline.engine import run_tasks
from pipeline.fingerprints import fingerprint
from pipeline.plan import ClipPlan, ExplainerPlan, Plan
from pipeline.progress import Progress
from pipeline.rundir import Run, part_name
from pipeline.shards import IMAGES, embeddings_table, table_path
from pipeline.storage import Folder

CONCEPTS = "concepts"

#: Shards that one task works through.
LANE = 16


def scores_table(explainer: str) -> str:
    """Name of the table of an explainer's concept scores."""
    return f"concept_scores/{explainer}"


def score_concepts(run: Run, plan: Plan, recorded: Mapping[str, str]) -> dict[str, str]:
    """Score every concept on every image and find the active concepts.

    Args:
        run: With committed recordings.
        plan: The run's plan.
        recorded: Fingerprints of the tables of recordings.

    Returns:
        Fingerprints of the tables of concept scores and of `concepts`.

    Raises:
        ConceptError: An explainer has no active concept, or a table lacks an image.
    """
    made: dict[str, str] = {}
    with run.stage("concepts") as facts:
        facts["rows"] = facts["bytes"] = 0
        for explainer in plan.explainers:
            parts = _part_fingerprints(run, plan, explainer)
            table = scores_table(explainer.name)
            made[table] = fingerprint(table, parts)
            if not run.is_fresh(table, made[table]):
                _score(run, plan, explainer, parts, facts)
                run.commit(table, table_path(table), made[table], run.entry(IMAGES).rows)
        made[CONCEPTS] = fingerprint(CONCEPTS, recorded[IMAGES], made)
        if not run.is_fresh(CONCEPTS, made[CONCEPTS]):
            rows = [_activity_rows(run, explainer) for explainer in plan.explainers]
            run.write(CONCEPTS, "concepts.parquet", pa.concat_tables(rows), made[CONCEPTS])
    return made


def _part_fingerprints(run: Run, plan: Plan, explainer: ExplainerPlan) -> list[str]:
    """What each shard's part of an explainer's concept scores is made from."""
    if explainer.kind != "open_clip":
        return [fingerprint(name, explainer.fingerprint) for name in run.parts(IMAGES)]
    clip = plan.clips[explainer.name]
    facts = (clip.fingerprint, explainer.fingerprint, clip.slope, clip.shift)
    return [fingerprint(name, *facts) for name in run.parts(embeddings_table(explainer.name))]


def _score(
    run: Run, plan: Plan, explainer: ExplainerPlan, parts: Sequence[str], facts: dict[str, Any]
) -> None:
    path = table_path(scores_table(explainer.name))
    run.withdraw(scores_table(explainer.name))
    names = [part_name(path, number, made_from) for number, made_from in enumerate(parts)]
    there = set(run.part_files(path))
    pending = [n for n, name in enumerate(names) if name.rsplit("/", 1)[-1] not in there]
    images = run.parts(IMAGES)
    if explainer.kind == "open_clip":
        clip = plan.clips[explainer.name]
        texts = embed_texts(run, clip, explainer.concepts)
        embeddings = run.parts(embeddings_table(explainer.name))
        calls: list[tuple[Any, ...]] = [
            (run.folder, [(embeddings[n], names[n]) for n in lane], texts, clip.slope, clip.shift)
            for lane in lanes(pending)
        ]
        task: Any = _score_embeddings
    else:
        source = ray.put(_image_scores(plan, explainer))
        calls = [
            (run.folder, [(images[n], names[n]) for n in lane], source) for lane in lanes(pending)
        ]
        task = _score_images
    progress = Progress(f"concepts {explainer.name}", len(names), "shards")
    progress.resume_from(len(names) - len(pending))
    for position, (rows, written) in run_tasks(task, calls):
        facts["rows"] += rows
        facts["bytes"] += written
        progress.advance(len(calls[position][1]))
    progress.close()
    run.prune(path, names)


def lanes(numbers: Sequence[int]) -> list[Sequence[int]]:
    """Consecutive shards in groups of a fixed size, whatever the workers."""
    return [numbers[start : start + LANE] for start in range(0, len(numbers), LANE)]


class ImageScores:
    """Concept scores that are known of an image beforehand, looked up by its id."""

    def __init__(self, image_ids: Sequence[str], scores: np.ndarray, where: str) -> None:
        self.rows = {image_id: row for row, image_id in enumerate(image_ids)}
        self.scores, self.where = scores, where

    def of(self, image_ids: Sequence[str]) -> np.ndarray:
        """Scores of these images (images, concepts).

        Raises:
            ConceptError: An image is not listed.
        """
        missing = [image_id for image_id in image_ids if image_id not in self.rows]
        if missing:
            raise ConceptError(
                f"{self.where} has no row for image {missing[0]!r}; every image used needs one"
            )
        return self.scores[[self.rows[image_id] for image_id in image_ids]]


def _image_scores(plan: Plan, explainer: ExplainerPlan) -> ImageScores:
    image_ids = plan.index.rows["image_id"].to_pylist()
    if explainer.labels is not None:
        labels = plan.index.rows["label"].to_pylist()
        return ImageScores(image_ids, explainer.labels.scores(labels).astype(np.float16), "labels")
    assert explainer.columns is not None
    if explainer.path is None:
        table, where = plan.index.attributes, "the manifest"
    else:
        table, where = pq.read_table(explainer.path), f"table {explainer.path!r}"
        image_ids = table["image_id"].to_pylist()
        if len(set(image_ids)) < len(image_ids):
            raise ConceptError(f"{where} has an image_id more than once; keep one row for each")
    columns = [table[name].to_numpy().astype(np.float32) for name in explainer.columns]
    scores = np.stack(columns, axis=1).astype(np.float16)
    if not np.isfinite(scores).all():
        column = explainer.columns[int(np.argmin(np.isfinite(scores).all(axis=0)))]
        raise ConceptError(f"{where} has values that are missing or infinite in {column!r}")
    return ImageScores(image_ids, scores, where)


def _score_images(
    folder: Folder, jobs: Sequence[tuple[str, str]], source: ImageScores
) -> tuple[int, int]:
    rows = written = 0
    for images, name in jobs:
        image_ids = folder.read_table(images, ["image_id"])["image_id"]
        scores = source.of(image_ids.to_pylist())
        content = pa.table({"image_id": image_ids, "score": vectors(scores)})
        written += folder.write_table(name, content)
        rows += len(scores)
    return rows, written


def _score_embeddings(
    folder: Folder, jobs: Sequence[tuple[str, str]], texts: str, slope: float, shift: float
) -> tuple[int, int]:
    rows = written = 0
    text_embeddings = folder.read_arrays(texts)["embedding"]
    for embeddings, name in jobs:
        table = folder.read_table(embeddings)
        scores = sigmoid_scores(matrix(table["embedding"]), text_embeddings, slope, shift)
        content = pa.table(
            {"image_id": table["image_id"], "score": vectors(scores.astype(np.float16))}
        )
        written += folder.write_table(name, content)
        rows += len(scores)
    return rows, written


def embed_texts(run: Run, clip: ClipPlan, texts: Sequence[str]) -> str:
    """Embed concept texts with a model's text tower, once for each list and model.

    Returns:
        Name of the npz file in the run that holds `embedding` (texts, d) float32.
    """
    name = f"recordings/texts/{fingerprint('texts', clip.fingerprint, list(texts))}.npz"
    if not run.folder.exists(name):
        calls = [(run.folder, name, clip, list(texts))]
        for _ in run_tasks(_embed_texts, calls):
            pass
    return name


def _embed_texts(folder: Folder, name: str, clip: ClipPlan, texts: Sequence[str]) -> None:
    model = load_clip(clip.model, base=clip.base)
    folder.write_arrays(name, embedding=model.encode_texts(list(texts)))


def _activity_rows(run: Run, explainer: ExplainerPlan) -> pa.Table:
    """The explainer's rows of the concepts table; activity is judged on training images alone."""
    jobs = list(zip(run.parts(IMAGES), run.parts(scores_table(explainer.name)), strict=True))
    calls = [(run.folder, [jobs[n] for n in lane]) for lane in lanes(range(len(jobs)))]
    activities = dict(run_tasks(_activity, calls))
    total: ConceptActivity = activities[0]
    for position in range(1, len(calls)):
        total = total.merge(activities[position])
    active = total.active()
    if not active.any():
        raise ConceptError(
            f"explainer {explainer.name!r}: none of its {len(active):,} concepts is active on the "
            f"{total.count:,} training images (mean of the 5 highest scores at least 0.5); "
            "check the concept list, the calibration, and that the model knows such images"
        )
    return pa.table(
        {
            "explainer": [explainer.name] * len(active),
            "position": pa.array(range(len(active)), pa.int32()),
            "concept": explainer.concepts,
            "active": active,
            "train_mean": total.mean,
            "train_std": np.sqrt(total.scatter / total.count),
        }
    )


def _activity(folder: Folder, jobs: Sequence[tuple[str, str]]) -> ConceptActivity:
    total: ConceptActivity | None = None
    for images, scores in jobs:
        part = ConceptActivity.of(read_split(folder, images, scores, "score", "train"))
        total = part if total is None else total.merge(part)
    assert total is not None
    return total


def read_split(folder: Folder, images: str, table: str, column: str, split: str) -> np.ndarray:
    """The rows of one split in one part of a table, as a matrix."""
    wanted = folder.read_table(images, ["split"])["split"].to_numpy() == split
    rows: np.ndarray = matrix(folder.read_table(table, [column])[column])[wanted]
    return rows
