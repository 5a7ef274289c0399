"""The concepts stage: recordings → concept scores of every explainer, and which concepts are active.

Concept scores of vision-language models come from stored image embeddings, so that a new concept
list or calibration needs no image. Parts follow the shards of the images table, row for row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from core.concept_scores import ConceptActivity, sigmoid_scores
from core.errors import ConceptError, ConfigError, RecordingError
from pipeline.columns import matrix, vectors
from pipeline.concept_lists import provenance
from pipeline.engine import run_tasks
from pipeline.expected import (
    CONCEPT_LISTS,
    CONCEPTS,
    IMAGES,
    Expected,
    embeddings_table,
    scores_table,
)
from pipeline.explainers import ExplainerPlan, ImageScores, image_scores
from pipeline.fingerprints import fingerprint
from pipeline.plan import ClipPlan, Plan
from pipeline.progress import Progress
from pipeline.rundir import Run
from pipeline.storage import Folder

#: Shards that one task works through.
LANE = 16


def score_concepts(run: Run, plan: Plan, expected: Expected) -> None:
    """Score every concept on every image, find the active concepts, and commit their tables.

    Raises:
        ConceptError: An explainer has no active concept.
    """
    with run.stage("concepts") as facts:
        facts["rows"] = facts["bytes"] = 0
        write_lists(run, plan, expected)
        score_tables(run, plan, expected, facts)
        if not run.is_fresh(CONCEPTS, expected.tables[CONCEPTS]):
            if plan.config.recordings.keep == "test":
                raise made_while_recording(CONCEPTS)
            rows = pa.concat_tables([activity_rows(run, e) for e in plan.explainers])
            run.write(CONCEPTS, "concepts.parquet", rows, expected.tables[CONCEPTS])


def write_lists(run: Run, plan: Plan, expected: Expected) -> None:
    """Say where the concepts of each explainer are from."""
    made = expected.tables.get(CONCEPT_LISTS)
    if made is not None and not run.is_fresh(CONCEPT_LISTS, made):
        rows = [
            {"explainer": e.name, **row} for e in plan.explainers for row in provenance(e.lists)
        ]
        run.write(CONCEPT_LISTS, "concept_lists.parquet", pa.Table.from_pylist(rows), made)


def score_tables(run: Run, plan: Plan, expected: Expected, facts: dict[str, Any]) -> None:
    """Score every concept on every image that is kept, and commit the tables of scores."""
    for explainer in plan.explainers:
        table = scores_table(explainer.name)
        if not run.is_fresh(table, expected.tables[table]):
            run.withdraw(table)
            _score(run, plan, explainer, expected, facts)
            rows = kept_images(run, plan, ["split"]).num_rows
            names = expected.parts[table]
            run.commit(table, expected.places[table], expected.tables[table], rows, names)


def _score(
    run: Run, plan: Plan, explainer: ExplainerPlan, expected: Expected, facts: dict[str, Any]
) -> None:
    table = scores_table(explainer.name)
    path, names = expected.places[table], expected.parts[table]
    there = set(run.part_files(path))
    pending = [n for n, name in enumerate(names) if name.rsplit("/", 1)[-1] not in there]
    if explainer.kind == "open_clip":
        clip = plan.clips[explainer.name]
        texts = embed_texts(run, clip, explainer.concepts)
        sources = run.parts(embeddings_table(explainer.name))
        shared: tuple[Any, ...] = (texts, clip.slope, clip.shift)
        task: Any = _score_embeddings
    else:
        sources = run.parts(IMAGES)
        shared = (ray.put(image_scores(plan.index, explainer)), plan.config.recordings.keep)
        task = _score_images
    calls = [
        (run.folder, [(sources[n], names[n]) for n in lane], *shared) for lane in lanes(pending)
    ]
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


def _score_images(
    folder: Folder, jobs: Sequence[tuple[str, str]], source: ImageScores, keep: str
) -> tuple[int, int]:
    rows = written = 0
    for images, name in jobs:
        image_ids = kept_rows(folder, images, keep)["image_id"]
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
        Name of the npz file in the run or its store that holds `embedding` (texts, d) float32.

    Raises:
        RecordingError: The model or its tokenizer is another on the worker than in the plan.
    """
    place = "recordings/texts" if run.store is None else f"{run.store}/texts"
    name = f"{place}/{fingerprint('texts', clip.text_fingerprint, list(texts))}.npz"
    if not run.folder.exists(name):
        calls = [(run.folder, name, clip, list(texts))]
        for _ in run_tasks(_embed_texts, calls):
            pass
    return name


def _embed_texts(folder: Folder, name: str, clip: ClipPlan, texts: Sequence[str]) -> None:
    # Which needs PyTorch; other tasks of this module do without.
    from pipeline.loading import text_model

    folder.write_arrays(name, embedding=text_model(clip).encode_texts(list(texts)))


def kept_rows(folder: Folder, images: str, keep: str) -> pa.Table:
    """Ids and splits of the images of a shard that recorded tables have rows of."""
    rows = folder.read_table(images, ["image_id", "split"])
    return rows if keep == "all" else rows.filter(pc.equal(rows["split"], keep))


def kept_images(run: Run, plan: Plan, columns: list[str] | None = None) -> pa.Table:
    """Rows of the images table that recorded tables have rows of, in their order."""
    keep = plan.config.recordings.keep
    wanted = None if columns is None else list(dict.fromkeys([*columns, "split"]))
    rows = run.read(IMAGES, wanted)
    rows = rows if keep == "all" else rows.filter(pc.equal(rows["split"], keep))
    return rows if columns is None else rows.select(columns)


def made_while_recording(table: str) -> ConfigError:
    """What to say where a stage would need images that are not kept."""
    return ConfigError(
        f"table {table!r} is missing or was made with another configuration, and with "
        "recordings.keep 'test' it can be made only while images are recorded; run the stage "
        "'record' as well (add --stage record, or leave --stage out)"
    )


def activity_rows(run: Run, explainer: ExplainerPlan) -> pa.Table:
    """The explainer's rows of the concepts table; activity is judged on training images alone."""
    jobs = list(zip(run.parts(IMAGES), run.parts(scores_table(explainer.name)), strict=True))
    calls = [(run.folder, [jobs[n] for n in lane]) for lane in lanes(range(len(jobs)))]
    return concept_rows(explainer, dict(run_tasks(_activity, calls)))


def known_activity_rows(
    plan: Plan, explainer: ExplainerPlan, unusable: Collection[str]
) -> pa.Table:
    """The same for scores that are known beforehand, on all training images of the index."""
    source = ray.put(image_scores(plan.index, explainer))
    calls = []
    for lane in lanes(range(len(plan.shards))):
        ids = []
        for shard in (plan.shards[n] for n in lane):
            rows = plan.index.rows.slice(shard.start, shard.stop - shard.start)
            train = rows.filter(pc.equal(rows["split"], "train"))["image_id"].to_pylist()
            ids.append([image_id for image_id in train if image_id not in unusable])
        calls.append((source, ids))
    return concept_rows(explainer, dict(run_tasks(_known_activity, calls)))


def _known_activity(source: ImageScores, shards: Sequence[Sequence[str]]) -> ConceptActivity:
    parts = [ConceptActivity.of(source.of(ids)) for ids in shards]
    return reduce(ConceptActivity.merge, parts)


def concept_rows(explainer: ExplainerPlan, activities: Mapping[int, ConceptActivity]) -> pa.Table:
    """Rows of the concepts table from the activity in lanes of images, merged in their order.

    Raises:
        ConceptError: No concept is active.
    """
    total = reduce(ConceptActivity.merge, (activities[n] for n in range(len(activities))))
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
        part = ConceptActivity.of(read_split(folder, images, scores, ["score"])["train"]["score"])
        total = part if total is None else total.merge(part)
    assert total is not None
    return total


def read_split(
    folder: Folder, images: str, table: str, columns: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Columns of one part of a table as matrices, by split and column.

    Raises:
        RecordingError: The part does not hold the same images as the images table.
    """
    known = folder.read_table(images, ["image_id", "split"])
    content = folder.read_table(table, ["image_id", *columns])
    if not content["image_id"].equals(known["image_id"]):
        raise RecordingError(
            f"{folder.path(table)} holds other images than {folder.path(images)}; the run directory "
            "was changed by hand or by storage that failed: record into a new one"
        )
    splits = known["split"].to_numpy()
    matrices = {column: matrix(content[column]) for column in columns}
    return {
        split: {column: values[splits == split] for column, values in matrices.items()}
        for split in ("train", "val", "test")
    }
