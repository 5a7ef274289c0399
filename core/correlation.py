"""The correlation score of simulated activations, with a confidence interval for every neuron."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Shaped
from scipy.stats import t as student_t

from core.errors import ConfigError, ShapeError
from core.products import centred_columns

_COLUMNS: Final = 256
_LEAST_IMAGES: Final = 4
_EXACT: Final = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class CorrelationScores:
    """Pearson correlations and their confidence intervals; NaN where undefined."""

    correlation: Float[np.ndarray, " neurons"]
    low: Float[np.ndarray, " neurons"]
    high: Float[np.ndarray, " neurons"]


def correlation_with_interval(
    actual: Shaped[np.ndarray, "images neurons"],
    simulated: Shaped[np.ndarray, "images neurons"],
    confidence: float = 0.95,
) -> CorrelationScores:
    """Pearson correlation of each neuron's recorded and simulated activations, with an interval.

    The interval assumes nothing about the distribution of the activations beyond finite fourth
    moments. It is symmetric on Fisher's z scale; its variance is the jackknife's, from the exact
    correlation without each of the images, and its width is Student's with as many degrees of
    freedom as that variance is worth. A neuron that is active on few images gets few of them, and
    so a wide interval. Rows are the held-out images, in the same order in both arrays.

    Args:
        actual: Recorded activations, any real type and units.
        simulated: Predictions in any affine units: a positive scale and a shift change nothing.
        confidence: Coverage wanted, in (0, 1).

    Returns:
        Scores in [-1, 1]; NaN where a column is constant or holds a value that is not finite. The
        interval is a point where the correlation is exactly 1 or -1, all of [-1, 1] where it rests
        on a single image, and NaN for fewer than four images.

    Raises:
        ShapeError: Arrays of different shape, or fewer than two images.
        ConfigError: A confidence outside of (0, 1).

    Source:
        Jackknife on the z scale: J. N. Arvesen, *Jackknifing U-statistics*, Ann. Math. Stat. 40,
        1969. Degrees of freedom of a variance: F. E. Satterthwaite, Biometrics Bulletin 2, 1946.
    """
    if actual.shape != simulated.shape or actual.ndim != 2 or len(actual) < 2:
        raise ShapeError(
            f"recorded activations of shape {actual.shape} and simulated ones of shape "
            f"{simulated.shape}; expected the same images and neurons, and at least two images"
        )
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence {confidence}; expected a number between 0 and 1, as 0.95")
    out = np.full((3, actual.shape[1]), np.nan)
    for start in range(0, actual.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        out[:, columns] = _scores(actual[:, columns], simulated[:, columns], confidence)
    return CorrelationScores(out[0], out[1], out[2])


def _scores(
    actual: Shaped[np.ndarray, "images neurons"],
    simulated: Shaped[np.ndarray, "images neurons"],
    confidence: float,
) -> Float[np.ndarray, "3 neurons"]:
    images, neurons = actual.shape
    a, s = _standardised(actual), _standardised(simulated)
    r = np.clip((a * s).mean(axis=0), -1.0, 1.0)
    exact = 1.0 - np.abs(r) < _EXACT
    r = np.where(exact, np.sign(r), r)
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = _reach_on_z(a, s, r, confidence)
        low, high = np.tanh(np.arctanh(r) - reach), np.tanh(np.arctanh(r) + reach)
    known = np.isfinite(reach)
    low = np.where(exact, r, np.where(known, low, -1.0))
    high = np.where(exact, r, np.where(known, high, 1.0))
    undefined = np.isnan(r) | (images < _LEAST_IMAGES)
    low[undefined] = high[undefined] = np.nan
    return np.stack([r, low, high])[:, :neurons]


def _reach_on_z(
    a: Float[np.ndarray, "images cols"],
    s: Float[np.ndarray, "images cols"],
    r: Float[np.ndarray, " cols"],
    confidence: float,
) -> Float[np.ndarray, " cols"]:
    """Half width of the interval on Fisher's z scale; not finite where it rests on one image."""
    images = len(a)
    # Without image i, a centred sum of products loses x_i y_i n / (n - 1).
    lost = images / (images - 1)
    left_a, left_s = images - lost * a * a, images - lost * s * s
    without = (images * r - lost * a * s) / np.sqrt(left_a * left_s)
    without[np.minimum(left_a, left_s) < _EXACT * images] = np.nan
    z = np.arctanh(np.clip(without, -1.0, 1.0))
    squares = np.square(z - z.mean(axis=0))
    variance = squares.sum(axis=0) * (images - 1) / images
    kurtosis = np.square(squares).mean(axis=0) / np.square(squares.mean(axis=0))
    freedom = 2 * images / np.maximum(kurtosis - 1, 2 / images)
    return np.asarray(student_t.ppf(0.5 + confidence / 2, freedom) * np.sqrt(variance))


def _standardised(values: Shaped[np.ndarray, "images neurons"]) -> Float[np.ndarray, "images cols"]:
    mean, centred = centred_columns(values, _COLUMNS)
    centred = centred[: len(values)]
    std = np.sqrt(np.square(centred).mean(axis=0))
    std[: len(mean)][np.isnan(mean)] = np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        return centred / np.where(std > 0, std, np.nan)
