"""Elastic net with the largest weights kept, and the best single concept."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.linear_model import ElasticNet

from core.elastic_net import L1_RATIO, PENALTY
from core.errors import ConfigError
from core.lengths import path_correlations
from core.moments import ConceptMoments, CrossMoments
from core.paths import Paths, nested_selection
from core.ranked import elastic_net_top_k_paths, single_paths


def images(seed: int, concepts: int = 30, neurons: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    causes = rng.standard_normal((400, concepts // 3))
    logits = causes @ rng.standard_normal((concepts // 3, concepts))
    p = 1 / (1 + np.exp(1 - logits - rng.standard_normal((400, concepts))))
    weights = rng.standard_normal((concepts, neurons)) * (rng.random((concepts, neurons)) < 0.3)
    q = p @ weights
    return p, np.maximum(q + 0.5 * rng.standard_normal(q.shape), q.mean(axis=0))


def moments(p: np.ndarray, q: np.ndarray) -> tuple[ConceptMoments, CrossMoments]:
    return ConceptMoments.of(p), CrossMoments.of(p, q)


def net(p: np.ndarray, q: np.ndarray, penalty: float = PENALTY) -> np.ndarray:
    """Standardised weights of one neuron by scikit-learn."""
    x, y = (p - p.mean(axis=0)) / p.std(axis=0), (q - q.mean()) / q.std()
    model = ElasticNet(alpha=penalty, l1_ratio=L1_RATIO, tol=1e-11, max_iter=100_000)
    return np.asarray(model.fit(x, y).coef_)


def refit(p: np.ndarray, q: np.ndarray, concepts: list[int]) -> np.ndarray:
    return np.linalg.lstsq(np.column_stack([p[:, concepts], np.ones(len(p))]), q, rcond=None)[0]


def longest(paths: Paths, neuron: int) -> list[int]:
    length = int(paths.available[neuron])
    return paths.explanation(neuron, length)[0].tolist() if length else []


def assert_same_bits(found: Paths, expected: Paths) -> None:
    for name in ("concepts", "weights", "bias", "available"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def take(paths: Paths, rows: np.ndarray) -> Paths:
    return Paths(paths.concepts[rows], paths.weights[rows], paths.bias[rows], paths.available[rows])


def test_each_length_refits_the_concepts_of_largest_weight() -> None:
    p, q = images(0)
    paths = elastic_net_top_k_paths(*moments(p, q), 6, gap_tolerance=1e-11)
    for neuron in range(6):
        size = np.abs(net(p, q[:, neuron]))
        expected = np.argsort(-size, kind="stable")[: min(6, np.count_nonzero(size > 1e-9))]
        assert longest(paths, neuron) == expected.tolist()
        for length in range(1, len(expected) + 1):
            concepts, weights, bias = paths.explanation(neuron, length)
            found = refit(p, q[:, neuron], concepts.tolist())
            np.testing.assert_allclose([*weights, bias], found, rtol=1e-7)


def test_positive_weights_are_those_of_going_down_the_ranking() -> None:
    p, q = images(1, neurons=12)
    paths = elastic_net_top_k_paths(*moments(p, q), 5, sign="positive", gap_tolerance=1e-11)
    passed_over = 0
    for neuron in range(12):
        weight = net(p, q[:, neuron])
        expected: list[int] = []
        for concept in np.argsort(-weight, kind="stable")[: np.count_nonzero(weight > 1e-9)]:
            if len(expected) == 5:
                break
            if (refit(p, q[:, neuron], [*expected, int(concept)])[:-1] > 0).all():
                expected.append(int(concept))
            else:
                passed_over += 1
        assert longest(paths, neuron) == expected
        for length in range(1, len(expected) + 1):
            assert (paths.explanation(neuron, length)[1] > 0).all()
    assert passed_over


def test_a_copy_of_a_concept_is_passed_over_and_the_path_goes_on() -> None:
    p, q = images(2)
    first = elastic_net_top_k_paths(*moments(p, q), 4).concepts[:, 0, 0]
    p = np.column_stack([p, p[:, first]])
    paths = elastic_net_top_k_paths(*moments(p, q), 4)
    assert (paths.available == 4).all()
    for neuron in range(6):
        chosen = longest(paths, neuron)
        assert not {int(first[neuron]), 30 + neuron} <= set(chosen)


def test_each_neuron_has_the_penalty_that_validates_best() -> None:
    p, q = images(3, neurons=10)
    train, val = moments(p[:250], q[:250]), moments(p[250:], q[250:])
    penalties = (PENALTY, 0.3, 0.01)
    chosen = elastic_net_top_k_paths(*train, 5, penalties=penalties, val=val)
    each = [elastic_net_top_k_paths(*train, 5, penalties=[penalty]) for penalty in penalties]
    value = np.stack(
        [np.nan_to_num(path_correlations(paths, *val), nan=-1).max(axis=1) for paths in each]
    )
    best = value.argmax(axis=0)
    assert len(set(best.tolist())) > 1
    for neuron, place in enumerate(best):
        row = np.array([neuron])
        assert_same_bits(take(chosen, row), take(each[place], row))


def test_neither_order_nor_company_of_neurons_changes_a_bit() -> None:
    p, q = images(4, neurons=9)
    mixed = np.column_stack([q[:, :4], np.zeros(400), np.full(400, 2.0), q[:, 0], q[:, 4:]])
    mixed[3, 6] = np.nan
    kept = np.array([0, 1, 2, 3, 7, 8, 9, 10, 11])
    for search in (
        lambda x: elastic_net_top_k_paths(*moments(p, x), 5),
        lambda x: elastic_net_top_k_paths(*moments(p, x), 5, sign="positive"),
        lambda x: single_paths(*moments(p, x)),
    ):
        whole = search(q)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = search(mixed)
        assert_same_bits(take(found, kept), whole)
        assert not found.available[4:7].any()
        order = np.random.default_rng(0).permutation(9)
        assert_same_bits(search(q[:, order]), take(whole, order))


def test_the_single_concept_is_the_one_of_largest_correlation() -> None:
    p, q = images(5, neurons=20)
    correlation = np.corrcoef(p.T, q.T)[:30, 30:]
    paths, positive = single_paths(*moments(p, q)), single_paths(*moments(p, q), sign="positive")
    assert paths.concepts.shape == (20, 1, 1)
    assert paths.concepts[:, 0, 0].tolist() == np.abs(correlation).argmax(axis=0).tolist()
    assert positive.concepts[:, 0, 0].tolist() == correlation.argmax(axis=0).tolist()
    assert (paths.concepts != positive.concepts).any()
    assert (positive.weights > 0).all()


def test_without_concepts_or_without_weights_there_is_no_explanation() -> None:
    p, q = images(6)
    for sign in ("any", "positive"):
        none = elastic_net_top_k_paths(*moments(p[:, :0], q), 3, sign=sign)
        assert not none.available.any()
        flat = elastic_net_top_k_paths(*moments(p, q), 3, sign=sign, penalties=[1.5])
        assert not flat.available.any()
        assert nested_selection(flat.concepts)[1].all()


def test_penalties_that_cannot_be_chosen_among_are_refused() -> None:
    p, q = images(7)
    with pytest.raises(ConfigError, match="2 penalties without"):
        elastic_net_top_k_paths(*moments(p, q), 3, penalties=[0.1, 0.2])
    with pytest.raises(ConfigError, match="0 penalties"):
        elastic_net_top_k_paths(*moments(p, q), 3, penalties=[])
