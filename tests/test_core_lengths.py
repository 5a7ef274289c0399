"""Correlations of paths, the choice of a length, and the order of terms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from core.errors import ShapeError
from core.forward import forward_paths
from core.lengths import (
    choose_lengths,
    correlation_standard_error,
    cross_validated,
    one_standard_error,
    path_correlations,
    term_order,
)
from core.moments import ConceptMoments, CrossMoments
from core.paths import Paths


def fitted(seed: int = 0) -> tuple[np.ndarray, np.ndarray, Paths]:
    rng = np.random.default_rng(seed)
    p = rng.beta(0.5, 2, (300, 15))
    weights = rng.standard_normal((15, 6)) * (rng.random((15, 6)) < 0.3)
    q = np.maximum(p @ weights + 0.3 * rng.standard_normal((300, 6)), 0)
    return p, q, forward_paths(ConceptMoments.of(p[:200]), CrossMoments.of(p[:200], q[:200]), 5)


def correlations(p: np.ndarray, q: np.ndarray, paths: Paths) -> np.ndarray:
    return path_correlations(paths, ConceptMoments.of(p), CrossMoments.of(p, q))


def test_correlations_from_moments_are_those_of_the_predictions() -> None:
    p, q, paths = fitted()
    found = correlations(p[200:], q[200:], paths)
    for neuron in range(6):
        for length in range(1, 6):
            concepts, weights, bias = paths.explanation(neuron, length)
            predicted = p[200:, concepts] @ weights + bias
            expected = np.corrcoef(predicted, q[200:, neuron])[0, 1]
            assert found[neuron, length - 1] == pytest.approx(expected, abs=1e-10)


@pytest.mark.filterwarnings("error")
def test_a_correlation_that_is_undefined_is_nan_and_only_that_one() -> None:
    p, q, paths = fitted()
    reference = correlations(p[200:], q[200:], paths)
    q = q[200:].copy()
    q[:, 2], q[3, 4] = 1.5, np.nan
    found = correlations(p[200:], q, paths)
    assert np.isnan(found[[2, 4]]).all()
    np.testing.assert_array_equal(found[[0, 1, 3, 5]], reference[[0, 1, 3, 5]])
    still = p[200:].copy()
    still[:, paths.concepts[0, 0, 0]] = 0.1
    found = correlations(still, q, paths)
    assert np.isnan(found[0, 0])
    assert np.isfinite(found[0, 1:]).all()


@pytest.mark.filterwarnings("error")
def test_lengths_that_do_not_exist_have_no_correlation() -> None:
    p, q, _ = fitted()
    p[:, 3:] = 0
    short = forward_paths(ConceptMoments.of(p), CrossMoments.of(p, q), 5)
    found = correlations(p, q, short)
    exists = np.arange(5) < short.available[:, None]
    np.testing.assert_array_equal(np.isfinite(found), exists)
    nothing = Paths.empty(6, 5)
    assert np.isnan(correlations(p, q, nothing)).all()


def test_terms_that_cancel_predict_nothing() -> None:
    p, q, _ = fitted()
    p[:, 1] = p[:, 0]
    weights = np.zeros((6, 2, 2))
    weights[:, 0, 0], weights[:, 1] = 1.0, [1.0, -1.0]
    concepts = np.tile(np.array([[0, -1], [0, 1]], dtype=np.int32), (6, 1, 1))
    paths = Paths(concepts, weights, np.zeros((6, 2)), np.full(6, 2, dtype=np.int32))
    found = correlations(p, q, paths)
    assert np.isfinite(found[:, 0]).all()
    assert np.isnan(found[:, 1]).all()


@given(
    arrays(
        np.float64,
        st.tuples(st.integers(1, 8), st.integers(1, 6)),
        elements=st.one_of(st.floats(-1, 1), st.just(np.nan)),
    ),
    st.floats(0, 0.3),
)
def test_the_length_is_the_shortest_within_the_tolerance_of_the_best(
    correlation: np.ndarray, tolerance: float
) -> None:
    for row, length in zip(correlation, choose_lengths(correlation, tolerance), strict=True):
        best = max((c for c in row if not np.isnan(c)), default=np.nan)
        near = [k + 1 for k, c in enumerate(row) if c >= best - tolerance]
        assert length == (near[0] if near else 0)


def test_without_any_correlation_the_first_length_is_taken_if_there_is_one() -> None:
    undefined = np.full((3, 4), np.nan)
    available = np.array([0, 1, 4], dtype=np.int32)
    assert choose_lengths(undefined, 0.02, available).tolist() == [0, 1, 1]
    assert choose_lengths(undefined, 0.02).tolist() == [0, 0, 0]
    assert choose_lengths(np.zeros((2, 0)), 0.02).tolist() == [0, 0]


correlations_of_neurons = arrays(
    np.float64,
    st.tuples(st.integers(1, 8), st.integers(1, 6)),
    elements=st.one_of(st.floats(-1, 1), st.just(np.nan)),
)


@given(correlations_of_neurons, st.integers(0, 10_000))
def test_the_length_is_the_shortest_within_one_standard_error_of_the_best(
    correlation: np.ndarray, seed: int
) -> None:
    error = np.random.default_rng(seed).uniform(0, 0.3, correlation.shape)
    for row, errors, length in zip(
        correlation, error, one_standard_error(correlation, error), strict=True
    ):
        defined = [k for k, c in enumerate(row) if not np.isnan(c)]
        if not defined:
            assert length == 0
            continue
        best = max(defined, key=lambda k: (row[k], -k))
        assert length == next(k for k in defined if row[k] >= row[best] - errors[best]) + 1


@given(correlations_of_neurons, st.floats(0, 0.3))
def test_one_error_for_all_lengths_is_a_tolerance(correlation: np.ndarray, error: float) -> None:
    each = np.full(len(correlation), error)
    everywhere = np.full(correlation.shape, error)
    expected = choose_lengths(correlation, error)
    np.testing.assert_array_equal(one_standard_error(correlation, each), expected)
    np.testing.assert_array_equal(one_standard_error(correlation, everywhere), expected)


@pytest.mark.filterwarnings("error")
def test_standard_errors_that_are_not_finite_mean_the_best_or_the_shortest() -> None:
    correlation = np.array([[0.1, np.nan, 0.5], [0.1, 0.2, 0.5], [np.nan] * 3])
    error = np.array([[0.0, 0.0, np.nan], [0.0, 0.0, np.inf], [np.nan] * 3])
    assert one_standard_error(correlation, error, np.array([3, 3, 2])).tolist() == [3, 1, 1]
    assert one_standard_error(np.zeros((2, 0)), np.zeros((2, 0))).tolist() == [0, 0]
    with pytest.raises(ShapeError, match="one for each correlation or one for each neuron"):
        one_standard_error(correlation, np.zeros((3, 2)))


@pytest.mark.parametrize("truth", [0.0, 0.4, -0.8])
def test_the_standard_error_is_the_spread_of_correlations_of_normal_variables(truth: float) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 4000, 200))
    y = truth * x + np.sqrt(1 - truth**2) * y
    x, y = (v - v.mean(axis=1, keepdims=True) for v in (x, y))
    r = (x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    error = correlation_standard_error(np.array([truth]), 200)[0]
    # 4,000 trials know their own spread to about one per cent.
    assert r.std() == pytest.approx(error, rel=0.05)


def test_too_few_images_have_no_standard_error() -> None:
    correlation = np.array([[0.5, np.nan, 1.0]])
    assert np.isnan(correlation_standard_error(correlation, 3)).all()
    found = correlation_standard_error(correlation, 4)
    np.testing.assert_array_equal(found, [[0.75, np.nan, 0.0]])


folds_of_correlations = arrays(
    np.float64,
    st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)),
    elements=st.one_of(st.floats(-1, 1), st.just(np.nan)),
)


@pytest.mark.filterwarnings("error")
@given(folds_of_correlations)
def test_the_cross_validated_mean_is_one_on_the_z_scale_over_defined_folds(
    folds: np.ndarray,
) -> None:
    mean, error = cross_validated(folds)
    for place in np.ndindex(mean.shape):
        values = folds[(slice(None), *place)]
        values = values[np.isfinite(values)]
        if not len(values):
            assert np.isnan(mean[place])
            assert np.isnan(error[place])
            continue
        assert values.min() - 1e-9 <= mean[place] <= values.max() + 1e-9
        z = np.arctanh(np.clip(values, -1 + 1e-12, 1 - 1e-12))
        assert mean[place] == pytest.approx(np.tanh(z.mean()), abs=1e-12)
        if len(values) == 1:
            assert np.isnan(error[place])
        else:
            spread = z.std(ddof=1) / np.sqrt(len(z)) / np.cosh(z.mean()) ** 2
            assert error[place] == pytest.approx(spread, abs=1e-9)


@given(folds_of_correlations)
def test_neither_the_order_of_folds_nor_undefined_ones_matter_and_signs_mirror(
    folds: np.ndarray,
) -> None:
    mean, error = cross_validated(folds)
    undefined = np.full((1, *folds.shape[1:]), np.nan)
    for changed, sign in ((folds[::-1], 1), (np.concatenate([folds, undefined]), 1), (-folds, -1)):
        other, other_error = cross_validated(changed)
        np.testing.assert_allclose(sign * other, mean, atol=1e-12)
        np.testing.assert_allclose(other_error, error, atol=1e-9)


def test_folds_that_agree_have_no_standard_error() -> None:
    mean, error = cross_validated(np.full((5, 2, 3), 0.3))
    np.testing.assert_allclose(mean, 0.3)
    np.testing.assert_allclose(error, 0.0, atol=1e-12)


def test_terms_are_ordered_by_how_much_they_move_the_prediction() -> None:
    weights = np.array([1.0, -5.0, 0.5, 2.0])
    std = np.array([0.5, 0.2, 1.0, 0.3])
    assert term_order(weights, std).tolist() == [1, 3, 0, 2]
    # Equal terms keep the order in which they were selected.
    assert term_order(np.array([1.0, -1.0, 1.0]), np.ones(3)).tolist() == [0, 1, 2]


def test_moments_of_other_concepts_are_refused() -> None:
    p, q, paths = fitted()
    with pytest.raises(ShapeError, match="concepts"):
        path_correlations(paths, ConceptMoments.of(p[:, :9]), CrossMoments.of(p, q))
