"""Correlation scores, and whether their intervals cover what they promise."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from scipy.stats import t as student_t

from core.correlation import correlation_with_interval
from core.errors import ConfigError, ShapeError

Draw = Callable[[np.random.Generator, int, int], tuple[np.ndarray, np.ndarray]]


def normal_pairs(rng: np.random.Generator, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    x, e = rng.standard_normal((2, n, m))
    return x, 0.6 * x + 0.8 * e


def rectified(rng: np.random.Generator, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """A concept that is mostly absent and a neuron that is mostly silent."""
    score = rng.beta(0.15, 3, (n, m))
    return np.maximum(4 * score + 0.8 * rng.standard_normal((n, m)) - 0.6, 0), score


def test_correlations_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    actual = np.maximum(rng.standard_normal((200, 300)), 0).astype(np.float16)
    simulated = actual + rng.standard_normal((200, 300)).astype(np.float32)
    found = correlation_with_interval(actual, simulated)
    for j in range(300):
        expected = np.corrcoef(actual[:, j].astype(float), simulated[:, j])[0, 1]
        assert found.correlation[j] == pytest.approx(expected, abs=1e-12)
    assert (found.low < found.correlation).all()
    assert (found.correlation < found.high).all()
    assert (np.abs([found.low, found.high]) <= 1).all()


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(-1e3, 1e3), st.booleans())
def test_units_and_origin_change_nothing_and_a_negative_scale_mirrors(
    scale: float, shift: float, negative: bool
) -> None:
    x, y = normal_pairs(np.random.default_rng(1), 60, 2)
    plain = correlation_with_interval(x, y)
    moved = correlation_with_interval(x, y * (-scale if negative else scale) + shift)
    sign = -1 if negative else 1
    np.testing.assert_allclose(moved.correlation, sign * plain.correlation, atol=1e-9)
    ends = (-plain.high, -plain.low) if negative else (plain.low, plain.high)
    np.testing.assert_allclose((moved.low, moved.high), ends, atol=1e-8)


def test_the_interval_is_the_jackknife_on_fishers_scale() -> None:
    x, y = rectified(np.random.default_rng(2), 40, 1)
    found = correlation_with_interval(x, y)
    without = np.array(
        [
            np.arctanh(np.corrcoef(np.delete(x[:, 0], i), np.delete(y[:, 0], i))[0, 1])
            for i in range(40)
        ]
    )
    variance = 39 / 40 * np.sum((without - without.mean()) ** 2)
    centre = np.arctanh(found.correlation[0])
    low, high = np.arctanh([found.low[0], found.high[0]])
    assert high - centre == pytest.approx(centre - low)
    multiple = (high - centre) / math.sqrt(variance)
    # Student's quantile, at the degrees of freedom that a chi-squared variable with the mean and
    # the variance of the sum of squares would have.
    squares = (without - without.mean()) ** 2
    freedom = 2 * squares.mean() ** 2 / (squares.var() / 40)
    assert multiple == pytest.approx(student_t.ppf(0.975, freedom), rel=1e-9)


@pytest.mark.parametrize("draw", [normal_pairs, rectified])
@pytest.mark.parametrize(("images", "trials"), [(500, 2000), (2000, 1000)])
def test_intervals_cover_the_truth_as_often_as_they_promise(
    draw: Draw, images: int, trials: int
) -> None:
    if draw is normal_pairs:
        truth = 0.6
    else:
        x, y = draw(np.random.default_rng(3), 2_000_000, 1)
        truth = float(np.corrcoef(x[:, 0], y[:, 0])[0, 1])
    found = correlation_with_interval(*draw(np.random.default_rng(images), images, trials))
    covered = int(((found.low <= truth) & (truth <= found.high)).sum())
    # True coverage between .93 and .97, and chance: 1 in 1,000 at either end.
    assert binom.ppf(0.001, trials, 0.93) <= covered <= binom.ppf(0.999, trials, 0.97)


def test_a_higher_confidence_gives_a_wider_interval() -> None:
    x, y = normal_pairs(np.random.default_rng(4), 100, 5)
    half, most = (correlation_with_interval(x, y, c) for c in (0.5, 0.99))
    assert (most.low < half.low).all()
    assert (half.high < most.high).all()


@pytest.mark.filterwarnings("error")
def test_undefined_correlations_are_nan_and_disturb_no_other() -> None:
    x, y = normal_pairs(np.random.default_rng(5), 80, 6)
    clean = correlation_with_interval(x, y)
    x[:, 1], y[:, 2] = 0.1, -7.0
    x[3, 3], y[4, 4] = np.nan, np.inf
    found = correlation_with_interval(x, y)
    for part, whole in zip(
        (found.correlation, found.low, found.high),
        (clean.correlation, clean.low, clean.high),
        strict=True,
    ):
        assert np.isnan(part[1:5]).all()
        np.testing.assert_array_equal(part[[0, 5]], whole[[0, 5]])


@pytest.mark.filterwarnings("error")
def test_an_exact_simulation_has_an_interval_of_one_point() -> None:
    x, _ = rectified(np.random.default_rng(6), 90, 2)
    found = correlation_with_interval(x, np.column_stack([3 * x[:, 0] - 1, -0.1 * x[:, 1]]))
    for part in (found.correlation, found.low, found.high):
        assert part.tolist() == [1.0, -1.0]


@pytest.mark.filterwarnings("error")
def test_a_correlation_that_rests_on_one_image_promises_nothing() -> None:
    rng = np.random.default_rng(7)
    actual = np.zeros((50, 2))
    actual[7] = 1.0
    simulated = rng.random((50, 2))
    simulated[7] += 5
    # In the second, all but one of the images lie exactly on a line.
    actual[:, 1] = simulated[:, 1]
    actual[9, 1] += 1
    found = correlation_with_interval(actual, simulated)
    assert np.isfinite(found.correlation).all()
    assert found.low.tolist() == [-1, -1]
    assert found.high.tolist() == [1, 1]


@pytest.mark.filterwarnings("error")
def test_three_images_give_a_correlation_without_an_interval() -> None:
    x, y = normal_pairs(np.random.default_rng(8), 3, 4)
    found = correlation_with_interval(x, y)
    assert np.isfinite(found.correlation).all()
    assert np.isnan(found.low).all()
    assert np.isnan(found.high).all()


def test_a_neuron_has_the_same_interval_whatever_neurons_are_beside_it() -> None:
    x, y = rectified(np.random.default_rng(9), 120, 300)
    whole = correlation_with_interval(x, y)
    for part in (slice(0, 1), slice(100, 290)):
        some = correlation_with_interval(x[:, part], y[:, part])
        np.testing.assert_array_equal(some.correlation, whole.correlation[part])
        np.testing.assert_array_equal(some.low, whole.low[part])
        np.testing.assert_array_equal(some.high, whole.high[part])


def test_arrays_that_do_not_fit_are_refused() -> None:
    x, y = normal_pairs(np.random.default_rng(10), 10, 2)
    for a, b in [(x, y[:9]), (x[:, 0], y[:, 0]), (x[:1], y[:1])]:
        with pytest.raises(ShapeError, match="at least two images"):
            correlation_with_interval(a, b)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        correlation_with_interval(x, y, 95)
