"""Fewer images for an ablation score: a draw in which images that matter are likelier.

Where every replaced activation costs a pass through a network, a score is estimated from some of the test
images, drawn with replacement. Weighted by 1 / probability, sums over the draws are unbiased for sums over
all images, and `core.ablation.ablation_scores` takes the weights and gives the error of their ratio.

That error is least when an image's chance is proportional to the residual |x − R y|, with x and y its
changes of loss at the prediction and at the mean and R = Σx / Σy. To first order a change of loss is the
shift of the activation times a slope, and the slope is ‖p − onehot(y)‖, by how much the network doubts the
label, times what only a pass can tell. Shifts and doubts are known of every image, so chances follow
‖p − onehot(y)‖ · ||ŝ − q| − R|q − mean||, mixed with a share of equal chances, so that no image weighs too
much. (|q − mean| alone, the first-order size of the denominator, did worse than equal chances: the images
that tell a prediction from the mean are not those where the neuron is far from it.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int
from scipy.special import softmax

from core.errors import ConfigError, ShapeError

EQUAL: Final = 0.15
"""Share of the chances that is the same for all images: no weight exceeds 1 / (EQUAL · draws) of them."""


@dataclass(frozen=True)
class Draws:
    """Images drawn for one neuron; one that is drawn twice is there twice."""

    images: Int[np.ndarray, " draws"]
    weights: Float[np.ndarray, " draws"]
    """1 / (draws · probability): a weighted sum over draws estimates the sum over all images."""


def doubts(
    logits: Float[np.ndarray, "images classes"],
    labels: Int[np.ndarray, " images"],
    temperature: float,
) -> Float[np.ndarray, " images"]:
    """The norm of the gradient of each image's cross-entropy by logits / temperature: ‖p − onehot(y)‖.

    Args:
        logits: The network's own.
        labels: Index of each image's class.
        temperature: As for the losses.

    Returns:
        From 0, where the network is sure of the label, to √2, where it is sure of another class.
    """
    error = softmax(logits.astype(np.float64) / temperature, axis=1)
    error[np.arange(len(labels)), labels] -= 1
    return np.asarray(np.linalg.norm(error, axis=1))


def first_order_importance(
    recorded: Float[np.ndarray, " images"],
    replaced: Float[np.ndarray, "images explanations"],
    mean: float,
    doubt: Float[np.ndarray, " images"],
) -> Float[np.ndarray, " images"]:
    """How much each image matters to the ablation scores of one neuron's explanations, to first order.

    Args:
        recorded: Pooled activations q of one neuron.
        replaced: The activations ŝ that it is to take, a column for each explanation that the draw is for.
        mean: Its mean activation.
        doubt: As from `doubts`.

    Returns:
        ‖p − onehot(y)‖ · ||ŝ − q| − R|q − mean||, as a root of the mean square over explanations.
    """
    away = np.abs(recorded.astype(np.float64) - mean)
    missed = np.abs(replaced.astype(np.float64) - recorded[:, None])
    whole = (doubt * away).sum()
    ratio = (doubt[:, None] * missed).sum(axis=0) / whole if whole > 0 else 0.0
    residual = missed - ratio * away[:, None]
    return np.asarray(doubt * np.sqrt(np.square(residual).mean(axis=1)))


def draw_images(
    importance: Float[np.ndarray, " images"],
    draws: int,
    rng: np.random.Generator,
    equal: float = EQUAL,
) -> Draws:
    """Draws images with replacement, likelier the more important they are.

    Args:
        importance: Not negative, in any unit. Where all are zero, all images are equally likely.
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
