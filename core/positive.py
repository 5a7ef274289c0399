"""Forward selection whose weights are all positive.

At each step the concept enters that lowers the training residual most among those that would get a
positive weight beside the selection. The weights are then the exact non-negative least squares: a
concept whose weight falls to zero leaves the selection, so the explanation of one length need not
contain the shorter ones. The residual falls with every step, so no selection comes twice.

Source: non-negative orthogonal greedy search, M. Yaghoobi, D. Wu, M. E. Davies, *Fast Non-Negative
Orthogonal Matching Pursuit*, IEEE Signal Process. Lett. 22, 2015.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int

from core.moments import ConceptMoments, CrossMoments
from core.nonnegative import all_positive, nonnegative_least_squares
from core.normal_equations import COLLINEAR, NEGLIGIBLE, least_squares
from core.paths import padded_gram
from core.status import explainable

_CACHED_ELEMENTS: Final = 131_072

_STEPS: Final = 6
"""Steps of a search for each length; one that has not arrived by then ends where it is."""


def positive_sets(
    concepts: ConceptMoments, cross: CrossMoments, max_length: int, block: int | None = None
) -> Int[np.ndarray, "neurons lengths terms"]:
    """Sets of concepts whose least-squares weights are all positive, the best seen of each length.

    Args:
        concepts: Moments of the training images.
        cross: Moments of the same images with the neurons' activations.
        max_length: Greatest number of concepts of a set.
        block: Neurons worked on at a time; changes speed and memory, never a bit of the result.

    Returns:
        Row k-1 holds k concepts in order of selection, -1 beyond. The lengths of a neuron end
        where the search did: where nothing helps any more, or at ``max_length``. Each length
        explains more of the training images than the one before.
    """
    neurons = len(cross.neuron_mean)
    sets = np.full((neurons, max_length, max_length), -1, dtype=np.int32)
    usable = np.flatnonzero(explainable(cross)) if len(concepts.mean) else np.arange(0)
    block = block or max(1, _CACHED_ELEMENTS // max(len(concepts.mean), 1))
    for start in range(0, len(usable), block):
        rows = usable[start : start + block]
        original = np.ascontiguousarray(cross.cross[:, rows].T)
        sets[rows] = _select(concepts.scatter, original, cross.neuron_scatter[rows], max_length)
    return sets


@dataclass(slots=True, eq=False)
class _Selection:
    """Selections of a block of neurons, and what they leave of every concept."""

    scatter: Float[np.ndarray, "concepts concepts"]
    threshold: Float[np.ndarray, " concepts"]
    cross: Float[np.ndarray, "neurons concepts"]
    """Partial products of concepts and neurons, beside the selection."""
    left: Float[np.ndarray, "neurons concepts"]
    """Scatter of the concepts that the selection leaves; infinite where one may not enter."""
    basis: Float[np.ndarray, "terms neurons concepts"]
    """Products of every concept with the orthonormalised selection; zero beyond its end."""
    terms: Int[np.ndarray, "terms neurons"]
    """Positions of the selected concepts, -1 beyond the end."""
    weights: Float[np.ndarray, "terms neurons"]

    @classmethod
    def nothing(
        cls,
        scatter: Float[np.ndarray, "concepts concepts"],
        original: Float[np.ndarray, "neurons concepts"],
        max_length: int,
    ) -> _Selection:
        """Neurons for which nothing is selected yet."""
        neurons, concepts = original.shape
        diagonal = np.diagonal(scatter)
        return cls(
            scatter,
            COLLINEAR * diagonal,
            original.copy(),
            np.tile(np.where(diagonal > 0, diagonal, np.inf), (neurons, 1)),
            np.zeros((max_length, neurons, concepts)),
            np.full((max_length, neurons), -1),
            np.zeros((max_length, neurons)),
        )

    @property
    def size(self) -> Int[np.ndarray, " neurons"]:
        """Number of concepts selected for each neuron."""
        return np.asarray((self.terms >= 0).sum(axis=0))

    def enter(
        self, concept: Int[np.ndarray, " neurons"], entering: Bool[np.ndarray, " neurons"]
    ) -> None:
        """Add a concept to the selections of some of the neurons."""
        each, size = np.arange(len(concept)), self.size
        row = self.scatter[concept]
        for i in range(size.max(initial=0, where=entering)):
            row -= self.basis[i] * self.basis[i][each, concept][:, None]
        row[~entering] = 0.0
        root = np.sqrt(np.where(entering, self.left[each, concept], 1.0))[:, None]
        row /= root
        self.cross -= row * (self.cross[each, concept][:, None] / root)
        self.left -= row * row
        self.left[self.left <= self.threshold] = np.inf
        chosen = each[entering]
        self.left[chosen, concept[chosen]] = np.inf
        self.basis[size[chosen], chosen] = row[chosen]
        self.terms[size[chosen], chosen] = concept[chosen]

    def replace(self, rows: Int[np.ndarray, " some"], other: _Selection) -> None:
        """Put other selections in the place of some neurons' own."""
        self.cross[rows], self.left[rows] = other.cross, other.left
        self.basis[:, rows] = other.basis
        self.terms[:, rows], self.weights[:, rows] = other.terms, other.weights


def _select(
    scatter: Float[np.ndarray, "concepts concepts"],
    original: Float[np.ndarray, "neurons concepts"],
    neuron_scatter: Float[np.ndarray, " neurons"],
    max_length: int,
) -> Int[np.ndarray, "neurons lengths terms"]:
    neurons = len(original)
    best_of_length = np.full((neurons, max_length, max_length), -1, dtype=np.int32)
    now = _Selection.nothing(scatter, original, max_length)
    norm = np.sqrt(np.diagonal(scatter))
    negligible = NEGLIGIBLE * neuron_scatter
    each = np.arange(neurons)
    going = np.full(neurons, max_length > 0)
    for _ in range(_STEPS * max_length):
        gain = np.maximum(now.cross, 0.0)
        gain *= gain
        gain /= now.left
        concept = gain.argmax(axis=1)
        size = now.size
        going &= (gain[each, concept] > negligible) & (size < max_length)
        rows = np.flatnonzero(going)
        if not rows.size:
            break
        longest = int(size[rows].max()) + 1
        terms = now.terms[:longest, rows].copy()
        terms[size[rows], np.arange(len(rows))] = concept[rows]
        present = terms >= 0
        gram = padded_gram(terms, scatter)
        right = np.where(present, original[rows, terms], 0.0)
        weights = least_squares(gram, right)
        positive = all_positive(weights * norm[terms], present)
        undetermined = np.isnan(weights).any(axis=0)

        entering = np.zeros(neurons, dtype=bool)
        entering[rows[positive]] = True
        now.enter(concept, entering)
        now.weights[:longest, rows[positive]] = weights[:, positive]
        # Collinear but for rounding: the concept may not enter as long as the selection stands.
        now.left[rows[undetermined], concept[rows[undetermined]]] = np.inf

        again = ~positive & ~undetermined
        if again.any():
            started = now.weights[:longest, rows[again]]
            problem = gram[..., again], right[:, again], present[:, again]
            weights = nonnegative_least_squares(*problem, started, negligible[rows[again]])
            rebuilt = _rebuilt(scatter, original[rows[again]], terms[:, again], weights, max_length)
            now.replace(rows[again], rebuilt)
        size = now.size[rows]
        best_of_length[rows[size > 0], size[size > 0] - 1] = now.terms[:, rows[size > 0]].T
    beyond = np.arange(max_length) >= now.size[:, None]
    best_of_length[beyond] = -1
    return best_of_length


def _rebuilt(
    scatter: Float[np.ndarray, "concepts concepts"],
    original: Float[np.ndarray, "neurons concepts"],
    terms: Int[np.ndarray, "terms neurons"],
    weights: Float[np.ndarray, "terms neurons"],
    max_length: int,
) -> _Selection:
    """Selections of the terms whose weight is above zero, in the order that they had."""
    kept = weights > 0
    place = np.argsort(~kept, axis=0, kind="stable")
    terms = np.take_along_axis(np.where(kept, terms, -1), place, axis=0)
    selection = _Selection.nothing(scatter, original, max_length)
    for concept in terms:
        selection.enter(concept, concept >= 0)
    selection.weights[: len(terms)] = np.take_along_axis(
        np.where(kept, weights, 0.0), place, axis=0
    )
    return selection
