"""What an explanation would score by chance: the same activations against other neurons' explanations.

A correlation of .1 may be a discovery or what any explanation of the layer gets. The null
distribution is made of the layer's own explanations, each given to neurons that it is not of. A
neuron is then found to be explained if its own explanation beats the others' by more than chance
has it. That is asking more than a prediction better than none: what all neurons of a layer share is
in the null as well.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Float, Int, Shaped

from core.correlation import scaled_rows
from core.errors import ShapeError

SWAPS: Final = 64
"""Explanations of other neurons that each neuron is tried with."""

_LEAST_SWAPS: Final = 3
_ROWS: Final = 32


def swaps(neurons: int, count: int = SWAPS) -> Int[np.ndarray, " swaps"]:
    """Distances between a neuron and those whose explanations it is tried with.

    Spread evenly over the layer and always the same. Neuron n is tried with the explanation of
    n + distance, counted round the layer, never its own; each explanation is used equally often.

    Args:
        neurons: Neurons of the layer.
        count: Distances wanted; fewer than this many neurons give fewer.
    """
    most = min(count, neurons - 1)
    if most < 1:
        return np.zeros(0, dtype=np.int64)
    return 1 + (np.arange(most, dtype=np.int64) * (neurons - 1)) // most


def swapped_correlations(
    actual: Shaped[np.ndarray, "images neurons"],
    simulated: Shaped[np.ndarray, "images neurons"],
    distances: Int[np.ndarray, " swaps"] | None = None,
) -> Float[np.ndarray, "swaps neurons"]:
    """Correlation of each neuron's activation with what explanations of other neurons predict.

    Args:
        actual: Recorded activations of a layer, or of a block of its neurons.
        simulated: What each neuron's own explanation predicts, in the same order.
        distances: As from `swaps`, its default.

    Returns:
        One row a distance; NaN where a column is constant or not finite.

    Raises:
        ShapeError: Arrays of different shape, fewer than two images, or a distance that leads back
            to the neuron itself.
    """
    if actual.shape != simulated.shape or actual.ndim != 2 or len(actual) < 2:
        raise ShapeError(
            f"recorded activations of shape {actual.shape} and simulated ones of shape "
            f"{simulated.shape}; expected the same images and neurons, and at least two images"
        )
    images, neurons = actual.shape
    distances = swaps(neurons) if distances is None else distances
    if (distances % max(neurons, 1) == 0).any():
        raise ShapeError(
            f"a distance of {distances[distances % neurons == 0][0]} among {neurons} neurons gives "
            "a neuron its own explanation; expected distances from 1 to the number less 1"
        )
    predicted = scaled_rows(np.array(simulated.T, np.float64, order="C"))
    out = np.empty((len(distances), neurons))
    for start in range(0, neurons, _ROWS):
        own = np.arange(start, min(start + _ROWS, neurons))
        a = scaled_rows(np.array(actual[:, own].T, np.float64, order="C"))
        for k, distance in enumerate(distances):
            other = predicted[(own + distance) % neurons]
            out[k, own] = np.einsum("ij,ij->i", a, other) * ((images - 1) / images)
    return np.clip(out, -1.0, 1.0)


def null_p_values(
    correlation: Float[np.ndarray, " neurons"], swapped: Float[np.ndarray, "swaps neurons"]
) -> Float[np.ndarray, " neurons"]:
    """One-sided p-value of each neuron's score against the null of its layer.

    The swapped scores of all neurons of a layer are pooled, since a neuron's own few can never give
    a p-value below 1 / (swaps + 1), and false-discovery control over thousands of neurons needs
    much smaller ones. Neurons differ in how widely their swapped scores scatter: one that follows
    what the explanations of its layer have in common does so by far the most, and would supply the
    discoveries. So a score is first measured, on Fisher's z scale, by the mean and the standard
    deviation of its neuron's swapped scores, and each swapped score by those of the others:
    studentised residuals, of one scale for every neuron. One is added to both counts, as the score
    itself is one of the draws under the null hypothesis, so no p-value is zero.

    Args:
        correlation: Scores of the neurons' own explanations.
        swapped: Scores of the same neurons with explanations of others, of one layer: rows are
            swaps, as from `swapped_correlations`; blocks of a layer side by side.

    Returns:
        In (0, 1]; NaN where the score is, or where fewer than three swapped scores are known or all
        of them are the same.

    Raises:
        ShapeError: Scores of different neurons.

    Source:
        B. Phipson, G. K. Smyth, *Permutation p-values should never be zero*, Stat. Appl. Genet. Mol.
        Biol. 9, 2010.
    """
    if swapped.ndim != 2 or correlation.shape != swapped.shape[1:]:
        raise ShapeError(
            f"scores of shape {correlation.shape} and swapped scores of shape {swapped.shape}; "
            "expected one column of swapped scores for each neuron"
        )
    own, others = _studentised(correlation, swapped)
    pool = np.sort(others[np.isfinite(others)])
    at_least = len(pool) - np.searchsorted(pool, own)
    return np.where(np.isfinite(own), (at_least + 1) / (len(pool) + 1), np.nan)


def q_values(p_values: Float[np.ndarray, " neurons"]) -> Float[np.ndarray, " neurons"]:
    """False-discovery rate at which each neuron would just be called explained.

    Args:
        p_values: Of all neurons that are judged together, of every layer; NaN for those that are
            not judged, which are not counted either.

    Returns:
        At least the p-value, at most 1; NaN where that is. Among neurons with a q-value up to 0.05,
        5 % are expected to be false discoveries, also where tests of neurons are positively
        dependent.

    Source:
        Y. Benjamini, Y. Hochberg, J. R. Statist. Soc. B 57, 1995; Y. Benjamini, D. Yekutieli, Ann.
        Statist. 29, 2001.
    """
    out = np.full(p_values.shape, np.nan)
    known = np.isfinite(p_values)
    if known.any():
        from scipy.stats import false_discovery_control  # half a second that only drivers need

        out[known] = false_discovery_control(p_values[known])
    return out


def _studentised(
    correlation: Float[np.ndarray, " neurons"], swapped: Float[np.ndarray, "swaps neurons"]
) -> tuple[Float[np.ndarray, " neurons"], Float[np.ndarray, "swaps neurons"]]:
    """Scores by the location and scale of the swapped ones, and these by those of the others."""
    limit = 1 - 1e-15
    z = np.arctanh(np.clip(swapped, -limit, limit))
    known = np.isfinite(z)
    count = known.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.where(known, z, 0.0)
        mean = values.sum(axis=0) / count
        gaps = np.where(known, z - mean, 0.0)
        scatter = np.square(gaps).sum(axis=0)
        scatter[(count < _LEAST_SWAPS) | (scatter <= 1e-24 * count)] = np.nan
        spread = np.sqrt(scatter / (count - 1) * (1 + 1 / count))
        own = (np.arctanh(np.clip(correlation, -limit, limit)) - mean) / spread
        # Without one of them, the mean moves away from it, and the scatter loses this much.
        rest = np.maximum(scatter - np.square(gaps) * count / (count - 1), 0.0)
        wide = np.sqrt(rest / (count - 2) * (1 + 1 / (count - 1)))
        others = np.where(known, gaps * count / (count - 1) / wide, np.nan)
    return own, others
