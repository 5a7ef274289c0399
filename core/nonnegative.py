"""Weights that may not be negative: least squares under that condition, for many small problems.

Some readers want explanations that only add: "more of this concept, more activation". The active
set method runs on all problems side by side with elementwise arithmetic, so that a problem's answer
does not depend on the problems beside it. The last dimension of every array is the problem.

Source: C. L. Lawson, R. J. Hanson, *Solving Least Squares Problems*, 1974, chapter 23.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from core.errors import ConfigError, close_names
from core.normal_equations import inner, least_squares

Sign = Literal["any", "positive"]
"""Signs that the weights of an explanation may have."""

SIGNS: Final[tuple[str, ...]] = get_args(Sign)

_ROUNDING: Final = 1e-9
"""Share of a problem's largest term below which a term is zero but for rounding."""

_ENTRIES: Final = 3
"""Times that each term may come back; rounding could otherwise let two terms take turns forever."""


def check_sign(sign: str) -> None:
    """Refuse a sign that is not known.

    Raises:
        ConfigError: The sign is neither ``any`` nor ``positive``.
    """
    if sign not in SIGNS:
        raise ConfigError(
            f"unknown sign {sign!r}; expected one of {', '.join(SIGNS)}{close_names(sign, SIGNS)}"
        )


def all_positive(
    sizes: Float[np.ndarray, "terms problems"], present: Bool[np.ndarray, "terms problems"]
) -> Bool[np.ndarray, " problems"]:
    """True where every term of a problem is present with a positive weight.

    Args:
        sizes: Weight of each term times the norm of its concept, which makes terms comparable.
        present: False for padding.

    Returns:
        False also where a weight is NaN, or so small beside the largest that it is rounding.
    """
    largest = sizes.max(axis=0, initial=0.0, where=present)
    return np.asarray(((sizes > _ROUNDING * largest) | ~present).all(axis=0))


def nonnegative_least_squares(
    gram: Float[np.ndarray, "terms terms problems"],
    right: Float[np.ndarray, "terms problems"],
    present: Bool[np.ndarray, "terms problems"],
    start: Float[np.ndarray, "terms problems"],
    negligible: Float[np.ndarray, " problems"],
) -> Float[np.ndarray, "terms problems"]:
    """Weights of at least zero that minimise ``½ x' gram x − x' right``.

    Args:
        gram: Positive definite over the terms that are present.
        right: Right-hand sides.
        present: False for padding, whose weight is zero.
        start: Weights of at least zero to begin with; zeros will do.
        negligible: Decrease of the residual sum of squares for which a term need not come back.

    Returns:
        Exact weights: those above zero are the least squares of their terms. All NaN where the
        terms that are present are collinear.
    """
    norm = np.sqrt(np.where(present, np.diagonal(gram, axis1=0, axis2=1).T, 1.0))
    answer = np.full(right.shape, np.nan)
    going = np.arange(right.shape[1])
    weights, passive = np.where(present, start, 0.0), present.copy()
    entries = np.zeros(len(going), dtype=np.int64)
    while going.size:
        here, scale = gram[..., going], norm[:, going]
        target = _least_squares_of_some(here, right[:, going], passive)
        sizes = target * scale
        largest = sizes.max(axis=0, initial=0.0, where=passive)
        bad = passive & (sizes <= _ROUNDING * largest)
        feasible = ~bad.any(axis=0)
        undetermined = np.isnan(target).any(axis=0)

        share = np.ones_like(target)
        falling = weights > target
        np.divide(weights, weights - target, out=share, where=bad & falling)
        share = np.clip(np.where(bad & ~falling, 0.0, share), 0.0, 1.0)
        reach = share.min(axis=0)
        # The way to the least squares of these terms ends where the first weight becomes zero.
        leaves = bad & (share <= reach)
        moved = np.where(passive & ~leaves, weights + reach * (target - weights), 0.0)

        slope = right[:, going] - np.stack([inner(row, np.nan_to_num(target)) for row in here])
        gain = np.where(present[:, going] & ~passive, np.maximum(slope, 0.0) / scale, 0.0) ** 2
        entering = gain.argmax(axis=0)
        each = np.arange(len(going))
        wants = feasible & ~undetermined & (gain[entering, each] > negligible[going])
        wants &= entries < _ENTRIES * len(right)

        weights = np.where(feasible, target, moved)
        passive = passive & ~leaves
        passive[entering[wants], each[wants]] = True
        entries += wants
        done = undetermined | (feasible & ~wants)
        answer[:, going[done]] = target[:, done]
        left = ~done
        going, entries = going[left], entries[left]
        weights, passive = weights[:, left], passive[:, left]
    return answer


def _least_squares_of_some(
    gram: Float[np.ndarray, "terms terms problems"],
    right: Float[np.ndarray, "terms problems"],
    chosen: Bool[np.ndarray, "terms problems"],
) -> Float[np.ndarray, "terms problems"]:
    """Least squares over the chosen terms, zero for the others."""
    terms = np.arange(len(gram))
    system = np.where(chosen[:, None] & chosen[None, :], gram, 0.0)
    system[terms, terms] = np.where(chosen, system[terms, terms], 1.0)
    return least_squares(system, np.where(chosen, right, 0.0))
