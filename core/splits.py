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
        digest = hashlib.blake2b(f"{seed}:{image_id}".encode(), digest_size=8).digest()
        u = int.from_bytes(digest, "big") / 2**64
        return "train" if u < train_end else "val" if u < val_end else "test"

    return [split(image_id) for image_id in image_ids]
