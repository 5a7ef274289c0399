"""How fast this machine is at what a run does: each kind of work tried for a moment on real images.

Images are decoded, the target and every vision-language model record a few batches as recording actors do,
and the algebra of the later stages is timed on one thread. Nothing is written but to memory.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse
import torch
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from actors.clip import load_clip
from actors.decode import Decoder
from actors.recorder import AUTO_BATCH
from core.concept_scores import HIGHEST, concept_logits, sharpened
from core.correlation import explanation_correlations
from core.errors import SourceError
from core.moment_sums import MomentSum
from core.moments import ConceptMoments, CrossMoments
from core.sharpness import Sharpness
from pipeline.columns import vectors
from pipeline.engine import Workers
from pipeline.expected import ACTIVATIONS, embeddings_table
from pipeline.fetching import fetch
from pipeline.fit import blocks_to_fit, explanation_rows
from pipeline.fit_config import FitConfig
from pipeline.plan import ClipPlan, Plan
from pipeline.shards import RecordShard
from pipeline.sources_parquet import ParquetRows
from pipeline.storage import Folder
from pipeline.stream import decoded_tables, models_of

#: Batches of images that are decoded, and seconds after which a model is given no further one.
BATCHES_TRIED, MODEL_SECONDS = 3, 2.5

#: Columns, rows, neurons and concepts of the arrays that algebra is timed on.
WIDTH, ROWS, NEURONS, CONCEPTS = 512, 2048, 24, 256

#: Texts that are embedded to time a text tower.
TEXTS = 256


@dataclass(frozen=True)
class Pace:
    """Seconds on this machine; of one thread where nothing else is said."""

    device: str
    cores: int
    load: float
    """Seconds to load the models that record, which a recording actor does once."""
    decode: float
    """An image, laid out for all models."""
    open: float
    """An image fetched and decoded alone."""
    models: dict[str, float]
    """An image with all threads, by the table that a model makes."""
    row_bytes: dict[str, float]
    """Bytes on disk of an image, by table."""
    parameters: int
    """Bytes of all models."""
    text: dict[str, float]
    """A concept text with all threads, by explainer."""
    active: dict[str, float]
    """Share of an explainer's concepts that are probably active."""
    product: float
    """A multiplication and addition of the moments."""
    logit: float
    """A concept score of an image, made from embeddings."""
    sharpen: float
    """A concept score of an image at another sharpness."""
    store: float
    """A concept score written."""
    stored_bytes: float
    """Bytes on disk of a concept score."""
    read: float
    """A row of activations and embeddings read."""
    search: float
    """A search of all lengths for a neuron, for each concept."""
    score: float
    """An explanation on a test image, with its interval."""


def measure(plan: Plan, device: str, dtype: str) -> Pace:
    """Try everything for a moment.

    Args:
        plan: What will be done.
        device: Where models will record, `cpu` or `cuda`.
        dtype: Number format that they will record in.
    """
    cores = os.cpu_count() or 1
    models = models_of(plan, decoded_tables(plan))
    wanted = plan.config.target.batch_size
    batch = AUTO_BATCH[device] if wanted == "auto" else wanted
    rows = plan.index.spread(BATCHES_TRIED * batch)
    opened, _ = _decoded(rows, {})
    decode, views = _decoded(rows, models.views)
    folder = Folder(f"memory://neuroscribe-pace-{secrets.token_hex(6)}")
    workers = Workers(actors=1, gpus=1.0 if device == "cuda" else 0.0, per_node=1)
    compiled = plan.config.recordings.compile
    begun = time.perf_counter()
    shard = RecordShard(
        folder, models.targets, models.clips, workers, dtype, wanted, compiled=compiled
    )
    load = time.perf_counter() - begun
    seconds, sizes, embeddings, read = {}, {}, {}, 0.0
    for table in decoded_tables(plan)[1:]:
        seconds[table], columns = _recorded(partial(shard.columns, table), views, batch)
        count = len(next(iter(columns.values())))
        ids = pa.chunked_array([[row["image_id"] for row in rows[:count]]])
        sizes[table] = shard.write("sample.parquet", ids, columns) / count
        if table == ACTIVATIONS:
            read = _timed(partial(folder.read_table, "sample.parquet")) / count
        else:
            embeddings[table] = columns["embedding"]
    parameters = sum(recorder.weight_bytes for recorder in shard.recorders.values())
    del shard
    texts, active = {}, {}
    for explainer in plan.explainers:
        if explainer.kind == "open_clip":
            clip = plan.clips[explainer.name]
            seen = embeddings[embeddings_table(explainer.name)]
            texts[explainer.name], active[explainer.name] = _texts(
                explainer.concepts, seen, clip, plan.index.split_counts["train"]
            )
    with threadpool_limits(1):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            algebra = _algebra(plan.config.fit.resolved, folder)
        finally:
            torch.set_num_threads(threads)
    folder.delete("sample.parquet")
    return Pace(
        device=device,
        cores=cores,
        load=load,
        decode=decode,
        open=opened,
        models=seconds,
        row_bytes=sizes,
        parameters=parameters,
        text=texts,
        active=active,
        read=read,
        **algebra,
    )


def _decoded(rows: Sequence[dict[str, Any]], wanted: Any) -> tuple[float, dict[str, np.ndarray]]:
    """Seconds an image, and the views of those that can be used, filled up to as many as asked."""
    with closing(ParquetRows()) as opened:
        decoder = Decoder(wanted, partial(fetch, rows=opened))
        decoder(rows[:1])
        begun = time.perf_counter()
        decoded = decoder(rows)
        seconds = (time.perf_counter() - begun) / len(rows)
    good = [pixels for reason, pixels in decoded if reason is None]
    if not good:
        reasons = sorted({str(reason) for reason, _ in decoded})
        raise SourceError(
            f"none of {len(rows)} images that were tried can be used ({', '.join(reasons)}); 'neuroscribe "
            "doctor CONFIG.yaml' looks at the first one"
        )
    filled = [good[number % len(good)] for number in range(len(rows))]
    return seconds, {key: np.stack([pixels[key] for pixels in filled]) for key in wanted}


def _timed(work: Callable[[], Any]) -> float:
    """Seconds that something takes, the better of two tries."""
    found = []
    for _ in range(2):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return min(found)


def _recorded(
    record: Callable[[dict[str, np.ndarray]], tuple[dict[str, np.ndarray], int]],
    views: dict[str, np.ndarray],
    size: int,
) -> tuple[float, dict[str, np.ndarray]]:
    """Seconds of an image, and what a model makes of as many images as there is time for."""
    # The first batch lays out memory and chooses kernels.
    record({key: values[:1] for key, values in views.items()})
    parts = []
    begun = time.perf_counter()
    for start in range(0, len(next(iter(views.values()))), size):
        parts.append(
            record({key: values[start : start + size] for key, values in views.items()})[0]
        )
        spent = time.perf_counter() - begun
        if spent > MODEL_SECONDS:
            break
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return spent / len(next(iter(columns.values()))), columns


def _texts(
    concepts: Sequence[str], images: np.ndarray, clip: ClipPlan, train: int
) -> tuple[float, float]:
    """Seconds a text, and the share of concepts that are probably active on so many images."""
    some = list(concepts)[:: max(1, len(concepts) // TEXTS)][:TEXTS]
    model = load_clip(clip.model, base=clip.base)
    model.encode_texts(some[:1])
    begun = time.perf_counter()
    embedded = model.encode_texts(some)
    seconds = (time.perf_counter() - begun) / len(some)
    logits = concept_logits(images, embedded, clip.slope, clip.shift)
    return seconds, max(likely_active(logits, train), 1 / len(concepts))


def likely_active(logits: Float[np.ndarray, "images concepts"], images: int) -> float:
    """Share of concepts that are probably active on many images, from the logits on a few of them.

    A concept is active where its five highest scores average to a half or more. Those of many images are
    foretold from mean and spread of the few, as if the logits of all concepts had one shape: a few images
    of many concepts say more of its tail than of one.

    Args:
        logits: Of concept scores, on a few images.
        images: How many there are.
    """
    mean, spread = logits.mean(axis=0), logits.std(axis=0)
    share = min(0.5, HIGHEST / 2 / max(images, HIGHEST))
    reach = np.quantile((logits - mean) / np.maximum(spread, 1e-12), 1 - share)
    foretold = mean + reach * spread
    seen = np.sort(logits, axis=0)[-HIGHEST:].mean(axis=0)
    return float((np.maximum(foretold, seen) >= 0).mean())


def _algebra(settings: FitConfig, folder: Folder) -> dict[str, float]:
    """What the stages after recording compute, on made numbers and one thread."""
    rng = np.random.default_rng(0)
    scores = rng.random((ROWS, WIDTH), dtype=np.float32)
    sums = MomentSum(WIDTH, WIDTH)
    sums.add(scores[:64], scores[:64])
    product = _timed(lambda: sums.add(scores, scores)) / (ROWS * WIDTH**2)
    images, texts = rng.standard_normal((256, 256)), rng.standard_normal((WIDTH, 256))
    logit = _timed(lambda: concept_logits(images, texts, 10.0, -0.1)) / (256 * WIDTH)
    sharpen = _timed(lambda: sharpened(scores, Sharpness(0.5))) / scores.size
    half = vectors(np.square(scores[:256]).astype(np.float16))
    written = folder.write_table("scores.parquet", pa.table({"score": half}))
    store = _timed(lambda: folder.write_table("scores.parquet", pa.table({"score": half})))
    folder.delete("scores.parquet")
    return {
        "product": product,
        "logit": logit,
        "sharpen": sharpen,
        "store": store / (256 * WIDTH),
        "stored_bytes": written / (256 * WIDTH),
        "search": _search(settings, rng),
        "score": _score(rng),
    }


def _search(settings: FitConfig, rng: np.random.Generator) -> float:
    """Seconds to fit a neuron, all folds together, for each concept."""
    scores = rng.random((1024, CONCEPTS), dtype=np.float32)
    weights = rng.standard_normal((CONCEPTS, NEURONS)) * (rng.random((CONCEPTS, NEURONS)) < 0.05)
    activations = (scores @ weights + rng.standard_normal((1024, NEURONS))).astype(np.float32)
    names = [f"train-{fold}" for fold in range(max(1, settings.folds))] + ["val"]
    pieces = dict(zip(names, np.array_split(np.arange(1024), len(names)), strict=True))
    concepts = {name: ConceptMoments.of(scores[rows]) for name, rows in pieces.items()}
    cross = {name: CrossMoments.of(scores[r], activations[r]) for name, r in pieces.items()}
    first: Any = blocks_to_fit(concepts)
    second: Any = blocks_to_fit(cross)
    texts = [f"concept {number}" for number in range(CONCEPTS)]
    seconds = _timed(lambda: explanation_rows(first, second, texts, settings))
    return seconds / (NEURONS * CONCEPTS)


def _score(rng: np.random.Generator) -> float:
    """Seconds to score an explanation on an image."""
    images, explanations = 1024, 240
    terms = rng.random((CONCEPTS, images))
    actual = rng.random((images, explanations // 10), dtype=np.float32)
    weights = scipy.sparse.random_array(
        (explanations, CONCEPTS), density=5 / CONCEPTS, format="csr", rng=rng
    )
    of = np.repeat(np.arange(explanations // 10), 10)
    seconds = _timed(lambda: explanation_correlations(actual, weights, terms, of))
    return seconds / (explanations * images)
