"""Calibration from counts of cosines: against scikit-learn, planted truth, and partitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from core.calibration import PRIOR, SLOPES, CosineCounts, fit_calibration, reliability
from core.errors import ConceptError, ShapeError


def planted(
    slope: float, shift: float, labels: int, images: int = 4000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of which the log-odds of a match are exactly slope · (cos + shift) at the prior.

    Normal cosines of one spread σ, higher by δ where the text is true: the log-odds of a match are
    linear in the cosine with slope δ/σ², whatever the prior.
    """
    rng = np.random.default_rng(seed)
    spread = np.sqrt(4.0 / slope**2)
    apart = slope * spread**2
    # Half way between the two means the odds are those of the prior.
    middle = -shift + logit(PRIOR) / slope
    own = rng.integers(0, labels, images)
    cosines = rng.normal(middle - apart / 2, spread, (images, labels))
    cosines[np.arange(images), own] += apart
    return cosines.astype(np.float32), own


@pytest.mark.parametrize(("slope", "shift"), [(60.0, -0.09), (20.0, -0.2), (110.0, -0.12)])
@pytest.mark.parametrize("labels", [10, 300])
def test_planted_slope_and_shift_are_found_whatever_the_number_of_labels(
    slope: float, shift: float, labels: int
) -> None:
    found = fit_calibration(CosineCounts.of(*planted(slope, shift, labels)))
    assert found.slope == pytest.approx(slope, rel=0.06)
    # In units of the logit, since that is what a shift moves.
    assert slope * (found.shift - shift) == pytest.approx(0, abs=0.35)


def test_the_fit_is_the_logistic_regression_of_scikit_learn() -> None:
    cosines, own = planted(60.0, -0.09, 50, images=1500)
    found = fit_calibration(CosineCounts.of(cosines, own))
    matches = np.zeros(cosines.shape, bool)
    matches[np.arange(len(own)), own] = True
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=2000)
    model.fit(cosines.reshape(-1, 1).astype(np.float64), matches.ravel())
    slope = float(model.coef_[0, 0])
    assert found.slope == pytest.approx(slope, rel=1e-3)
    assert found.own_shift == pytest.approx(float(model.intercept_[0]) / slope, abs=1e-4)
    # At the maximum of the likelihood as many matches are expected as there are.
    expected = expit(found.slope * (cosines.astype(float) + found.own_shift)).sum()
    assert expected == pytest.approx(len(own), rel=1e-3)


def test_the_prior_moves_log_odds_by_the_difference_of_the_priors_and_no_more() -> None:
    counts = CosineCounts.of(*planted(60.0, -0.09, 40))
    assert counts.prior == pytest.approx(1 / 40)
    for prior in (1e-3, 1e-2, 1 / 40):
        found = fit_calibration(counts, prior)
        moved = found.slope * (found.shift - found.own_shift)
        assert moved == pytest.approx(logit(prior) - logit(1 / 40), abs=1e-9)


def test_counts_of_any_parts_give_the_same_bits() -> None:
    cosines, own = planted(60.0, -0.09, 30, images=600)
    whole = fit_calibration(CosineCounts.of(cosines, own))
    order = np.random.default_rng(1).permutation(600)
    parts = [CosineCounts.of(cosines[rows], own[rows]) for rows in np.array_split(order, 7)]
    merged = parts[3]
    for part in (*parts[:3], *parts[4:]):
        merged = part.merge(merged)
    assert fit_calibration(merged) == whole


def test_no_slope_is_too_steep_for_cosines_that_separate_matches() -> None:
    cosines = np.full((50, 5), -0.2)
    own = np.arange(50) % 5
    cosines[np.arange(50), own] = 0.3
    found = fit_calibration(CosineCounts.of(cosines, own), prior=0.2)
    assert found.slope == SLOPES[1]
    assert -0.3 < found.shift < 0.2


def test_labels_that_the_model_does_not_know_are_refused() -> None:
    rng = np.random.default_rng(2)
    cosines, own = rng.normal(0, 0.1, (500, 20)), rng.integers(0, 20, 500)
    cosines[np.arange(500), own] -= 0.05
    with pytest.raises(
        ConceptError, match=r"no nearer to the texts of their own labels .*hierarchy"
    ):
        fit_calibration(CosineCounts.of(cosines, own))
    with pytest.raises(ConceptError, match="two labels at least"):
        fit_calibration(CosineCounts.of(np.zeros((5, 1)), np.zeros(5, int)))
    with pytest.raises(ConceptError, match="not finite"):
        CosineCounts.of(np.full((3, 4), np.nan), np.zeros(3, int))
    with pytest.raises(ShapeError):
        CosineCounts.of(np.zeros((3, 4)), np.zeros(5, int))


def test_a_true_calibration_is_reliable_and_one_that_is_too_sharp_is_not() -> None:
    cosines, own = planted(60.0, -0.09, 20, images=20_000)
    counts = CosineCounts.of(cosines, own)
    found = fit_calibration(counts)
    right = reliability(counts, found.slope, found.own_shift)
    sharp = reliability(counts, 3 * found.slope, found.own_shift)
    assert right.match_error < 0.01 < 0.1 < sharp.match_error
    assert right.pairs.sum() == sharp.pairs.sum() == cosines.size
    # Bin by bin, by hand from the pairs themselves.
    score = expit(found.slope * (cosines.astype(float) + found.own_shift))
    matches = np.arange(20) == own[:, None]
    inside = (score >= 7 / 15) & (score < 8 / 15)
    place = int(np.argmin(np.abs(right.score - 0.5)))
    assert right.observed[place] == pytest.approx(matches[inside].mean(), abs=0.02)
