"""Means over neurons and paired differences between two ways to explain them, with intervals.

The intervals are Student's, over neurons. They say how well the mean over neurons is known if these
neurons were a sample of many; they do not say what other images would give, since all neurons of a
layer are scored on the same images and tend to err together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from core.correlation import check_confidence
from core.errors import ShapeError


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over neurons with its interval."""

    count: int
    """Neurons whose value is known."""
    mean: float
    """NaN where there is none."""
    low: float
    """NaN where there are fewer than two."""
    high: float


@dataclass(frozen=True, slots=True)
class Paired:
    """One way to explain neurons less another, over the neurons that both have a score of."""

    difference: Mean
    better_share: float
    """Share of these neurons where the first is better; a tie counts half. NaN without neurons."""


def mean_with_interval(values: Float[np.ndarray, " neurons"], confidence: float = 0.95) -> Mean:
    """The mean of some scores, and Student's interval of it.

    Args:
        values: One a neuron; those that are not finite are left out.
        confidence: Coverage wanted, in (0, 1).

    Raises:
        ConfigError: A confidence outside of (0, 1).
    """
    check_confidence(confidence)
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    count = len(known)
    if not count:
        return Mean(0, np.nan, np.nan, np.nan)
    mean = float(known.mean())
    if count == 1:
        return Mean(1, mean, np.nan, np.nan)
    half = float(stdtrit(count - 1, (1 + confidence) / 2) * known.std(ddof=1) / np.sqrt(count))
    return Mean(count, mean, mean - half, mean + half)


def paired_difference(
    ours: Float[np.ndarray, " neurons"],
    theirs: Float[np.ndarray, " neurons"],
    confidence: float = 0.95,
) -> Paired:
    """How much better the first scores are than the second, neuron by neuron.

    Args:
        ours: One a neuron.
        theirs: Of the same neurons in the same order. A neuron that lacks either is left out.
        confidence: Coverage wanted, in (0, 1).

    Raises:
        ShapeError: Scores of different neurons.
        ConfigError: A confidence outside of (0, 1).
    """
    if ours.shape != theirs.shape or ours.ndim != 1:
        raise ShapeError(
            f"scores of shape {ours.shape} and {theirs.shape}; expected one of each for every neuron"
        )
    gaps = np.asarray(ours, dtype=np.float64) - theirs
    known = gaps[np.isfinite(gaps)]
    better = float(np.heaviside(known, 0.5).mean()) if len(known) else np.nan
    return Paired(mean_with_interval(gaps, confidence), better)
