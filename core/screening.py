"""Fewer concepts than there are, when there are more than a concept block may hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from core.moments import CrossMoments
from core.status import explainable

_BLOCK: Final = 64


def nearest_concepts(
    crosses: Sequence[CrossMoments], scatter: Float[np.ndarray, " concepts"], most: int
) -> Int[np.ndarray, " kept"]:
    """The concepts that some neuron correlates with most: first choices first, then second, …

    Args:
        crosses: Moments of the training images with the neurons of each layer.
        scatter: Centred sums of squares of the concepts' scores on the same images.
        most: How many concepts to keep.

    Returns:
        Positions, ascending. Concepts that are equally high a choice are kept in the order of
        their largest correlation.
    """
    concepts = len(scatter)
    best_rank = np.full(concepts, concepts)
    strongest = np.zeros(concepts)
    with np.errstate(divide="ignore"):
        inverse = np.where(scatter > 0, 1.0 / np.sqrt(scatter), 0.0)
    for cross in crosses:
        usable = np.flatnonzero(explainable(cross))
        for start in range(0, len(usable), _BLOCK):
            rows = usable[start : start + _BLOCK]
            correlation = np.abs(cross.cross[:, rows] * inverse[:, None])
            correlation /= np.sqrt(cross.neuron_scatter[rows])
            order = np.argsort(-correlation, axis=0, kind="stable")
            rank = np.empty_like(order)
            np.put_along_axis(rank, order, np.arange(concepts)[:, None], axis=0)
            np.minimum(best_rank, rank.min(axis=1), out=best_rank)
            np.maximum(strongest, correlation.max(axis=1), out=strongest)
    kept = np.lexsort((-strongest, best_rank))[:most]
    return np.sort(kept)
