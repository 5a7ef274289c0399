"""The path of a neuron: one explanation for each length, and their exact least-squares weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from core.errors import ShapeError
from core.moments import ConceptMoments, CrossMoments
from core.normal_equations import backward_solve, forward_solve, inner, scaled_cholesky

_BLOCK: Final = 8192


@dataclass(frozen=True, slots=True, eq=False)
class Paths:
    """Explanations of every length for some neurons.

    The explanation of length k of a neuron is ``sum(weights[k-1, :k] * score[concepts[:k]]) +
    bias[k-1]``, in raw concept scores and raw activations.
    """

    concepts: Int[np.ndarray, "neurons max_length"]
    """Positions of the concepts in order of selection, -1 beyond the end; int32."""
    weights: Float[np.ndarray, "neurons max_length max_length"]
    """Row k-1 holds the weights of the explanation of length k, zeros beyond."""
    bias: Float[np.ndarray, "neurons max_length"]
    """Bias of each length; NaN where there is no explanation of that length."""
    available: Int[np.ndarray, " neurons"]
    """Number of lengths that exist, which is also the greatest length; int32."""

    @classmethod
    def empty(cls, neurons: int, max_length: int) -> Paths:
        """Paths of neurons that have no explanation of any length."""
        return cls(
            np.full((neurons, max_length), -1, dtype=np.int32),
            np.zeros((neurons, max_length, max_length)),
            np.full((neurons, max_length), np.nan),
            np.zeros(neurons, dtype=np.int32),
        )

    @classmethod
    def joined(cls, parts: Sequence[Paths]) -> Paths:
        """Paths of consecutive blocks of neurons as one.

        Raises:
            ShapeError: No parts, or parts of different maximal length.
        """
        lengths = {part.concepts.shape[1] for part in parts}
        if len(lengths) != 1:
            raise ShapeError(f"paths of maximal lengths {sorted(lengths)}; expected one length")
        return cls(
            np.concatenate([part.concepts for part in parts]),
            np.concatenate([part.weights for part in parts]),
            np.concatenate([part.bias for part in parts]),
            np.concatenate([part.available for part in parts]),
        )

    def explanation(
        self, neuron: int, length: int
    ) -> tuple[Int[np.ndarray, " terms"], Float[np.ndarray, " terms"], float]:
        """Concepts in order of selection, their weights, and the bias of one explanation.

        Raises:
            ShapeError: The neuron has no explanation of this length.
        """
        available = int(self.available[neuron])
        if not 1 <= length <= available:
            raise ShapeError(
                f"neuron {neuron} has no explanation of length {length}; lengths 1 to "
                f"{available} exist"
            )
        row = length - 1
        return (
            self.concepts[neuron, :length],
            self.weights[neuron, row, :length],
            float(self.bias[neuron, row]),
        )


def fitted_paths(
    selection: Int[np.ndarray, "neurons max_length"],
    concepts: ConceptMoments,
    cross: CrossMoments,
) -> Paths:
    """Least-squares weights, with bias, of every prefix of every neuron's selection.

    Args:
        selection: Positions of concepts in order of selection, -1 beyond the end. A concept that
            is collinear with those before it ends the path, since its weight is undetermined.
        concepts: Moments of the training images.
        cross: Moments of the same images with the neurons' activations.

    Returns:
        Paths of length up to ``max_length``, each weight fitted for the concept at its position.
    """
    if not len(concepts.mean):
        return Paths.empty(*selection.shape)
    blocks = range(0, max(len(selection), 1), _BLOCK)
    parts = [
        _fitted_block(selection[a : a + _BLOCK], concepts, cross.take_neurons(slice(a, a + _BLOCK)))
        for a in blocks
    ]
    return Paths.joined(parts)


def selected_gram(
    selection: Int[np.ndarray, "terms problems"], scatter: Float[np.ndarray, "concepts concepts"]
) -> Float[np.ndarray, "terms terms problems"]:
    """The scatter of each problem's concepts; NaN where a position is -1."""
    gram: np.ndarray = scatter[selection[:, None], selection[None, :]]
    missing = selection < 0
    gram[missing[:, None] | missing[None, :]] = np.nan
    return gram


def _fitted_block(
    selection: Int[np.ndarray, "neurons max_length"],
    concepts: ConceptMoments,
    cross: CrossMoments,
) -> Paths:
    neurons, max_length = selection.shape
    terms = selection.T
    factor, scale = scaled_cholesky(selected_gram(terms, concepts.scatter))
    with np.errstate(invalid="ignore", divide="ignore"):
        right = cross.cross[terms, np.arange(neurons)] / scale
    half = forward_solve(factor, right)
    # NaN spreads forward from the first term that is missing or collinear, never backward.
    available = np.isfinite(half).sum(axis=0).astype(np.int32)
    weights = np.zeros((neurons, max_length, max_length))
    bias = np.full((neurons, max_length), np.nan)
    for k in range(1, max_length + 1):
        fitted = available >= k
        exact = backward_solve(factor[:k, :k][..., fitted], half[:k, fitted]) / scale[:k, fitted]
        weights[fitted, k - 1, :k] = exact.T
        means = concepts.mean[terms[:k, fitted]]
        bias[fitted, k - 1] = cross.neuron_mean[fitted] - inner(exact, means)
    kept = np.where(np.arange(max_length) < available[:, None], selection, -1)
    return Paths(kept.astype(np.int32), weights, bias, available)
