"""Which cosine means that a text is true of an image: slope and shift, measured on labelled images.

Cosines are counted in fine bins, once for pairs of an image and its own label and once for all others.
Counts of any parts of the images add up exactly, so that the result does not depend on how they were
divided, and a thousand million pairs are as easily fitted as a thousand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.optimize import brentq
from scipy.special import expit, logit

from core.errors import ConceptError, ShapeError

BINS: Final = 20_000
"""Bins of the cosine from -1 to 1: the logit moves by less than .02 within one at the steepest slope."""

SLOPES: Final = (0.1, 150.0)
"""Slopes that are believed. Where cosines separate matches completely, the steepest is taken."""

PRIOR: Final = 1e-3
"""How often a text is true of an image by itself: once in a thousand, as of ImageNet's labels, on which
the published calibrations were made."""

_CENTRES: Final = (np.arange(BINS) + 0.5) * (2 / BINS) - 1


@dataclass(frozen=True, slots=True, eq=False)
class CosineCounts:
    """How many pairs of image and text have which cosine; adds up over images."""

    present: Int[np.ndarray, " bins"]
    """Pairs of an image and the text of its label."""
    absent: Int[np.ndarray, " bins"]
    """Pairs of an image and another label's text."""

    @classmethod
    def of(
        cls, cosines: Float[np.ndarray, "images texts"], own: Int[np.ndarray, " images"]
    ) -> CosineCounts:
        """Counts of some images.

        Args:
            cosines: Of each image with the text of every label.
            own: Position of the text that is true of each image.

        Raises:
            ShapeError: Arrays of different length.
            ConceptError: Cosines that are not finite.
        """
        if cosines.shape[:1] != own.shape:
            raise ShapeError(f"cosines {cosines.shape} and labels {own.shape} must fit together")
        if not np.isfinite(cosines).all():
            raise ConceptError(
                "cosines that are not finite cannot be calibrated; record them again"
            )
        places = np.clip((cosines.astype(np.float64) + 1) * (BINS / 2), 0, BINS - 1).astype(
            np.int64
        )
        total = np.bincount(places.ravel(), minlength=BINS)
        present = np.bincount(places[np.arange(len(own)), own], minlength=BINS)
        return cls(present, total - present)

    def merge(self, other: CosineCounts) -> CosineCounts:
        """Counts of the images of both."""
        return type(self)(self.present + other.present, self.absent + other.absent)

    @property
    def prior(self) -> float:
        """Share of the pairs that match: one over the number of labels."""
        matches = int(self.present.sum())
        return matches / max(1, matches + int(self.absent.sum()))


@dataclass(frozen=True, slots=True)
class FittedCalibration:
    """Concept score = σ(slope · (cosine + shift)), as labels tell."""

    slope: float
    shift: float
    """For texts that are true as often as `PRIOR` says."""
    own_shift: float
    """For texts that are true as often as these labels are."""


def fit_calibration(counts: CosineCounts, prior: float = PRIOR) -> FittedCalibration:
    """Logistic regression of "the text is the image's label" on the cosine, in closed counts.

    What is regressed depends on how often a text is true: among ten labels each is true of one image
    in ten, among a thousand of one in a thousand, and the logit is higher by the difference of the
    log-odds for no merit of the cosine. So the intercept is moved from the labels' own share to `prior`,
    which leaves the slope as it is (King and Zeng's prior correction).

    Args:
        counts: Of training images.
        prior: Share of the images that a concept is true of before it is looked at.

    Raises:
        ConceptError: No match at all or nothing else, or matches whose cosines are not higher.

    Source:
        G. King, L. Zeng, *Logistic Regression in Rare Events Data*, Political Analysis 9 (2001).
    """
    present, absent = counts.present.astype(np.float64), counts.absent.astype(np.float64)
    if not present.sum() or not absent.sum():
        raise ConceptError(
            f"{present.sum():,.0f} of {present.sum() + absent.sum():,.0f} pairs of image and label match; "
            "a calibration needs some that do and some that do not: two labels at least"
        )
    slope = _best_slope(present, absent)
    intercept = _intercept(slope, present, absent)
    own = intercept / slope
    moved = (logit(prior) - logit(counts.prior)) / slope
    return FittedCalibration(slope, float(own + moved), float(own))


def _intercept(slope: float, present: np.ndarray, absent: np.ndarray) -> float:
    """The intercept at which as many matches are expected as there are."""
    used = np.flatnonzero(present + absent)
    total, line = (present + absent)[used], slope * _CENTRES[used]
    matches = present.sum()

    def surplus(intercept: float) -> float:
        return float((expit(line + intercept) * total).sum() - matches)

    low, high = -slope - 60.0, slope + 60.0
    return float(brentq(surplus, low, high, xtol=1e-12))


def _best_slope(present: np.ndarray, absent: np.ndarray) -> float:
    """The slope of greatest likelihood: the profile of the likelihood has one maximum."""
    used = np.flatnonzero(present + absent)
    centres, total = _CENTRES[used], (present + absent)[used]
    told = float((present[used] * centres).sum())

    def excess(slope: float) -> float:
        """Derivative of the log-likelihood by the slope, at the best intercept."""
        expected = expit(slope * centres + _intercept(slope, present, absent)) * total
        return told - float((expected * centres).sum())

    if excess(SLOPES[0]) <= 0:
        mean = [float(np.average(_CENTRES, weights=c)) for c in (present, absent)]
        raise ConceptError(
            f"images are no nearer to the texts of their own labels (mean cosine {mean[0]:.3f}) than to "
            f"those of others ({mean[1]:.3f}); labels must be words that the model knows, for which a "
            "'hierarchy' can give texts: or give a and b"
        )
    if excess(SLOPES[1]) >= 0:
        return SLOPES[1]
    return float(brentq(excess, *SLOPES, xtol=1e-9))


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """What a calibration promises and what is so, in bins of its score."""

    score: Float[np.ndarray, " bins"]
    """Mean score of the pairs in a bin."""
    observed: Float[np.ndarray, " bins"]
    """Share of them that match."""
    pairs: Int[np.ndarray, " bins"]
    error: float
    """Mean of |score − observed| over all pairs, the expected calibration error."""
    match_error: float
    """The same over pairs with a score of at least .1, where nearly all pairs are not that count."""


def reliability(counts: CosineCounts, slope: float, shift: float, bins: int = 15) -> Reliability:
    """Compare scores with how often their texts are true; empty bins are left out.

    Args:
        counts: Of labelled images.
        slope: Of the calibration.
        shift: Of the calibration, for texts that are true as often as the counts' own.
        bins: Bins of equal width in the score.
    """
    score = expit(slope * (_CENTRES + shift))
    total = counts.present + counts.absent
    place = np.minimum((score * bins).astype(np.int64), bins - 1)

    def summed(values: Shaped[np.ndarray, " bins"]) -> np.ndarray:
        return np.bincount(place, weights=values.astype(np.float64), minlength=bins)

    pairs, present, expected = summed(total), summed(counts.present), summed(score * total)
    filled = pairs > 0
    mean, observed = expected[filled] / pairs[filled], present[filled] / pairs[filled]
    off, weight = np.abs(mean - observed), pairs[filled]
    high = mean >= 0.1
    match_error = float(np.average(off[high], weights=weight[high])) if high.any() else 0.0
    return Reliability(
        mean, observed, weight.astype(np.int64), float(np.average(off, weights=weight)), match_error
    )
