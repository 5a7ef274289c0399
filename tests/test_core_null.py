"""The null of swapped explanations: calibrated p-values, and false discoveries within bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, kstest

from core.errors import ShapeError
from core.null import null_p_values, q_values, swapped_correlations, swaps


def layer(
    rng: np.random.Generator, neurons: int, images: int = 300, signal: float = 0.0, true: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Rectified neurons, every fourth one a follower of what all explanations of the layer share.

    The followers correlate with every explanation, now positively, now negatively, and no better
    with their own; the first `true` neurons are truly explained by theirs.
    """
    common = rng.standard_normal((images, 1))
    simulated = rng.beta(0.3, 2, (images, neurons)) + 0.1 * common * rng.standard_normal(neurons)
    standard = (simulated - simulated.mean(axis=0)) / simulated.std(axis=0)
    follows = np.where(np.arange(neurons) % 4 == 1, 1.0, 0.0)
    strength = np.where(np.arange(neurons) < true, signal, 0.0)
    noise = rng.standard_normal((images, neurons))
    return np.maximum(noise + follows * common + strength * standard, 0), simulated


def scores(actual: np.ndarray, simulated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    own = [np.corrcoef(a, s)[0, 1] for a, s in zip(actual.T, simulated.T, strict=True)]
    return np.array(own), swapped_correlations(actual, simulated)


@given(st.integers(0, 300), st.integers(1, 100))
def test_no_swap_gives_a_neuron_its_own_explanation(neurons: int, count: int) -> None:
    distances = swaps(neurons, count)
    assert len(distances) == max(0, min(count, neurons - 1))
    assert len(set(distances.tolist())) == len(distances)
    assert all(0 < d < neurons for d in distances)


def test_swapped_scores_are_the_correlations_with_other_neurons_predictions() -> None:
    actual, simulated = layer(np.random.default_rng(0), 70)
    found = swapped_correlations(actual.astype(np.float32), simulated)
    for k, distance in enumerate(swaps(70)):
        for n in range(0, 70, 9):
            expected = np.corrcoef(
                actual[:, n].astype(np.float32), simulated[:, (n + distance) % 70]
            )
            assert found[k, n] == pytest.approx(expected[0, 1], abs=1e-12)


def test_p_values_are_those_of_a_plain_count() -> None:
    rng = np.random.default_rng(1)
    own, others = rng.uniform(-0.5, 0.9, 9), rng.uniform(-0.5, 0.5, (12, 9))
    own[4] = np.nan
    others[3, 2] = np.nan

    def residual(value: float, rest: np.ndarray) -> float:
        z = np.arctanh(rest[np.isfinite(rest)])
        return (np.arctanh(value) - z.mean()) / (z.std(ddof=1) * np.sqrt(1 + 1 / len(z)))

    pool = [
        residual(others[k, n], np.delete(others[:, n], k))
        for n in range(9)
        for k in range(12)
        if np.isfinite(others[k, n])
    ]
    found = null_p_values(own, others)
    for n in range(9):
        if n == 4:
            assert np.isnan(found[n])
            continue
        above = sum(value >= residual(own[n], others[:, n]) for value in pool)
        assert found[n] == pytest.approx((above + 1) / (len(pool) + 1))


def test_without_a_signal_p_values_are_uniform_for_followers_and_others_alike() -> None:
    rng = np.random.default_rng(2)
    found = np.array([null_p_values(*scores(*layer(rng, 200))) for _ in range(8)])
    for p in (found.ravel(), found[:, 1::4].ravel(), found[:, ::2].ravel()):
        assert kstest(p, "uniform").pvalue > 0.01
        # Small p-values are what decides.
        for level in (0.01, 0.05):
            assert (p <= level).sum() <= binom.ppf(0.999, len(p), level)


def test_pooled_as_they_are_swapped_scores_would_accuse_the_followers() -> None:
    # What the studentised scale is for.
    rng = np.random.default_rng(3)
    own, others = scores(*layer(rng, 1200))
    p = np.array([(1 + (others >= r).sum()) / (1 + others.size) for r in own])
    assert (p[1::4] <= 0.05).sum() > binom.ppf(0.9999, 300, 0.05)
    assert kstest(p[::2], "uniform").pvalue < 1e-3
    calibrated = null_p_values(own, others)
    assert (calibrated[1::4] <= 0.05).sum() < binom.ppf(0.999, 300, 0.05)
    assert kstest(calibrated[::2], "uniform").pvalue > 0.01


def test_false_discoveries_stay_within_the_rate_on_a_planted_mixture() -> None:
    rng = np.random.default_rng(4)
    rates, power = [], []
    for _ in range(20):
        q = q_values(null_p_values(*scores(*layer(rng, 200, signal=0.8, true=60))))
        called = q <= 0.1
        rates.append((called & (np.arange(200) >= 60)).sum() / max(1, called.sum()))
        power.append(called[:60].mean())
    # Expected at most .1 · 140/200; the mean of twenty has an error of about .012.
    assert np.mean(rates) < 0.1
    assert np.mean(power) > 0.7


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), max_size=40))
def test_q_values_are_the_least_rate_at_which_a_neuron_is_called(values: list[float]) -> None:
    p = np.array(values)
    found = q_values(p)
    known = np.sort(p[np.isfinite(p)])
    rates = known * len(known) / np.arange(1, len(known) + 1)
    for value, q in zip(p, found, strict=True):
        if np.isnan(value):
            assert np.isnan(q)
        else:
            assert q == pytest.approx(min(1.0, rates[known >= value].min()))


@pytest.mark.filterwarnings("error")
def test_neurons_without_a_score_get_none_and_disturb_no_other() -> None:
    rng = np.random.default_rng(5)
    actual, simulated = layer(rng, 60)
    actual[:, 7], simulated[:, 8] = 0.0, 0.5
    simulated[0, 9] = np.nan
    own, others = np.full(60, 0.3), swapped_correlations(actual, simulated)
    own[8:10] = np.nan
    p = null_p_values(own, others)
    assert np.isnan(others[:, 7]).all()
    assert np.flatnonzero(np.isnan(p)).tolist() == [7, 8, 9]
    assert np.isnan(null_p_values(own[:2], others[:2, :2])).all()
    assert np.isnan(q_values(np.full(3, np.nan))).all()


def test_arrays_that_do_not_fit_are_refused() -> None:
    x = np.random.default_rng(6).random((20, 4))
    with pytest.raises(ShapeError, match="same images and neurons"):
        swapped_correlations(x, x[:, :3])
    with pytest.raises(ShapeError, match="its own explanation"):
        swapped_correlations(x, x, np.array([1, 8]))
    with pytest.raises(ShapeError, match="one column of swapped scores"):
        null_p_values(x[0], x[:, :3])
