"""Splits: a pure function of image id and seed."""

from __future__ import annotations

import hashlib
import math
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ConfigError
from core.splits import SPLITS, split_of

PAPER = (0.7, 0.1, 0.2)
IDS = [f"n{index:05d}/photo.jpg" for index in range(10_000)]
WHOLE = dict(zip(IDS, split_of(IDS, PAPER, seed=0), strict=True))


def test_each_image_falls_where_its_hash_says() -> None:
    found = split_of(IDS[:500], PAPER, seed=3)
    for image_id, split in zip(IDS, found, strict=False):
        digest = hashlib.blake2b(b"3:" + image_id.encode("utf-8"), digest_size=8)
        share = Fraction(int(digest.hexdigest(), 16), 2**64)
        expected = "train" if share < 0.7 else "val" if share < 0.7 + 0.1 else "test"
        assert split == expected


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 200))
def test_the_split_of_an_image_does_not_depend_on_the_images_beside_it(
    rng: random.Random, count: int
) -> None:
    some = rng.sample(IDS, count)
    assert split_of(some, PAPER, seed=0) == [WHOLE[image_id] for image_id in some]


def test_shares_come_out_as_asked_within_chance() -> None:
    found = split_of(IDS, PAPER, seed=0)
    for split, fraction in zip(SPLITS, PAPER, strict=True):
        deviation = math.sqrt(fraction * (1 - fraction) / len(IDS))
        assert abs(found.count(split) / len(IDS) - fraction) < 4 * deviation


def test_splits_of_two_seeds_are_independent() -> None:
    first, second = split_of(IDS, PAPER, seed=0), split_of(IDS, PAPER, seed=1)
    both = sum(a == b == "train" for a, b in zip(first, second, strict=True)) / len(IDS)
    assert abs(both - 0.49) < 4 * math.sqrt(0.49 * 0.51 / len(IDS))


@pytest.mark.parametrize(
    ("fractions", "present"),
    [
        ((0.7, 0.3, 0.0), {"train", "val"}),
        ((0.0, 0.0, 1.0), {"test"}),
        ((1.0, 0.0, 0.0), {"train"}),
        # Their sum is less than one by rounding, which must not leave a gap for the third.
        ((0.1 + 0.2, 0.7 - 1e-12, 0.0), {"train", "val"}),
    ],
)
def test_a_share_of_zero_stays_empty(
    fractions: tuple[float, float, float], present: set[str]
) -> None:
    assert set(split_of(IDS, fractions, seed=0)) == present


@pytest.mark.parametrize(
    "fractions", [(0.7, 0.1, 0.1), (0.7, 0.4, -0.1), (math.nan, 0.5, 0.5), (1.0, 1.0, 1.0)]
)
def test_fractions_that_are_no_shares_are_refused(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match="sum to 1"):
        split_of(IDS, fractions, seed=0)
