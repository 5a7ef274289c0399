"""Beam search, against trying every set of concepts and against forward selection."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.beam import beam_paths
from core.errors import ConfigError, ShapeError
from core.forward import forward_paths
from core.lengths import path_correlations
from core.moments import ConceptMoments, CrossMoments
from core.nonnegative import Sign
from core.paths import Paths, nested_selection

SIGNS: tuple[Sign, ...] = ("any", "positive")


def images(seed: int, concepts: int = 10, neurons: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Mixtures that are good first concepts, and their parts, which make them superfluous."""
    rng = np.random.default_rng(seed)
    parts = rng.random((150, concepts // 2))
    mixing = rng.random((concepts // 2, concepts - concepts // 2)) < 0.5
    mixtures = parts @ mixing + 0.1 * rng.standard_normal((150, mixing.shape[1]))
    q = parts @ rng.uniform(-0.3, 1, (concepts // 2, neurons))
    return np.column_stack([mixtures, parts]), q + 0.1 * rng.standard_normal(q.shape)


def beam(p: np.ndarray, q: np.ndarray, max_length: int, **settings: object) -> Paths:
    return beam_paths(ConceptMoments.of(p), CrossMoments.of(p, q), max_length, **settings)


def forward(p: np.ndarray, q: np.ndarray, max_length: int, sign: Sign = "any") -> Paths:
    return forward_paths(ConceptMoments.of(p), CrossMoments.of(p, q), max_length, sign=sign)


def explained(p: np.ndarray, q: np.ndarray, concepts: tuple[int, ...], sign: Sign) -> float:
    """Share of the scatter that least squares explains; -1 where a weight has the wrong sign."""
    design = np.column_stack([p[:, concepts], np.ones(len(p))])
    weights = np.linalg.lstsq(design, q, rcond=None)[0]
    if sign == "positive" and (weights[:-1] <= 0).any():
        return -1.0
    return float(1 - np.sum((q - design @ weights) ** 2) / np.sum((q - q.mean()) ** 2))


def best_subset(p: np.ndarray, q: np.ndarray, length: int, sign: Sign) -> tuple[float, set[int]]:
    every = itertools.combinations(range(p.shape[1]), length)
    value, concepts = max((explained(p, q, subset, sign), subset) for subset in every)
    return value, set(concepts)


def assert_same_bits(found: Paths, expected: Paths) -> None:
    for name in ("concepts", "weights", "bias", "available"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def take(paths: Paths, rows: np.ndarray) -> Paths:
    return Paths(paths.concepts[rows], paths.weights[rows], paths.bias[rows], paths.available[rows])


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(SIGNS))
def test_a_beam_that_holds_every_set_finds_the_best_subset_of_each_length(
    seed: int, sign: Sign
) -> None:
    p, q = images(seed, concepts=8, neurons=2)
    paths = beam(p, q, 5, width=70, sign=sign)
    for neuron in range(2):
        shorter = 0.0
        for length in range(1, 6):
            value, concepts = best_subset(p, q[:, neuron], length, sign)
            if length > paths.available[neuron]:
                # With positive weights the best longer set may be worse, or there may be none.
                assert value <= shorter + 1e-9
                break
            assert set(paths.explanation(neuron, length)[0].tolist()) == concepts
            shorter = value


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(SIGNS), st.integers(1, 8))
def test_no_length_explains_less_than_forward_selection(seed: int, sign: Sign, width: int) -> None:
    p, q = images(seed, concepts=20)
    moments = ConceptMoments.of(p), CrossMoments.of(p, q)
    wide, narrow = beam(p, q, 7, width=width, sign=sign), forward(p, q, 7, sign)
    ours, theirs = path_correlations(wide, *moments), path_correlations(narrow, *moments)
    for neuron in range(4):
        reached = np.nanmax(ours[neuron], initial=0.0)
        for length in range(int(narrow.available[neuron])):
            # A path that is shorter than forward selection's has already reached as much.
            mine = ours[neuron, length] if length < wide.available[neuron] else reached
            assert mine >= theirs[neuron, length] - 1e-10
    assert (np.diff(ours, axis=1)[np.isfinite(ours[:, 1:])] > -1e-12).all()


def test_a_beam_of_width_one_is_forward_selection() -> None:
    p, q = images(0, concepts=30, neurons=12)
    assert_same_bits(beam(p, q, 8, width=1), forward(p, q, 8))


def test_a_superfluous_first_concept_is_dropped_where_forward_selection_keeps_it() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 2000))
    p = np.column_stack([a + b + 0.3 * rng.standard_normal(2000), a, b])
    q = (a + b)[:, None] + 0.1 * rng.standard_normal((2000, 1))
    assert 0 in forward(p, q, 2).explanation(0, 2)[0]
    for sign in SIGNS:
        paths = beam(p, q, 2, sign=sign)
        assert paths.explanation(0, 1)[0].tolist() == [0]
        assert sorted(paths.explanation(0, 2)[0].tolist()) == [1, 2]


@pytest.mark.parametrize("sign", SIGNS)
def test_weights_are_the_least_squares_of_each_set_and_have_the_sign(sign: Sign) -> None:
    p, q = images(2, concepts=20)
    paths = beam(p, q, 6, sign=sign)
    assert not nested_selection(paths.concepts)[1].all()
    for neuron in range(4):
        for length in range(1, int(paths.available[neuron]) + 1):
            concepts, weights, bias = paths.explanation(neuron, length)
            design = np.column_stack([p[:, concepts], np.ones(len(p))])
            expected = np.linalg.lstsq(design, q[:, neuron], rcond=None)[0]
            np.testing.assert_allclose([*weights, bias], expected, rtol=1e-7, atol=1e-10)
            assert sign == "any" or (weights > 0).all()


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("block", [1, 2, 7])
def test_neither_the_block_nor_the_company_of_neurons_changes_a_bit(block: int, sign: Sign) -> None:
    p, q = images(3, concepts=16, neurons=11)
    q[:, 3] = p[:, 11]
    q[:, 7] = -p.sum(axis=1)
    whole = beam(p, q, 5, sign=sign)
    assert_same_bits(beam(p, q, 5, sign=sign, block=block), whole)
    order = np.random.default_rng(0).permutation(11)
    assert_same_bits(beam(p, q[:, order], 5, sign=sign), take(whole, order))
    assert_same_bits(beam(p, q[:, [9]], 5, sign=sign), take(whole, np.array([9])))


@pytest.mark.parametrize("sign", SIGNS)
def test_units_and_order_of_concepts_and_units_of_neurons_change_no_set(sign: Sign) -> None:
    p, q = images(4)
    plain = beam(p, q, 5, sign=sign)
    shuffled = np.random.default_rng(0).permutation(10)
    units, scale = np.geomspace(0.01, 100, 10), np.array([0.1, 1.0, 30.0, 2.0])
    moved = beam((p * units + 3)[:, shuffled], q * scale - 5, 5, sign=sign)
    np.testing.assert_array_equal(moved.available, plain.available)
    for neuron in range(4):
        for length in range(1, int(plain.available[neuron]) + 1):
            there, _, _ = moved.explanation(neuron, length)
            here, _, _ = plain.explanation(neuron, length)
            assert set(shuffled[there].tolist()) == set(here.tolist())


@pytest.mark.parametrize("sign", SIGNS)
def test_of_equal_concepts_the_first_is_taken_and_the_others_never(sign: Sign) -> None:
    p, q = images(5, concepts=12)
    p[:, 9], p[:, 10], p[:, 11] = p[:, 1], 2 * p[:, 3] + 1, 0.25
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = beam(p, q, 8, sign=sign)
    for neuron in range(4):
        for length in range(1, int(paths.available[neuron]) + 1):
            chosen = paths.explanation(neuron, length)[0].tolist()
            assert len(set(chosen)) == length
            assert 11 not in chosen
            assert not {1, 9} <= set(chosen)
            assert not {3, 10} <= set(chosen)
            assert 9 not in chosen


def test_neurons_with_nothing_to_explain_get_an_empty_path_and_disturb_no_other() -> None:
    p, q = images(6)
    clean = beam(p, q, 5)
    mixed = np.column_stack([q, np.zeros(150), np.full(150, 3.3), q[:, 0]])
    mixed[4, 6] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = beam(p, mixed, 5)
    assert_same_bits(take(paths, np.arange(4)), clean)
    assert not paths.available[4:].any()


def test_the_path_ends_where_everything_is_explained_or_concepts_run_out() -> None:
    p, q = images(7)
    exact = np.column_stack([2 * p[:, 5] - p[:, 8] + 4, p[:, 1]])
    assert beam(p, exact, 6).available.tolist() == [2, 1]
    assert (beam(p[:, :3], q, 6).available == 3).all()
    assert not beam(p[:, :0], q, 6).available.any()


def test_impossible_settings_are_refused() -> None:
    p, q = images(8)
    with pytest.raises(ConfigError, match="width 0"):
        beam(p, q, 3, width=0)
    with pytest.raises(ConfigError, match="unknown sign"):
        beam(p, q, 3, sign="plus")
    with pytest.raises(ShapeError, match="images and concepts"):
        beam_paths(ConceptMoments.of(p[:40]), CrossMoments.of(p, q), 3)
