"""Sums of moments over shards: one pass in any pieces, on any block, against covariances by NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import RecordingError, ShapeError
from core.moment_sums import MomentSum

#: A torch device that is not called "cpu": the block of a GPU, worked on by the CPU.
GPU_BLOCK = "cpu:0"
DEVICES = [
    "cpu",
    GPU_BLOCK,
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
    ),
]

devices = pytest.mark.parametrize("device", DEVICES)


@st.composite
def recordings(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[slice]]:
    """Scores and activations of ten images or more, and the shards that they came in."""
    images = draw(st.integers(10, 150))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mixing = rng.standard_normal((3, draw(st.integers(1, 7))))
    p = 1 / (1 + np.exp(-rng.standard_normal((images, 3)) @ mixing))
    q = np.maximum(rng.standard_normal((images, draw(st.integers(1, 6)))), 0) + p[:, :1]
    cuts = draw(st.lists(st.integers(0, images), max_size=6))
    edges = [0, *sorted(cuts), images]
    shards = [slice(a, b) for a, b in itertools.pairwise(edges)]
    return p, q, draw(st.permutations(shards))


def summed(
    p: np.ndarray, q: np.ndarray | None, shards: list[slice] | None = None, device: str = "cpu"
) -> MomentSum:
    total = MomentSum(p.shape[1], None if q is None else q.shape[1], device)
    for shard in shards or [slice(None)]:
        total.add(p[shard], None if q is None else q[shard])
    return total


def covariances(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Centred sums of products of all columns of both, by NumPy."""
    both = np.hstack([p, q]).astype(np.float64)
    return np.atleast_2d(np.cov(both.T, bias=True)) * len(both)


def assert_close(
    found: np.ndarray, expected: np.ndarray, p: np.ndarray, q: np.ndarray, limit: float = 1e-12
) -> None:
    """Differences are measured in the norms of the two centred columns, a correlation's unit."""
    norms = [np.sqrt(len(a)) * a.astype(np.float64).std(axis=0) for a in (p, q)]
    unit = np.maximum(np.outer(*norms), 1e-300)
    assert (np.abs(found - expected) / unit).max() < limit


@devices
@settings(max_examples=25, deadline=None)
@given(recording=recordings())
def test_any_partition_in_any_order_is_one_pass(
    device: str, recording: tuple[np.ndarray, np.ndarray, list[slice]]
) -> None:
    p, q, shards = recording
    whole = covariances(p, q)
    own, cross = summed(p, None, shards, device), summed(p, q, shards, device)
    size = p.shape[1]
    assert own.count == cross.count == len(p)
    assert_close(own.products(), whole[:size, :size], p, p)
    assert_close(cross.products(), whole[:size, size:], p, q)
    np.testing.assert_array_equal(own.products(), own.products().T)
    np.testing.assert_allclose(cross.squares(), np.diagonal(whole)[size:], rtol=1e-12)
    np.testing.assert_allclose(own.squares(), np.diagonal(whole)[:size], rtol=1e-12)
    np.testing.assert_allclose(own.left_mean, p.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(cross.right_mean, q.mean(axis=0), rtol=1e-12)


@devices
@settings(max_examples=15, deadline=None)
@given(recording=recordings(), powers=st.tuples(st.integers(-20, 20), st.integers(-20, 20)))
def test_units_that_are_powers_of_two_change_the_exponents_alone(
    device: str, recording: tuple[np.ndarray, np.ndarray, list[slice]], powers: tuple[int, int]
) -> None:
    p, q, shards = recording
    a, b = (2.0**power for power in powers)
    plain, scaled = summed(p, q, shards, device), summed(a * p, b * q, shards, device)
    np.testing.assert_array_equal(scaled.products(), a * b * plain.products())
    np.testing.assert_array_equal(scaled.squares(), b * b * plain.squares())
    np.testing.assert_array_equal(scaled.right_mean, b * plain.right_mean)


@devices
@settings(max_examples=25, deadline=None)
@given(recording=recordings(), shift=st.floats(-1e6, 1e6))
def test_means_far_from_zero_cost_only_their_own_rounding(
    device: str, recording: tuple[np.ndarray, np.ndarray, list[slice]], shift: float
) -> None:
    p, q, shards = recording
    # The shifted activations are rounded once, in the data; from then on nothing may be lost.
    moved = q + shift
    near = moved - shift
    total = summed(p, moved, shards, device)
    expected = covariances(p, near)
    size = p.shape[1]
    assert_close(total.products(), expected[:size, size:], p, near, 1e-9)
    np.testing.assert_allclose(total.squares(), np.diagonal(expected)[size:], rtol=1e-8)
    np.testing.assert_allclose(total.right_mean, near.mean(axis=0) + shift, rtol=1e-14, atol=1e-10)


@settings(max_examples=10, deadline=None)
@given(recording=recordings(), data=st.data())
def test_columns_in_another_order_keep_their_bits(
    recording: tuple[np.ndarray, np.ndarray, list[slice]], data: st.DataObject
) -> None:
    p, q, shards = recording
    left = data.draw(st.permutations(range(p.shape[1])))
    right = data.draw(st.permutations(range(q.shape[1])))
    plain = summed(p, q, shards)
    moved = summed(p[:, left], q[:, right], shards)
    np.testing.assert_array_equal(moved.products(), plain.products()[np.ix_(left, right)])
    np.testing.assert_array_equal(moved.squares(), plain.squares()[right])
    own, own_moved = summed(p, None, shards), summed(p[:, left], None, shards)
    np.testing.assert_array_equal(own_moved.products(), own.products()[np.ix_(left, left)])


@settings(max_examples=10, deadline=None)
@given(recording=recordings())
def test_a_column_and_its_copy_have_the_same_bits_everywhere(
    recording: tuple[np.ndarray, np.ndarray, list[slice]],
) -> None:
    p, q, shards = recording
    p, q = np.hstack([p, p[:, :1]]), np.hstack([q, q[:, :1], p[:, :1]])
    own, cross = summed(p, None, shards).products(), summed(p, q, shards).products()
    np.testing.assert_array_equal(own[0], own[-1])
    assert own[0, 0] == own[0, -1] == own[-1, -1]
    np.testing.assert_array_equal(cross[0], cross[-1])
    np.testing.assert_array_equal(cross[:, 0], cross[:, -2])
    np.testing.assert_allclose(cross[0, -1], own[0, 0], rtol=1e-12)


@devices
@settings(max_examples=15, deadline=None)
@given(
    recording=recordings(),
    value=st.sampled_from([np.nan, np.inf, -np.inf]),
    place=st.integers(0, 10**6),
)
def test_a_neuron_that_is_not_finite_once_is_nan_and_alone(
    device: str,
    recording: tuple[np.ndarray, np.ndarray, list[slice]],
    value: float,
    place: int,
) -> None:
    p, q, shards = recording
    clean = summed(p, q, shards, device)
    spoilt = np.hstack([q, q[:, :1]])
    spoilt[place % len(q), -1] = value
    total = summed(p, spoilt, shards, device)
    assert np.isnan(total.products()[:, -1]).all()
    assert np.isnan(total.squares()[-1])
    assert np.isnan(total.right_mean[-1])
    assert np.isfinite(total.products()[:, :-1]).all()
    assert_close(total.products()[:, :-1], clean.products(), p, q)
    np.testing.assert_allclose(total.squares()[:-1], clean.squares(), rtol=1e-12)


@devices
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_more_columns_than_a_tile_holds(device: str, dtype: type) -> None:
    rng = np.random.default_rng(0)
    p = rng.random((70, 1930)).astype(dtype)
    q = (rng.standard_normal((70, 500)) + p[:, :500].astype(np.float64)).astype(dtype)
    shards = [slice(0, 33), slice(33, 70)]
    whole = covariances(p, q)
    own, cross = summed(p, None, shards, device), summed(p, q, shards, device)
    assert_close(own.products(), whole[:1930, :1930], p, p)
    assert_close(cross.products(), whole[:1930, 1930:], p, q)
    np.testing.assert_array_equal(own.products(), own.products().T)
    np.testing.assert_allclose(cross.squares(), np.diagonal(whole)[1930:], rtol=1e-12)


@devices
def test_a_column_that_never_changes_has_no_scatter_at_all(device: str) -> None:
    rng = np.random.default_rng(1)
    p, q = rng.random((90, 4)), np.full((90, 2), -0.3)
    p[:, 2] = 0.1
    shards = [slice(0, 40), slice(40, 41), slice(41, 90)]
    own, cross = summed(p, None, shards, device), summed(p, q, shards, device)
    assert not own.products()[2].any()
    assert not cross.products().any()
    assert not cross.squares().any()
    np.testing.assert_array_equal(cross.right_mean, -0.3)


@devices
def test_shards_without_images_add_nothing(device: str) -> None:
    rng = np.random.default_rng(2)
    p, q = rng.random((20, 3)), rng.random((20, 2))
    none = summed(p[:0], q[:0], device=device)
    assert none.count == 0
    assert not none.products().any()
    plain = summed(p, q, device=device)
    around = summed(p, q, [slice(0, 0), slice(0, 20), slice(20, 20)], device)
    np.testing.assert_array_equal(around.products(), plain.products())
    assert around.count == 20


@devices
def test_scores_that_are_not_finite_and_arrays_that_do_not_fit_are_refused(device: str) -> None:
    rng = np.random.default_rng(3)
    p, q = rng.random((20, 3)), rng.random((20, 2))
    spoilt = p.copy()
    spoilt[7, 1] = np.nan
    with pytest.raises(RecordingError, match=r"1 of 3 concepts .* position 1"):
        summed(spoilt, q, device=device)
    with pytest.raises(RecordingError, match=r"1 of 3 concepts .* position 1"):
        summed(spoilt, None, device=device)
    with pytest.raises(ShapeError, match="3 columns"):
        MomentSum(3, 2, device).add(p[:, :2], q)
    with pytest.raises(ShapeError, match="2 columns"):
        MomentSum(3, 2, device).add(p, q[:, :1])
    with pytest.raises(ShapeError, match="20 rows of concept scores and 19"):
        MomentSum(3, 2, device).add(p, q[:19])
    with pytest.raises(ShapeError, match="one array take one"):
        MomentSum(3, 2, device).add(p)
    with pytest.raises(ShapeError, match="one array take one"):
        MomentSum(3, None, device).add(p, p)
