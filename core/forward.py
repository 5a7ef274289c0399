"""Forward selection over all concepts, exactly, from moments.

At each step the concept enters that lowers the training residual sum of squares most when *all*
weights are refitted. Orthogonalising every concept's scatter against the selection makes that an
elementwise update: no candidate is ever refitted on its own.

Source: orthogonal least squares, S. Chen, S. A. Billings, W. Luo, *Orthogonal least squares methods
and their application to non-linear system identification*, Int. J. Control 50, 1989.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Float, Int

from core.moments import ConceptMoments, CrossMoments, check_same_concepts
from core.nonnegative import Sign, check_sign
from core.normal_equations import COLLINEAR, NEGLIGIBLE
from core.paths import Paths, fitted_paths, fitted_sets
from core.positive import positive_sets
from core.status import explainable

_CACHED_ELEMENTS: Final = 131_072


def forward_paths(
    concepts: ConceptMoments,
    cross: CrossMoments,
    max_length: int,
    block: int | None = None,
    sign: Sign = "any",
    ridge: float = 0.0,
) -> Paths:
    """Greedy forward selection by training residual, for each neuron on its own.

    Args:
        concepts: Moments of the training images.
        cross: Moments of the same images with the neurons' activations.
        max_length: Greatest number of concepts of an explanation, at least 1.
        block: Neurons worked on at a time; changes speed and memory, never a bit of the result.
        sign: With ``positive`` every weight of every explanation is above zero; see
            `core.positive` for how the path is then found, without a ridge.
        ridge: Ridge penalty on the weight of the concept that enters, in scatters of its score. It
            favours concepts that the selection has not nearly said already, and is for the choice
            alone: weights are those of least squares.

    Returns:
        The whole path of each neuron. It ends early where no concept that is not collinear with
        the selection explains anything; it is empty where the neuron's status is not ``ok``. Of
        concepts that explain equally much, the first in the list is taken.

    Raises:
        ConfigError: An unknown sign.
        ShapeError: Moments that were not taken of the same images and concepts.
    """
    check_sign(sign)
    check_same_concepts(concepts, cross)
    if sign == "positive":
        return fitted_sets(positive_sets(concepts, cross, max_length, block), concepts, cross)
    neurons = len(cross.neuron_mean)
    block = block or max(1, _CACHED_ELEMENTS // max(len(concepts.mean), 1))
    selection = np.full((neurons, max_length), -1, dtype=np.int32)
    usable = np.flatnonzero(explainable(cross))
    if len(concepts.mean):
        diagonal = np.diagonal(concepts.scatter).copy()
        for start in range(0, len(usable), block):
            rows = usable[start : start + block]
            selection[rows] = _select(
                concepts.scatter,
                diagonal,
                np.ascontiguousarray(cross.cross[:, rows].T),
                cross.neuron_scatter[rows],
                max_length,
                ridge,
            )
    return fitted_paths(selection, concepts, cross)


def _select(
    scatter: Float[np.ndarray, "concepts concepts"],
    diagonal: Float[np.ndarray, " concepts"],
    cross: Float[np.ndarray, "neurons concepts"],
    neuron_scatter: Float[np.ndarray, " neurons"],
    max_length: int,
    ridge: float,
) -> Int[np.ndarray, "neurons max_length"]:
    """Select concepts for a few neurons; ``cross`` is used up as working memory."""
    neurons, concepts = cross.shape
    selection = np.full((neurons, max_length), -1, dtype=np.int32)
    threshold = COLLINEAR * diagonal
    # Of each concept: the scatter that the selection leaves unexplained; a concept that may not
    # be chosen has infinite scatter, so its gain is zero.
    left = np.tile(np.where(diagonal > 0, diagonal, np.inf), (neurons, 1))
    basis = np.empty((max_length, neurons, concepts))
    gain = np.empty((neurons, concepts))
    penalised = np.empty((neurons, concepts)) if ridge else left
    each = np.arange(neurons)
    going = np.ones(neurons, dtype=bool)
    for k in range(max_length):
        np.multiply(cross, cross, out=gain)
        if ridge:
            np.add(left, ridge * diagonal, out=penalised)
        gain /= penalised
        best = gain.argmax(axis=1)
        going &= gain[each, best] > NEGLIGIBLE * neuron_scatter
        if not going.any():
            break
        selection[going, k] = best[going]
        row = basis[k]
        np.take(scatter, best, axis=0, out=row, mode="clip")
        row[~going] = 0.0
        for i in range(k):
            np.multiply(basis[i], basis[i][each, best][:, None], out=gain)
            row -= gain
        root = np.sqrt(np.where(going, left[each, best], 1.0))[:, None]
        row /= root
        np.multiply(row, cross[each, best][:, None] / root, out=gain)
        cross -= gain
        np.multiply(row, row, out=gain)
        left -= gain
        left[left <= threshold] = np.inf
        left[each, best] = np.inf
    return selection
