"""Forward selection and its paths, against refitting every candidate on raw data."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ShapeError
from core.forward import forward_paths
from core.moments import ConceptMoments, CrossMoments
from core.paths import Paths, fitted_paths, nested_selection


def correlated_scores(images: int, concepts: int, seed: int) -> np.ndarray:
    """Scores that share causes, as those of a vision-language model do."""
    rng = np.random.default_rng(seed)
    causes = rng.standard_normal((images, max(3, concepts // 4)))
    mixing = rng.standard_normal((causes.shape[1], concepts))
    logits = causes @ mixing + rng.standard_normal((images, concepts)) - 1
    return 1 / (1 + np.exp(-logits))


def noisy_neurons(p: np.ndarray, neurons: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((p.shape[1], neurons)) * (rng.random((p.shape[1], neurons)) < 0.3)
    return np.maximum(p @ weights + 0.5 * rng.standard_normal((len(p), neurons)), 0)


def forward(p: np.ndarray, q: np.ndarray, max_length: int, block: int | None = None) -> Paths:
    return forward_paths(ConceptMoments.of(p), CrossMoments.of(p, q), max_length, block)


def residual(p: np.ndarray, q: np.ndarray) -> tuple[float, np.ndarray]:
    """Residual sum of squares and weights, the bias last, of least squares on raw data."""
    design = np.column_stack([p, np.ones(len(p))])
    weights = np.linalg.lstsq(design, q, rcond=None)[0]
    return float(np.sum((q - design @ weights) ** 2)), weights


def refitted_greedily(p: np.ndarray, q: np.ndarray, max_length: int) -> list[int]:
    """Forward selection that refits each candidate from scratch on raw data."""
    chosen: list[int] = []
    for _ in range(max_length):
        rest = [j for j in range(p.shape[1]) if j not in chosen]
        chosen.append(min(rest, key=lambda j: residual(p[:, [*chosen, j]], q)[0]))
    return chosen


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_selection_is_that_of_refitting_every_candidate(seed: int) -> None:
    p = correlated_scores(80, 12, seed)
    q = noisy_neurons(p, 3, seed + 1)
    paths = forward(p, q, 4)
    for neuron in range(3):
        if paths.available[neuron]:
            assert order(paths)[neuron].tolist() == refitted_greedily(p, q[:, neuron], 4)


def test_every_length_has_the_least_squares_weights_of_its_own_concepts() -> None:
    p = correlated_scores(300, 40, 0)
    q = noisy_neurons(p, 6, 1)
    paths = forward(p, q, 10)
    assert (paths.available == 10).all()
    for neuron in range(6):
        for length in range(1, 11):
            concepts, weights, bias = paths.explanation(neuron, length)
            expected = residual(p[:, concepts], q[:, neuron])[1]
            np.testing.assert_allclose([*weights, bias], expected, rtol=1e-8, atol=1e-10)
            assert not paths.weights[neuron, length - 1, length:].any()


def test_a_longer_explanation_never_fits_the_training_images_worse() -> None:
    p = correlated_scores(200, 30, 2)
    q = noisy_neurons(p, 5, 3)
    paths = forward(p, q, 8)
    for neuron in range(5):
        errors = []
        for length in range(1, 9):
            concepts, weights, bias = paths.explanation(neuron, length)
            errors.append(np.sum((q[:, neuron] - p[:, concepts] @ weights - bias) ** 2))
        assert np.all(np.diff(errors) <= 1e-9 * errors[0])


def test_planted_explanations_are_recovered() -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(0.3, 2.0, (6000, 200))
    support = np.stack([rng.choice(200, 5, replace=False) for _ in range(60)])
    planted = rng.uniform(0.5, 2.0, (60, 5)) * rng.choice([-1, 1], (60, 5))
    q = np.einsum("ink,nk->in", p[:, support], planted) + 0.7
    q += 0.3 * q.std(axis=0) * rng.standard_normal(q.shape)
    paths = forward(p, q, 5)
    found = [set(a) == set(b) for a, b in zip(order(paths), support, strict=True)]
    assert np.mean(found) >= 0.95
    errors = []
    for neuron in np.flatnonzero(found).tolist():
        concepts, weights, bias = paths.explanation(neuron, 5)
        truth = dict(zip(support[neuron], planted[neuron], strict=True))
        errors.append([w / truth[c] - 1 for c, w in zip(concepts, weights, strict=True)])
        assert bias == pytest.approx(0.7, abs=0.05)
    # Relative errors of 300 weights; the standard error of a weight is about two per cent of one.
    assert np.sqrt(np.mean(np.square(errors))) < 0.05


def order(paths: Paths) -> np.ndarray:
    """Concepts in order of selection, -1 beyond the end."""
    return nested_selection(paths.concepts)[0]


def assert_same_bits(found: Paths, expected: Paths) -> None:
    np.testing.assert_array_equal(found.concepts, expected.concepts)
    np.testing.assert_array_equal(found.weights, expected.weights)
    np.testing.assert_array_equal(found.bias, expected.bias)
    np.testing.assert_array_equal(found.available, expected.available)


def take(paths: Paths, rows: np.ndarray) -> Paths:
    return Paths(paths.concepts[rows], paths.weights[rows], paths.bias[rows], paths.available[rows])


@pytest.mark.parametrize("block", [1, 2, 7, 64])
def test_the_block_changes_no_bit(block: int) -> None:
    p = correlated_scores(150, 60, 4)
    q = noisy_neurons(p, 23, 5)
    q[:, 3] = p[:, 11]
    assert_same_bits(forward(p, q, 10, block), forward(p, q, 10))


def test_neither_order_nor_company_of_neurons_changes_a_bit() -> None:
    p = correlated_scores(150, 60, 4)
    q = noisy_neurons(p, 23, 5)
    whole = forward(p, q, 10)
    order = np.random.default_rng(0).permutation(23)
    assert_same_bits(forward(p, q[:, order], 10), take(whole, order))
    assert_same_bits(forward(p, q[:, [9]], 10), take(whole, np.array([9])))
    halves = [forward(p, q[:, :11], 10), forward(p, q[:, 11:], 10)]
    assert_same_bits(Paths.joined(halves), whole)


def test_concepts_in_other_units_are_selected_in_the_same_order() -> None:
    p = correlated_scores(200, 20, 6)
    q = noisy_neurons(p, 4, 7)
    units = np.geomspace(1e-3, 1e3, 20)
    plain, scaled = forward(p, q, 6), forward(p * units, q, 6)
    np.testing.assert_array_equal(plain.concepts, scaled.concepts)
    picked = units[plain.concepts]
    np.testing.assert_allclose(scaled.weights * picked, plain.weights, rtol=1e-7)


def test_of_equal_concepts_the_first_is_taken_and_the_others_never() -> None:
    p = correlated_scores(120, 10, 8)
    p[:, 7] = p[:, 2]
    p[:, 9] = 1 - 0.5 * p[:, 2]
    q = 3 * p[:, [2]] + p[:, [4]] + 0.1 * np.random.default_rng(0).standard_normal((120, 1))
    paths = forward(p, q, 10)
    chosen = paths.explanation(0, int(paths.available[0]))[0].tolist()
    assert chosen[0] == 2
    assert not {7, 9} & set(chosen)
    assert paths.available[0] == 8
    assert np.isnan(paths.bias[0, 8:]).all()
    assert not paths.weights[0, 8:].any()


def test_concepts_that_do_not_vary_are_never_selected() -> None:
    p = correlated_scores(120, 6, 9)
    p[:, [0, 3]] = 0.1
    paths = forward(p, noisy_neurons(p, 4, 10), 6)
    assert (paths.available == 4).all()
    assert not np.isin(paths.concepts, [0, 3]).any()


def test_the_path_ends_where_everything_is_explained() -> None:
    p = correlated_scores(200, 30, 11)
    q = np.column_stack([2 * p[:, 5] - p[:, 8] + 4, p[:, 1]])
    paths = forward(p, q, 10)
    assert paths.available.tolist() == [2, 1]
    concepts, weights, bias = paths.explanation(0, 2)
    found = dict(zip(concepts.tolist(), weights, strict=True))
    assert found == pytest.approx({5: 2.0, 8: -1.0})
    assert bias == pytest.approx(4.0)


def test_a_path_is_no_longer_than_the_list_of_concepts() -> None:
    p = correlated_scores(60, 3, 12)
    paths = forward(p, noisy_neurons(p, 2, 13), 10)
    assert paths.concepts.shape == (2, 10, 10)
    assert (paths.available <= 3).all()
    assert (order(paths)[:, 3:] == -1).all()
    none = forward(p[:, :0], noisy_neurons(p, 2, 13), 4)
    assert not none.available.any()


def test_neurons_with_nothing_to_explain_get_an_empty_path_and_disturb_no_other() -> None:
    p = correlated_scores(150, 20, 14)
    q = noisy_neurons(p, 5, 15)
    clean = forward(p, q, 5)
    mixed = np.column_stack([q, np.zeros(150), np.full(150, 3.3), q[:, 0], q[:, 0]])
    mixed[4, 7], mixed[5, 8] = np.nan, np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = forward(p, mixed, 5)
    assert_same_bits(take(paths, np.arange(5)), clean)
    assert not paths.available[5:].any()
    assert (paths.concepts[5:] == -1).all()
    assert np.isnan(paths.bias[5:]).all()
    assert not paths.weights[5:].any()


def test_a_selection_given_by_hand_ends_before_its_first_collinear_concept() -> None:
    p = correlated_scores(100, 6, 16)
    p[:, 5] = p[:, 0] + p[:, 1]
    q = noisy_neurons(p, 2, 17)
    selection = np.array([[0, 1, 5, 2], [3, 2, -1, -1]], dtype=np.int32)
    paths = fitted_paths(selection, ConceptMoments.of(p), CrossMoments.of(p, q))
    assert paths.available.tolist() == [2, 2]
    assert order(paths).tolist() == [[0, 1, -1, -1], [3, 2, -1, -1]]


def test_moments_and_lengths_that_do_not_exist_are_refused() -> None:
    p = correlated_scores(50, 6, 18)
    q = noisy_neurons(p, 2, 19)
    concepts, cross = ConceptMoments.of(p), CrossMoments.of(p, q)
    with pytest.raises(ShapeError, match="images and concepts"):
        forward_paths(ConceptMoments.of(p[:40]), cross, 3)
    with pytest.raises(ShapeError, match="images and concepts"):
        forward_paths(ConceptMoments.of(p[:, :5]), cross, 3)
    paths = forward_paths(concepts, cross, 3)
    for length in (0, 4):
        with pytest.raises(ShapeError, match="lengths 1 to 3"):
            paths.explanation(0, length)
    with pytest.raises(ShapeError, match="expected one length"):
        Paths.joined([paths, forward_paths(concepts, cross, 2)])
