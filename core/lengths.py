"""How long an explanation should be, and in which order its terms are read."""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Float, Int

from core.errors import ShapeError
from core.moments import ConceptMoments, CrossMoments, check_same_concepts
from core.normal_equations import inner, quadratic_form
from core.paths import Paths, nested_selection, selected_gram

_BLOCK: Final = 8192
_LEAST_IMAGES: Final = 4


def path_correlations(
    paths: Paths, concepts: ConceptMoments, cross: CrossMoments
) -> Float[np.ndarray, "neurons lengths"]:
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
    out: np.ndarray = np.full(paths.bias.shape, np.nan)
    if not len(concepts.mean):
        return out
    for start in range(0, len(out), _BLOCK):
        order, nested = nested_selection(paths.concepts[start : start + _BLOCK])
        rows = start + np.flatnonzero(nested)
        if rows.size:
            terms = np.ascontiguousarray(order[nested].T)
            gram = selected_gram(terms, concepts.scatter)
            covariance = cross.cross[terms, rows]
            weights = np.ascontiguousarray(paths.weights[rows].transpose(1, 2, 0))
            for k in range(1, out.shape[1] + 1):
                out[rows, k - 1] = correlation_of_weights(
                    weights[k - 1, :k], gram[:k, :k], covariance[:k], cross.neuron_scatter[rows]
                )
        rows = start + np.flatnonzero(~nested)
        for k in range(1, out.shape[1] + 1 if rows.size else 1):
            terms = paths.concepts[rows, k - 1, :k].T
            out[rows, k - 1] = correlation_of_weights(
                paths.weights[rows, k - 1, :k].T,
                selected_gram(terms, concepts.scatter),
                cross.cross[terms, rows],
                cross.neuron_scatter[rows],
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
    tolerance: float | Float[np.ndarray, " neurons"],
    available: Int[np.ndarray, " neurons"] | None = None,
) -> Int[np.ndarray, " neurons"]:
    """The shortest explanation that is nearly as good on validation as the best of its path.

    Args:
        val_correlation: Validation correlation of each length, NaN where it is undefined.
        tolerance: Correlation that may be given up for a shorter explanation, for all neurons or
            for each.
        available: Number of lengths of each neuron; without it, undefined lengths do not exist.

    Returns:
        Chosen lengths, from 1. Where no length has a correlation: 1 if that length exists, else 0.
    """
    defined = np.isfinite(val_correlation)
    correlation = np.where(defined, val_correlation, -np.inf)
    best = correlation.max(axis=1, initial=-np.inf)
    near = defined & (correlation >= (best - tolerance)[:, None])
    fallback = np.zeros(len(best), dtype=np.int64)
    if available is not None:
        fallback = np.minimum(available, 1).astype(np.int64)
    if not near.shape[1]:
        return fallback
    return np.where(near.any(axis=1), near.argmax(axis=1) + 1, fallback)


def one_standard_error(
    correlation: Float[np.ndarray, "neurons lengths"],
    standard_error: Float[np.ndarray, "neurons lengths"] | Float[np.ndarray, " neurons"],
    available: Int[np.ndarray, " neurons"] | None = None,
) -> Int[np.ndarray, " neurons"]:
    """The shortest explanation within one standard error of the best of its path.

    Lengths are compared on the same images, so their differences vary less than each of them: the
    rule errs on the side of short explanations.

    Args:
        correlation: Correlation of each length on images that it was not fitted on, NaN where it
            is undefined.
        standard_error: Standard error of each length's correlation, or one for each neuron. That
            of the best length counts (the shortest of equally good ones); NaN counts as zero.
        available: Number of lengths of each neuron; without it, undefined lengths do not exist.

    Returns:
        Chosen lengths, from 1. Where no length has a correlation: 1 if that length exists, else 0.

    Raises:
        ShapeError: Standard errors of another shape.

    Source:
        L. Breiman, J. Friedman, R. Olshen, C. Stone, *Classification and Regression Trees*, 1984.
    """
    if standard_error.shape not in (correlation.shape, correlation.shape[:1]):
        raise ShapeError(
            f"standard errors of shape {standard_error.shape} for correlations of shape "
            f"{correlation.shape}; expected one for each correlation or one for each neuron"
        )
    if not correlation.shape[1]:
        return choose_lengths(correlation, 0.0, available)
    if standard_error.ndim == 2:
        best = np.where(np.isfinite(correlation), correlation, -np.inf).argmax(axis=1)
        standard_error = standard_error[np.arange(len(best)), best]
    return choose_lengths(correlation, np.nan_to_num(standard_error, posinf=np.inf), available)


def correlation_standard_error(
    correlation: Float[np.ndarray, "*shape"], count: int
) -> Float[np.ndarray, "*shape"]:
    """Standard error of correlations that were each measured once, on ``count`` images.

    Fisher's z has the standard error 1/√(n−3) whatever the correlation; the slope of the
    correlation in z, 1 − r², carries it over. Exact for normal variables and many images; neurons
    that are rarely active have larger errors.

    Args:
        correlation: Correlations in [-1, 1].
        count: Number of images on which they were measured.

    Returns:
        Standard errors; NaN for fewer than four images and where the correlation is NaN.

    Source:
        R. A. Fisher, *On the "probable error" of a coefficient of correlation*, Metron 1, 1921.
    """
    if count < _LEAST_IMAGES:
        return np.full(correlation.shape, np.nan)
    return np.asarray((1.0 - correlation**2) / np.sqrt(count - 3))


def cross_validated(
    fold_correlations: Float[np.ndarray, "folds neurons lengths"],
) -> tuple[Float[np.ndarray, "neurons lengths"], Float[np.ndarray, "neurons lengths"]]:
    """Mean over folds of correlations on held-out images, and its standard error.

    Averages are taken of Fisher's z, on which correlations are nearly normal and equally exact; a
    correlation of 1 counts as one of 1 − 10⁻¹², so that it does not outweigh all else.

    Args:
        fold_correlations: Correlation of each length in each fold. A fold whose correlation is NaN
            is left out of that length's mean: where a neuron does not vary in a fold that is every
            length of it, but where a fold's path ended early the mean is over the other folds only.

    Returns:
        Mean, as a correlation; NaN where no fold has one. Standard error of the mean, from the
        spread over the folds that have one; NaN where fewer than two have.
    """
    defined = np.isfinite(fold_correlations)
    folds = defined.sum(axis=0)
    limit = 1.0 - 1e-12
    z = np.arctanh(np.clip(np.where(defined, fold_correlations, 0.0), -limit, limit))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = z.sum(axis=0) / folds
        squares = np.where(defined, z - mean, 0.0) ** 2
        spread = np.sqrt(squares.sum(axis=0) / (folds - 1) / folds)
    correlation = np.tanh(mean)
    error = np.where(folds > 1, (1.0 - correlation**2) * spread, np.nan)
    return correlation, error


def term_order(
    weights: Float[np.ndarray, " terms"], concept_std: Float[np.ndarray, " terms"]
) -> Int[np.ndarray, " terms"]:
    """Positions of the terms by how much they move the prediction, most first.

    A term moves the prediction by |weight| times the standard deviation of its concept score;
    equal terms keep their order.
    """
    return np.argsort(-np.abs(weights) * concept_std, kind="stable")
