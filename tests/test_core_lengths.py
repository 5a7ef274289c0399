"""Correlations of paths, the choice of a length, and the order of terms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from core.errors import ShapeError
from core.forward import forward_paths
from core.lengths import choose_lengths, path_correlations, term_order
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
    still[:, paths.concepts[0, 0]] = 0.1
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
    concepts = np.tile(np.array([0, 1], dtype=np.int32), (6, 1))
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
