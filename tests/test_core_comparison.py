"""Means over neurons and paired differences: against scipy, and coverage on planted truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from core.comparison import mean_with_interval, paired_difference
from core.errors import ConfigError, ShapeError


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_the_interval_of_a_mean_is_students(confidence: float) -> None:
    values = np.random.default_rng(0).normal(0.3, 0.1, 23)
    found = mean_with_interval(values, confidence)
    low, high = stats.t.interval(
        confidence, df=22, loc=values.mean(), scale=stats.sem(values, ddof=1)
    )
    assert (found.count, found.mean) == (23, pytest.approx(values.mean(), abs=1e-15))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_an_interval_of_a_mean_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for values in rng.normal(0.2, 0.5, (4000, 8)):
        found = mean_with_interval(values, 0.9)
        inside += found.low <= 0.2 <= found.high
    # 4,000 draws: 0.9 ± 3 standard errors of 0.0047.
    assert 0.886 <= inside / 4000 <= 0.914


def test_neurons_without_a_score_are_left_out() -> None:
    values = np.array([0.1, np.nan, 0.4, np.inf, 0.7])
    assert mean_with_interval(values) == mean_with_interval(np.array([0.1, 0.4, 0.7]))


def test_a_single_neuron_has_a_mean_without_interval_and_none_has_neither() -> None:
    one, none = mean_with_interval(np.array([0.5])), mean_with_interval(np.array([np.nan]))
    assert (one.count, one.mean) == (1, 0.5)
    assert np.isnan([one.low, one.high]).all()
    assert none.count == 0
    assert np.isnan([none.mean, none.low, none.high]).all()


def test_a_paired_difference_has_the_interval_of_scipys_paired_t_test() -> None:
    rng = np.random.default_rng(2)
    theirs = rng.normal(0.2, 0.1, 40)
    ours = theirs + rng.normal(0.05, 0.02, 40)
    found = paired_difference(ours, theirs)
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.difference.low == pytest.approx(expected.low, rel=1e-12)
    assert found.difference.high == pytest.approx(expected.high, rel=1e-12)
    assert found.better_share == np.mean(ours > theirs)
    # Pairing is the point: taken apart, the same scores are known several times less well.
    apart = mean_with_interval(ours)
    assert found.difference.high - found.difference.low < (apart.high - apart.low) / 3


def test_a_tie_counts_half_and_a_missing_partner_not_at_all() -> None:
    ours = np.array([0.5, 0.5, 0.5, np.nan, 0.9])
    theirs = np.array([0.4, 0.5, 0.6, 0.1, np.nan])
    found = paired_difference(ours, theirs)
    assert found.difference.count == 3
    assert found.better_share == pytest.approx(0.5)
    assert found.difference.mean == pytest.approx(0.0, abs=1e-15)


def test_exchanged_methods_have_the_opposite_difference() -> None:
    ours, theirs = np.random.default_rng(3).normal(size=(2, 11))
    one, other = paired_difference(ours, theirs), paired_difference(theirs, ours)
    assert one.difference.mean == -other.difference.mean
    assert one.difference.low == pytest.approx(-other.difference.high)
    assert one.better_share + other.better_share == pytest.approx(1.0)


def test_scores_of_different_neurons_and_impossible_confidences_are_refused() -> None:
    with pytest.raises(ShapeError, match="one of each"):
        paired_difference(np.zeros(3), np.zeros(4))
    with pytest.raises(ConfigError, match="confidence"):
        mean_with_interval(np.zeros(3), 1.0)
