"""Bins along the range of a quantity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ShapeError
from core.range_bins import bin_means, range_bins

finite = st.floats(-1e3, 1e3, allow_nan=False).map(lambda value: round(value, 3))


@given(st.lists(finite, min_size=1, max_size=80).map(sorted), st.integers(1, 12), st.integers(1, 6))
def test_every_bin_is_large_enough_and_a_union_of_equal_parts_of_the_range(
    values: list[float], bins: int, smallest: int
) -> None:
    rising = np.array(values)
    starts = range_bins(rising, bins, smallest)
    sizes = np.diff(np.append(starts, len(rising)))
    assert starts[0] == 0
    assert (np.diff(starts) > 0).all()
    assert len(starts) <= bins
    assert sizes.min() >= min(smallest, len(rising))
    edges = np.linspace(rising[0], rising[-1], bins + 1)
    for start in starts[1:]:
        assert any(rising[start - 1] < edge <= rising[start] for edge in edges)


def test_parts_with_enough_values_are_bins_of_their_own() -> None:
    rising = np.array([0.0, 0.1, 0.2, 1.0, 1.1, 1.9, 2.0, 3.5, 3.9, 4.0])
    assert range_bins(rising, 4, 2).tolist() == [0, 3, 7]
    # Four equal parts begin at 0, 1, 2 and 3; that from 2 on holds one value and joins the one below.
    assert range_bins(rising, 4, 1).tolist() == [0, 3, 6, 7]


def test_means_are_those_of_each_bin_by_itself() -> None:
    values = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    starts = np.array([0, 3, 11, 39])
    expected = [v.astype(np.float64).mean(axis=1) for v in np.split(values, starts[1:], axis=1)]
    assert bin_means(values, starts) == pytest.approx(np.stack(expected, axis=1), rel=1e-12)


def test_values_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(ShapeError, match="0 values"):
        range_bins(np.zeros(0), 4, 1)
    with pytest.raises(ShapeError, match="ascend"):
        range_bins(np.array([1.0, 0.0]), 4, 1)
