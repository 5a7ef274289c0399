"""Fewer images for an ablation score: a draw in which images that matter are likelier.

Where every replaced activation costs a pass through a network, a score is estimated from some of the test
images. Few of them carry most of a neuron's loss, so they are drawn, with replacement, with probability
proportional to |q − mean|, to first order what an image adds to the denominator, mixed with a share of
equal chances, so that no image weighs too much. Weighted by 1 / probability, sums over the draws are
unbiased for sums over all images; `core.ablation.ablation_scores` takes the weights and gives the error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from core.errors import ConfigError, ShapeError

EQUAL: Final = 0.15
"""Share of the chances that is the same for all images: no weight exceeds 1 / (EQUAL · draws) of them."""


@dataclass(frozen=True)
class Draws:
    """Images drawn for one neuron; one that is drawn twice is there twice."""

    images: Int[np.ndarray, " draws"]
    weights: Float[np.ndarray, " draws"]
    """1 / (draws · probability): a weighted sum over draws estimates the sum over all images."""


def draw_images(
    importance: Float[np.ndarray, " images"],
    draws: int,
    rng: np.random.Generator,
    equal: float = EQUAL,
) -> Draws:
    """Draws images with replacement, likelier the more important they are.

    Args:
        importance: Not negative, in any unit; |q − mean| for ablation scores. Where all are zero, all images
            are equally likely.
        draws: How many.
        rng: The same generator in the same state gives the same draws.
        equal: Share of the chances that is the same for all images, in (0, 1].

    Raises:
        ShapeError: No image, or an importance that is negative or not finite.
        ConfigError: A share outside of (0, 1], or no draw.
    """
    given = np.asarray(importance, np.float64)
    if given.ndim != 1 or not len(given) or not np.isfinite(given).all() or (given < 0).any():
        raise ShapeError(
            f"importance of shape {given.shape}; expected one finite number for each of at least one "
            "image, none negative"
        )
    if not 0 < equal <= 1 or draws < 1:
        raise ConfigError(
            f"{draws} draws, {equal} of the chances equal; expected at least 1, and 0 to 1"
        )
    total = given.sum()
    chances = np.full(len(given), 1 / len(given))
    if total > 0:
        chances = equal * chances + (1 - equal) * given / total
    # Uniform numbers are looked up in cumulated chances: the sum rounds, so the last place is held.
    places = np.searchsorted(np.cumsum(chances), rng.random(draws), side="right")
    images = np.minimum(places, len(given) - 1)
    return Draws(images, 1 / (draws * chances[images]))
