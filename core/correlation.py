"""The correlation score of simulated activations, with a confidence interval for every explanation.

The interval comes from the exact correlation without each of the images. That correlation is no
polynomial in the activations, so sums over images taken once do not give it: mixed moments give its
first-order part only, which falls short where a few images carry a neuron. It is therefore worked
out image by image, but cheaply. With standardised activations divided by √(images − 1), written a
and s, leaving out one image moves the correlation r to

    (r − a s) / √((1 − a²)(1 − s²)),

and Fisher's z moves by artanh of a ratio that needs one root and one division. The ratio is nearly
always so small that three terms of the series are exact; the rest is taken by the function itself.
Four power sums of the moves are all that is kept of an explanation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int, Num, Shaped
from scipy.special import stdtrit

from core.errors import ConfigError, ShapeError

_LEAST_IMAGES: Final = 4
_EXACT: Final = 1e-12
# Below this, artanh x = x + x³/3 + x⁵/5 to 3e-14 of x.
_SERIES: Final = 2.0**-7
# Images at a time: with ten lengths of a neuron, what is worked on stays in the second-level cache.
_IMAGES: Final = 2048
_ROWS: Final = 64
_PAIRS: Final = 8


@dataclass(frozen=True, slots=True, eq=False)
class CorrelationScores:
    """Pearson correlations and their confidence intervals; NaN where undefined."""

    correlation: Float[np.ndarray, " scored"]
    low: Float[np.ndarray, " scored"]
    high: Float[np.ndarray, " scored"]


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
    check_confidence(confidence)
    images, neurons = actual.shape
    sums = np.full((5, neurons), np.nan)
    work = np.empty((3, _PAIRS, min(images, _IMAGES)))
    for start in range(0, neurons, _PAIRS):
        columns = slice(start, start + _PAIRS)
        a, s = (
            scaled_rows(np.array(v[:, columns].T, np.float64, order="C"))
            for v in (actual, simulated)
        )
        sums[:, columns] = _sums(a, s, work)
    return intervals(sums, images, confidence)


def explanation_correlations(
    actual: Num[np.ndarray, "images neurons"],
    weights: Any,
    terms: Float[np.ndarray, "concepts images"],
    neurons: Int[np.ndarray, " explanations"],
    confidence: float = 0.95,
) -> CorrelationScores:
    """Correlation of each explanation's prediction with its neuron's activation, with an interval.

    What `correlation_with_interval` gives for the predictions ``weights @ terms``, without ever
    holding more of them than a block: beside the arguments, the scores and the concept scores in
    float64, memory depends on the number of images alone. Explanations of one neuron, as those of
    several lengths, share its standardised activation. A bias shifts a prediction and leaves its
    correlation as it is, so none is needed.

    Args:
        actual: Recorded activations, any real type and units.
        weights: Sparse matrix in rows of scipy (csr), explanations by concepts.
        terms: Concept scores of the same images, one concept a row.
        neurons: The column of `actual` that each explanation is of.
        confidence: Coverage wanted, in (0, 1).

    Returns:
        One score an explanation, in their order; undefined as in `correlation_with_interval`, and
        NaN where a weight is not finite or there is none.

    Raises:
        ShapeError: Arrays that do not fit together, or fewer than two images.
        ConfigError: A confidence outside of (0, 1).
    """
    check_explanations(actual, weights, terms, neurons)
    check_confidence(confidence)
    images = len(actual)
    order = np.argsort(neurons, kind="stable")
    of, first = np.unique(neurons[order], return_index=True)
    ends = np.append(first, len(order))
    sums = np.full((5, len(neurons)), np.nan)
    dense = np.ascontiguousarray(terms, dtype=np.float64)
    work = np.empty((3, min(_ROWS, len(neurons)), min(images, _IMAGES)))
    for begin, end in _batches(ends):
        rows = order[ends[begin] : ends[end]]
        recorded = np.array(actual[:, of[begin:end]].T, np.float64, order="C")
        counts = np.diff(ends[begin : end + 1])
        sums[:, rows] = _batch_sums(recorded, weights[rows] @ dense, counts, work)
    return intervals(sums, images, confidence)


def check_confidence(confidence: float) -> None:
    """Raise ConfigError for a confidence outside of (0, 1)."""
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence {confidence}; expected a number between 0 and 1, as 0.95")


def check_explanations(
    actual: np.ndarray,
    weights: Any,
    terms: np.ndarray,
    neurons: np.ndarray,
) -> None:
    """Raise ShapeError where explanations, concept scores and activations do not fit together."""
    if actual.ndim != 2 or terms.ndim != 2 or len(actual) != terms.shape[1] or len(actual) < 2:
        raise ShapeError(
            f"recorded activations of shape {actual.shape}, images first, and concept scores of "
            f"shape {terms.shape}, images last; expected the same images, at least two"
        )
    if weights.shape != (len(neurons), len(terms)):
        raise ShapeError(
            f"weights of shape {weights.shape}; expected {len(neurons)} explanations, the number "
            f"of neurons named, by {len(terms)} concepts, the rows of the concept scores"
        )
    if len(neurons) and not 0 <= neurons.min() <= neurons.max() < actual.shape[1]:
        raise ShapeError(
            f"explanations of neurons {neurons.min()} to {neurons.max()}, but activations of "
            f"{actual.shape[1]}; expected a column of the activations for each explanation"
        )


def intervals(
    sums: Float[np.ndarray, "5 scored"], images: int, confidence: float
) -> CorrelationScores:
    """Correlations and intervals from what is kept of every prediction.

    Args:
        sums: The correlation, and the sums of the first four powers of the changes of Fisher's z
            when one image is left out; NaN or infinite where one image decides.
        images: Number of images.
        confidence: Coverage wanted, in (0, 1).
    """
    r = np.clip(sums[0], -1.0, 1.0)
    exact = 1.0 - np.abs(r) < _EXACT
    r = np.where(exact, np.sign(r), r)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = sums[1] / images
        second = sums[2] - images * mean**2
        fourth = sums[4] + mean * (6 * mean * sums[2] - 4 * sums[3] - 3 * images * mean**3)
        kurtosis = images * fourth / second**2
        freedom = 2 * images / np.maximum(kurtosis - 1, 2 / images)
        variance = second * (images - 1) / images
        reach = stdtrit(freedom, 0.5 + confidence / 2) * np.sqrt(variance)
        low, high = np.tanh(np.arctanh(r) - reach), np.tanh(np.arctanh(r) + reach)
    known = np.isfinite(reach)
    low = np.where(exact, r, np.where(known, low, -1.0))
    high = np.where(exact, r, np.where(known, high, 1.0))
    undefined = np.isnan(r) | (images < _LEAST_IMAGES)
    low[undefined] = high[undefined] = np.nan
    return CorrelationScores(r, low, high)


def scaled_rows(rows: Float[np.ndarray, "rows images"]) -> Float[np.ndarray, "rows images"]:
    """The rows, in place, standardised and divided by √(images − 1); NaN where undefined.

    Rows are shifted by their first element before they are summed, so a constant row is known by
    exact zeros. Each row's numbers depend on nothing but itself.
    """
    images = rows.shape[1]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        rows -= rows[:, :1].copy()
        rows -= rows.sum(axis=1, keepdims=True) / images
        norm = np.sqrt(np.einsum("ij,ij->i", rows, rows) * (images - 1) / images)
        rows *= np.where(np.isfinite(norm) & (norm > 0), 1 / norm, np.nan)[:, None]
    return rows


def _batch_sums(
    recorded: Float[np.ndarray, "neurons images"],
    predicted: Float[np.ndarray, "rows images"],
    counts: Int[np.ndarray, " neurons"],
    work: Float[np.ndarray, "3 most chunk"],
) -> Float[np.ndarray, "5 rows"]:
    """What is kept of predictions, so many for each neuron; the arrays are used up."""
    a = scaled_rows(recorded)
    parts, begin = [], 0
    for k, count in enumerate(counts):
        for start in range(begin, begin + count, _ROWS):
            s = scaled_rows(predicted[start : min(start + _ROWS, begin + count)])
            parts.append(_sums(a[k : k + 1], s, work))
        begin += count
    return np.concatenate(parts, axis=1)


def _batches(ends: Int[np.ndarray, " neurons_and_one"]) -> list[tuple[int, int]]:
    """Ranges of neurons with about `_ROWS` explanations together, at least one neuron each."""
    found, begin = [], 0
    while begin < len(ends) - 1:
        end = max(begin + 1, int(np.searchsorted(ends, ends[begin] + _ROWS, "right")) - 1)
        found.append((begin, end))
        begin = end
    return found


def _sums(
    a: Float[np.ndarray, "one_or_rows images"],
    s: Float[np.ndarray, "rows images"],
    work: Float[np.ndarray, "3 most chunk"],
) -> Float[np.ndarray, "5 rows"]:
    """Correlations of scaled rows, and power sums of the changes of z without each image."""
    rows, images = s.shape
    sums = np.zeros((5, rows))
    if len(a) < rows:
        a = np.broadcast_to(a, s.shape)
    chunks = [slice(start, start + _IMAGES) for start in range(0, images, _IMAGES)]
    for part in chunks:
        sums[0] += np.einsum("ij,ij->i", a[:, part], s[:, part])
    sums[0] *= (images - 1) / images
    one = np.zeros(rows, dtype=bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        for part in chunks:
            x, y = a[:, part], s[:, part]
            d, square, spare = (w[:rows, : x.shape[1]] for w in work)
            one |= _moves(x, y, sums[0][:, None], d, square, spare)
            np.multiply(d, d, out=square)
            sums[1] += d.sum(axis=1)
            sums[2] += square.sum(axis=1)
            sums[3] += np.einsum("ij,ij->i", square, d)
            sums[4] += np.einsum("ij,ij->i", square, square)
    sums[1:, one] = np.nan
    return sums


def _moves(
    a: Float[np.ndarray, "rows chunk"],
    s: Float[np.ndarray, "rows chunk"],
    r: Float[np.ndarray, "rows 1"],
    d: Float[np.ndarray, "rows chunk"],
    h: Float[np.ndarray, "rows chunk"],
    spare: Float[np.ndarray, "rows chunk"],
) -> np.ndarray:
    """Write the change of z without each image to `d`; say which rows rest on one image."""
    np.multiply(s, s, out=h)
    np.subtract(1.0, h, out=h)
    one = h.min(axis=1) < _EXACT
    np.multiply(a, a, out=spare)
    np.subtract(1.0, spare, out=spare)
    one |= spare.min(axis=1) < _EXACT
    h *= spare
    np.sqrt(h, out=h)
    # The correlation without the image is c / h, and artanh u − artanh r = artanh (u − r)/(1 − u r).
    np.multiply(a, s, out=d)
    np.subtract(r, d, out=d)
    np.multiply(d, r, out=spare)
    np.subtract(h, spare, out=spare)
    h *= r
    d -= h
    d /= spare
    np.multiply(d, d, out=h)
    far = h > _SERIES**2
    distant = np.nonzero(far) if far.any() else None
    if distant is not None:
        values = d[distant]
        exact = np.arctanh(np.clip(values, -1.0, 1.0))
        exact[1.0 - np.abs(values) < _EXACT] = np.inf
    np.multiply(h, 0.2, out=spare)
    spare += 1 / 3
    spare *= h
    spare *= d
    d += spare
    if distant is not None:
        d[distant] = exact
    return np.asarray(one)
