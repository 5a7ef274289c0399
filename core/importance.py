"""How much of a neuron's effect on the network its highest activations carry.

The impact of one image is what setting the neuron to zero there costs the network,

    ½ [ (acc − acc′) / Σ acc + (L′ − L) / Σ L ],

acc being 1 where the network is right and L its cross-entropy, primes with the neuron at zero, sums over all
images. `importance_shares` says which part of Σ|impact| belongs to the images of highest activation.

A share of the images is ⌈share · images⌉ of them, so at least one. Of images with equal activation at the
edge each counts in part, by what is left of that number: shares do not depend on the order of images, and
a rectified neuron's many zeros count evenly.

Source: T. Oikarinen, T.-W. Weng, ICML 2024 (arXiv:2405.06855), section 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from core.errors import ConfigError, ShapeError

FRACTIONS: Final = (0.0003, 0.002, 0.005, 0.02, 0.1, 0.5)
"""The published shares of images."""


def impacts(
    correct: Bool[Tensor, " images"],
    correct_at_zero: Bool[Tensor, "images neurons"],
    loss: Float[Tensor, " images"],
    changes_at_zero: Float[Tensor, "images neurons"],
) -> Float[Tensor, "images neurons"]:
    """Impact of each neuron on each image.

    Args:
        correct: Whether the network is right.
        correct_at_zero: Whether it is right with the neuron at zero.
        loss: Cross-entropy of each image.
        changes_at_zero: Its change with the neuron at zero.

    Returns:
        In float64. A term whose sum is zero is left out: nothing can be lost of it.

    Raises:
        ShapeError: Tensors that do not fit together.
    """
    images, shape = len(loss), tuple(changes_at_zero.shape)
    if len(correct) != images or correct_at_zero.shape != shape or shape[0] != images:
        raise ShapeError(
            f"{len(correct)} answers and {images} losses, with the neuron at zero "
            f"{tuple(correct_at_zero.shape)} answers and {shape} changes of loss; expected the same images "
            "and neurons"
        )
    right = correct.double()
    lost = (right[:, None] - correct_at_zero.double()) / right.sum().clamp_min(1.0)
    whole = loss.double().sum()
    return (lost + changes_at_zero.double() / torch.where(whole > 0, whole, torch.inf)) / 2


def importance_shares(
    impact: Float[Tensor, "images neurons"],
    activations: Float[Tensor, "images neurons"],
    fractions: Sequence[float] = FRACTIONS,
) -> Float[Tensor, "neurons fractions"]:
    """Share of Σ|impact| that images of highest activation carry, for some fractions of the images.

    Args:
        impact: As from `impacts`, any units.
        activations: Pooled activations of the same images.
        fractions: Each in (0, 1].

    Returns:
        In [0, 1], in float64; NaN for a neuron without impact or with an activation that is not finite.

    Raises:
        ShapeError: Tensors of different shape, or no image.
        ConfigError: A fraction outside of (0, 1].
    """
    if impact.shape != activations.shape or impact.ndim != 2 or not len(impact):
        raise ShapeError(
            f"impact of shape {tuple(impact.shape)} and activations of shape {tuple(activations.shape)}; "
            "expected the same images and neurons, and at least one image"
        )
    if not all(0 < fraction <= 1 for fraction in fractions):
        raise ConfigError(
            f"fractions of images {list(fractions)}; expected numbers above 0, up to 1"
        )
    size, q = impact.double().abs(), activations.double()
    total = size.sum(dim=0)
    total = torch.where((total > 0) & torch.isfinite(q).all(dim=0), total, torch.nan)
    ranked = q.sort(dim=0, descending=True).values
    shares = []
    for fraction in fractions:
        # Without the margin, 0.07 of 100 images would be 8: the product is 7.000000000000001.
        count = max(1, math.ceil(fraction * len(q) * (1 - 1e-12)))
        edge = ranked[count - 1]
        above, tied = q > edge, q == edge
        left = (count - above.sum(dim=0)).double() / tied.sum(dim=0).clamp_min(1)
        shares.append(((size * above).sum(dim=0) + left * (size * tied).sum(dim=0)) / total)
    return torch.stack(shares, dim=1)
