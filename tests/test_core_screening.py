"""Which concepts are kept when there are too many, against ranking all of them on raw data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.moments import ConceptMoments, CrossMoments
from core.screening import nearest_concepts


def recorded(images: int, concepts: int, neurons: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-rng.standard_normal((images, concepts))))
    q = rng.standard_normal((images, neurons)) + p[:, :3] @ rng.standard_normal((3, neurons))
    return p, q


def kept(p: np.ndarray, layers: list[np.ndarray], most: int) -> list[int]:
    scatter = np.diagonal(ConceptMoments.of(p).scatter)
    return nearest_concepts([CrossMoments.of(p, q) for q in layers], scatter, most).tolist()


def kept_by_ranking(p: np.ndarray, layers: list[np.ndarray], most: int) -> list[int]:
    """The same by its description, one neuron after the other."""
    best = dict.fromkeys(range(p.shape[1]), (np.inf, 0.0))
    for q in layers:
        for neuron in q.T:
            size = [abs(np.corrcoef(column, neuron)[0, 1]) for column in p.T]
            for rank, concept in enumerate(sorted(best, key=lambda c: -size[c])):
                choice, strongest = best[concept]
                best[concept] = min(choice, rank), max(strongest, size[concept])
    return sorted(sorted(best, key=lambda c: (best[c][0], -best[c][1]))[:most])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    concepts=st.integers(3, 14),
    neurons=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    most=st.integers(1, 16),
)
def test_the_concepts_are_those_of_ranking_every_one_for_every_neuron(
    seed: int, concepts: int, neurons: list[int], most: int
) -> None:
    p, q = recorded(40, concepts, sum(neurons) + 1, seed)
    layers = np.split(q, np.cumsum(neurons), axis=1)
    assert kept(p, layers, most) == kept_by_ranking(p, layers, most)


def test_neurons_of_several_blocks_and_layers_are_looked_at_together() -> None:
    p, q = recorded(120, 60, 150, 0)
    together = kept(p, [q], 20)
    assert together == kept_by_ranking(p, [q], 20)
    assert kept(p, [q[:, 100:], q[:, :7], q[:, 7:100]], 20) == together


def test_the_first_choice_of_every_neuron_is_kept_where_there_is_room() -> None:
    p, q = recorded(200, 50, 30, 1)
    correlation = np.abs(np.corrcoef(p.T, q.T)[:50, 50:])
    first = set(correlation.argmax(axis=0).tolist())
    assert first <= set(kept(p, [q], len(first)))


@pytest.mark.parametrize("most", [1, 5, 12])
def test_fewer_concepts_are_a_part_of_more(most: int) -> None:
    p, q = recorded(100, 25, 8, 2)
    fewer, more = kept(p, [q], most), kept(p, [q], most + 4)
    assert len(fewer) == most
    assert set(fewer) < set(more)


def test_with_room_for_all_all_are_kept_in_order() -> None:
    p, q = recorded(50, 9, 4, 3)
    assert kept(p, [q], 9) == kept(p, [q], 1000) == list(range(9))


@pytest.mark.filterwarnings("error")
def test_neurons_with_nothing_to_explain_have_no_say() -> None:
    p, q = recorded(100, 25, 8, 4)
    failed = q[:, :1].copy()
    failed[3] = np.nan
    mixed = np.hstack([np.zeros((100, 1)), q, np.full((100, 1), 0.7), failed])
    assert kept(p, [mixed], 6) == kept(p, [q], 6)
    assert len(kept(p, [mixed[:, :1]], 6)) == 6


@pytest.mark.filterwarnings("error")
def test_concepts_that_do_not_vary_come_last() -> None:
    p, q = recorded(100, 12, 5, 5)
    p[:, [2, 8]] = 0.25
    assert not {2, 8} & set(kept(p, [q], 10))
    assert kept(p, [q], 12) == list(range(12))


def test_units_of_concepts_and_neurons_do_not_matter() -> None:
    p, q = recorded(150, 30, 9, 6)
    units = 2.0 ** np.arange(-15, 15)
    assert kept(p * units, [q * 1024 + 3], 10) == kept(p, [q], 10)
