"""Concept scores from embeddings, and which concepts occur at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Shaped

from core.errors import ShapeError
from core.products import LEFT_TILE, RIGHT_TILE, centred_columns, padded, product_of_tiles
from core.sharpness import NATIVE, Sharpness

HIGHEST: Final = 5
"""How many of a concept's highest scores decide whether it occurs in the images."""

_CACHED: Final = 16_384
"""Scores that are made at once: in float64 they stay in the processor's cache."""


def sigmoid_scores(
    image_embeddings: Shaped[np.ndarray, "images d"],
    text_embeddings: Shaped[np.ndarray, "concepts d"],
    slope: float,
    shift: float,
) -> Float[np.ndarray, "images concepts"]:
    """Probability that each concept is in each image: ``σ(slope · (cos + shift))``.

    Args:
        image_embeddings: Embeddings of images, of any norm and real type.
        text_embeddings: Embeddings of concept texts by the same model.
        slope: Calibration ``a`` of the model.
        shift: Calibration ``b`` of the model, in units of the cosine.

    Returns:
        Scores in [0, 1], float32. An image's scores are the same whatever images are beside it;
        an embedding that is zero or not finite gives NaN.

    Raises:
        ShapeError: Embeddings of different dimension.

    Source:
        X. Zhai et al., *Sigmoid Loss for Language Image Pre-Training*, ICCV 2023.
    """
    return sharpened(concept_logits(image_embeddings, text_embeddings, slope, shift))


def sharpened(
    logits: Float[np.ndarray, "images concepts"], sharpness: Sharpness = NATIVE
) -> Float[np.ndarray, "images concepts"]:
    """Scores ``σ(factor · logit + shift)``: a factor below 1 softens, one above 1 sharpens.

    Without a shift a score of one half stays one half; a shift above 0 raises all scores. Scores are
    computed in float64 and rounded once, so that a GPU makes the same ones.

    Args:
        logits: As `concept_logits` makes them; not changed.
        sharpness: Factor and shift.

    Returns:
        Scores in [0, 1], float32; NaN where a logit is.
    """
    scores = np.empty(logits.shape, dtype=np.float32)
    given, made = np.ascontiguousarray(logits).reshape(-1), scores.reshape(-1)
    room = np.empty(_CACHED)
    with np.errstate(over="ignore"):  # of a score that is zero
        for start in range(0, len(given), _CACHED):
            piece = slice(start, start + _CACHED)
            values = room[: len(given[piece])]
            np.multiply(given[piece], -sharpness.factor, out=values, dtype=np.float64)
            values -= sharpness.shift
            np.exp(values, out=values)
            values += 1.0
            np.divide(1.0, values, out=made[piece], casting="same_kind")
    return scores


def concept_logits(
    image_embeddings: Shaped[np.ndarray, "images d"],
    text_embeddings: Shaped[np.ndarray, "concepts d"],
    slope: float,
    shift: float,
) -> Float[np.ndarray, "images concepts"]:
    """Logits ``slope · (cos + shift)`` of concept scores, float32; see `sigmoid_scores`.

    Raises:
        ShapeError: Embeddings of different dimension.
    """
    if image_embeddings.shape[1:] != text_embeddings.shape[1:]:
        raise ShapeError(
            f"image embeddings of shape {image_embeddings.shape} and text embeddings of shape "
            f"{text_embeddings.shape}; both must come from one model"
        )
    images, concepts = len(image_embeddings), len(text_embeddings)
    texts = padded(_normalised(text_embeddings).T, LEFT_TILE)
    logits = np.empty((images, concepts), dtype=np.float32)
    for start in range(0, images, RIGHT_TILE):
        part = image_embeddings[start : start + RIGHT_TILE]
        images_of_part = padded(_normalised(part).T, RIGHT_TILE)
        cosine = product_of_tiles(texts, images_of_part, (concepts, len(part)))
        cosine += shift
        cosine *= slope
        logits[start : start + RIGHT_TILE] = cosine.T
    return logits


def _normalised(embeddings: Shaped[np.ndarray, "rows d"]) -> Float[np.ndarray, "rows d"]:
    values = embeddings.astype(np.float64, order="C")
    with np.errstate(invalid="ignore", divide="ignore"):
        values /= np.sqrt(np.square(values).sum(axis=1, keepdims=True))
    return values


@dataclass(frozen=True, slots=True, eq=False)
class ConceptActivity:
    """How much each concept's score varies and how high it gets; adds up over shards."""

    count: int
    """Number of images."""
    mean: Float[np.ndarray, " concepts"]
    scatter: Float[np.ndarray, " concepts"]
    """Centred sums of squares of the scores."""
    top: Float[np.ndarray, "5 concepts"]
    """Highest scores of each concept, descending; -inf where there are fewer images."""

    @classmethod
    def of(cls, scores: Shaped[np.ndarray, "images concepts"]) -> ConceptActivity:
        """Activity of the concepts in one shard."""
        concepts = scores.shape[1]
        top = np.full((HIGHEST, concepts), -np.inf)
        if not len(scores):
            return cls(0, np.zeros(concepts), np.zeros(concepts), top)
        mean, centred = centred_columns(scores, RIGHT_TILE)
        scatter = np.square(centred, out=centred).sum(axis=0)[:concepts]
        kept = min(HIGHEST, len(scores))
        highest = np.partition(scores, len(scores) - kept, axis=0)[len(scores) - kept :]
        top[:kept] = np.sort(highest.astype(np.float64), axis=0)[::-1]
        return cls(len(scores), mean, scatter, top)

    def merge(self, other: ConceptActivity) -> ConceptActivity:
        """Activity in the images of both.

        Raises:
            ShapeError: Different numbers of concepts.
        """
        if self.mean.shape != other.mean.shape:
            raise ShapeError(
                f"activity of {len(self.mean)} and of {len(other.mean)} concepts cannot be added; "
                "expected one concept list"
            )
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        shift = other.mean - self.mean
        return type(self)(
            count,
            self.mean + shift * (other.count / count),
            self.scatter + other.scatter + shift**2 * (self.count * other.count / count),
            np.sort(np.concatenate([self.top, other.top]), axis=0)[::-1][:HIGHEST],
        )

    def active(
        self, min_top_mean: float = 0.5, min_std: float = 1e-5
    ) -> Bool[np.ndarray, " concepts"]:
        """Concepts that occur in these images: only they can explain anything.

        Args:
            min_top_mean: Least mean over the five highest scores.
            min_std: Least population standard deviation of the scores.
        """
        if not self.count:
            return np.zeros(len(self.mean), dtype=bool)
        top_mean = self.top[: min(HIGHEST, self.count)].mean(axis=0)
        std = np.sqrt(self.scatter / self.count)
        return np.asarray((top_mean >= min_top_mean) & (std >= min_std))
