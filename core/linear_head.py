"""Loss of a classifier when one neuron before its last, linear layer takes another activation.

A neuron that is pooled and then read by a linear layer changes the logits by its shift times its own
column w of the weights, so no network is run again. With p the softmax of the logits at temperature T,
y the label and u = shift / T, the change of the cross-entropy is exactly

    log Σ_c p_c exp(u (w_c − m)) − u (w_y − m),   any m; here the middle of the neuron's weights.

Written out, that is one exponential for every image, neuron and class. But the sum is the moment
generating function of the weights under p: Σ_c p_c exp(u w_c) = Σ_n uⁿ/n! · Σ_c p_c w_cⁿ, and the moments
of all neurons are matrix products. With x = |u| max_c |w_c − m|, what is left out after degree N is at most
eˣ xᴺ⁺¹/(N+1)! of the sum: terms with positive exponents leave out no more than the xᴺ⁺¹/(N+1)!-fold of
themselves, those with negative ones no more than xᴺ⁺¹/(N+1)!, which is eˣ times that of themselves.
Entries within the radius of a degree, where the bound is `TOLERANCE`, use the series; others are exact.

Arithmetic is in float64, on the device of the tensors given.

Source: the rank-one update is that of Oikarinen & Weng, ICML 2024 (arXiv:2405.06855), section on ablation.
"""

from __future__ import annotations

from functools import cache
from math import exp, factorial
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from core.errors import ShapeError

TOLERANCE: Final = 1e-9
"""Largest error of a change of loss that the series may make."""

DEGREES: Final = (6, 10, 16, 24, 36)
"""Degrees of the series; each neuron has the one that is cheapest for its shifts."""

_EXACT_COST: Final = 60.0
_SUM_COST: Final = 0.025
"""What an exact entry and one term of a sum cost, in terms of a series: exponentials of all classes, and a
multiplication, against the matrix product behind a term."""

_IMAGES: Final = 2048
_TILE: Final = 32
_ENTRIES: Final = 4096


class LinearHead:
    """Losses of some images as functions of the shift of each of some neurons.

    Holds, for every image and neuron, the coefficients of its series: as many float64 numbers as its
    degree. Callers with many neurons take blocks of them, or `loss_changes`, which keeps none.
    """

    def __init__(
        self,
        logits: Float[Tensor, "images classes"],
        labels: Int[Tensor, " images"],
        weights: Float[Tensor, "classes neurons"],
        temperature: float,
        typical: Float[Tensor, "some neurons"],
        uses: int = 1,
    ) -> None:
        """Works out the series.

        Args:
            logits: The network's own, any float type.
            labels: Index of each image's class.
            weights: The linear layer's column of each neuron.
            temperature: The loss is the cross-entropy of logits / temperature.
            typical: Shifts as they will be asked for, in the units of the pooled activation. They decide
                the degree of each neuron's series: others are answered as exactly, if more slowly.
            uses: How often changes will be asked for, about; it decides the degree as well.

        Raises:
            ShapeError: Tensors that do not fit together, or a label that is no class.
        """
        check_head(logits, labels, weights)
        self._scale = 1.0 / temperature
        self._log_p = torch.log_softmax(logits.double() * self._scale, dim=1)
        p = self._log_p.exp()
        wide = weights.double()
        middle = (wide.amax(dim=0) + wide.amin(dim=0)) / 2
        self._weights = wide - middle
        self._own = self._weights[labels]
        self._reach = self._weights.abs().amax(dim=0) * self._scale
        degrees = _cheapest_degrees(typical.double().abs() * self._reach, uses)
        radii = torch.tensor([_radius(n) for n in DEGREES], dtype=torch.float64)
        self._radius = radii.to(degrees.device)[degrees] / self._reach
        self._groups: list[tuple[Tensor, Tensor]] = []
        for place, degree in enumerate(DEGREES):
            members = torch.nonzero(degrees == place)[:, 0]
            for columns in torch.split(members, _TILE) if len(members) else ():
                self._groups.append((columns, self._series(p, columns, degree)))

    def changes(self, shifts: Float[Tensor, "images neurons"]) -> Float[Tensor, "images neurons"]:
        """Loss with each neuron shifted alone, less the loss as it is; exactly 0 where a shift is 0.

        Args:
            shifts: What is added to the pooled activation of each neuron. NaN gives NaN.
        """
        u = shifts.double() * self._scale
        out = torch.empty_like(u)
        for columns, terms in self._groups:
            x = u[:, columns]
            highest, *lower = reversed(terms.unbind())
            sums = x * highest
            for term in lower:
                sums.add_(term).mul_(x)
            out[:, columns] = sums
        # Far outside of the radius a truncated series may fall below −1; its entries are replaced below.
        out.log1p_().sub_(u * self._own)
        far = torch.nonzero(shifts.abs() > self._radius)
        for some in torch.split(far, _ENTRIES):
            images, neurons = some[:, 0], some[:, 1]
            step = self._weights.T[neurons] - self._own[images, neurons, None]
            step.mul_(u[images, neurons, None]).add_(self._log_p[images])
            out[images, neurons] = torch.logsumexp(step, dim=1)
        return out

    def _series(
        self, p: Float[Tensor, "images classes"], columns: Int[Tensor, " tile"], degree: int
    ) -> Float[Tensor, "degree images tile"]:
        """Moments over factorials, from the first. The tile is filled up: products have one shape."""
        images, classes = p.shape
        powers = self._weights.new_zeros((classes, degree, _TILE))
        w = self._weights[:, columns]
        power = torch.ones_like(w)
        for n in range(degree):
            power = power * w / (n + 1)
            powers[:, n, : len(columns)] = power
        out = w.new_empty((degree, images, len(columns)))
        for start in range(0, images, _IMAGES):
            part = slice(start, start + _IMAGES)
            found = p[part] @ powers.view(classes, -1)
            out[:, part] = found.view(-1, degree, _TILE)[:, :, : len(columns)].transpose(0, 1)
        return out


def loss_changes(
    logits: Float[Tensor, "images classes"],
    labels: Int[Tensor, " images"],
    weights: Float[Tensor, "classes neurons"],
    shifts: Float[Tensor, "images neurons"],
    temperature: float,
) -> Float[Tensor, "images neurons"]:
    """Change of each image's loss when each neuron's pooled activation, alone, is shifted.

    Beside its arguments and its result it needs about 300 MB with 1,000 classes, whatever their sizes.

    Args:
        logits: The network's own, any float type.
        labels: Index of each image's class.
        weights: The linear layer's column of each neuron.
        shifts: What is added to the pooled activation, image by image and neuron by neuron.
        temperature: The loss is the cross-entropy of logits / temperature.

    Returns:
        In float64, within 1e-9 of the exact change; 0 where a shift is 0, NaN where it is NaN.

    Raises:
        ShapeError: Tensors that do not fit together, or a label that is no class.
    """
    check_head(logits, labels, weights)
    if shifts.shape != (len(logits), weights.shape[1]):
        raise ShapeError(
            f"shifts of shape {tuple(shifts.shape)}; expected one for each of {len(logits)} images "
            f"and {weights.shape[1]} neurons"
        )
    out = torch.empty(shifts.shape, dtype=torch.float64, device=shifts.device)
    width = 8 * _TILE
    for i in range(0, len(logits), _IMAGES):
        rows = slice(i, i + _IMAGES)
        for k in range(0, weights.shape[1], width):
            columns = slice(k, k + width)
            part = shifts[rows, columns]
            head = LinearHead(logits[rows], labels[rows], weights[:, columns], temperature, part)
            out[rows, columns] = head.changes(part)
    return out


def correct_after(
    logits: Float[Tensor, "images classes"],
    labels: Int[Tensor, " images"],
    weights: Float[Tensor, "classes neurons"],
    shifts: Float[Tensor, "images neurons"],
) -> Bool[Tensor, "images neurons"]:
    """Whether the label still has the highest logit when each neuron, alone, is shifted.

    A label that shares the highest logit counts as correct. The lead of the label over the best other class
    moves by at most the shift times the range of the neuron's weights; only where that could change its
    sign are all classes looked at.

    Args:
        logits: The network's own, any float type.
        labels: Index of each image's class.
        weights: The linear layer's column of each neuron.
        shifts: What is added to the pooled activation.

    Raises:
        ShapeError: Tensors that do not fit together, or a label that is no class.
    """
    check_head(logits, labels, weights)
    z, w, t = logits.double(), weights.double(), shifts.double()
    own = z.gather(1, labels[:, None])
    lead = own - z.scatter(1, labels[:, None], -torch.inf).amax(dim=1, keepdim=True)
    out = (lead >= 0).expand(t.shape).clone()
    doubtful = t.abs() * (w.amax(dim=0) - w.amin(dim=0)) >= lead.abs()
    for some in torch.split(torch.nonzero(doubtful), _ENTRIES):
        images, neurons = some[:, 0], some[:, 1]
        moved = z[images] + t[images, neurons, None] * w.T[neurons]
        out[images, neurons] = (moved.gather(1, labels[images, None]) >= moved).all(dim=1)
    return out


def check_head(logits: Tensor, labels: Tensor, weights: Tensor) -> None:
    """Refuses logits, labels and weights that do not belong together.

    Raises:
        ShapeError: What does not fit, and what was expected.
    """
    images, classes = logits.shape
    if labels.shape != (images,) or weights.ndim != 2 or len(weights) != classes:
        raise ShapeError(
            f"logits of shape {tuple(logits.shape)}, labels of shape {tuple(labels.shape)} and weights "
            f"of shape {tuple(weights.shape)}; expected one label an image, and a row of weights a class"
        )
    if images and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ShapeError(
            f"labels from {int(labels.min())} to {int(labels.max())}; expected indices of "
            f"{classes} classes: leave out images whose class the network does not have"
        )


@cache
def _radius(degree: int) -> float:
    """The largest x at which a series of this degree leaves out at most `TOLERANCE`."""
    low, high = 0.0, float(degree)
    for _ in range(60):
        middle = (low + high) / 2
        bound = exp(middle) * middle ** (degree + 1) / factorial(degree + 1)
        low, high = (middle, high) if bound <= TOLERANCE else (low, middle)
    return low


def _cheapest_degrees(x: Float[Tensor, "some neurons"], uses: int) -> Int[Tensor, " neurons"]:
    """For each neuron the position of the degree with the least work, its exact entries counted."""
    costs = []
    for n in DEGREES:
        exact = (x > _radius(n)).double().mean(dim=0)
        costs.append(n + uses * (_SUM_COST * n + _EXACT_COST * exact))
    return torch.stack(costs).argmin(dim=0)
