"""Which images are for fitting, for choosing and for scoring.

The split of an image is a function of its id and a seed alone, so it is the same on every
machine, in every order, and stays what it was when more images are added later.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Final

from core.errors import ConfigError

SPLITS: Final = ("train", "val", "test")


def split_of(
    image_ids: Sequence[str], fractions: tuple[float, float, float], seed: int
) -> list[str]:
    """Assign each image to train, validation or test by a hash of its id.

    Args:
        image_ids: One id per image; equal ids get equal splits.
        fractions: Shares of train, validation and test; they sum to one. The shares that are
            reached differ from these by chance, about sqrt(f(1-f)/images).
        seed: Another seed gives another, independent split.

    Returns:
        One of ``"train"``, ``"val"``, ``"test"`` per image, in the order given.

    Raises:
        ConfigError: Fractions that are negative, not finite, or do not sum to one.
    """
    valid = len(fractions) == 3 and all(math.isfinite(f) and f >= 0 for f in fractions)
    if not valid or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(
            f"split fractions {tuple(fractions)} cannot be used; expected three numbers of at "
            "least 0 for train, val and test that sum to 1, for instance 0.7, 0.1, 0.2"
        )
    # A share of exactly zero must stay empty although 0.7 + 0.3 need not be 1 in floating point.
    last = max(index for index in range(3) if fractions[index] > 0)
    train_end = math.inf if last == 0 else fractions[0]
    val_end = math.inf if last == 1 else fractions[0] + fractions[1]

    def split(image_id: str) -> str:
        u = _uniform(f"{seed}:{image_id}")
        return "train" if u < train_end else "val" if u < val_end else "test"

    return [split(image_id) for image_id in image_ids]


def fold_of(image_ids: Sequence[str], folds: int, seed: int) -> list[int]:
    """Assign each image to one of some folds by a hash of its id, independent of its split.

    Args:
        image_ids: One id per image; equal ids get equal folds.
        folds: How many folds, at least 1.
        seed: Another seed gives other folds.

    Returns:
        Numbers from 0 to ``folds - 1``, in the order given.
    """
    places = (int(_uniform(f"fold:{seed}:{image_id}") * folds) for image_id in image_ids)
    return [min(place, folds - 1) for place in places]


def in_sample(image_ids: Sequence[str], share: float, seed: int) -> list[bool]:
    """Draw about a share of the images by a hash of their ids, independent of splits and folds."""
    return [_uniform(f"sample:{seed}:{image_id}") < share for image_id in image_ids]


def _uniform(text: str) -> float:
    """A number in [0, 1) that is a function of the text alone."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
