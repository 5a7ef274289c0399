"""The path of a neuron: one explanation for each length, and their exact least-squares weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int

from core.errors import ShapeError
from core.moments import ConceptMoments, CrossMoments, check_same_concepts
from core.nonnegative import Sign, all_positive, check_sign
from core.normal_equations import (
    backward_solve,
    forward_solve,
    inner,
    least_squares,
    scaled_cholesky,
)

_BLOCK: Final = 8192


@dataclass(frozen=True, slots=True, eq=False)
class Paths:
    """Explanations of every length for some neurons.

    The explanation of length k of a neuron is ``sum(weights[k-1, :k] * score[concepts[k-1, :k]]) +
    bias[k-1]``, in raw concept scores and raw activations. A longer explanation need not contain
    the shorter ones.
    """

    concepts: Int[np.ndarray, "neurons lengths terms"]
    """Row k-1 holds the positions of the concepts of the explanation of length k, in order of
    selection, and -1 beyond; int32."""
    weights: Float[np.ndarray, "neurons lengths terms"]
    """Row k-1 holds the weights of the explanation of length k, zeros beyond."""
    bias: Float[np.ndarray, "neurons lengths"]
    """Bias of each length; NaN where there is no explanation of that length."""
    available: Int[np.ndarray, " neurons"]
    """Lengths 1 to this one exist; int32."""

    @classmethod
    def empty(cls, neurons: int, max_length: int) -> Paths:
        """Paths of neurons that have no explanation of any length."""
        return cls(
            np.full((neurons, max_length, max_length), -1, dtype=np.int32),
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
            self.concepts[neuron, row, :length],
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
    neurons, lengths = selection.shape
    weights, bias = np.empty((neurons, lengths, lengths)), np.empty((neurons, lengths))
    for start in range(0, neurons, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, neurons))
        weights[rows], bias[rows] = _solved_prefixes(selection[rows], rows, concepts, cross)
    exists = np.isfinite(bias)
    inside = exists[:, :, None] & prefixes(lengths)
    kept = np.where(inside, selection[:, None, :], -1).astype(np.int32, copy=False)
    weights[~exists] = 0.0
    return Paths(kept, weights, bias, exists.sum(axis=1, dtype=np.int32))


def fitted_sets(
    sets: Int[np.ndarray, "neurons lengths terms"],
    concepts: ConceptMoments,
    cross: CrossMoments,
) -> Paths:
    """Least-squares weights, with bias, of sets of concepts that need not contain one another.

    Args:
        sets: Row k-1 begins with the positions of k concepts; what follows them is ignored. A row
            with a -1 among them, or with concepts that are collinear, ends the path before it.
        concepts: Moments of the training images.
        cross: Moments of the same images with the neurons' activations.

    Raises:
        ShapeError: Fewer terms than lengths.
    """
    neurons, lengths, terms = sets.shape
    if terms < lengths:
        raise ShapeError(
            f"sets of shape {sets.shape} have room for {terms} concepts; the longest of "
            f"{lengths} explanations has {lengths}"
        )
    inside = np.broadcast_to(prefixes(lengths, terms), sets.shape)
    if not len(concepts.mean):
        inside = np.zeros(sets.shape, dtype=bool)
        weights, bias = np.zeros(sets.shape), np.full((neurons, lengths), np.nan)
    else:
        weights, bias = _solved(np.where(inside, sets, -1), concepts, cross)
    exists = np.logical_and.accumulate(np.isfinite(bias), axis=1)
    kept = np.where(inside & exists[:, :, None], sets, -1).astype(np.int32, copy=False)
    weights[~exists], bias[~exists] = 0.0, np.nan
    return Paths(kept, weights, bias, exists.sum(axis=1, dtype=np.int32))


def refitted(
    paths: Paths, concepts: ConceptMoments, cross: CrossMoments, sign: Sign = "any"
) -> Paths:
    """The same concepts with the weights of other images, for instance of more of them.

    Args:
        paths: Explanations whose concepts are kept.
        concepts: Moments of the other images.
        cross: Moments of the same images with the neurons' activations.
        sign: With ``positive`` a weight of zero or less is not accepted.

    Returns:
        Paths with the same lengths. An explanation keeps the weights it had where those of the
        other images are undetermined, because its concepts are collinear there or the neuron's
        moments are not finite. With ``positive`` it also keeps them where the non-negative least
        squares of its concepts would give one of them the weight zero.

    Raises:
        ConfigError: An unknown sign.
        ShapeError: Moments that were not taken of the same images and concepts.
    """
    check_sign(sign)
    check_same_concepts(concepts, cross)
    if not len(concepts.mean) or not len(paths.bias):
        return paths
    weights, bias = _solved(paths.concepts, concepts, cross)
    accepted = np.isfinite(bias)
    if sign == "positive":
        # Least squares with positive weights only is the non-negative least squares, and if one
        # of its weights is not positive, one of the non-negative least squares is zero.
        norm = np.sqrt(np.diagonal(concepts.scatter))
        sizes = (weights * norm[paths.concepts]).transpose(2, 0, 1).reshape(weights.shape[2], -1)
        present = (paths.concepts >= 0).transpose(2, 0, 1).reshape(sizes.shape)
        accepted &= all_positive(sizes, present).reshape(accepted.shape)
    return Paths(
        paths.concepts,
        np.where(accepted[:, :, None], weights, paths.weights),
        np.where(accepted, bias, paths.bias),
        paths.available,
    )


def prefixes(lengths: int, terms: int | None = None) -> Bool[np.ndarray, "lengths terms"]:
    """True for the first k terms of row k-1."""
    return np.tri(lengths, terms, dtype=bool)


def nested_selection(
    sets: Int[np.ndarray, "neurons lengths terms"],
) -> tuple[Int[np.ndarray, "neurons lengths"], Bool[np.ndarray, " neurons"]]:
    """The order in which concepts are added, and for which neurons that says everything.

    Returns:
        The last concept of each set; and True for the neurons whose sets are prefixes of them,
        which are much cheaper to compute with.
    """
    lengths = sets.shape[1]
    order: np.ndarray = np.diagonal(sets, axis1=1, axis2=2)
    same = sets[:, :, :lengths] == order[:, None, :]
    nested = (same | ~prefixes(lengths) | (order < 0)[:, :, None]).all(axis=(1, 2))
    return order, nested


def selected_gram(
    selection: Int[np.ndarray, "terms problems"], scatter: Float[np.ndarray, "concepts concepts"]
) -> Float[np.ndarray, "terms terms problems"]:
    """The scatter of each problem's concepts; NaN where a position is -1."""
    gram: np.ndarray = scatter[selection[:, None], selection[None, :]]
    missing = selection < 0
    if missing.any():
        gram[missing[:, None] | missing[None, :]] = np.nan
    return gram


def padded_gram(
    selection: Int[np.ndarray, "terms problems"], scatter: Float[np.ndarray, "concepts concepts"]
) -> Float[np.ndarray, "terms terms problems"]:
    """The scatter of each problem's concepts; rows of the identity where a position is -1."""
    gram: np.ndarray = scatter[selection[:, None], selection[None, :]]
    missing = selection < 0
    gram[missing[:, None] | missing[None, :]] = 0.0
    terms = np.arange(len(selection))
    gram[terms, terms] += missing
    return gram


def _solved(
    sets: Int[np.ndarray, "neurons lengths terms"],
    concepts: ConceptMoments,
    cross: CrossMoments,
) -> tuple[Float[np.ndarray, "neurons lengths terms"], Float[np.ndarray, "neurons lengths"]]:
    """Weights and bias of every set; NaN where they are undetermined."""
    neurons, lengths, _ = sets.shape
    weights, bias = np.zeros(sets.shape), np.empty((neurons, lengths))
    for start in range(0, neurons, _BLOCK):
        block = slice(start, start + _BLOCK)
        order, nested = nested_selection(sets[block])
        rows = start + np.flatnonzero(nested)
        if rows.size:
            found = _solved_prefixes(order[nested], rows, concepts, cross)
            weights[rows, :, :lengths], bias[rows] = found
        rows = start + np.flatnonzero(~nested)
        for k in range(1, lengths + 1 if rows.size else 1):
            terms = sets[rows, k - 1, :k].T
            solution = least_squares(
                selected_gram(terms, concepts.scatter), cross.cross[terms, rows]
            )
            weights[rows, k - 1, :k] = solution.T
            bias[rows, k - 1] = cross.neuron_mean[rows] - inner(solution, concepts.mean[terms])
    return weights, bias


def _solved_prefixes(
    selection: Int[np.ndarray, "some lengths"],
    rows: Int[np.ndarray, " some"],
    concepts: ConceptMoments,
    cross: CrossMoments,
) -> tuple[Float[np.ndarray, "some lengths terms"], Float[np.ndarray, "some lengths"]]:
    """Weights and bias of every prefix; NaN where they are undetermined."""
    neurons, lengths = selection.shape
    terms = np.ascontiguousarray(selection.T)
    factor, scale = scaled_cholesky(selected_gram(terms, concepts.scatter))
    with np.errstate(invalid="ignore", divide="ignore"):
        right = cross.cross[terms, rows] / scale
    # NaN spreads forward from the first term that is missing or collinear, never backward.
    half = forward_solve(factor, right)
    means, neuron_mean = concepts.mean[terms], cross.neuron_mean[rows]
    weights = np.zeros((neurons, lengths, lengths))
    bias = np.empty((neurons, lengths))
    for k in range(1, lengths + 1):
        exact = backward_solve(factor[:k, :k], half[:k]) / scale[:k]
        weights[:, k - 1, :k] = exact.T
        bias[:, k - 1] = neuron_mean - inner(exact, means[:k])
    return weights, bias
