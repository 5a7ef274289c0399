"""Made concept scores and neurons in the likeness of recorded ones, and stopwatches: for benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from core.moment_sums import MomentSum
from core.moments import ConceptMoments, CrossMoments

SHARD = 4096
CAUSES, SYNONYMS, TERMS, NOISE = 192, 4, 8, 2.0

Pair = tuple[ConceptMoments, CrossMoments]


class World:
    """Concepts and neurons from which any number of images can be drawn, the same ones every time."""

    def __init__(self, concepts: int, neurons: int) -> None:
        rng = np.random.default_rng(0)
        decay = 1 / np.sqrt(1 + np.arange(CAUSES) / 8)
        common = rng.standard_normal((-(-concepts // SYNONYMS), CAUSES)) * decay
        own = rng.standard_normal((concepts, CAUSES)) * decay
        loadings = np.repeat(common, SYNONYMS, axis=0)[:concepts] + 0.5 * own
        loadings *= 1.8 / np.linalg.norm(loadings, axis=1, keepdims=True)
        self.loadings = loadings.astype(np.float32).T.copy()
        self.offset = (rng.standard_normal(concepts) - 7).astype(np.float32)
        self.support = np.stack(
            [rng.choice(concepts, TERMS, replace=False) for _ in range(neurons)]
        )
        self.weights = rng.uniform(0.5, 2.0, self.support.shape) * rng.choice([-1, 1, 1], TERMS)

    def shard(self, number: int, images: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
        """Scores and activations of the images of one shard, float32."""
        rng = np.random.default_rng((1, number))
        causes = rng.standard_normal((images, CAUSES), dtype=np.float32)
        logits = causes @ self.loadings + self.offset
        logits += 0.3 * rng.standard_normal(logits.shape, dtype=np.float32)
        logits *= factor
        scores = 1 / (1 + np.exp(-logits))
        size = scores[:512].std(axis=0)
        q = np.zeros((images, len(self.support)), dtype=np.float32)
        for concept, weight in zip(self.support.T, self.weights.T, strict=True):
            q += scores[:, concept] / size[concept] * weight.astype(np.float32)
        q += NOISE * q.std(axis=0) * rng.standard_normal(q.shape, dtype=np.float32)
        return scores, q

    def shards(self, size: Any, factor: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Shards of the training images, the last one cut short, then of the validation images."""
        number = 0
        for images in (size.images, size.val):
            for start in range(0, images, SHARD):
                yield self.shard(number, min(SHARD, images - start), factor)
                number += 1


def summed(scores: np.ndarray, activations: np.ndarray) -> Pair:
    """Moments of images, shard by shard."""
    gram = MomentSum(scores.shape[1])
    cross = MomentSum(scores.shape[1], activations.shape[1])
    for start in range(0, len(scores), SHARD):
        rows = slice(start, start + SHARD)
        gram.add(scores[rows])
        cross.add(scores[rows], activations[rows])
    return ConceptMoments.from_sum(gram), CrossMoments.from_sum(cross)


def some(train: Pair, neurons: int, concepts: int | None = None) -> Pair:
    """Moments of the first neurons and concepts, laid out as a run reads them."""
    kept = np.arange(concepts or len(train[0].mean))
    cross = train[1].take_neurons(slice(0, neurons)).select(kept)
    return (train[0].select(kept) if concepts else train[0]), cross


def alternating(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, one figure a round; a first round is not counted."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - begun)
    return {name: values[1:] for name, values in found.items()}


def spread(values: list[float], scale: float = 1.0, digits: int = 4) -> list[float]:
    """Median, least and greatest."""
    found = (statistics.median(values), min(values), max(values))
    return [round(value * scale, digits) for value in found]
