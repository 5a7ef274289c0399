"""How often folds select a concept again, against counting with sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from core.errors import ShapeError
from core.stability import selection_frequency


def random_sets(rng: np.random.Generator, neurons: int, terms: int) -> np.ndarray:
    sets = np.stack([rng.permutation(9)[:terms] for _ in range(neurons)])
    sets[np.arange(terms) >= rng.integers(0, terms + 1, neurons)[:, None]] = -1
    return sets


@given(st.integers(0, 10_000), st.integers(1, 6), st.booleans())
def test_frequencies_are_those_of_counting(seed: int, folds: int, grouped: bool) -> None:
    rng = np.random.default_rng(seed)
    chosen = random_sets(rng, 5, 4)
    parts = [random_sets(rng, 5, int(rng.integers(1, 6))) for _ in range(folds)]
    groups = np.minimum(rng.integers(0, 9, 9), np.arange(9)) if grouped else np.arange(9)
    found = selection_frequency(chosen, parts, groups if grouped else None)
    for neuron in range(5):
        selected = [{int(groups[c]) for c in part[neuron] if c >= 0} for part in parts]
        for term, concept in enumerate(chosen[neuron]):
            if concept < 0:
                assert np.isnan(found[neuron, term])
            else:
                times = sum(int(groups[concept]) in fold for fold in selected)
                assert found[neuron, term] == times / folds


def test_a_near_synonym_counts_only_where_groups_are_given() -> None:
    chosen = np.array([[2, 5]])
    folds = [np.array([[2, 5]]), np.array([[3, 5]]), np.array([[7, -1]]), np.array([[-1, -1]])]
    groups = np.array([0, 1, 2, 2, 4, 5, 6, 2])
    assert_array_equal(selection_frequency(chosen, folds), [[0.25, 0.5]])
    assert_array_equal(selection_frequency(chosen, folds, groups), [[0.75, 0.5]])


def test_concepts_that_are_all_there_and_always_selected_have_frequency_one() -> None:
    chosen = np.array([[4, 1, 0], [-1, -1, -1]], dtype=np.int32)
    folds = [np.array([[0, 4, 1], [2, 3, 4]])] * 3
    assert_array_equal(selection_frequency(chosen, folds), [[1.0] * 3, [np.nan] * 3])


def test_sets_that_do_not_fit_are_refused() -> None:
    chosen = np.array([[2], [5]])
    with pytest.raises(ShapeError, match="at least one"):
        selection_frequency(chosen, [])
    with pytest.raises(ShapeError, match="one row for each neuron"):
        selection_frequency(chosen, [np.array([[2], [5], [1]])])
    with pytest.raises(ShapeError, match="position 5"):
        selection_frequency(chosen, [chosen], np.arange(5))
