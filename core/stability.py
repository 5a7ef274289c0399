"""How surely a concept belongs to an explanation: is it chosen again when some images are left out?

Source: N. Meinshausen, P. Bühlmann, *Stability selection*, J. R. Statist. Soc. B 72, 2010, with
folds in place of random halves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from core.errors import ShapeError


def selection_frequency(
    chosen: Int[np.ndarray, "neurons terms"],
    fold_sets: Sequence[Int[np.ndarray, "neurons fold_terms"]],
    groups: Int[np.ndarray, " concepts"] | None = None,
) -> Float[np.ndarray, "neurons terms"]:
    """Share of the folds whose explanations have each concept of the chosen explanation.

    Args:
        chosen: Positions of the concepts of each neuron's explanation, -1 for no term.
        fold_sets: For each fold, the explanations of the same neurons and of the same length as
            those chosen, selected without the fold's images; -1 for no term. A neuron that has no
            explanation in a fold did not select anything in it.
        groups: Group of each concept, as from `core.synonyms.collinearity_groups`. Where given, a
            concept counts as selected if the fold selected any concept of its group.

    Returns:
        Shares in [0, 1]; NaN where there is no term.

    Raises:
        ShapeError: No folds, sets of different neurons, or a position without a group.
    """
    if not fold_sets:
        raise ShapeError("there are no folds; expected the explanations of at least one")
    for sets in (chosen, *fold_sets):
        if sets.ndim != 2 or len(sets) != len(chosen):
            raise ShapeError(
                f"sets of terms have shapes {chosen.shape} and {sets.shape}; expected one row for "
                "each neuron in both"
            )
    wanted = _named(chosen, groups)
    count = np.zeros(chosen.shape)
    for sets in fold_sets:
        selected = _named(sets, groups)
        found = np.zeros(chosen.shape, dtype=bool)
        for term in range(selected.shape[1]):
            found |= wanted == selected[:, [term]]
        count += found
    return np.where(chosen < 0, np.nan, count / len(fold_sets))


def _named(
    sets: Int[np.ndarray, "neurons terms"], groups: Int[np.ndarray, " concepts"] | None
) -> Int[np.ndarray, "neurons terms"]:
    """Groups of the terms, or the terms themselves."""
    if groups is None:
        return sets
    if sets.max(initial=-1) >= len(groups):
        raise ShapeError(
            f"a set has a concept at position {sets.max()}, but groups are given for "
            f"{len(groups)} concepts; both must be of the same list of concepts"
        )
    named: np.ndarray = np.where(sets < 0, -1, np.append(groups, -1)[sets])
    return named
