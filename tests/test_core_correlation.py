"""Correlation scores, and whether their intervals cover what they promise."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.stats import binom
from scipy.stats import t as student_t

from core.correlation import (
    CorrelationScores,
    correlation_with_interval,
    explanation_correlations,
)
from core.correlation_gpu import gpu_explanation_correlations
from core.errors import ConfigError, ShapeError

Draw = Callable[[np.random.Generator, int, int], tuple[np.ndarray, np.ndarray]]


def normal_pairs(rng: np.random.Generator, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    x, e = rng.standard_normal((2, n, m))
    return x, 0.6 * x + 0.8 * e


def rectified(rng: np.random.Generator, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """A concept that is mostly absent and a neuron that is mostly silent."""
    score = rng.beta(0.15, 3, (n, m))
    return np.maximum(4 * score + 0.8 * rng.standard_normal((n, m)) - 0.6, 0), score


def explained(
    rng: np.random.Generator, images: int, neurons: int, lengths: int = 4, concepts: int = 30
) -> tuple[np.ndarray, Any, np.ndarray, np.ndarray]:
    """Activations, weights of several explanations a neuron in mixed order, concept scores, neurons."""
    terms = rng.beta(0.2, 3, (concepts, images))
    true = np.stack([rng.choice(concepts, lengths, replace=False) for _ in range(neurons)])
    signal = terms[true].sum(axis=1).T
    actual = np.maximum(signal + 0.3 * rng.standard_normal(signal.shape) - 0.2, 0)
    dense = np.zeros((neurons, lengths, concepts))
    for length in range(lengths):
        chosen = true[:, : length + 1]
        values = rng.uniform(-0.2, 2, chosen.shape)
        np.put_along_axis(dense[:, length], chosen, values, axis=1)
    order = rng.permutation(neurons * lengths)
    weights = sparse.csr_array(dense.reshape(neurons * lengths, concepts)[order])
    return actual.astype(np.float16), weights, terms, np.repeat(np.arange(neurons), lengths)[order]


def by_leaving_out(x: np.ndarray, y: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """Correlation and interval by the definitions, leaving each image out in turn."""
    images = len(x)
    r = np.corrcoef(x, y)[0, 1]
    rest = [np.arange(images) != i for i in range(images)]
    z = np.arctanh([np.corrcoef(x[kept], y[kept])[0, 1] for kept in rest])
    squares = (z - z.mean()) ** 2
    freedom = 2 * squares.mean() ** 2 / (squares.var() / images)
    error = math.sqrt(squares.sum() * (images - 1) / images)
    reach = student_t.ppf(0.5 + confidence / 2, freedom) * error
    return r, math.tanh(math.atanh(r) - reach), math.tanh(math.atanh(r) + reach)


def assert_close(found: CorrelationScores, expected: CorrelationScores, atol: float) -> None:
    for part in ("correlation", "low", "high"):
        np.testing.assert_allclose(getattr(found, part), getattr(expected, part), atol=atol, rtol=0)


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


@pytest.mark.parametrize("images", [6, 50, 3000])
def test_intervals_are_those_of_leaving_out_each_image_in_turn(images: int) -> None:
    # Few images take the closed form of artanh, many its series and, for the outliers, both.
    actual, weights, terms, neurons = explained(np.random.default_rng(images), images, 2, lengths=2)
    found = explanation_correlations(actual, weights, terms, neurons, 0.9)
    for k, neuron in enumerate(neurons):
        predicted = (weights[[k]] @ terms)[0]
        expected = by_leaving_out(actual[:, neuron].astype(float), predicted, 0.9)
        ours = (found.correlation[k], found.low[k], found.high[k])
        if np.isfinite(expected).all():
            np.testing.assert_allclose(ours, expected, atol=1e-11 if images > 6 else 1e-9)
    assert np.isfinite(found.low).sum() >= 2


@pytest.mark.parametrize("images", [40, 2500])
def test_explanations_score_what_their_predictions_do(images: int) -> None:
    actual, weights, terms, neurons = explained(np.random.default_rng(11), images, 40)
    found = explanation_correlations(actual, weights, terms, neurons)
    plain = correlation_with_interval(actual[:, neurons], (weights @ terms).T)
    assert_close(found, plain, 1e-12)


def test_an_explanation_has_the_same_score_whatever_explanations_are_beside_it() -> None:
    actual, weights, terms, neurons = explained(np.random.default_rng(12), 2100, 60)
    whole = explanation_correlations(actual, weights, terms, neurons)
    for some in (np.arange(3), np.arange(100, 171), np.flatnonzero(neurons == 7)[1:]):
        part = explanation_correlations(actual, weights[some], terms, neurons[some])
        for name in ("correlation", "low", "high"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[some])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("block", [None, 1, 17])
def test_a_gpu_gives_the_same_scores(device: str, block: int | None) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    for images in (30, 2500):
        given = explained(np.random.default_rng(13), images, 30)
        given[0][:, 3] = 0  # a dead neuron
        given[0][:, 4] = np.arange(images) == 5  # one that rests on one image
        given[2][0, 2] = np.nan  # a concept that is not known on one image
        found = gpu_explanation_correlations(*given, device=device, block=block)
        assert_close(found, explanation_correlations(*given), 1e-11)


@pytest.mark.filterwarnings("error")
def test_explanations_without_a_meaning_are_nan_and_disturb_no_other() -> None:
    actual, weights, terms, neurons = explained(np.random.default_rng(14), 200, 9, lengths=1)
    clean = explanation_correlations(actual, weights, terms, neurons)
    dense = weights.toarray()
    dense[0], dense[1, 0], dense[2, 0] = 0, np.nan, np.inf
    found = explanation_correlations(actual, sparse.csr_array(dense), terms, neurons)
    for name in ("correlation", "low", "high"):
        assert np.isnan(getattr(found, name)[:3]).all()
        np.testing.assert_array_equal(getattr(found, name)[3:], getattr(clean, name)[3:])
    none = explanation_correlations(actual, weights[:0], terms, neurons[:0])
    assert none.correlation.shape == none.low.shape == (0,)


def test_memory_does_not_grow_with_the_neurons() -> None:
    peaks = []
    for neurons in (20, 200):
        given = explained(np.random.default_rng(15), 1000, neurons)
        explanation_correlations(*given)
        tracemalloc.start()
        explanation_correlations(*given)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Beside the block, 8 numbers of 8 bytes for each of 720 more explanations, and as much in sorting.
    assert peaks[1] - peaks[0] < 720 * 8 * 8 * 4
    assert peaks[0] > 64 * 1000 * 8


@pytest.mark.parametrize("score", [explanation_correlations, gpu_explanation_correlations])
def test_explanations_that_do_not_fit_are_refused(score: Callable[..., CorrelationScores]) -> None:
    actual, weights, terms, neurons = explained(np.random.default_rng(16), 20, 3)
    for arrays, match in [
        ((actual[:9], weights, terms, neurons), "the same images"),
        ((actual, weights[:4], terms, neurons), "12 explanations"),
        ((actual, weights, terms[:5], neurons), "by 5 concepts"),
        ((actual[:, :2], weights, terms, neurons), "activations of 2"),
        ((actual, weights, terms, neurons - 1), "neurons -1 to 1"),
    ]:
        with pytest.raises(ShapeError, match=match):
            score(*arrays)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        score(actual, weights, terms, neurons, 1.0)
