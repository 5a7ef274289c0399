"""Elastic net from moments, against scikit-learn on raw data and the conditions of optimality."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNet

from core.elastic_net import L1_RATIO, PENALTY, ElasticNetFit, elastic_net
from core.errors import ConfigError
from core.moments import ConceptMoments, CrossMoments


def planted(images: int, concepts: int, neurons: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    causes = rng.standard_normal((images, max(3, concepts // 5)))
    logits = causes @ rng.standard_normal((causes.shape[1], concepts))
    p = 1 / (1 + np.exp(1 - logits - rng.standard_normal((images, concepts))))
    weights = rng.standard_normal((concepts, neurons)) * (rng.random((concepts, neurons)) < 0.2)
    signal = p @ weights
    noise = rng.standard_normal(signal.shape) * (signal.std(axis=0) + 0.1)
    return p, np.maximum(signal + noise, signal.mean(axis=0))


def fit(p: np.ndarray, q: np.ndarray, **settings: float) -> ElasticNetFit:
    return elastic_net(ConceptMoments.of(p), CrossMoments.of(p, q), **settings)


def standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(axis=0)) / values.std(axis=0)


def objective(
    x: np.ndarray, y: np.ndarray, w: np.ndarray, l1_ratio: float, penalty: float
) -> float:
    loss = np.sum((y - x @ w) ** 2) / (2 * len(y))
    size = l1_ratio * np.abs(w).sum() + (1 - l1_ratio) / 2 * np.sum(w**2)
    return float(loss + penalty * size)


@pytest.mark.parametrize(
    ("l1_ratio", "penalty"), [(L1_RATIO, PENALTY), (1.0, 0.02), (0.5, 0.1), (0.9, 0.005)]
)
def test_the_objective_is_that_of_scikit_learn(l1_ratio: float, penalty: float) -> None:
    p, q = planted(400, 60, 8, 0)
    found = fit(p, q, l1_ratio=l1_ratio, penalty=penalty)
    assert found.converged.all()
    x = standardised(p)
    for neuron in range(8):
        y = standardised(q[:, neuron])
        model = ElasticNet(
            alpha=penalty, l1_ratio=l1_ratio, fit_intercept=False, tol=1e-10, max_iter=100_000
        ).fit(x, y)
        ours = objective(x, y, found.weights[[neuron]].toarray()[0], l1_ratio, penalty)
        best = objective(x, y, model.coef_, l1_ratio, penalty)
        assert ours == pytest.approx(best, abs=1e-6)
        # The gap promises how far above the minimum the objective is, and keeps the promise.
        assert ours - best <= found.gap[neuron] + 1e-9


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_weights_satisfy_the_conditions_of_optimality(seed: int) -> None:
    p, q = planted(120, 40, 5, seed)
    found = fit(p, q, gap_tolerance=1e-12)
    x, y, w = standardised(p), standardised(q), found.weights.toarray().T
    slope = x.T @ (y - x @ w) / len(x) - PENALTY * (1 - L1_RATIO) * w
    limit = PENALTY * L1_RATIO
    assert np.abs(slope).max() <= limit + 1e-6
    np.testing.assert_allclose(slope[w != 0], limit * np.sign(w[w != 0]), atol=1e-6)


def test_more_concepts_than_images_and_many_working_sets_still_converge() -> None:
    p, q = planted(300, 600, 3, 1)
    found = fit(p, q, penalty=0.02)
    assert found.converged.all()
    assert np.diff(found.weights.indptr).max() > 32
    x = standardised(p)
    for neuron in range(3):
        y = standardised(q[:, neuron])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = ElasticNet(
                alpha=0.02, l1_ratio=L1_RATIO, fit_intercept=False, tol=1e-9, max_iter=50_000
            ).fit(x, y)
        ours = objective(x, y, found.weights[[neuron]].toarray()[0], L1_RATIO, 0.02)
        assert ours <= objective(x, y, model.coef_, L1_RATIO, 0.02) + 1e-6


def test_a_neuron_gets_the_same_bits_whatever_neurons_share_its_block() -> None:
    p, q = planted(200, 80, 70, 2)
    whole = fit(p, q, penalty=0.02)
    for rows in ([0], [69], [3, 41, 5], list(range(60, 70)), list(reversed(range(70)))):
        some = fit(p, q[:, rows], penalty=0.02)
        np.testing.assert_array_equal(some.weights.toarray(), whole.weights.toarray()[rows])
        np.testing.assert_array_equal(some.gap, whole.gap[rows])


def test_a_neuron_that_no_concept_explains_gets_no_weights() -> None:
    rng = np.random.default_rng(3)
    p, q = rng.random((1000, 30)), rng.standard_normal((1000, 3))
    found = fit(p, q, penalty=0.2)
    assert found.weights.nnz == 0
    assert not found.gap.any()
    assert found.converged.all()


def test_neurons_and_concepts_that_do_not_vary_get_zeros_and_disturb_no_other() -> None:
    p, q = planted(200, 20, 4, 4)
    clean = fit(p, q)
    p = np.column_stack([p, np.full(200, 0.1)])
    q = np.column_stack([q[:, :2], np.zeros(200), np.full(200, 5.0), q[:, 0], q[:, 2:]])
    q[7, 4] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fit(p, q)
    kept = [0, 1, 5, 6]
    assert found.weights.shape == (7, 21)
    np.testing.assert_array_equal(found.weights.toarray()[kept, :20], clean.weights.toarray())
    assert not found.weights.toarray()[2:5].any()
    assert not found.weights.toarray()[:, 20].any()
    assert found.gap[2:4].tolist() == [0, 0]
    assert np.isnan(found.gap[4])
    assert found.converged.tolist() == [True] * 4 + [False] + [True] * 2


def test_weights_do_not_depend_on_units_and_origin() -> None:
    p, q = planted(200, 20, 4, 5)
    plain = fit(p, q, gap_tolerance=1e-12).weights.toarray()
    moved = fit(100 * p + 7, 0.01 * q - 3, gap_tolerance=1e-12).weights.toarray()
    np.testing.assert_allclose(moved, plain, atol=1e-7)


def test_giving_up_is_reported_and_the_gap_is_still_an_upper_bound() -> None:
    p, q = planted(200, 60, 5, 6)
    early = fit(p, q, penalty=0.01, max_passes=5, gap_tolerance=1e-10)
    late = fit(p, q, penalty=0.01, gap_tolerance=1e-10)
    assert not early.converged.any()
    assert late.converged.all()
    x, y = standardised(p), standardised(q)
    for neuron in range(5):
        values = [
            objective(x, y[:, neuron], part.weights[[neuron]].toarray()[0], L1_RATIO, 0.01)
            for part in (early, late)
        ]
        assert 0 < values[0] - values[1] <= early.gap[neuron]


@pytest.mark.parametrize(("l1_ratio", "penalty"), [(0.0, 0.1), (1.5, 0.1), (0.9, 0.0)])
def test_penalties_without_a_certificate_are_refused(l1_ratio: float, penalty: float) -> None:
    p, q = planted(50, 5, 2, 7)
    with pytest.raises(ConfigError, match="expected a ratio"):
        fit(p, q, l1_ratio=l1_ratio, penalty=penalty)
