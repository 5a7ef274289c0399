"""The choice of a sharpness: its rule, and what may not change it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.sharpness import FACTORS, NEARLY, choose_factor

NAN = float("nan")

correlations = st.lists(
    st.one_of(st.just(NAN), st.floats(-1.0, 1.0)),
    min_size=len(FACTORS),
    max_size=len(FACTORS),
)


def test_the_factors_go_from_sharp_to_soft_through_the_models_own() -> None:
    assert list(FACTORS) == sorted(FACTORS, reverse=True)
    assert 1.0 in FACTORS
    assert FACTORS[0] == 2.0
    assert 0.09 < FACTORS[-1] < 0.11
    np.testing.assert_allclose(np.diff(np.log2(FACTORS)), -1 / 3, rtol=1e-12)


@settings(deadline=None)
@given(correlations, st.floats(0.5, 1.0))
def test_the_factor_is_near_the_best_and_none_that_is_sharper_is(
    values: list[float], nearly: float
) -> None:
    chosen = choose_factor(FACTORS, np.array(values), nearly)
    defined = {f: v for f, v in zip(FACTORS, values, strict=True) if not np.isnan(v)}
    best = max(defined.values(), default=0.0)
    if best <= 0:
        assert chosen == 1.0
        return
    assert defined[chosen] >= nearly * best
    assert all(defined[f] < nearly * best for f in defined if f > chosen)


@settings(deadline=None)
@given(correlations, st.permutations(range(len(FACTORS))))
def test_the_order_in_which_factors_were_tried_does_not_matter(
    values: list[float], order: list[int]
) -> None:
    expected = choose_factor(FACTORS, np.array(values))
    assert choose_factor([FACTORS[i] for i in order], np.array(values)[order]) == expected


@settings(deadline=None)
@given(correlations, st.floats(0.5, 1.0), st.floats(0.5, 1.0))
def test_giving_up_more_correlation_never_softens(
    values: list[float], one: float, other: float
) -> None:
    less, more = sorted((one, other))
    assert choose_factor(FACTORS, np.array(values), less) >= choose_factor(
        FACTORS, np.array(values), more
    )


@settings(deadline=None)
@given(correlations, st.integers(0, len(FACTORS) - 1))
def test_a_factor_that_predicts_worse_is_not_chosen_for_it(values: list[float], place: int) -> None:
    """Taking correlation from a factor that was not chosen, nor the best, changes nothing."""
    chosen = choose_factor(FACTORS, np.array(values))
    defined = np.nan_to_num(values, nan=-2.0)
    if FACTORS[place] == chosen or defined[place] == defined.max():
        return
    lowered = list(values)
    lowered[place] = -1.0
    assert choose_factor(FACTORS, np.array(lowered)) == chosen


def test_correlations_that_rise_to_the_softest_stop_where_they_hardly_rise() -> None:
    rising = np.array([0.30, 0.34, 0.38, 0.42, 0.45, 0.47, 0.485, 0.49, *[0.495] * 6])
    assert rising[6] >= NEARLY * 0.495 > rising[5]
    assert choose_factor(FACTORS, rising) == FACTORS[6]


def test_of_equal_factors_the_sharpest_is_taken() -> None:
    assert choose_factor(FACTORS, np.full(len(FACTORS), 0.4)) == 2.0
    assert choose_factor([0.5, 1.0, 0.25], np.array([0.4, 0.1, 0.4]), 1.0) == 0.5


def test_factors_without_a_correlation_are_passed_over() -> None:
    assert choose_factor([2.0, 1.0, 0.5], np.array([NAN, 0.2, 0.201])) == 1.0
    assert choose_factor([2.0, 1.0, 0.5], np.array([NAN, NAN, 0.1])) == 0.5
    assert choose_factor([2.0, 0.5], np.array([np.inf, 0.1])) == 0.5


@pytest.mark.parametrize("values", [[NAN, NAN, NAN], [0.0, 0.0, 0.0], [-0.3, NAN, -0.1], []])
def test_where_nothing_is_explained_scores_stay_as_they_are(values: list[float]) -> None:
    factors = [2.0, 0.5, 0.25][: len(values)]
    assert choose_factor(factors, np.array(values)) == 1.0


def test_a_correlation_for_each_factor_is_asked_for() -> None:
    with pytest.raises(ValueError, match="shorter"):
        choose_factor([2.0, 1.0], np.array([0.5]))
