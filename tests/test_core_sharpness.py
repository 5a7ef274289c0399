"""The choice of a sharpness: its rule, and what may not change it; and the scores that it makes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from core.concept_scores import sharpened
from core.sharpness import GRID, NATIVE, NEARLY, Sharpness, choose_sharpness

NAN = float("nan")
FACTORS = [factor for factor, shift in GRID if not shift]

correlations = st.lists(
    st.one_of(st.just(NAN), st.floats(-1.0, 1.0)), min_size=len(GRID), max_size=len(GRID)
)


def test_the_grid_goes_from_sharp_to_soft_through_the_models_own() -> None:
    assert sorted(FACTORS, reverse=True) == FACTORS
    assert NATIVE in GRID
    assert FACTORS[0] == 2.0
    assert 0.09 < FACTORS[-1] < 0.11
    np.testing.assert_allclose(np.diff(np.log2(FACTORS)), -1 / 3, rtol=1e-12)
    assert len({*GRID}) == len(GRID) <= 2 * len(FACTORS)
    for shift in {shift for _, shift in GRID}:
        tried = [factor for factor, other in GRID if other == shift]
        assert shift >= 0
        assert (max(tried), min(tried)) <= (2.0, 0.13)


def test_scores_are_the_sigmoid_rounded_once_to_float32() -> None:
    logits = np.random.default_rng(0).normal(-6, 4, (400, 30)).astype(np.float32)
    logits[0, :4] = [0.0, -0.0, np.inf, np.nan]
    exactly = logits.astype(np.longdouble)
    with np.errstate(over="ignore"):
        for factor, shift in [*GRID, (1.0, 0.0)]:
            expected = (1 / (1 + np.exp(-(factor * exactly + shift)))).astype(np.float32)
            np.testing.assert_array_equal(sharpened(logits, Sharpness(factor, shift)), expected)
        np.testing.assert_array_equal(sharpened(logits), expit(exactly).astype(np.float32))


def test_a_score_does_not_depend_on_the_scores_beside_it() -> None:
    logits = np.random.default_rng(2).normal(-6, 4, (3000, 33)).astype(np.float32)
    whole = sharpened(logits, Sharpness(0.3, 0.5))
    for rows in (1, 7, 16, 31, 1000):
        found = sharpened(logits[5 : 5 + rows, 3:9], Sharpness(0.3, 0.5))
        np.testing.assert_array_equal(found, whole[5 : 5 + rows, 3:9])


def test_a_shift_is_added_to_the_logits_once_they_are_multiplied() -> None:
    logits = np.random.default_rng(1).normal(-6, 4, (400, 30)).astype(np.float32)
    before = logits.copy()
    for factor, shift in GRID:
        found = sharpened(logits, Sharpness(factor, shift))
        assert found.dtype == np.float32
        expected = 1 / (1 + np.exp(-(factor * logits.astype(np.float64) + shift)))
        np.testing.assert_allclose(found, expected, rtol=6e-8)
    assert np.array_equal(logits, before)


@settings(deadline=None)
@given(correlations, st.floats(0.5, 1.0))
def test_what_is_chosen_is_near_the_best_and_nothing_with_less_shift_or_sharper_is(
    values: list[float], nearly: float
) -> None:
    chosen = choose_sharpness(GRID, np.array(values), nearly)
    defined = {s: v for s, v in zip(GRID, values, strict=True) if not np.isnan(v)}
    best = max(defined.values(), default=0.0)
    if best <= 0:
        assert chosen == NATIVE
        return
    assert defined[chosen] >= nearly * best
    for other, value in defined.items():
        if value >= nearly * best:
            assert other.shift >= chosen.shift
            assert other.shift > chosen.shift or other.factor <= chosen.factor


@settings(deadline=None)
@given(correlations, st.permutations(range(len(GRID))))
def test_the_order_in_which_things_were_tried_does_not_matter(
    values: list[float], order: list[int]
) -> None:
    expected = choose_sharpness(GRID, np.array(values))
    assert choose_sharpness([GRID[i] for i in order], np.array(values)[order]) == expected


@settings(deadline=None)
@given(correlations, st.floats(0.5, 1.0), st.floats(0.5, 1.0))
def test_giving_up_more_correlation_never_softens_nor_shifts(
    values: list[float], one: float, other: float
) -> None:
    less, more = (
        choose_sharpness(GRID, np.array(values), nearly) for nearly in sorted((one, other))
    )
    assert (less.shift, -less.factor) <= (more.shift, -more.factor)


@settings(deadline=None)
@given(correlations, st.integers(0, len(GRID) - 1))
def test_what_predicts_worse_is_not_chosen_for_it(values: list[float], place: int) -> None:
    """Taking correlation from what was not chosen, nor the best, changes nothing."""
    chosen = choose_sharpness(GRID, np.array(values))
    defined = np.nan_to_num(values, nan=-2.0)
    if GRID[place] == chosen or defined[place] == defined.max():
        return
    lowered = list(values)
    lowered[place] = -1.0
    assert choose_sharpness(GRID, np.array(lowered)) == chosen


def test_correlations_that_rise_to_the_softest_stop_where_they_hardly_rise() -> None:
    rising = np.array([0.30, 0.34, 0.38, 0.42, 0.45, 0.465, 0.485, 0.49, *[0.495] * 6])
    tried = [Sharpness(factor) for factor in FACTORS]
    assert rising[6] >= NEARLY * 0.495 > rising[5]
    assert choose_sharpness(tried, rising) == tried[6]


def test_a_shift_is_taken_only_where_nothing_else_comes_near() -> None:
    tried = [Sharpness(2.0), Sharpness(0.5), Sharpness(2.0, 1.5), Sharpness(0.5, 3.0)]
    barely, clearly = NEARLY * 0.5 + 1e-9, NEARLY * 0.5 - 1e-9
    assert choose_sharpness(tried, np.array([0.1, barely, 0.5, 0.5])) == tried[1]
    assert choose_sharpness(tried, np.array([0.1, clearly, 0.5, 0.5])) == tried[2]
    assert choose_sharpness(tried, np.array([0.1, clearly, clearly, 0.5])) == tried[3]


def test_of_equals_the_sharpest_is_taken() -> None:
    assert choose_sharpness(GRID, np.full(len(GRID), 0.4)) == Sharpness(2.0)
    tried = [Sharpness(0.5), Sharpness(1.0), Sharpness(0.25)]
    assert choose_sharpness(tried, np.array([0.4, 0.1, 0.4]), 1.0) == tried[0]


def test_what_has_no_correlation_is_passed_over() -> None:
    tried = [Sharpness(2.0), Sharpness(1.0), Sharpness(0.5)]
    assert choose_sharpness(tried, np.array([NAN, 0.2, 0.201])) == tried[1]
    assert choose_sharpness(tried, np.array([NAN, NAN, 0.1])) == tried[2]
    assert choose_sharpness(tried[::2], np.array([np.inf, 0.1])) == tried[2]


@pytest.mark.parametrize("values", [[NAN, NAN, NAN], [0.0, 0.0, 0.0], [-0.3, NAN, -0.1], []])
def test_where_nothing_is_explained_scores_stay_as_they_are(values: list[float]) -> None:
    tried = [Sharpness(2.0, 3.0), Sharpness(0.5), Sharpness(0.25)][: len(values)]
    assert choose_sharpness(tried, np.array(values)) == NATIVE


def test_a_correlation_for_everything_that_was_tried_is_asked_for() -> None:
    with pytest.raises(ValueError, match="shorter"):
        choose_sharpness([Sharpness(2.0), Sharpness(1.0)], np.array([0.5]))
