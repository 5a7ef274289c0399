"""How much of a network's loss survives when a neuron is replaced by its simulated activation.

    α = 1 − Σ|L(q ← ŝ) − L| / Σ|L(q ← mean) − L|

over test images, L the cross-entropy of an image, q the recorded activation: 1 where nothing changes, 0 where
the prediction is no better than the neuron's mean. A prediction s becomes ŝ = c s + d by one line a neuron,
found on validation images: `norm_lines` or `optimal_lines`. The mean is that of training images.

Losses come from `core.linear_head` where a linear layer follows, else from `core.loss_curves`. Everything
is in float64, on the device of the tensors given.

Source: T. Oikarinen, T.-W. Weng, *Linear Explanations for Individual Neurons*, ICML 2024 (arXiv:2405.06855).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from core.errors import ShapeError

Changes = Callable[[Tensor], Tensor]
"""From replaced activations to changes of loss, both images × neurons; 0 at the recorded activation."""

_NUDGE: Final = 0.1
_ROUNDS: Final = 3
_REWEIGHTED: Final = 12
_SEARCHES: Final = ((0.1, 1e-5), (0.01, 1e-7))
_STEPS: Final = 60


@dataclass(frozen=True)
class Lines:
    """One line a neuron, from predictions to activations: ŝ = c s + d."""

    c: Float[Tensor, " neurons"]
    d: Float[Tensor, " neurons"]

    def values(self, simulated: Float[Tensor, "images neurons"]) -> Float[Tensor, "images neurons"]:
        """The activations that the neurons are to take."""
        return self.c * simulated.double() + self.d


@dataclass(frozen=True)
class AblationScores:
    """Scores of neurons, and their standard errors."""

    score: Float[Tensor, " neurons"]
    standard_error: Float[Tensor, " neurons"]


def ablation_scores(
    replaced: Float[Tensor, "images neurons"],
    at_mean: Float[Tensor, "images neurons"],
    weights: Float[Tensor, "images neurons"] | None = None,
) -> AblationScores:
    """The ablation score α of each neuron.

    The standard error is that of a ratio of sums by the delta method. Without weights it says how far another
    draw of as many test images might lead; with those of `core.importance_sampling`, how far the
    drawn images may be from all test images.

    Args:
        replaced: Change of each image's loss with the neuron at its simulated activation.
        at_mean: The same with the neuron at its mean.
        weights: What each row counts for, where images were drawn with unequal probabilities.

    Returns:
        At most 1; NaN where replacing the neuron by its mean changes no loss, as for a dead neuron. The
        error is NaN with a single image.

    Raises:
        ShapeError: Tensors of different shape.
    """
    if replaced.shape != at_mean.shape or (weights is not None and weights.shape != at_mean.shape):
        raise ShapeError(
            f"changes of loss of shapes {tuple(replaced.shape)} and {tuple(at_mean.shape)}, weights "
            f"{None if weights is None else tuple(weights.shape)}; expected the same images and neurons"
        )
    x, y = replaced.double().abs(), at_mean.double().abs()
    if weights is not None:
        x, y = x * weights, y * weights
    whole = y.sum(dim=0)
    whole = torch.where(whole > 0, whole, torch.nan)
    ratio = x.sum(dim=0) / whole
    squares = (x - ratio * y).square().sum(dim=0)
    images = len(x)
    error = (squares * (images / (images - 1))).sqrt() / whole if images > 1 else whole * torch.nan
    return AblationScores(1.0 - ratio, error)


def norm_lines(
    recorded: Float[Tensor, "images neurons"], simulated: Float[Tensor, "images neurons"]
) -> Lines:
    """The published `norm`: ŝ = standardise(s) σ ρ + μ, all four moments those of validation images.

    This is the least-squares line. Where predictions do not vary it is the recorded mean.

    Args:
        recorded: Pooled activations of validation images.
        simulated: Predictions for the same images, in any units.

    Raises:
        ShapeError: Tensors of different shape, or no image.
    """
    q, s = _checked(recorded, simulated)
    mean, centred = s.mean(dim=0), s - s.mean(dim=0)
    square = centred.square().sum(dim=0)
    flat = (s == s[:1]).all(dim=0)
    c = torch.where(flat, 0.0, (centred * q).sum(dim=0) / torch.where(flat, 1.0, square))
    return Lines(c, q.mean(dim=0) - c * mean)


def optimal_lines(
    changes: Changes,
    recorded: Float[Tensor, "images neurons"],
    simulated: Float[Tensor, "images neurons"],
) -> Lines:
    """The published `optim`: c and d with the least Σ|change of loss| over validation images.

    Near the recorded activation an image's change is its slope times the distance, so the line of least
    weighted absolute deviations is nearly the answer; it is found by reweighted least squares, with slopes
    from small nudges, then twice from the changes at the line itself. From the best of it, the published
    start (1, 0), the least-squares line and the mean, Nelder and Mead's simplex then goes down on the changes
    themselves, all neurons in step, twice. A neuron's answer depends on its own columns alone.

    Args:
        changes: As `Changes` says, for the validation images; called 60 to 200 times.
        recorded: Pooled activations of the validation images.
        simulated: Predictions for the same images, in any units.

    Returns:
        Lines; NaN for a neuron with a value that is not finite.

    Raises:
        ShapeError: Tensors of different shape, or no image.
    """
    q, s = _checked(recorded, simulated)
    # In these units, deviations from both means, slope and height hardly depend on each other.
    scale, width = _spread(q), _spread(s)
    mean, middle = q.mean(dim=0), s.mean(dim=0)
    z = (s - middle) / width
    y = (q - mean) / scale

    def values(line: Tensor) -> Tensor:
        return mean + scale * (line[0] * z + line[1])

    def objective(line: Tensor) -> Tensor:
        return changes(values(line)).abs().sum(dim=0).nan_to_num_(nan=torch.inf, posinf=torch.inf)

    flat = torch.zeros_like(mean)
    published = torch.stack([width / scale, (middle - mean) / scale])
    squares = norm_lines(y, z)
    starts = [torch.stack([flat, flat]), published, torch.stack([squares.c, squares.d])]
    nudge = torch.where(y > 0, -_NUDGE, _NUDGE)
    slopes = changes(q + nudge * scale).abs() / _NUDGE
    for _ in range(_ROUNDS):
        starts.append(_least_absolute(z, y, slopes, starts[-1]))
        distance = (starts[-1][0] * z + starts[-1][1] - y).abs()
        secants = changes(values(starts[-1])).abs() / distance.clamp_min(1e-12)
        slopes = torch.where(distance > 1e-3, secants, slopes)
    heights = torch.stack([objective(start) for start in starts])
    best = heights.argmin(dim=0)
    start = torch.stack(starts)[best, :, torch.arange(len(best), device=best.device)].T
    line, height = start, heights.amin(dim=0)
    # A simplex can collapse on a kink; a small new one where it ended goes on.
    for step, spread in _SEARCHES:
        line, height = _downhill(objective, line, height, step, spread)
    c = line[0] * scale / width
    found = Lines(c, mean + scale * line[1] - c * middle)
    known = torch.isfinite(height)
    return Lines(torch.where(known, found.c, torch.nan), torch.where(known, found.d, torch.nan))


def _least_absolute(
    z: Float[Tensor, "images neurons"],
    y: Float[Tensor, "images neurons"],
    slopes: Float[Tensor, "images neurons"],
    line: Float[Tensor, "2 neurons"],
) -> Float[Tensor, "2 neurons"]:
    """Line with about the least Σ slope |a z + b − y|, by reweighted least squares from a line."""
    for _ in range(_REWEIGHTED):
        weights = slopes / (line[0] * z + line[1] - y).abs().clamp_min(1e-3)
        total = weights.sum(dim=0)
        total = torch.where(total > 0, total, 1.0)
        centre_z, centre_y = (weights * z).sum(dim=0) / total, (weights * y).sum(dim=0) / total
        off = (z - centre_z) * weights
        square = (off * z).sum(dim=0)
        a = torch.where(square > 1e-9 * total, (off * y).sum(dim=0) / square, 0.0)
        line = torch.stack([a, centre_y - a * centre_z])
    return line


def _downhill(
    objective: Changes,
    start: Float[Tensor, "2 neurons"],
    height: Float[Tensor, " neurons"],
    step: float,
    spread: float,
) -> tuple[Float[Tensor, "2 neurons"], Float[Tensor, " neurons"]]:
    """Nelder and Mead's simplex method in two dimensions, every neuron with a simplex of its own.

    A neuron rests once its three heights agree to a relative `spread`; the search ends when all rest.
    """
    corners = torch.stack([start, start.clone(), start.clone()])
    corners[1, 0] += step
    corners[2, 1] += step
    heights = torch.stack([height, objective(corners[1]), objective(corners[2])])
    for _ in range(_STEPS):
        heights, order = heights.sort(dim=0, stable=True)
        corners = corners.gather(0, order[:, None, :].expand_as(corners))
        rests = ~(heights[2] - heights[0] > spread * heights[0])
        if bool(rests.all()):
            break
        centre = (corners[0] + corners[1]) / 2
        away = centre - corners[2]
        first = centre + away
        reached = objective(first)
        # Far out where it went well, half way where it did not, on the better side of the centre.
        further = torch.where(
            reached < heights[0], 2.0, torch.where(reached < heights[2], 0.5, -0.5)
        )
        second = centre + further * away
        tried = objective(second)
        moved = (reached < heights[1]) | (tried < torch.minimum(reached, heights[2]))
        use_second = tried < reached
        corner = torch.where(use_second, second, first)
        _replace(corners, heights, 2, corner, torch.minimum(tried, reached), moved & ~rests)
        shrinks = ~moved & ~rests
        if bool(shrinks.any()):
            for k in (1, 2):
                nearer = (corners[0] + corners[k]) / 2
                _replace(corners, heights, k, nearer, objective(nearer), shrinks)
    heights, best = heights.min(dim=0)
    return corners[best, :, torch.arange(len(best), device=best.device)].T, heights


def _replace(
    corners: Float[Tensor, "3 2 neurons"],
    heights: Float[Tensor, "3 neurons"],
    place: int,
    corner: Float[Tensor, "2 neurons"],
    height: Float[Tensor, " neurons"],
    where: Bool[Tensor, " neurons"],
) -> None:
    corners[place] = torch.where(where, corner, corners[place])
    heights[place] = torch.where(where, height, heights[place])


def _spread(values: Float[Tensor, "images neurons"]) -> Float[Tensor, " neurons"]:
    """Standard deviation; 1 where a column does not vary."""
    spread = (values - values.mean(dim=0)).square().mean(dim=0).sqrt()
    varies = (values != values[:1]).any(dim=0)
    return torch.where(varies, spread, 1.0)


def _checked(recorded: Tensor, simulated: Tensor) -> tuple[Tensor, Tensor]:
    if recorded.shape != simulated.shape or recorded.ndim != 2 or not len(recorded):
        raise ShapeError(
            f"recorded activations of shape {tuple(recorded.shape)} and simulated ones of shape "
            f"{tuple(simulated.shape)}; expected the same images and neurons, and at least one image"
        )
    return recorded.double(), simulated.double()
