"""Moments: exact algebra over shards, the same bits however the work is cut up."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from core.errors import RecordingError, ShapeError
from core.moments import ConceptMoments, CrossMoments, merged

FIELDS = ("concept_mean", "neuron_mean", "neuron_scatter", "cross")


def scores(images: int, concepts: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random((images, concepts)).astype(np.float16)


def activations(images: int, neurons: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.maximum(rng.standard_normal((images, neurons)), 0).astype(np.float16)


def assert_same_bits(found: CrossMoments, expected: CrossMoments) -> None:
    assert found.count == expected.count
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))


def assert_close(found: CrossMoments, expected: CrossMoments) -> None:
    assert found.count == expected.count
    for field in FIELDS:
        np.testing.assert_allclose(
            getattr(found, field), getattr(expected, field), rtol=1e-11, atol=1e-11
        )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_moments_are_those_of_numpy(dtype: type) -> None:
    p, q = scores(301, 13).astype(dtype), activations(301, 7).astype(dtype)
    both = np.cov(np.hstack([p, q]).astype(np.float64).T, bias=True) * 301
    concepts, cross = ConceptMoments.of(p), CrossMoments.of(p, q)
    assert concepts.count == cross.count == 301
    np.testing.assert_allclose(concepts.mean, p.astype(np.float64).mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(concepts.scatter, both[:13, :13], rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(concepts.std, p.astype(np.float64).std(axis=0), rtol=1e-12)
    np.testing.assert_allclose(cross.neuron_mean, q.astype(np.float64).mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(cross.neuron_scatter, np.diag(both)[13:], rtol=1e-12)
    np.testing.assert_allclose(cross.cross, both[:13, 13:], rtol=1e-11, atol=1e-11)
    np.testing.assert_array_equal(concepts.scatter, concepts.scatter.T)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 120), max_size=4))
def test_merged_moments_equal_one_pass_for_any_partition(cuts: list[int]) -> None:
    p, q = scores(120, 6), activations(120, 5)
    edges = [0, *sorted(cuts), 120]
    pieces = [slice(a, b) for a, b in itertools.pairwise(edges)]
    concepts = merged([ConceptMoments.of(p[piece]) for piece in pieces])
    whole = ConceptMoments.of(p)
    np.testing.assert_allclose(concepts.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(concepts.scatter, whole.scatter, rtol=1e-11, atol=1e-11)
    np.testing.assert_array_equal(concepts.scatter, concepts.scatter.T)
    assert_close(
        merged([CrossMoments.of(p[piece], q[piece]) for piece in pieces]), CrossMoments.of(p, q)
    )


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(5)))
def test_merging_is_associative_and_commutative_up_to_rounding(order: list[int]) -> None:
    parts = [CrossMoments.of(scores(n, 4, n), activations(n, 3, n)) for n in (1, 7, 40, 2, 90)]
    in_turn = merged([parts[index] for index in order])
    nested = parts[0].merge(parts[1].merge(parts[2].merge(parts[3].merge(parts[4]))))
    assert_close(in_turn, nested)


@settings(max_examples=20, deadline=None)
@given(st.floats(-1e6, 1e6))
def test_a_shift_moves_the_means_and_nothing_else(shift: float) -> None:
    q = activations(200, 3).astype(np.float64)
    p = scores(200, 4)
    plain, shifted = CrossMoments.of(p, q), CrossMoments.of(p, q + shift)
    np.testing.assert_allclose(shifted.neuron_mean, plain.neuron_mean + shift, rtol=1e-12)
    np.testing.assert_allclose(shifted.neuron_scatter, plain.neuron_scatter, rtol=1e-7)
    np.testing.assert_allclose(shifted.cross, plain.cross, rtol=1e-6, atol=1e-6)


def test_means_far_from_zero_survive_merging() -> None:
    q = 1e6 + np.random.default_rng(0).standard_normal((4000, 2))
    p = scores(4000, 3)
    parts = [CrossMoments.of(p[a : a + 100], q[a : a + 100]) for a in range(0, 4000, 100)]
    np.testing.assert_allclose(merged(parts).neuron_scatter, 4000 * q.var(axis=0), rtol=1e-8)


def test_a_column_that_never_changes_has_exactly_no_scatter() -> None:
    p = scores(333, 3).astype(np.float64)
    p[:, 1] = 0.1
    q = np.full((333, 2), -0.3)
    parts = [slice(0, 100), slice(100, 101), slice(101, 333)]
    concepts = merged([ConceptMoments.of(p[part]) for part in parts])
    cross = merged([CrossMoments.of(p[part], q[part]) for part in parts])
    assert concepts.mean[1] == 0.1
    assert not concepts.scatter[1].any()
    np.testing.assert_array_equal(cross.neuron_mean, -0.3)
    assert not cross.neuron_scatter.any()
    assert not cross.cross.any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_neuron_that_is_not_finite_touches_no_other(value: float) -> None:
    p, q = scores(150, 9), activations(150, 6)
    clean = CrossMoments.of(p, q)
    q[17, 2] = value
    spoilt = merged([CrossMoments.of(p[:100], q[:100]), CrossMoments.of(p[100:], q[100:])])
    others = np.array([0, 1, 3, 4, 5])
    assert np.isnan(spoilt.neuron_mean[2])
    assert np.isnan(spoilt.neuron_scatter[2])
    assert np.isnan(spoilt.cross[:, 2]).all()
    assert_close(spoilt.take_neurons(others), clean.take_neurons(others))


def test_a_neuron_has_the_same_bits_whatever_neurons_are_beside_it() -> None:
    p, q = scores(700, 1100), activations(700, 600)
    whole = CrossMoments.of(p, q)
    for piece in (slice(0, 1), slice(5, 37), slice(250, 600), slice(599, 600)):
        assert_same_bits(CrossMoments.of(p, q[:, piece]), whole.take_neurons(piece))


def test_a_concept_has_the_same_bits_whatever_concepts_are_beside_it() -> None:
    p, q = scores(500, 1300), activations(500, 3)
    kept = np.random.default_rng(2).permutation(1300)[:700]
    found, expected = ConceptMoments.of(p[:, kept]), ConceptMoments.of(p).select(kept)
    np.testing.assert_array_equal(found.scatter, expected.scatter)
    np.testing.assert_array_equal(found.mean, expected.mean)
    assert_same_bits(CrossMoments.of(p[:, kept], q), CrossMoments.of(p, q).select(kept))


# Row counts between one and two of the library's blocks are where threads used to matter.
@pytest.mark.parametrize("images", [300, 700, 1500])
def test_the_number_of_threads_changes_no_bit(images: int) -> None:
    p, q = scores(images, 400), activations(images, 300)
    with threadpool_limits(1):
        concepts, cross = ConceptMoments.of(p), CrossMoments.of(p, q)
    for threads in (2, 3, 4):
        with threadpool_limits(threads):
            np.testing.assert_array_equal(ConceptMoments.of(p).scatter, concepts.scatter)
            assert_same_bits(CrossMoments.of(p, q), cross)


@settings(max_examples=30, deadline=None)
@given(
    counts=st.tuples(st.integers(5, 80), st.integers(1, 80)),
    seed=st.integers(0, 10_000),
    mean=st.sampled_from([0.0, 1.0, -1e3]),
)
def test_taking_a_part_out_undoes_merging_it(
    counts: tuple[int, int], seed: int, mean: float
) -> None:
    rest, part = (scores(n, 5, seed + n).astype(np.float64) for n in counts)
    q, r = (activations(n, 4, seed + n % 7) + mean for n in counts)
    concepts, expected = ConceptMoments.of(rest), CrossMoments.of(rest, q)
    left = concepts.merge(ConceptMoments.of(part)).without(ConceptMoments.of(part))
    assert left.count == counts[0]
    np.testing.assert_allclose(left.mean, concepts.mean, rtol=1e-10)
    np.testing.assert_allclose(left.scatter, concepts.scatter, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(left.scatter, left.scatter.T)
    out = CrossMoments.of(part, r)
    found = expected.merge(out).without(out)
    assert found.count == counts[0]
    for field in FIELDS:
        np.testing.assert_allclose(
            getattr(found, field), getattr(expected, field), rtol=1e-9, atol=1e-9
        )


def test_what_does_not_vary_in_the_rest_has_no_scatter_after_a_part_is_taken_out() -> None:
    p, q = scores(60, 4).astype(np.float64), activations(60, 3).astype(np.float64)
    p[:40, 1], q[:40, 2] = 0.7, -2.5
    part = slice(40, 60)
    concepts = ConceptMoments.of(p).without(ConceptMoments.of(p[part]))
    cross = CrossMoments.of(p, q).without(CrossMoments.of(p[part], q[part]))
    assert not concepts.scatter[1].any()
    assert not concepts.scatter[:, 1].any()
    assert cross.neuron_scatter[2] == 0
    assert not cross.cross[:, 2].any()
    np.testing.assert_allclose(concepts.mean[1], 0.7, rtol=1e-12)
    np.testing.assert_allclose(cross.neuron_mean[2], -2.5, rtol=1e-12)
    np.testing.assert_allclose(
        cross.neuron_scatter[:2], CrossMoments.of(p[:40], q[:40]).neuron_scatter[:2], rtol=1e-10
    )


def test_a_neuron_that_failed_in_a_part_stays_failed_and_alone() -> None:
    p, q = scores(60, 4), activations(60, 3)
    spoilt = q.copy()
    spoilt[50, 1] = np.nan
    found = CrossMoments.of(p, spoilt).without(CrossMoments.of(p[40:], spoilt[40:]))
    assert np.isnan(found.neuron_scatter[1])
    assert np.isnan(found.cross[:, 1]).all()
    others = np.array([0, 2])
    assert_close(found.take_neurons(others), CrossMoments.of(p[:40], q[:40]).take_neurons(others))


@pytest.mark.parametrize("images", [0, 20, 21])
def test_a_part_must_be_smaller_than_the_whole_and_not_empty(images: int) -> None:
    p, q = scores(21, 3), activations(21, 2)
    whole, part = p[:20], p[:images]
    with pytest.raises(ShapeError, match=f"a part of {images} images"):
        ConceptMoments.of(whole).without(ConceptMoments.of(part))
    with pytest.raises(ShapeError, match=f"a part of {images} images"):
        CrossMoments.of(whole, q[:20]).without(CrossMoments.of(part, q[:images]))


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(0, 50), min_size=3, max_size=3).filter(sum),
    seed=st.integers(0, 10_000),
)
def test_three_shards_are_merged_in_either_way(counts: list[int], seed: int) -> None:
    parts = [
        (scores(n, 4, seed + k), activations(n, 3, seed + 9 + k)) for k, n in enumerate(counts)
    ]
    a, b, c = (CrossMoments.of(p, q) for p, q in parts)
    assert_close(a.merge(b).merge(c), a.merge(b.merge(c)))
    x, y, z = (ConceptMoments.of(p) for p, _ in parts)
    left, right = x.merge(y).merge(z), x.merge(y.merge(z))
    np.testing.assert_allclose(left.mean, right.mean, rtol=1e-12)
    np.testing.assert_allclose(left.scatter, right.scatter, rtol=1e-11, atol=1e-11)


def test_an_empty_shard_adds_nothing() -> None:
    p, q = scores(20, 3), activations(20, 2)
    whole = CrossMoments.of(p, q)
    empty = CrossMoments.of(p[:0], q[:0])
    assert empty.count == 0
    assert_same_bits(whole.merge(empty), whole)
    assert_same_bits(empty.merge(whole), whole)
    assert ConceptMoments.of(p[:0]).merge(ConceptMoments.of(p)).count == 20


@settings(max_examples=15, deadline=None)
@given(
    known=st.lists(st.booleans(), min_size=2, max_size=9).filter(lambda k: any(k) and not all(k)),
    seed=st.integers(0, 10_000),
)
def test_a_longer_list_of_concepts_from_a_shorter_one_is_one_pass(
    known: list[bool], seed: int
) -> None:
    shards = [
        (scores(n, len(known), seed + n), activations(n, 3, seed + 9 + n)) for n in (40, 7, 23)
    ]
    old, new = np.flatnonzero(known), np.flatnonzero(np.logical_not(known))
    concepts = merged([ConceptMoments.of(p[:, old]) for p, _ in shards])
    beside = merged([CrossMoments.of(p, p[:, new]) for p, _ in shards])
    longer = concepts.with_concepts(old, new, beside)
    whole = merged([ConceptMoments.of(p) for p, _ in shards])
    assert longer.count == whole.count
    np.testing.assert_array_equal(longer.mean, whole.mean)
    np.testing.assert_array_equal(longer.scatter, whole.scatter)

    cross = merged([CrossMoments.of(p[:, old], q) for p, q in shards])
    more = merged([CrossMoments.of(p[:, new], q) for p, q in shards])
    assert_same_bits(
        cross.with_concepts(old, new, more), merged([CrossMoments.of(p, q) for p, q in shards])
    )


def test_concepts_of_other_images_or_too_few_are_not_joined() -> None:
    p, q = scores(20, 4), activations(20, 2)
    old, new = np.arange(3), np.array([3])
    concepts, cross = ConceptMoments.of(p[:, :3]), CrossMoments.of(p[:, :3], q)
    with pytest.raises(ShapeError, match="images"):
        concepts.with_concepts(old, new, CrossMoments.of(p[:9], p[:9, 3:]))
    with pytest.raises(ShapeError, match="lists"):
        concepts.with_concepts(old, new, CrossMoments.of(p[:, :3], p[:, 3:]))
    with pytest.raises(ShapeError, match="images"):
        cross.with_concepts(old, new, CrossMoments.of(p[:9, 3:], q[:9]))


def test_moments_that_do_not_fit_together_are_refused() -> None:
    p, q = scores(10, 3), activations(10, 2)
    with pytest.raises(ShapeError, match="images"):
        CrossMoments.of(p, q[:9])
    with pytest.raises(ShapeError, match="concepts"):
        ConceptMoments.of(p).merge(ConceptMoments.of(p[:, :2]))
    with pytest.raises(ShapeError, match="neurons"):
        CrossMoments.of(p, q).merge(CrossMoments.of(p, q[:, :1]))
    with pytest.raises(ShapeError, match="one row per image"):
        ConceptMoments.of(p[0])
    with pytest.raises(ShapeError, match="no moments"):
        merged([])


def test_concept_scores_that_are_not_finite_are_refused_by_position() -> None:
    p, q = scores(10, 3).astype(np.float32), activations(10, 2)
    p[4, 1] = np.nan
    for take in (lambda: ConceptMoments.of(p), lambda: CrossMoments.of(p, q)):
        with pytest.raises(RecordingError, match=r"1 of 3 concepts .* position 1"):
            take()
