"""Concepts that stand for each other, against refits on raw data and planted copies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import LinearRegression

from core.errors import ShapeError
from core.moments import ConceptMoments, CrossMoments
from core.shares import drop_one
from core.synonyms import (
    CONCEPT_STATUSES,
    collinearity_groups,
    degenerate_concepts,
    near_synonyms,
)

Synonyms = tuple[np.ndarray, np.ndarray]


def made(images: int, concepts: int, neurons: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Concept scores with few causes, so that many are alike, and noisy sums of some of them."""
    rng = np.random.default_rng(seed)
    causes = rng.standard_normal((images, 4))
    logits = causes @ rng.standard_normal((4, concepts))
    p = 1 / (1 + np.exp(-logits - 0.3 * rng.standard_normal((images, concepts))))
    q = p @ rng.standard_normal((concepts, neurons)) + rng.standard_normal((images, neurons))
    return p, q


def random_sets(concepts: int, neurons: int, terms: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(concepts)[:terms] for _ in range(neurons)])


def found_in(p: np.ndarray, q: np.ndarray, sets: np.ndarray, **options: float) -> Synonyms:
    return near_synonyms(sets, ConceptMoments.of(p), CrossMoments.of(p, q), **options)  # type: ignore[arg-type]


def correlation(p: np.ndarray, q: np.ndarray, terms: list[int]) -> float:
    predicted = LinearRegression().fit(p[:, terms], q).predict(p[:, terms])
    return float(np.corrcoef(predicted, q)[0, 1])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.floats(0, 0.2))
def test_replacements_are_those_of_refitting_with_every_other_concept(
    seed: int, size: int, loss: float
) -> None:
    p, q = made(60, 14, 2, seed)
    sets = random_sets(14, 2, size, seed)
    positions, losses = found_in(p, q, sets, most=20, loss=loss)
    for i, terms in enumerate(sets.tolist()):
        whole = correlation(p, q[:, i], terms)
        for k in range(size):
            others = [c for c in range(14) if c not in terms]
            lost = {
                c: 1 - correlation(p, q[:, i], [*terms[:k], c, *terms[k + 1 :]]) / whole
                for c in others
            }
            expected = sorted((c for c in others if lost[c] <= loss), key=lambda c: lost[c])
            assert positions[i, k].tolist() == expected + [-1] * (20 - len(expected))
            assert_allclose(losses[i, k, : len(expected)], [lost[c] for c in expected], atol=1e-9)
            assert np.isnan(losses[i, k, len(expected) :]).all()


def test_fewer_replacements_are_the_best_of_more() -> None:
    p, q = made(80, 30, 10, 0)
    sets = random_sets(30, 10, 4, 0)
    positions, losses = found_in(p, q, sets, most=20, loss=0.3)
    assert (positions[..., 5] >= 0).any()
    for most in (0, 1, 3):
        fewer = found_in(p, q, sets, most=most, loss=0.3)
        assert_array_equal(fewer[0], positions[..., :most])
        assert_array_equal(fewer[1], losses[..., :most])


def test_planted_copies_of_a_concept_are_named_in_the_order_of_the_list() -> None:
    rng = np.random.default_rng(1)
    p = rng.random((200, 12))
    p[:, 3], p[:, 8] = p[:, 5], 2 - 7 * p[:, 5]
    p[:, 10] = p[:, 5] + 0.02 * rng.standard_normal(200)
    q = (p[:, 5] + p[:, 0])[:, None] + 0.1 * rng.standard_normal((200, 1))
    positions, losses = found_in(p, q, np.array([[5, 0]]), most=4)
    # Copies lose nothing but rounding, which decides between them.
    assert sorted(positions[0, 0, :2].tolist()) == [3, 8]
    assert positions[0, 0, 2:].tolist() == [10, -1]
    assert_allclose(losses[0, 0, :2], 0.0, atol=1e-12)
    assert 0 < losses[0, 0, 2] < 0.02
    assert (positions[0, 1] == -1).all()


def test_a_copy_is_found_at_no_loss_at_all() -> None:
    p, q = made(100, 10, 8, 2)
    p[:, 9] = p[:, 4] * -3.7
    sets = np.tile([4, 1, 2], (8, 1))
    positions, _ = found_in(p, q, sets, loss=0.0, most=9)
    assert (positions[:, 0] == 9).any(axis=1).all()


def test_concepts_that_cannot_replace_anything_are_never_named() -> None:
    p, q = made(80, 12, 5, 3)
    p[:, 7] = 0.5
    p[:, 8] = p[:, 1]
    p[:, 9] = p[:, 1] - p[:, 2]
    sets = np.tile([0, 1, 2, -1], (5, 1))
    positions, _ = found_in(p, q, sets, loss=0.999, most=12)
    assert not np.isin(positions, [0, 1, 2, 7]).any()
    # In place of the first, a copy of the second or a sum of both others would add nothing.
    assert not np.isin(positions[:, 0], [8, 9]).any()
    assert (positions[:, 1] == 8).any(axis=1).all()
    assert not (positions[:, 2] == 8).any()
    assert (positions[:, 2] == 9).any(axis=1).all()
    assert (positions[:, 3] == -1).all()


def test_a_term_that_can_be_left_out_at_a_small_loss_can_be_replaced_by_any_concept() -> None:
    p, q = made(80, 12, 30, 4)
    sets = random_sets(12, 30, 5, 4)
    lost = drop_one(sets, ConceptMoments.of(p), CrossMoments.of(p, q))
    whole = [correlation(p, q[:, i], terms) for i, terms in enumerate(sets.tolist())]
    needed = 1 - np.sqrt(1 - lost / np.square(whole)[:, None])
    assert (needed < 0.02).any()
    positions, _ = found_in(p, q, sets, most=7)
    assert (positions[needed < 0.02] >= 0).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_neither_order_nor_units_change_a_replacement(seed: int, size: int) -> None:
    p, q = made(60, 12, 3, seed)
    sets = random_sets(12, 3, size, seed)
    positions, losses = found_in(p, q, sets, loss=0.1)
    rng = np.random.default_rng(seed)
    order = rng.permutation(size)
    units = rng.choice([-1, 1], 12) * np.geomspace(1e-3, 1e3, 12)
    for other in (
        found_in(p, q, sets[:, order], loss=0.1),
        found_in(p * units, 3 - 10 * q, sets[:, order], loss=0.1),
    ):
        assert_array_equal(other[0], positions[:, order])
        assert_allclose(other[1], losses[:, order], atol=1e-9)


@pytest.mark.filterwarnings("error")
def test_neurons_without_an_explanation_have_no_replacements_and_spoil_no_others() -> None:
    p, q = made(60, 10, 7, 5)
    p[:, 9] = p[:, 8]
    sets = random_sets(8, 7, 3, 5)
    expected = found_in(p, q, sets, loss=0.2)
    q[:, 1], q[4, 2], sets[3], sets[4] = 2.0, np.nan, -1, [8, 9, 0]
    found = found_in(p, q, sets, loss=0.2)
    assert (found[0][1:5] == -1).all()
    assert np.isnan(found[1][1:5]).all()
    for kept in (0, 5, 6):
        assert_array_equal(found[0][kept], expected[0][kept])
        assert_array_equal(found[1][kept], expected[1][kept])


@pytest.mark.parametrize("block", [1, 2, 7, 64])
def test_neither_block_nor_company_changes_a_bit(block: int) -> None:
    p, q = made(60, 20, 23, 6)
    sets = random_sets(20, 23, 5, 6)
    sets[np.arange(5) >= np.random.default_rng(6).integers(0, 6, 23)[:, None]] = -1
    concepts, cross = ConceptMoments.of(p), CrossMoments.of(p, q)
    whole = near_synonyms(sets, concepts, cross, loss=0.3)
    assert (whole[0] >= 0).any()
    found = near_synonyms(sets, concepts, cross, loss=0.3, block=block)
    some = np.random.default_rng(block).permutation(23)[: 24 - block // 3]
    part = near_synonyms(sets[some], concepts, cross.take_neurons(some), loss=0.3, block=block)
    for k in range(2):
        assert_array_equal(found[k], whole[k])
        assert_array_equal(part[k], whole[k][some])


def judged_one_by_one(p: np.ndarray) -> tuple[list[str], list[int]]:
    """Statuses by regressing each concept on raw data on those before it that were kept."""
    centred = p - p.mean(axis=0)
    statuses, partners, kept = [], [], []
    for j, column in enumerate(centred.T):
        status, partner = "", -1
        if not np.ptp(p[:, j]):
            status = "constant"
        else:
            earlier = [k for k in range(j) if statuses[k] != "constant"]
            same = [k for k in earlier if abs(np.corrcoef(p[:, k], p[:, j])[0, 1]) >= 1 - 1e-9]
            fitted = np.linalg.lstsq(centred[:, kept], column, rcond=None)[0]
            left = column - centred[:, kept] @ fitted
            if same:
                status, partner = "duplicate", same[0]
            elif left @ left <= 1e-7 * (column @ column):
                status = "collinear"
        if not status:
            kept.append(j)
        statuses.append(status)
        partners.append(partner)
    return statuses, partners


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([12, 60, 200]))
def test_statuses_are_those_of_regressing_each_concept_on_those_before_it(
    seed: int, concepts: int
) -> None:
    rng = np.random.default_rng(seed)
    p = rng.random((400, concepts))
    for j in rng.permutation(np.arange(3, concepts))[: concepts // 3]:
        a, b = rng.integers(0, j, 2)
        kind = rng.integers(4)
        if kind == 0:
            p[:, j] = rng.random()
        elif kind == 1:
            p[:, j] = rng.random() - rng.choice([-2, 3]) * p[:, a]
        elif kind == 2:
            p[:, j] = 0.5 * p[:, a] - 2 * p[:, b]
        else:
            p[:, j] = p[:, a] + 1e-2 * p[:, j]
    status, partner = degenerate_concepts(ConceptMoments.of(p))
    expected = judged_one_by_one(p)
    assert status.tolist() == expected[0]
    assert partner.tolist() == expected[1]
    assert set(status) <= set(CONCEPT_STATUSES)


def test_planted_degenerate_concepts_are_told_apart_across_tiles() -> None:
    p = np.random.default_rng(7).random((900, 500))
    p[:, 10] = 0.3
    p[:, 11] = 0.3
    p[:, 130] = 1 - 4 * p[:, 2]
    p[:, 400] = p[:, 130]
    p[:, 300] = p[:, 5] + p[:, 200]
    p[:, 301] = p[:, 300] * 2
    p[:, 450] = p[:, 300] - p[:, 5] - p[:, 200] + p[:, 6]
    p[:, 499] = p[:, 7] + 2e-3 * p[:, 499]
    status, partner = degenerate_concepts(ConceptMoments.of(p))
    planted = {
        10: ("constant", -1),
        11: ("constant", -1),
        130: ("duplicate", 2),
        400: ("duplicate", 2),
        300: ("collinear", -1),
        301: ("duplicate", 300),
        450: ("duplicate", 6),
    }
    found = np.flatnonzero(status != "").tolist()
    assert {j: (status[j], partner[j]) for j in found} == planted


def test_more_concepts_than_images_leave_as_many_as_images_allow() -> None:
    p = np.random.default_rng(8).random((40, 300))
    status, _ = degenerate_concepts(ConceptMoments.of(p))
    assert (status[:39] == "").all()
    assert (status[39:] == "collinear").all()


def test_no_concepts_have_no_status() -> None:
    nothing = ConceptMoments.of(np.zeros((5, 0)))
    status, partner = degenerate_concepts(nothing)
    assert len(status) == len(partner) == len(collinearity_groups(nothing)) == 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 1), st.sampled_from([10, 130, 300]))
def test_groups_are_the_components_of_the_graph_of_high_correlations(
    seed: int, threshold: float, concepts: int
) -> None:
    p, _ = made(60, concepts, 1, seed)
    p[:, 4] = 0.1
    found = collinearity_groups(ConceptMoments.of(p), threshold)
    with np.errstate(invalid="ignore", divide="ignore"):
        linked = np.abs(np.corrcoef(p.T)) >= threshold
    np.fill_diagonal(linked, False)
    assert found.tolist() == components(linked)
    assert found[4] == 4


def test_a_chain_is_one_group_in_whatever_order_its_links_come() -> None:
    rng = np.random.default_rng(9)
    chain = np.cumsum(rng.standard_normal((5000, 300)), axis=1)
    order = rng.permutation(300)
    correlations = np.corrcoef(chain.T)
    threshold = float(correlations[np.arange(30, 299), np.arange(31, 300)].min()) - 1e-9
    found = collinearity_groups(ConceptMoments.of(chain[:, order]), threshold)
    end = np.flatnonzero(order >= 30)
    assert_array_equal(found[end], found[end].min())
    assert abs(correlations[30, 299]) < threshold


def components(linked: np.ndarray) -> list[int]:
    """Smallest node of each node's component, by walking the graph."""
    name = [-1] * len(linked)
    for start in range(len(linked)):
        walk = [start] if name[start] < 0 else []
        while walk:
            node = walk.pop()
            if name[node] < 0:
                name[node] = start
                walk.extend(np.flatnonzero(linked[node]).tolist())
    return name


def test_arguments_that_do_not_fit_are_refused() -> None:
    p, q = made(50, 6, 2, 10)
    concepts, cross = ConceptMoments.of(p), CrossMoments.of(p, q)
    with pytest.raises(ShapeError, match="images and concepts"):
        near_synonyms(np.zeros((2, 1), dtype=int), ConceptMoments.of(p[:40]), cross)
    with pytest.raises(ShapeError, match="expected 0 to 5"):
        near_synonyms(np.array([[0], [6]]), concepts, cross)
    for threshold in (0.0, 1.5):
        with pytest.raises(ShapeError, match="expected a correlation"):
            collinearity_groups(concepts, threshold)
