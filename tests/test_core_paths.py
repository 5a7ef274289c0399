"""Weights of sets of concepts, nested or not, and their refit on other images."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from core.errors import ConfigError, ShapeError
from core.lengths import path_correlations
from core.moments import ConceptMoments, CrossMoments
from core.paths import Paths, fitted_paths, fitted_sets, nested_selection, refitted


def images(seed: int, neurons: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    causes = rng.random((200, 4)) @ rng.random((4, 12))
    p = causes + 0.5 * rng.random((200, 12))
    q = p @ rng.standard_normal((12, neurons)) + rng.standard_normal((200, neurons))
    return p, q


def moments(p: np.ndarray, q: np.ndarray) -> tuple[ConceptMoments, CrossMoments]:
    return ConceptMoments.of(p), CrossMoments.of(p, q)


def random_sets(neurons: int, lengths: int, seed: int) -> np.ndarray:
    """Sets that have nothing to do with one another."""
    rng = np.random.default_rng(seed)
    sets = np.full((neurons, lengths, lengths), -1, dtype=np.int32)
    for neuron in range(neurons):
        for k in range(lengths):
            sets[neuron, k, : k + 1] = rng.choice(12, k + 1, replace=False)
    return sets


def prefixes_of(selection: np.ndarray) -> np.ndarray:
    lengths = selection.shape[1]
    return np.where(np.tri(lengths, dtype=bool), selection[:, None, :], -1)


def lstsq(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(np.column_stack([p, np.ones(len(p))]), q, rcond=None)[0]


def assert_same_bits(found: Paths, expected: Paths) -> None:
    for name in ("concepts", "weights", "bias", "available"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_every_set_has_its_own_least_squares_weights(seed: int) -> None:
    p, q = images(seed)
    sets = random_sets(5, 6, seed)
    paths = fitted_sets(sets, *moments(p, q))
    assert (paths.available == 6).all()
    correlation = path_correlations(paths, *moments(p, q))
    for neuron in range(5):
        for length in range(1, 7):
            concepts, weights, bias = paths.explanation(neuron, length)
            assert concepts.tolist() == sets[neuron, length - 1, :length].tolist()
            expected = lstsq(p[:, concepts], q[:, neuron])
            np.testing.assert_allclose([*weights, bias], expected, rtol=1e-7, atol=1e-9)
            predicted = p[:, concepts] @ weights + bias
            plain = np.corrcoef(predicted, q[:, neuron])[0, 1]
            assert correlation[neuron, length - 1] == pytest.approx(plain, abs=1e-10)


def test_sets_that_happen_to_be_nested_get_the_bits_of_a_selection() -> None:
    p, q = images(0)
    selection = np.stack([np.random.default_rng(n).permutation(12)[:6] for n in range(5)])
    selection[3, 4:] = -1
    nested = fitted_paths(selection.astype(np.int32), *moments(p, q))
    sets = prefixes_of(selection)
    assert_same_bits(fitted_sets(sets, *moments(p, q)), nested)
    # One neuron whose sets are not nested changes nothing for the others, whichever way is taken.
    sets[1] = random_sets(1, 6, 9)[0]
    mixed = fitted_sets(sets, *moments(p, q))
    assert nested_selection(mixed.concepts)[1].tolist() == [True, False, True, True, True]
    others = np.array([0, 2, 3, 4])
    np.testing.assert_array_equal(mixed.weights[others], nested.weights[others])
    np.testing.assert_array_equal(mixed.bias[others], nested.bias[others])
    held_out = moments(*images(1))
    np.testing.assert_array_equal(
        path_correlations(mixed, *held_out)[others], path_correlations(nested, *held_out)[others]
    )


def test_the_cheap_way_for_nested_sets_gives_the_bits_of_the_general_way() -> None:
    p, q = images(2, neurons=1)
    selection = np.random.default_rng(0).permutation(12)[None, :5].astype(np.int32)
    nested = fitted_paths(selection, *moments(p, q))
    # The longest set in another order: now no prefix says everything, but lengths 1 to 4 are same.
    sets = prefixes_of(selection)
    sets[0, 4] = sets[0, 4, ::-1]
    general = fitted_sets(sets, *moments(p, q))
    assert not nested_selection(general.concepts)[1].any()
    np.testing.assert_array_equal(general.weights[:, :4], nested.weights[:, :4])
    np.testing.assert_array_equal(general.bias[:, :4], nested.bias[:, :4])
    np.testing.assert_allclose(general.weights[0, 4, ::-1], nested.weights[0, 4], rtol=1e-9)
    correlation = [path_correlations(paths, *moments(p, q)) for paths in (general, nested)]
    np.testing.assert_array_equal(correlation[0][:, :4], correlation[1][:, :4])


def test_a_path_ends_before_the_first_set_that_is_incomplete_or_collinear() -> None:
    p, q = images(3)
    p[:, 11] = p[:, 0] + 2 * p[:, 1]
    sets = random_sets(5, 4, 3) % 11
    sets[0, 2] = [0, 1, 11, -1]
    sets[1, 1] = [4, -1, -1, -1]
    sets[2, 3] = [7, 5, 7, 2]
    sets[3, 0] = -1
    sets[4] = [[1, 0, 0, 0], [2, 3, 3, 3], [4, 5, 6, 6], [7, 8, 9, 10]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = fitted_sets(sets, *moments(p, q))
    assert paths.available[[0, 1, 2, 3, 4]].tolist() == [2, 1, 3, 0, 4]
    beyond = np.arange(4) >= paths.available[:, None]
    assert (paths.concepts[beyond] == -1).all()
    assert not paths.weights[beyond].any()
    np.testing.assert_array_equal(np.isnan(paths.bias), beyond)
    # What stands behind the k concepts of length k is ignored.
    assert paths.concepts[4, 1].tolist() == [2, 3, -1, -1]


def test_a_refit_on_the_same_images_changes_no_bit_and_on_others_is_least_squares() -> None:
    p, q = images(4)
    paths = fitted_sets(random_sets(5, 5, 4), *moments(p[:120], q[:120]))
    assert_same_bits(refitted(paths, *moments(p[:120], q[:120])), paths)
    again = refitted(paths, *moments(p, q))
    for neuron in range(5):
        concepts, weights, bias = again.explanation(neuron, 4)
        expected = lstsq(p[:, concepts], q[:, neuron])
        np.testing.assert_allclose([*weights, bias], expected, rtol=1e-7)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_a_positive_refit_is_the_non_negative_least_squares_or_nothing(seed: int) -> None:
    p, q = images(seed, neurons=8)
    paths = fitted_sets(random_sets(8, 4, seed), *moments(p[:80], q[:80]))
    again = refitted(paths, *moments(p, q), sign="positive")
    x, y = p - p.mean(axis=0), q - q.mean(axis=0)
    for neuron in range(8):
        for length in range(1, 5):
            concepts, weights, bias = again.explanation(neuron, length)
            exact = nnls(x[:, concepts], y[:, neuron])[0]
            if (exact > 0).all():
                np.testing.assert_allclose(weights, exact, rtol=1e-6, atol=1e-9)
                level = q[:, neuron].mean() - p[:, concepts].mean(axis=0) @ exact
                assert bias == pytest.approx(level)
            else:
                before = paths.explanation(neuron, length)
                np.testing.assert_array_equal(weights, before[1])
                assert bias == before[2]


def test_a_refit_keeps_weights_that_the_other_images_do_not_determine() -> None:
    p, q = images(5)
    paths = fitted_sets(random_sets(5, 3, 5), *moments(p, q))
    other = p.copy()
    other[:, paths.concepts[2, 0, 0]] = 0.5
    values = q.copy()
    values[7, 4] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = refitted(paths, *moments(other, values))
    np.testing.assert_array_equal(again.weights[2, 0], paths.weights[2, 0])
    np.testing.assert_array_equal(again.weights[4], paths.weights[4])
    np.testing.assert_array_equal(again.bias[4], paths.bias[4])
    np.testing.assert_array_equal(again.available, paths.available)
    assert np.isfinite(again.weights).all()


def test_without_neurons_or_concepts_there_are_no_explanations() -> None:
    p, q = images(6)
    none = fitted_sets(random_sets(5, 3, 6), *moments(p[:, :0], q))
    assert not none.available.any()
    assert np.isnan(path_correlations(none, *moments(p[:, :0], q))).all()
    assert_same_bits(refitted(none, *moments(p[:, :0], q)), none)
    nobody = fitted_sets(random_sets(0, 3, 6), *moments(p, q[:, :0]))
    assert nobody.weights.shape == (0, 3, 3)
    assert refitted(nobody, *moments(p, q[:, :0])).available.shape == (0,)
    assert path_correlations(nobody, *moments(p, q[:, :0])).shape == (0, 3)


def test_what_does_not_fit_together_is_refused() -> None:
    p, q = images(7)
    with pytest.raises(ShapeError, match="room for 2 concepts"):
        fitted_sets(random_sets(5, 3, 7)[:, :, :2], *moments(p, q))
    paths = fitted_sets(random_sets(5, 3, 7), *moments(p, q))
    with pytest.raises(ShapeError, match="images and concepts"):
        refitted(paths, ConceptMoments.of(p[:50]), CrossMoments.of(p, q))
    with pytest.raises(ConfigError, match=r"unknown sign 'positiv'.*'positive'"):
        refitted(paths, *moments(p, q), sign="positiv")
