"""Losses as functions of a neuron's activation, from a few passes through the rest of the network.

Where a layer is not followed by a linear head, a replaced activation costs a pass through what follows.
So the loss of an image is evaluated with the neuron at a few values, the Chebyshev points of an interval,
and between them by the polynomial through these: any number of explanations, and the search for their
best lines, then cost no further pass.

A change of loss is the polynomial at the new value less the polynomial at the recorded one, so that a
perfect prediction changes nothing, whatever the polynomial's error. At the recorded value the loss is also
known from the pass in which nothing was replaced; the difference, which is not used otherwise,
measures that error for every image and neuron.
"""

from __future__ import annotations

from math import pi

import torch
from jaxtyping import Float
from torch import Tensor

from core.errors import ShapeError


def nodes(
    low: Float[Tensor, " neurons"], high: Float[Tensor, " neurons"], count: int
) -> Float[Tensor, "neurons nodes"]:
    """Values at which losses are to be evaluated: Chebyshev points of each neuron's interval, rising.

    Args:
        low: Lower end of each interval, in the units of the pooled activation.
        high: Upper end.
        count: Nodes a neuron; the polynomial's degree is one less.

    Raises:
        ShapeError: Ends that do not pair, or fewer than two nodes.
    """
    if low.shape != high.shape or low.ndim != 1 or count < 2:
        raise ShapeError(
            f"{count} nodes between ends of shapes {tuple(low.shape)} and {tuple(high.shape)}; "
            "expected one lower and one upper end a neuron, and at least two nodes"
        )
    points = -_points(count).to(low.device)
    return (low[:, None] + high[:, None] + (high - low)[:, None] * points) / 2


class LossCurves:
    """Losses of some images as functions of the activation of each of some neurons."""

    def __init__(
        self,
        low: Float[Tensor, " neurons"],
        high: Float[Tensor, " neurons"],
        losses: Float[Tensor, "neurons images nodes"],
        recorded: Float[Tensor, "images neurons"],
    ) -> None:
        """Finds the polynomials.

        Args:
            low: Lower end of each neuron's interval, as given to `nodes`.
            high: Upper end. Where it equals the lower one, the curve is flat.
            losses: Loss of each image with the neuron at each of its nodes, in the order of `nodes`. The
                images of one neuron need not be those of another.
            recorded: Pooled activations as recorded, of the same images.

        Raises:
            ShapeError: Tensors that do not fit together.
        """
        neurons, images, count = losses.shape
        if (
            recorded.shape != (images, neurons)
            or low.shape != (neurons,)
            or high.shape != low.shape
        ):
            raise ShapeError(
                f"losses of shape {tuple(losses.shape)}, activations of shape {tuple(recorded.shape)} "
                f"and {len(low)} intervals; expected neurons × images × nodes, images × neurons and "
                "one interval a neuron"
            )
        points = -_points(count).to(losses.device)
        orders = torch.arange(count, dtype=torch.float64, device=losses.device)
        basis = torch.cos(orders[:, None] * torch.arccos(points)) * (2.0 / count)
        basis[0] /= 2
        self._low, self._high = low.double(), high.double()
        self._terms = torch.einsum("cj,kij->cik", basis, losses.double())
        self._at_recorded = self._losses(recorded)

    def changes(self, values: Float[Tensor, "images neurons"]) -> Float[Tensor, "images neurons"]:
        """Loss with each neuron at each value, less the loss as it is; 0 at the recorded activation.

        Values outside of the neuron's interval count as its nearer end: see `outside`.
        """
        return self._losses(values) - self._at_recorded

    def outside(self, values: Float[Tensor, "images neurons"]) -> Float[Tensor, " neurons"]:
        """Share of each neuron's values that lie outside of its interval."""
        return ((values < self._low) | (values > self._high)).double().mean(dim=0)

    def interpolation_error(
        self, base: Float[Tensor, "images neurons"]
    ) -> Float[Tensor, "images neurons"]:
        """The polynomial's error at each recorded activation, where the loss is known.

        Args:
            base: Loss of the same images with nothing replaced.
        """
        return (self._at_recorded - base.double()).abs()

    def _losses(self, values: Tensor) -> Float[Tensor, "images neurons"]:
        """Clenshaw's recurrence on the Chebyshev series of every image and neuron."""
        reach = (self._high - self._low) / 2
        x = (values.double() - self._low) / torch.where(reach > 0, reach, 1.0) - 1
        x = x.clamp(-1.0, 1.0)
        last, before = torch.zeros_like(x), torch.zeros_like(x)
        for term in reversed(self._terms[1:].unbind()):
            last, before = term + 2 * x * last - before, last
        return self._terms[0] + x * last - before


def _points(count: int) -> Float[Tensor, " nodes"]:
    """Chebyshev points of [−1, 1], falling."""
    return torch.cos((torch.arange(count, dtype=torch.float64) + 0.5) * pi / count)
