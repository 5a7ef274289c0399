"""Bands of activation: a partition of the ranks, and the right images in each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.atlas.bands import FRACTIONS, PICTURES, SMALLEST_BAND, bands_for, rankings


@given(st.integers(0, 2_000_000))
def test_bands_partition_the_ranks_for_any_number_of_images(images: int) -> None:
    bands = bands_for(images)
    ends = [0, *(band.stop for band in bands)]
    assert [band.start for band in bands] == ends[:-1]
    assert ends[-1] == images
    assert all(band.stop > band.start for band in bands)
    if images >= SMALLEST_BAND:
        assert all(band.stop - band.start >= SMALLEST_BAND for band in bands)


@pytest.mark.parametrize(
    ("images", "ends"),
    [
        (1_000, [10, 100, 500, 1_000]),
        (10_000, [10, 100, 1_000, 5_000, 10_000]),
        (50_000, [5, 50, 500, 5_000, 25_000, 50_000]),
        (1_000_000, [100, 1_000, 10_000, 100_000, 500_000, 1_000_000]),
        (12, [6, 12]),
        (3, [3]),
        (0, []),
    ],
)
def test_bands_end_where_their_names_say(images: int, ends: list[int]) -> None:
    bands = bands_for(images)
    assert [band.stop for band in bands] == ends
    for band in bands:
        assert band.high in FRACTIONS
        assert band.stop == pytest.approx(band.high * images, abs=0.5)
        assert band.start == pytest.approx(band.low * images, abs=0.5)


def test_pictures_of_a_band_are_spread_over_all_of_it() -> None:
    for images in (3, 12, 999, 54_321):
        for band in bands_for(images):
            picks = band.picks()
            assert picks[0] == band.start
            assert picks[-1] == band.stop - 1
            assert len(np.unique(picks)) == len(picks) == min(PICTURES, band.stop - band.start)
            if len(picks) > 2:
                gaps = np.diff(picks)
                assert gaps.max() - gaps.min() <= 1


def test_rankings_agree_with_a_sort_of_the_values_themselves() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(0, 3, (500, 6)).astype(np.float16)
    values[:, 1] = np.maximum(values[:, 1], 0)  # many ties
    values[::2, 2] = -0.0
    values[1::2, 2] = 0.0  # both zeros are equal: the order of the rows must stay
    values[:, 3] = rng.choice(np.array([-65504, -1, 6e-8, -6e-8, 65504], np.float16), 500)
    values[[5, 9], 4] = np.nan
    for column, order in zip(values.T, rankings(values), strict=True):
        shown = np.where(np.isnan(column), -np.inf, column.astype(np.float64))
        expected = np.lexsort((np.arange(len(column)), -shown))
        assert np.array_equal(order, expected)
