"""How sharp concept scores should be: slope and shift of their sigmoid, relative to the model's own.

Sharp scores are almost always 0, so an explanation learns from few images; soft scores are nearly the
cosine itself, which another model shares less. The explainer's own validation score rises all the
way to the softest scores and cannot be maximised. Of what lets explanations predict validation images
nearly as well as anything does, the sharpest is taken, and no shift where one is not needed for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float


class Sharpness(NamedTuple):
    """What is done to a model's logits: concept scores are ``σ(factor · logit + shift)``.

    Sorted in descending order, the sharpest comes first.
    """

    factor: float = 1.0
    """Below 1 scores are softer, above 1 sharper."""
    shift: float = 0.0
    """In logits that are multiplied already; above 0 all scores are higher."""


NATIVE: Final = Sharpness()
"""The model's own calibration."""

GRID: Final = (
    *(Sharpness(2.0 ** (step / 3)) for step in range(3, -11, -1)),
    *(Sharpness(2.0 ** (step / 3), shift) for shift in (1.5, 3.0) for step in range(3, -11, -2)),
)
"""What is tried: factors from 2 down to 0.1, by themselves and, every second of them, with a shift."""

NEARLY: Final = 0.97
"""Share of the best mean validation correlation that is near enough."""


def choose_sharpness(
    tried: Sequence[Sharpness], correlation: Float[np.ndarray, " tried"], nearly: float = NEARLY
) -> Sharpness:
    """Of what reaches nearly the best mean validation correlation, the least shift and largest factor.

    Args:
        tried: What was tried.
        correlation: Mean validation correlation of explanations with each, NaN where undefined.
        nearly: Share of the best that is enough.

    Returns:
        One of those that were tried; `NATIVE` where nothing is explained with any of them.
    """
    score = np.where(np.isfinite(correlation), correlation, -np.inf)
    best = score.max(initial=-np.inf)
    if not best > 0:
        return NATIVE
    enough = [one for one, s in zip(tried, score, strict=True) if s >= nearly * best]
    return min(enough, key=lambda one: (abs(one.shift), -one.factor))
