"""Least squares for very many very small problems at once.

An explanation has about ten terms, so its refit is a system of about ten equations, but a network
has 10^5 neurons. The loops run over the equations, the arrays over the problems, and only
elementwise arithmetic is used: a problem's answer never depends on the problems beside it, and one
singular problem is NaN by itself. The last dimension of every array is the problem.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Float

COLLINEAR: Final = 1e-7
"""Share of a concept's scatter that must remain unexplained by the others for it to count."""

NEGLIGIBLE: Final = 1e-12
"""Share of a neuron's scatter below which a further concept explains nothing but rounding."""


def scaled_cholesky(
    gram: Float[np.ndarray, "terms terms problems"],
) -> tuple[Float[np.ndarray, "terms terms problems"], Float[np.ndarray, "terms problems"]]:
    """Cholesky factors of Gram matrices scaled to a diagonal of ones.

    Args:
        gram: Symmetric positive semi-definite matrices.

    Returns:
        Lower factors L and scales s with ``gram = s L L' s``. From the first term on that is
        collinear with those before it, the rows of a problem are NaN; rows before it stand.
    """
    terms = len(gram)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.sqrt(np.diagonal(gram, axis1=0, axis2=1).T)
        factor = gram / (scale[:, None] * scale[None, :])
        for k in range(terms):
            for i in range(k):
                factor[k:, k] -= factor[k:, i] * factor[k, i]
            pivot = factor[k, k]
            root = np.sqrt(np.where(pivot > COLLINEAR, pivot, np.nan))
            factor[k:, k] /= root
            factor[k, k + 1 :] = 0.0
    return factor, scale


def forward_solve(
    factor: Float[np.ndarray, "terms terms problems"],
    right: Float[np.ndarray, "terms problems"],
) -> Float[np.ndarray, "terms problems"]:
    """Solve ``L y = right``; the first k entries of y solve the problem of the first k terms."""
    solution = right.copy()
    with np.errstate(invalid="ignore"):
        for k in range(len(factor)):
            for i in range(k):
                solution[k] -= factor[k, i] * solution[i]
            solution[k] /= factor[k, k]
    return solution


def backward_solve(
    factor: Float[np.ndarray, "terms terms problems"],
    right: Float[np.ndarray, "terms problems"],
) -> Float[np.ndarray, "terms problems"]:
    """Solve ``L' x = right``."""
    solution = right.copy()
    with np.errstate(invalid="ignore"):
        for k in reversed(range(len(factor))):
            for i in range(k + 1, len(factor)):
                solution[k] -= factor[i, k] * solution[i]
            solution[k] /= factor[k, k]
    return solution


def least_squares(
    gram: Float[np.ndarray, "terms terms problems"],
    right: Float[np.ndarray, "terms problems"],
) -> Float[np.ndarray, "terms problems"]:
    """Solve ``gram x = right``; all NaN for a problem whose terms are collinear."""
    factor, scale = scaled_cholesky(gram)
    with np.errstate(invalid="ignore", divide="ignore"):
        half = forward_solve(factor, right / scale)
        solution: np.ndarray = backward_solve(factor, half) / scale
    return solution


def inner(
    left: Float[np.ndarray, "terms problems"], right: Float[np.ndarray, "terms problems"]
) -> Float[np.ndarray, " problems"]:
    """Inner product of each problem, added term by term."""
    total = np.zeros(left.shape[1])
    for k in range(len(left)):
        total += left[k] * right[k]
    return total


def quadratic_form(
    gram: Float[np.ndarray, "terms terms problems"], weights: Float[np.ndarray, "terms problems"]
) -> Float[np.ndarray, " problems"]:
    """``w' gram w`` of each problem, added term by term."""
    total = np.zeros(weights.shape[1])
    for k in range(len(weights)):
        total += weights[k] * inner(gram[k], weights)
    return total
