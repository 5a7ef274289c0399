"""Other measures of how well simulated activations match recorded ones: cosine, AUPRC, F1, IoU.

All take recorded and simulated activations of the same images and give one score a neuron, NaN where
the measure is undefined. Of the eighteen measures that Oikarinen, Yan and Weng compare, these and
Pearson's correlation are the ones that notice labels gone missing and labels too many
(`core.sanity` repeats their two tests).

F1, IoU and AUPRC need a neuron that is on or off. It is on where its activation is among the `top`
share of the images: at least as high as the k-th highest, k = ⌈top · images⌉. Ties with the k-th count
as on, so more than k images may be, except at the lowest activation of the column, where a neuron is
never on: a unit that is zero on 99 % of the images is on for the other 1 %. F1 and IoU also need
predictions that are on or off; the same rule with the same share decides them.

Source: T. Oikarinen, G. Yan, T.-W. Weng, *Evaluating Neuron Explanations: A Unified Framework with
Sanity Checks*, ICML 2025 (arXiv:2506.05774).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Shaped

from core.errors import ConfigError, ShapeError

TOP: Final = 0.05
"""Share of the images on which a neuron counts as on."""

_COLUMNS: Final = 64

Metric = Callable[[np.ndarray, np.ndarray], np.ndarray]


def pearson(
    actual: Shaped[np.ndarray, "images neurons"], simulated: Shaped[np.ndarray, "images neurons"]
) -> Float[np.ndarray, " neurons"]:
    """Pearson's correlation, without an interval: for that see `core.correlation`.

    Raises:
        ShapeError: Arrays of different shape, or fewer than two images.
    """
    return _blockwise(actual, simulated, lambda a, s: _cosines(_centred(a), _centred(s)))


def cosine(
    actual: Shaped[np.ndarray, "images neurons"], simulated: Shaped[np.ndarray, "images neurons"]
) -> Float[np.ndarray, " neurons"]:
    """Cosine of the angle between recorded and simulated activations, as they are.

    Nothing is subtracted, so a shift changes the score: predictions must carry their bias. With both
    columns centred it would be Pearson's correlation. NaN where a column is all zeros.

    Raises:
        ShapeError: Arrays of different shape, or fewer than two images.
    """
    return _blockwise(actual, simulated, _cosines)


def auprc(
    actual: Shaped[np.ndarray, "images neurons"],
    simulated: Shaped[np.ndarray, "images neurons"],
    top: float = TOP,
) -> Float[np.ndarray, " neurons"]:
    """Area under the curve of precision against recall when predictions rank the images.

    What is to be found are the images on which the neuron is on. The area is average precision:
    precision at each threshold, weighted by the recall gained there, images of equal prediction
    taken together. A prediction that says nothing scores the share of images that are on. For the
    other direction, activations that rank images with a label, see `average_precision`.

    Raises:
        ShapeError: Arrays of different shape, or fewer than two images.
        ConfigError: A share outside of (0, 1).
    """
    _check(actual, simulated)
    return average_precision(switched_on(actual, top), _undefined_where_constant(simulated, actual))


def average_precision(
    positive: Bool[np.ndarray, "images neurons"], scores: Shaped[np.ndarray, "images neurons"]
) -> Float[np.ndarray, " neurons"]:
    """Average precision of scores that rank images, for each column; NaN where undefined.

    Equal to ``sklearn.metrics.average_precision_score``. Each positive image counts with the precision
    at its own score, which takes two ranks: among all images and among the positive ones. So a
    column costs one sort of its values, not of their positions, and a search for each positive.

    Args:
        positive: What is to be found.
        scores: Any real type; only their order matters.

    Returns:
        In (0, 1]; NaN where no image is positive or a score is not finite.

    Raises:
        ShapeError: Arrays of different shape, or fewer than two images.
    """
    _check(positive, scores)
    images, columns = scores.shape
    out = np.full(columns, np.nan)
    for start in range(0, columns, _COLUMNS):
        block = np.array(scores[:, start : start + _COLUMNS].T, np.float64, order="C")
        wanted = np.array(positive[:, start : start + _COLUMNS].T, order="C")
        usable = np.isfinite(block).all(axis=1) & wanted.any(axis=1)
        ranked = np.sort(block, axis=1)
        for row in np.flatnonzero(usable):
            found = np.sort(block[row, wanted[row]])
            above = len(found) - np.searchsorted(found, found)
            precision = above / (images - np.searchsorted(ranked[row], found))
            out[start + row] = precision.mean()
    return out


def f1(
    actual: Shaped[np.ndarray, "images neurons"],
    simulated: Shaped[np.ndarray, "images neurons"],
    top: float = TOP,
) -> Float[np.ndarray, " neurons"]:
    """Harmonic mean of precision and recall of the images on which neuron and prediction are on.

    2 |A ∩ B| / (|A| + |B|), A and B the images where each is on; NaN where a column is constant.

    Raises:
        ShapeError: Arrays of different shape, or fewer than two images.
        ConfigError: A share outside of (0, 1).
    """
    both, either = _overlap(actual, simulated, top)
    return np.asarray(2 * both / (both + either))


def iou(
    actual: Shaped[np.ndarray, "images neurons"],
    simulated: Shaped[np.ndarray, "images neurons"],
    top: float = TOP,
) -> Float[np.ndarray, " neurons"]:
    """Intersection over union of the images on which neuron and prediction are on.

    |A ∩ B| / |A ∪ B|, A and B the images where each is on; NaN where a column is constant.

    Raises:
        ShapeError: Arrays of different shape, or fewer than two images.
        ConfigError: A share outside of (0, 1).
    """
    both, either = _overlap(actual, simulated, top)
    return np.asarray(both / either)


METRICS: Final[Mapping[str, Metric]] = MappingProxyType(
    {"pearson": pearson, "cosine": cosine, "auprc": auprc, "f1": f1, "iou": iou}
)
"""Every measure under its name, at its default share."""


def switched_on(
    values: Shaped[np.ndarray, "images neurons"], top: float = TOP
) -> Bool[np.ndarray, "images neurons"]:
    """Whether each neuron is on, image by image, by the rule at the head of this module.

    Args:
        values: Activations or predictions, any real type.
        top: Share of the images on which a column is on, in (0, 1).

    Returns:
        False everywhere in a column that is constant or holds a value that is not finite.

    Raises:
        ConfigError: A share outside of (0, 1).
    """
    if not 0 < top < 1:
        raise ConfigError(f"share of images {top}; expected a number between 0 and 1, as 0.05")
    images, columns = values.shape
    # Without the margin, 0.07 of 100 images would be 8: the product is 7.000000000000001.
    place = images - max(1, math.ceil(top * images * (1 - 1e-12)))
    out = np.zeros(values.shape, dtype=bool)
    for start in range(0, columns, _COLUMNS):
        block = np.array(values[:, start : start + _COLUMNS].T, np.float64, order="C")
        finite = np.isfinite(block).all(axis=1, keepdims=True)
        threshold = np.partition(block, place, axis=1)[:, place, None]
        least = block.min(axis=1, keepdims=True)
        on = (block >= threshold) & (block > least) & finite
        out[:, start : start + _COLUMNS] = on.T
    return out


def _overlap(
    actual: np.ndarray, simulated: np.ndarray, top: float
) -> tuple[Float[np.ndarray, " neurons"], Float[np.ndarray, " neurons"]]:
    """Images on which both are on and on which either is; NaN where one is never on."""
    _check(actual, simulated)
    a, s = switched_on(actual, top), switched_on(simulated, top)
    defined = a.any(axis=0) & s.any(axis=0)
    both, either = (np.count_nonzero(x, axis=0).astype(np.float64) for x in (a & s, a | s))
    return np.where(defined, both, np.nan), np.where(defined, either, np.nan)


def _undefined_where_constant(simulated: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """The predictions, NaN in columns in which they, or the activations, are no use."""
    with np.errstate(invalid="ignore"):
        useless = (simulated == simulated[:1]).all(axis=0) | ~np.isfinite(actual).all(axis=0)
    return np.where(useless, np.nan, simulated) if useless.any() else simulated


def _cosines(
    a: Float[np.ndarray, "rows images"], s: Float[np.ndarray, "rows images"]
) -> Float[np.ndarray, " rows"]:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for rows in (a, s):
            rows /= np.abs(rows).max(axis=1, keepdims=True)
        norm = np.sqrt(np.einsum("ij,ij->i", a, a) * np.einsum("ij,ij->i", s, s))
        return np.asarray(np.clip(np.einsum("ij,ij->i", a, s) / norm, -1.0, 1.0))


def _centred(rows: Float[np.ndarray, "rows images"]) -> Float[np.ndarray, "rows images"]:
    """The rows without their means, in place; a constant row gives exact zeros."""
    with np.errstate(invalid="ignore"):
        rows -= rows[:, :1].copy()
        rows -= rows.mean(axis=1, keepdims=True)
    return rows


def _blockwise(actual: np.ndarray, simulated: np.ndarray, metric: Metric) -> np.ndarray:
    _check(actual, simulated)
    out = np.full(actual.shape[1], np.nan)
    for start in range(0, actual.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        pair = (np.array(v[:, columns].T, np.float64, order="C") for v in (actual, simulated))
        out[columns] = metric(*pair)
    return out


def _check(actual: np.ndarray, simulated: np.ndarray) -> None:
    if actual.shape != simulated.shape or actual.ndim != 2 or len(actual) < 2:
        raise ShapeError(
            f"recorded activations of shape {actual.shape} and simulated ones of shape "
            f"{simulated.shape}; expected the same images and neurons, and at least two images"
        )
