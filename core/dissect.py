"""CLIP-Dissect: the one concept that a neuron's most activating images have most in common.

With x the images, t the concepts, and m(x) the probability that x is among those that the neuron k
stands for, 0.998 for its most activating image and falling to 0.97 for the hundredth, soft-WPMI is

    log p(t | k) − λ log p(t),      p(t | k) = Π_x [1 + m(x) (p(t | x) − 1)],

where p(t | x) is the softmax over all concepts of the similarity times a temperature, and p(t) the
mean of p(t | k) over the neurons of the layer. The concept with the largest value names the neuron.

Source:
    T. Oikarinen, T.-W. Weng, *CLIP-Dissect: Automatic Description of Neuron Representations in Deep
    Vision Networks*, ICLR 2023 (arXiv:2204.10965); parameters as published with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.special import logsumexp, softmax

from core.errors import ShapeError

TOP: Final = 100
"""Most activating images of a neuron that are looked at."""

FIRST, LAST = 0.998, 0.97
"""Probability that the first and the last of them show what the neuron stands for."""

TEMPERATURE: Final = 10.0
PRIOR_WEIGHT: Final = 1.0
"""The λ of soft-WPMI."""


@dataclass(frozen=True, slots=True, eq=False)
class TopImages:
    """The most activating images of every neuron so far, most activating first."""

    values: Float[np.ndarray, "top neurons"]
    images: Int[np.ndarray, "top neurons"]
    """Which image each value is of."""

    @classmethod
    def of(
        cls,
        activations: Shaped[np.ndarray, "images neurons"],
        images: Int[np.ndarray, " images"],
        count: int = TOP,
    ) -> TopImages:
        """Of some images, those that activate each neuron most; of equal ones the earlier row.

        Args:
            activations: One row an image. Values that are not finite come last.
            images: What each row's image is called.
            count: How many are kept; all of them where there are fewer.

        Raises:
            ShapeError: Another number of images than of activations.
        """
        if len(images) != len(activations):
            raise ShapeError(
                f"{len(activations)} rows of activations and {len(images)} images; expected as many"
            )
        values = activations.astype(np.float64)
        order = np.argsort(-values, axis=0, kind="stable")[:count]
        return cls(np.take_along_axis(values, order, axis=0), images[order])

    def merge(self, other: TopImages, count: int = TOP) -> TopImages:
        """Those of both; of equal ones the first one's come first.

        Raises:
            ShapeError: Different numbers of neurons.
        """
        if self.values.shape[1:] != other.values.shape[1:]:
            raise ShapeError(
                f"images of {self.values.shape[1]} and of {other.values.shape[1]} neurons; expected "
                "those of the same neurons"
            )
        values = np.concatenate([self.values, other.values])
        images = np.concatenate([self.images, other.images])
        order = np.argsort(-values, axis=0, kind="stable")[:count]
        return type(self)(
            np.take_along_axis(values, order, axis=0), np.take_along_axis(images, order, axis=0)
        )


def membership(count: int) -> Float[np.ndarray, " count"]:
    """Probability that each of a neuron's top images shows what it stands for, falling linearly."""
    return np.linspace(FIRST, LAST, count)


def concept_probabilities(
    similarity: Shaped[np.ndarray, "images concepts"], temperature: float = TEMPERATURE
) -> Float[np.ndarray, "images concepts"]:
    """p(t | x): softmax over concepts of similarity × temperature.

    Args:
        similarity: Cosine of image and text embeddings.
        temperature: Larger is sharper.
    """
    probabilities: np.ndarray = softmax(similarity.astype(np.float64) * temperature, axis=1)
    return probabilities


class Likelihoods:
    """log p(t | k) of some neurons, gathered while images come by, in any number at a time.

    Products are kept rather than sums of logarithms: with at most a hundred factors of at least
    1 − 0.998 they stay far above the smallest float64.
    """

    def __init__(self, neurons: int, concepts: int) -> None:
        self._product = np.ones((neurons, concepts))

    def add(
        self,
        probabilities: Float[np.ndarray, "images concepts"],
        rows: Int[np.ndarray, " hits"],
        neurons: Int[np.ndarray, " hits"],
        members: Float[np.ndarray, " hits"],
    ) -> None:
        """Add images to the neurons that they activate.

        Args:
            probabilities: p(t | x) of some images.
            rows: Row of the image of each hit.
            neurons: Neuron of each hit; the same image counts for a neuron once.
            members: m(x) of each hit.
        """
        for row, neuron, member in zip(rows, neurons, members, strict=True):
            self._product[neuron] *= 1.0 - member + member * probabilities[row]

    @property
    def log(self) -> Float[np.ndarray, "neurons concepts"]:
        """log p(t | k) of the images added so far."""
        return np.log(self._product)


def soft_wpmi(
    log_likelihood: Float[np.ndarray, "neurons concepts"], prior_weight: float = PRIOR_WEIGHT
) -> Float[np.ndarray, "neurons concepts"]:
    """Soft weighted pointwise mutual information of every neuron and concept.

    Args:
        log_likelihood: log p(t | k) of all neurons of a layer, as `Likelihoods` gives it. The mean
            over these neurons is what is to be expected of a concept anywhere.
        prior_weight: λ; 0 leaves the likelihood as it is.
    """
    expected = logsumexp(log_likelihood, axis=0) - np.log(max(1, len(log_likelihood)))
    out: np.ndarray = log_likelihood - prior_weight * expected
    return out
