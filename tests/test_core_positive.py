"""Positive weights: the solver against SciPy's, the search against the conditions of optimality."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from core.errors import ConfigError
from core.forward import forward_paths
from core.lengths import path_correlations
from core.moments import ConceptMoments, CrossMoments
from core.nonnegative import all_positive, nonnegative_least_squares
from core.paths import Paths, nested_selection


def images(seed: int, concepts: int = 12, neurons: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Mixtures that are good first concepts, and their parts, which make them superfluous."""
    rng = np.random.default_rng(seed)
    parts = rng.random((150, concepts // 2))
    mixing = rng.random((concepts // 2, concepts - concepts // 2)) < 0.5
    mixtures = parts @ mixing + 0.1 * rng.standard_normal((150, mixing.shape[1]))
    q = parts @ rng.uniform(0, 1, (concepts // 2, neurons))
    return np.column_stack([mixtures, parts]), q + 0.1 * rng.standard_normal(q.shape)


def positive(p: np.ndarray, q: np.ndarray, max_length: int, block: int | None = None) -> Paths:
    return forward_paths(
        ConceptMoments.of(p), CrossMoments.of(p, q), max_length, block, sign="positive"
    )


def assert_same_bits(found: Paths, expected: Paths) -> None:
    for name in ("concepts", "weights", "bias", "available"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def take(paths: Paths, rows: np.ndarray) -> Paths:
    return Paths(paths.concepts[rows], paths.weights[rows], paths.bias[rows], paths.available[rows])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 10), st.booleans())
def test_the_solver_gives_the_weights_of_scipy(seed: int, terms: int, warm: bool) -> None:
    rng = np.random.default_rng(seed)
    problems = 7
    a = rng.standard_normal((problems, 30, terms)) + rng.standard_normal((problems, 30, 1))
    b = rng.standard_normal((problems, 30)) + a[:, :, 0]
    present = rng.random((terms, problems)) < 0.8
    gram = np.einsum("nik,nil->kln", a, a)
    gram *= present[:, None] & present[None, :]
    gram[np.arange(terms), np.arange(terms)] += ~present
    right = np.einsum("nik,ni->kn", a, b) * present
    start = rng.random((terms, problems)) if warm else np.zeros((terms, problems))
    found = nonnegative_least_squares(gram, right, present, start, np.full(problems, 1e-12))
    for problem in range(problems):
        there = present[:, problem]
        expected = np.zeros(terms)
        if there.any():
            expected[there] = nnls(a[problem][:, there], b[problem])[0]
        np.testing.assert_allclose(found[:, problem], expected, atol=1e-8)


def test_a_problem_that_is_collinear_is_nan_by_itself() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((3, 20, 3))
    a[1, :, 2] = a[1, :, 0] + a[1, :, 1]
    gram = np.einsum("nik,nil->kln", a, a)
    right = np.abs(rng.standard_normal((3, 3)))
    there = np.ones((3, 3), dtype=bool)
    found = nonnegative_least_squares(gram, right, there, np.zeros((3, 3)), np.zeros(3))
    assert np.isnan(found[:, 1]).all()
    kept = np.array([0, 2])
    alone = nonnegative_least_squares(
        gram[..., kept], right[:, kept], there[:, kept], np.zeros((3, 2)), np.zeros(2)
    )
    np.testing.assert_array_equal(found[:, kept], alone)


def test_positive_means_all_that_is_there_and_more_than_rounding() -> None:
    sizes = np.array([[1.0, 1.0, 1.0, np.nan, 1.0], [0.5, -0.5, 1e-14, 1.0, 0.0]])
    present = np.array([[True] * 5, [True, True, True, True, False]])
    assert all_positive(sizes, present).tolist() == [True, False, False, False, True]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_every_explanation_is_the_non_negative_least_squares_of_its_concepts(seed: int) -> None:
    p, q = images(seed)
    paths = positive(p, q, 6)
    x, y = p - p.mean(axis=0), q - q.mean(axis=0)
    for neuron in range(4):
        errors = [np.sum(y[:, neuron] ** 2)]
        for length in range(1, int(paths.available[neuron]) + 1):
            concepts, weights, bias = paths.explanation(neuron, length)
            assert (weights > 0).all()
            assert len(set(concepts.tolist())) == length
            expected, error = nnls(x[:, concepts], y[:, neuron])
            np.testing.assert_allclose(weights, expected, rtol=1e-6)
            level = q[:, neuron].mean() - p[:, concepts].mean(axis=0) @ weights
            assert bias == pytest.approx(level)
            errors.append(error**2)
        assert (np.diff(errors) < 0).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_a_path_that_ends_early_is_optimal_among_all_concepts(seed: int) -> None:
    p, q = images(seed)
    paths = positive(p, q, 12)
    x, y = p - p.mean(axis=0), q - q.mean(axis=0)
    for neuron in range(4):
        length = int(paths.available[neuron])
        error = np.sum(y[:, neuron] ** 2)
        residual = y[:, neuron]
        if length:
            concepts, weights, _ = paths.explanation(neuron, length)
            residual = residual - x[:, concepts] @ weights
            error = np.sum(residual**2)
        if length < 12:
            # Karush-Kuhn-Tucker: no concept that is left out has a positive slope.
            slope = x.T @ residual / np.linalg.norm(x, axis=0) / np.linalg.norm(y[:, neuron])
            assert slope.max() < 1e-5
        assert error == pytest.approx(nnls(x, y[:, neuron])[1] ** 2, rel=1e-9)


def test_a_concept_that_later_ones_make_superfluous_leaves() -> None:
    rng = np.random.default_rng(1)
    a, b, c = rng.standard_normal((3, 2000))
    # The first is the best alone, but its disturbance is worth a negative weight beside the parts.
    mixture = a + b + c + 0.3 * rng.standard_normal(2000)
    p = np.column_stack([mixture, a, b, c])
    q = (a + b + 0.7 * c)[:, None] + 0.01 * mixture[:, None] - 0.02 * mixture[:, None]
    paths = positive(p, q, 4)
    assert paths.explanation(0, 1)[0].tolist() == [0]
    assert paths.available[0] == 3
    assert sorted(paths.explanation(0, 3)[0].tolist()) == [1, 2, 3]
    assert not nested_selection(paths.concepts)[1].any()


def test_some_paths_of_overlapping_concepts_are_not_nested() -> None:
    nested = [nested_selection(positive(*images(seed), 6).concepts)[1] for seed in range(30)]
    assert 0.02 < 1 - np.mean(nested) < 0.98


def test_where_no_weight_would_be_negative_it_is_forward_selection() -> None:
    rng = np.random.default_rng(2)
    p = rng.beta(0.3, 2.0, (3000, 40))
    q = p[:, :6] @ rng.uniform(0.5, 2.0, (6, 5)) + 0.05 * rng.standard_normal((3000, 5))
    plain = forward_paths(ConceptMoments.of(p), CrossMoments.of(p, q), 6)
    assert (plain.weights[:, 5] > 0).all()
    assert_same_bits(positive(p, q, 6), plain)


def test_a_neuron_that_every_concept_inhibits_has_no_explanation() -> None:
    rng = np.random.default_rng(3)
    p = rng.random((400, 5)) + rng.random((400, 1))
    q = -p.sum(axis=1, keepdims=True)
    paths = positive(p, np.column_stack([q, -q]), 3)
    assert paths.available.tolist() == [0, 3]


@pytest.mark.parametrize("block", [1, 2, 7])
def test_neither_the_block_nor_the_company_of_neurons_changes_a_bit(block: int) -> None:
    p, q = images(4, neurons=19)
    whole = positive(p, q, 6)
    assert not nested_selection(whole.concepts)[1].all()
    assert_same_bits(positive(p, q, 6, block), whole)
    order = np.random.default_rng(0).permutation(19)
    assert_same_bits(positive(p, q[:, order], 6), take(whole, order))
    assert_same_bits(positive(p, q[:, [9]], 6), take(whole, np.array([9])))


def test_neurons_with_nothing_to_explain_get_an_empty_path_and_disturb_no_other() -> None:
    p, q = images(5)
    clean = positive(p, q, 5)
    mixed = np.column_stack([q, np.zeros(150), np.full(150, 3.3), q[:, 0]])
    mixed[4, 6] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = positive(p, mixed, 5)
    assert_same_bits(take(paths, np.arange(4)), clean)
    assert not paths.available[4:].any()


def test_units_and_order_of_concepts_and_units_of_neurons_change_no_explanation() -> None:
    p, q = images(6)
    plain = positive(p, q, 5)
    shuffled = np.random.default_rng(0).permutation(12)
    units, scale = np.geomspace(0.01, 100, 12), np.array([0.1, 1.0, 30.0, 2.0])
    moved = positive((p * units + 3)[:, shuffled], q * scale - 5, 5)
    np.testing.assert_array_equal(moved.available, plain.available)
    exists = plain.concepts >= 0
    np.testing.assert_array_equal(shuffled[moved.concepts[exists]], plain.concepts[exists])
    expected = plain.weights * scale[:, None, None] / units[plain.concepts]
    np.testing.assert_allclose(moved.weights[exists], expected[exists], rtol=1e-6)


def test_copies_and_collinear_concepts_do_not_enter_together() -> None:
    p, q = images(7)
    p[:, 8], p[:, 9], p[:, 10] = p[:, 1], 2 * p[:, 3] + 1, 0.25
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = positive(p, q, 8)
    for neuron in range(4):
        for length in range(1, int(paths.available[neuron]) + 1):
            chosen = set(paths.explanation(neuron, length)[0].tolist())
            assert not chosen & {8, 10}
            assert not {3, 9} <= chosen
    correlation = path_correlations(paths, ConceptMoments.of(p), CrossMoments.of(p, q))
    assert np.isfinite(correlation).sum() == paths.available.sum()


def test_an_unknown_sign_is_refused() -> None:
    p, q = images(8)
    with pytest.raises(ConfigError, match="unknown sign 'negative'"):
        forward_paths(ConceptMoments.of(p), CrossMoments.of(p, q), 3, sign="negative")
