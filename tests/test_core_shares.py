"""Shares of variance, against Shapley values of refits on raw data over all orders."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from core.errors import ShapeError
from core.moments import ConceptMoments, CrossMoments
from core.shares import drop_one, variance_shares


def made(images: int, concepts: int, neurons: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping concept scores, and neurons that are noisy sums of some of them."""
    rng = np.random.default_rng(seed)
    causes = rng.standard_normal((images, max(2, concepts // 3)))
    logits = causes @ rng.standard_normal((causes.shape[1], concepts))
    p = 1 / (1 + np.exp(-logits - rng.standard_normal((images, concepts))))
    q = p @ rng.standard_normal((concepts, neurons)) + rng.standard_normal((images, neurons))
    return p, q


def shares(p: np.ndarray, q: np.ndarray, sets: np.ndarray, max_exact: int = 10) -> np.ndarray:
    return variance_shares(sets, ConceptMoments.of(p), CrossMoments.of(p, q), max_exact)


def dropped(p: np.ndarray, q: np.ndarray, sets: np.ndarray) -> np.ndarray:
    return drop_one(sets, ConceptMoments.of(p), CrossMoments.of(p, q))


def r2(p: np.ndarray, q: np.ndarray, terms: tuple[int, ...]) -> float:
    """R² of least squares with a bias on raw data."""
    design = np.column_stack([p[:, list(terms)], np.ones(len(p))])
    residual = q - design @ np.linalg.lstsq(design, q, rcond=None)[0]
    return 1 - float(residual @ residual) / float(np.sum((q - q.mean()) ** 2))


def averaged_over_orders(p: np.ndarray, q: np.ndarray, terms: list[int]) -> list[float]:
    total = dict.fromkeys(terms, 0.0)
    orders = list(permutations(terms))
    for order in orders:
        for k, term in enumerate(order):
            total[term] += r2(p, q, order[: k + 1]) - r2(p, q, order[:k])
    return [total[term] / len(orders) for term in terms]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_shares_are_the_mean_increase_of_r2_over_all_orders(seed: int, size: int) -> None:
    p, q = made(60, 8, 3, seed)
    sets = np.stack([np.random.default_rng(seed + i).permutation(8)[:size] for i in range(3)])
    expected = [averaged_over_orders(p, q[:, i], sets[i].tolist()) for i in range(3)]
    assert_allclose(shares(p, q, sets), expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("max_exact", [0, 10])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_shares_are_not_negative_and_sum_to_r2(max_exact: int, seed: int) -> None:
    p, q = made(50, 12, 4, seed)
    sets = np.stack([np.random.default_rng(seed + i).permutation(12)[:9] for i in range(4)])
    found = shares(p, q, sets, max_exact)
    assert (found >= 0).all()
    expected = [r2(p, q[:, i], tuple(sets[i])) for i in range(4)]
    assert_allclose(found.sum(axis=1), expected, rtol=1e-9)


def test_shares_of_uncorrelated_concepts_are_squared_correlations() -> None:
    rng = np.random.default_rng(0)
    p = np.linalg.qr(np.column_stack([np.ones(80), rng.standard_normal((80, 10))]))[0][:, 1:]
    q = rng.standard_normal((80, 2))
    sets = np.tile(np.arange(10), (2, 1))
    expected = [[np.corrcoef(p[:, j], q[:, i])[0, 1] ** 2 for j in range(10)] for i in range(2)]
    assert_allclose(shares(p, q, sets), expected, atol=1e-12)
    assert_allclose(shares(p, q, sets, max_exact=3), expected, atol=1e-12)
    assert_allclose(dropped(p, q, sets), expected, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9))
def test_neither_order_nor_units_nor_shifts_change_a_share(seed: int, size: int) -> None:
    p, q = made(50, 10, 3, seed)
    rng = np.random.default_rng(seed)
    sets = np.stack([rng.permutation(10)[:size] for _ in range(3)])
    found, lost = shares(p, q, sets), dropped(p, q, sets)
    order = rng.permutation(size)
    assert_allclose(shares(p, q, sets[:, order]), found[:, order], rtol=1e-7, atol=1e-12)
    assert_allclose(dropped(p, q, sets[:, order]), lost[:, order], rtol=1e-7, atol=1e-12)
    units = rng.choice([-1, 1], 10) * np.geomspace(1e-3, 1e3, 10)
    other_p, other_q = p * units + rng.standard_normal(10), 5 - 1e3 * q
    assert_allclose(shares(other_p, other_q, sets), found, rtol=1e-6, atol=1e-10)
    assert_allclose(dropped(other_p, other_q, sets), lost, rtol=1e-6, atol=1e-10)


def test_a_copy_of_a_concept_takes_half_of_its_share_and_neither_is_needed() -> None:
    p, q = made(100, 6, 2, 1)
    p[:, 5] = 2 - 3 * p[:, 1]
    sets = np.array([[1, 2, 5], [5, 0, 1]])
    found = shares(p, q, sets)
    assert_allclose(found[0, 0], found[0, 2], rtol=1e-9)
    assert_allclose(found[1, 0], found[1, 2], rtol=1e-9)
    expected = [r2(p, q[:, 0], (1, 2)), r2(p, q[:, 1], (0, 1))]
    assert_allclose(found.sum(axis=1), expected, rtol=1e-9)
    assert_allclose(shares(p, q, sets, 0).sum(axis=1), expected, rtol=1e-9)
    lost = dropped(p, q, sets)
    assert_array_equal(lost[[0, 0, 1, 1], [0, 2, 0, 2]], 0.0)
    assert lost[0, 1] == pytest.approx(expected[0] - r2(p, q[:, 0], (1,)), rel=1e-8)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-6, 1e-2))
def test_shares_are_not_negative_on_either_side_of_the_collinearity_limit(
    seed: int, distance: float
) -> None:
    p, q = made(60, 6, 3, seed)
    rng = np.random.default_rng(seed)
    between = np.column_stack([p[:, :2], np.ones(60)])
    noise = rng.standard_normal(60)
    noise -= between @ np.linalg.lstsq(between, noise, rcond=None)[0]
    p[:, 4] = p[:, 0] - p[:, 1] + distance * noise
    # Only all three together explain it; where they count as collinear, pairs explain more.
    q[:, 0] = noise
    found = shares(p, q, np.array([[0, 1, 4, -1], [0, 1, 4, 2], [2, 0, 1, 4]]))
    assert (found >= 0).all()
    assert (found.sum(axis=1) <= 1 + 1e-7).all()


@pytest.mark.filterwarnings("error")
def test_a_constant_concept_has_no_share() -> None:
    p, q = made(60, 5, 2, 2)
    p[:, 3] = 0.25
    sets = np.array([[3, 0, 1], [2, 3, -1]])
    found = shares(p, q, sets)
    assert found[0, 0] == 0
    assert found[1, 1] == 0
    assert_allclose(found[0, 1:], shares(p, q, np.array([[0, 1], [2, -1]]))[0], rtol=1e-12)
    assert dropped(p, q, sets)[0, 0] == 0


def test_sampled_orders_come_close_to_all_orders() -> None:
    p, q = made(300, 30, 20, 3)
    rng = np.random.default_rng(3)
    sets = np.stack([rng.choice(30, 11, replace=False) for _ in range(20)])
    exact, sampled = shares(p, q, sets, 11), shares(p, q, sets, 10)
    r2s = exact.sum(axis=1, keepdims=True)
    assert_allclose(sampled.sum(axis=1, keepdims=True), r2s, rtol=1e-10)
    error = (sampled - exact) / r2s
    assert np.sqrt(np.mean(error**2)) < 0.006
    assert np.abs(error).max() > 0
    assert_array_equal(shares(p, q, sets), sampled)


def test_what_a_term_is_needed_for_is_the_fall_of_r2_without_it() -> None:
    p, q = made(80, 9, 4, 4)
    sets = np.stack([np.random.default_rng(i).permutation(9)[:6] for i in range(4)])
    found = dropped(p, q, sets)
    for i, terms in enumerate(sets.tolist()):
        for k in range(6):
            rest = tuple(terms[:k] + terms[k + 1 :])
            fall = r2(p, q[:, i], tuple(terms)) - r2(p, q[:, i], rest)
            assert found[i, k] == pytest.approx(fall, rel=1e-7, abs=1e-12)


@pytest.mark.filterwarnings("error")
def test_only_neurons_that_cannot_be_explained_have_nan() -> None:
    p, q = made(60, 8, 6, 5)
    sets = np.stack([np.random.default_rng(i).permutation(8)[:5] for i in range(6)])
    expected, lost = shares(p, q, sets), dropped(p, q, sets)
    q[:, 1], q[3, 2], q[:, 4] = 0.0, np.nan, 7.0
    kept = [0, 3, 5]
    for found, reference in ((shares(p, q, sets), expected), (dropped(p, q, sets), lost)):
        assert np.isnan(found[[1, 2, 4]]).all()
        assert_array_equal(found[kept], reference[kept])


def test_company_and_order_of_neurons_change_no_bit() -> None:
    p, q = made(60, 14, 40, 6)
    concepts, cross = ConceptMoments.of(p), CrossMoments.of(p, q)
    rng = np.random.default_rng(6)
    sets = np.stack([rng.permutation(14)[:12] for _ in range(40)])
    sets[np.arange(12) >= rng.integers(0, 13, 40)[:, None]] = -1
    whole, lost = variance_shares(sets, concepts, cross), drop_one(sets, concepts, cross)
    for some in (rng.permutation(40), np.array([9]), np.arange(17, 30)):
        part = cross.take_neurons(some)
        assert_array_equal(variance_shares(sets[some], concepts, part), whole[some])
        assert_array_equal(drop_one(sets[some], concepts, part), lost[some])
    many = np.tile(np.arange(40), 40)
    part = cross.take_neurons(many)
    assert_array_equal(variance_shares(sets[many], concepts, part), whole[many])


def test_where_there_is_no_term_there_is_no_share() -> None:
    p, q = made(60, 8, 3, 7)
    sets = np.array([[4, 1, -1, -1], [-1, 4, -1, 1], [-1, -1, -1, -1]], dtype=np.int32)
    found = shares(p, q[:, [0, 0, 0]], sets)
    assert_array_equal(found[0, :2], found[1, [1, 3]])
    assert_array_equal(found[0, 2:], 0.0)
    assert_array_equal(found[1, [0, 2]], 0.0)
    assert_array_equal(found[2], 0.0)
    assert shares(p, q, np.zeros((3, 0), dtype=np.int32)).shape == (3, 0)


def test_sets_that_do_not_fit_are_refused() -> None:
    p, q = made(50, 6, 2, 8)
    concepts, cross = ConceptMoments.of(p), CrossMoments.of(p, q)
    for measure in (variance_shares, drop_one):
        with pytest.raises(ShapeError, match="images and concepts"):
            measure(np.zeros((2, 1), dtype=int), ConceptMoments.of(p[:40]), cross)
        with pytest.raises(ShapeError, match="expected 2 rows"):
            measure(np.zeros((3, 1), dtype=int), concepts, cross)
        for wrong in (6, -2):
            with pytest.raises(ShapeError, match="expected 0 to 5"):
                measure(np.array([[0], [wrong]]), concepts, cross)
