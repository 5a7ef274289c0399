"""How long an explanation should be, and in which order its terms are read."""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Float, Int

from core.moments import ConceptMoments, CrossMoments, check_same_concepts
from core.normal_equations import inner, quadratic_form
from core.paths import Paths, selected_gram

_BLOCK: Final = 8192


def path_correlations(
    paths: Paths, concepts: ConceptMoments, cross: CrossMoments
) -> Float[np.ndarray, "neurons max_length"]:
    """Pearson correlation of each explanation's prediction with its neuron, from moments.

    Args:
        paths: Explanations, fitted on any images.
        concepts: Moments of the images on which the correlation is wanted.
        cross: Moments of the same images with the neurons' activations.

    Returns:
        Correlation of each length; NaN where no explanation of that length exists, or where the
        neuron or the prediction does not vary on these images.

    Raises:
        ShapeError: Moments that were not taken of the same images and concepts.
    """
    check_same_concepts(concepts, cross)
    out = np.full(paths.bias.shape, np.nan)
    for start in range(0, len(out), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(out)))
        terms = paths.concepts[rows].T
        gram = selected_gram(terms, concepts.scatter)
        covariance = cross.cross[terms, rows]
        for k in range(1, paths.concepts.shape[1] + 1):
            exists = paths.available[rows] >= k
            out[rows[exists], k - 1] = correlation_of_weights(
                paths.weights[rows][exists, k - 1, :k].T,
                gram[:k, :k][..., exists],
                covariance[:k, exists],
                cross.neuron_scatter[rows][exists],
            )
    return out


def correlation_of_weights(
    weights: Float[np.ndarray, "terms problems"],
    gram: Float[np.ndarray, "terms terms problems"],
    covariance: Float[np.ndarray, "terms problems"],
    neuron_scatter: Float[np.ndarray, " problems"],
) -> Float[np.ndarray, " problems"]:
    """Pearson correlation of weighted sums of concept scores with activations, from moments.

    Args:
        weights: Weight of each term.
        gram: Centred sums of products of the terms' concept scores.
        covariance: Centred sums of products of the terms' concept scores and the activation.
        neuron_scatter: Centred sum of squares of the activation.

    Returns:
        Correlations in [-1, 1]; NaN where either side does not vary.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        shared = inner(weights, covariance)
        predicted = quadratic_form(gram, weights)
        # Where the terms cancel, what is left of the prediction's scatter is rounding.
        largest = sum(w**2 * gram[k, k] for k, w in enumerate(weights))
        varies = (predicted > 1e-14 * largest) & (neuron_scatter > 0)
        correlation = shared / np.sqrt(predicted * neuron_scatter)
    return np.clip(np.where(varies, correlation, np.nan), -1.0, 1.0)


def choose_lengths(
    val_correlation: Float[np.ndarray, "neurons max_length"],
    tolerance: float,
    available: Int[np.ndarray, " neurons"] | None = None,
) -> Int[np.ndarray, " neurons"]:
    """The shortest explanation that is nearly as good on validation as the best of its path.

    Args:
        val_correlation: Validation correlation of each length, NaN where it is undefined.
        tolerance: Correlation that may be given up for a shorter explanation.
        available: Number of lengths of each neuron; without it, undefined lengths do not exist.

    Returns:
        Chosen lengths, from 1. Where no length has a correlation: 1 if that length exists, else 0.
    """
    defined = np.isfinite(val_correlation)
    correlation = np.where(defined, val_correlation, -np.inf)
    best = correlation.max(axis=1, initial=-np.inf)
    near = defined & (correlation >= best[:, None] - tolerance)
    fallback = np.zeros(len(best), dtype=np.int64)
    if available is not None:
        fallback = np.minimum(available, 1).astype(np.int64)
    if not near.shape[1]:
        return fallback
    return np.where(near.any(axis=1), near.argmax(axis=1) + 1, fallback)


def term_order(
    weights: Float[np.ndarray, " terms"], concept_std: Float[np.ndarray, " terms"]
) -> Int[np.ndarray, " terms"]:
    """Positions of the terms by how much they move the prediction, most first.

    A term moves the prediction by |weight| times the standard deviation of its concept score;
    equal terms keep their order.
    """
    return np.argsort(-np.abs(weights) * concept_std, kind="stable")
