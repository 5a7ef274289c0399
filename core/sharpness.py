"""How sharp concept scores should be: the slope of their sigmoid, relative to the model's own.

Sharp scores are almost always 0, so an explanation learns from few images; soft scores are nearly the
cosine itself, which another model shares less. The explainer's own validation score rises all the
way to the softest scores and cannot be maximised. Of the factors with which explanations predict
validation images nearly as well as with any, the sharpest is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float

FACTORS: Final = tuple(2.0 ** (step / 3) for step in range(3, -11, -1))
"""Factors on the logits that are tried, sharpest first: 2 down to 0.1."""

NEARLY: Final = 0.97
"""Share of the best mean validation correlation that the chosen factor must reach."""


def choose_factor(
    factors: Sequence[float], correlation: Float[np.ndarray, " factors"], nearly: float = NEARLY
) -> float:
    """The sharpest factor that reaches nearly the best mean validation correlation.

    Args:
        factors: Factors on the logits that were tried.
        correlation: Mean validation correlation of explanations with each, NaN where undefined.
        nearly: Share of the best that is enough.

    Returns:
        One of the factors; 1 where nothing is explained with any of them.
    """
    score = np.where(np.isfinite(correlation), correlation, -np.inf)
    best = score.max(initial=-np.inf)
    if not best > 0:
        return 1.0
    return max(f for f, s in zip(factors, score, strict=True) if s >= nearly * best)
