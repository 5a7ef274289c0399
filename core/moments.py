"""Centred second moments: everything that the fit needs to know about a split of the images.

Moments of shards add up (Chan's formula), so a billion images and one shard are fitted by the same
code, and the answer does not depend on which machine summed what.

Source: T. F. Chan, G. H. Golub, R. J. LeVeque, *Updating formulae and a pairwise algorithm for
computing sample variances*, 1979.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from jaxtyping import Float, Int, Shaped

from core.errors import ShapeError
from core.moment_sums import MomentSum


@dataclass(frozen=True, slots=True, eq=False)
class ConceptMoments:
    """Count, means and centred sums of products of the concept scores of some images."""

    count: int
    """Number of images."""
    mean: Float[np.ndarray, " concepts"]
    """Mean score of each concept."""
    scatter: Float[np.ndarray, "concepts concepts"]
    """Centred sums of products, not divided by the count; exactly symmetric."""

    @classmethod
    def of(cls, scores: Shaped[np.ndarray, "images concepts"]) -> ConceptMoments:
        """Moments of one shard, in two passes in float64.

        Args:
            scores: Concept scores, any real type.

        Raises:
            ShapeError: The array is not two-dimensional.
            RecordingError: Scores that are not finite; every concept's fit would be lost.
        """
        _check_matrix("concept scores", scores)
        total = MomentSum(scores.shape[1])
        total.add(scores)
        return cls.from_sum(total)

    @classmethod
    def from_sum(cls, total: MomentSum) -> ConceptMoments:
        """Moments of the images that a sum over one array has seen."""
        return cls(total.count, total.left_mean, total.products())

    def merge(self, other: ConceptMoments) -> ConceptMoments:
        """Moments of the images of both, as if they had been taken in one pass.

        Raises:
            ShapeError: Different numbers of concepts.
        """
        _check_equal("concepts", self.mean.shape, other.mean.shape)
        count = self.count + other.count
        if not self.count or not other.count:
            return self if self.count else other
        share = other.count / count
        shift = other.mean - self.mean
        scatter = self.scatter + other.scatter
        # The same arithmetic as of cross moments: `with_concepts` joins sums of both kinds.
        _add_outer(scatter, shift, shift, self.count * share)
        return type(self)(count, self.mean + shift * share, scatter)

    def without(self, part: ConceptMoments) -> ConceptMoments:
        """Moments of the images that are not in a part of these: what `merge` undoes.

        Raises:
            ShapeError: Different numbers of concepts, or a part that is not smaller.
        """
        _check_equal("concepts", self.mean.shape, part.mean.shape)
        count = _rest(self.count, part.count)
        mean = self.mean + (self.mean - part.mean) * (part.count / count)
        shift = part.mean - mean
        scatter = self.scatter - part.scatter
        _add_outer(scatter, shift, shift, -part.count * count / self.count)
        # A concept that does not vary in the rest is left with rounding, of either sign.
        constant = np.diagonal(scatter) <= 1e-12 * np.diagonal(self.scatter)
        scatter[constant] = 0.0
        scatter[:, constant] = 0.0
        return type(self)(count, mean, scatter)

    def select(self, concepts: Int[np.ndarray, " kept"]) -> ConceptMoments:
        """Moments of the concepts at these positions, in this order."""
        return type(self)(self.count, self.mean[concepts], self.scatter[np.ix_(concepts, concepts)])

    def with_concepts(
        self,
        places: Int[np.ndarray, " concepts"],
        new: Int[np.ndarray, " new"],
        products: CrossMoments,
    ) -> ConceptMoments:
        """Moments of a longer list of concepts, on the same images.

        Args:
            places: Where these concepts are in the longer list, ascending.
            new: Where the others are, ascending.
            products: Moments of the longer list's concepts with the new ones as if these were
                neurons.

        Raises:
            ShapeError: Moments of other images, or lists that do not make up the longer one.
        """
        longer = products.concept_mean
        _check_equal("images", (self.count,), (products.count,))
        _check_equal(
            "lists", (len(longer),) * 2, (len(places) + len(new), len(self.mean) + len(new))
        )
        scatter = np.empty((len(longer), len(longer)))
        scatter[np.ix_(places, places)] = self.scatter
        scatter[:, new] = products.cross
        scatter[new] = products.cross.T
        among = products.cross[new]
        scatter[np.ix_(new, new)] = np.triu(among) + np.triu(among, 1).T
        return type(self)(self.count, longer, scatter)

    @property
    def std(self) -> Float[np.ndarray, " concepts"]:
        """Population standard deviation of each concept score."""
        return np.sqrt(np.diagonal(self.scatter) / max(self.count, 1))


@dataclass(frozen=True, slots=True, eq=False)
class CrossMoments:
    """Moments that tie the activations of neurons to the concept scores of the same images."""

    count: int
    """Number of images."""
    concept_mean: Float[np.ndarray, " concepts"]
    neuron_mean: Float[np.ndarray, " neurons"]
    neuron_scatter: Float[np.ndarray, " neurons"]
    """Centred sums of squares of each neuron, not divided by the count."""
    cross: Float[np.ndarray, "concepts neurons"]
    """Centred sums of products of concept scores and activations."""

    @classmethod
    def of(
        cls,
        scores: Shaped[np.ndarray, "images concepts"],
        activations: Shaped[np.ndarray, "images neurons"],
    ) -> CrossMoments:
        """Moments of one shard, in two passes in float64.

        A neuron's moments are the same bits whatever other neurons are in the array. A neuron with
        a value that is not finite gets NaN in its own entries and in no others.

        Args:
            scores: Concept scores, any real type.
            activations: Pooled activations of the same images, any real type.

        Raises:
            ShapeError: Arrays that are not two-dimensional or differ in their number of images.
            RecordingError: Concept scores that are not finite.
        """
        _check_matrix("concept scores", scores)
        _check_matrix("activations", activations)
        _check_equal("images", scores.shape[:1], activations.shape[:1])
        total = MomentSum(scores.shape[1], activations.shape[1])
        total.add(scores, activations)
        return cls.from_sum(total)

    @classmethod
    def from_sum(cls, total: MomentSum) -> CrossMoments:
        """Moments of the images that a sum over two arrays has seen."""
        products = total.products()
        return cls(total.count, total.left_mean, total.right_mean, total.squares(), products)

    def merge(self, other: CrossMoments) -> CrossMoments:
        """Moments of the images of both, as if they had been taken in one pass.

        Raises:
            ShapeError: Different numbers of concepts or neurons.
        """
        _check_equal("concepts and neurons", self.cross.shape, other.cross.shape)
        count = self.count + other.count
        if not self.count or not other.count:
            return self if self.count else other
        share = other.count / count
        concept_shift = other.concept_mean - self.concept_mean
        neuron_shift = other.neuron_mean - self.neuron_mean
        between = self.count * share
        cross = self.cross + other.cross
        _add_outer(cross, concept_shift, neuron_shift, between)
        return type(self)(
            count,
            self.concept_mean + concept_shift * share,
            self.neuron_mean + neuron_shift * share,
            self.neuron_scatter + other.neuron_scatter + neuron_shift**2 * between,
            cross,
        )

    def without(self, part: CrossMoments) -> CrossMoments:
        """Moments of the images that are not in a part of these: what `merge` undoes.

        Raises:
            ShapeError: Different numbers of concepts or neurons, or a part that is not smaller.
        """
        _check_equal("concepts and neurons", self.cross.shape, part.cross.shape)
        count = _rest(self.count, part.count)
        share = part.count / count
        concept_mean = self.concept_mean + (self.concept_mean - part.concept_mean) * share
        neuron_mean = self.neuron_mean + (self.neuron_mean - part.neuron_mean) * share
        concept_shift, neuron_shift = (
            part.concept_mean - concept_mean,
            part.neuron_mean - neuron_mean,
        )
        between = part.count * count / self.count
        cross = self.cross - part.cross
        _add_outer(cross, concept_shift, neuron_shift, -between)
        scatter = self.neuron_scatter - part.neuron_scatter - between * neuron_shift**2
        constant = scatter <= 1e-12 * self.neuron_scatter
        scatter[constant] = 0.0
        cross[:, constant] = 0.0
        return type(self)(count, concept_mean, neuron_mean, scatter, cross)

    def take_neurons(self, neurons: slice | Int[np.ndarray, " kept"]) -> CrossMoments:
        """Moments of some of the neurons."""
        return type(self)(
            self.count,
            self.concept_mean,
            self.neuron_mean[neurons],
            self.neuron_scatter[neurons],
            self.cross[:, neurons],
        )

    def select(self, concepts: Int[np.ndarray, " kept"]) -> CrossMoments:
        """Moments of the concepts at these positions, in this order."""
        return type(self)(
            self.count,
            self.concept_mean[concepts],
            self.neuron_mean,
            self.neuron_scatter,
            self.cross[concepts],
        )

    def with_concepts(
        self,
        places: Int[np.ndarray, " concepts"],
        new: Int[np.ndarray, " new"],
        more: CrossMoments,
    ) -> CrossMoments:
        """Moments of a longer list of concepts, on the same images and with the same neurons.

        Args:
            places: Where these concepts are in the longer list.
            new: Where the others are.
            more: Moments of the others alone.

        Raises:
            ShapeError: Moments of other images or numbers of neurons, or other numbers of concepts.
        """
        _check_equal(
            "images and neurons",
            (self.count, *self.neuron_mean.shape),
            (more.count, *more.neuron_mean.shape),
        )
        mean = np.empty(len(places) + len(new))
        cross = np.empty((len(mean), self.cross.shape[1]))
        for where, part in ((places, self), (new, more)):
            mean[where], cross[where] = part.concept_mean, part.cross
        return type(self)(self.count, mean, self.neuron_mean, self.neuron_scatter, cross)


_ROWS: Final = 256

Moments = TypeVar("Moments", ConceptMoments, CrossMoments)


def merged(parts: Sequence[Moments]) -> Moments:
    """Moments of all parts, added in the order given: the same order gives the same bits.

    Raises:
        ShapeError: No parts, or parts that do not fit together.
    """
    if not parts:
        raise ShapeError("there are no moments to merge; expected those of at least one shard")
    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    return total


def _add_outer(
    block: Float[np.ndarray, "left right"],
    left: Float[np.ndarray, " left"],
    right: Float[np.ndarray, " right"],
    factor: float,
) -> None:
    """Add a multiple of an outer product in place, some rows at a time."""
    for start in range(0, len(left), _ROWS):
        rows = slice(start, start + _ROWS)
        block[rows] += factor * (left[rows, None] * right)


def _rest(whole: int, part: int) -> int:
    if not 0 < part < whole:
        raise ShapeError(
            f"a part of {part} images cannot be taken out of {whole}; expected fewer, and some"
        )
    return whole - part


def check_same_concepts(concepts: ConceptMoments, cross: CrossMoments) -> None:
    """Refuse moments that were not taken of the same images and concepts.

    Raises:
        ShapeError: Different numbers of images or of concepts.
    """
    found = (cross.count, len(cross.concept_mean))
    expected = (concepts.count, len(concepts.mean))
    _check_equal("images and concepts", expected, found)


def _check_matrix(name: str, values: np.ndarray) -> None:
    if values.ndim != 2:
        raise ShapeError(f"{name} have shape {values.shape}; expected one row per image")


def _check_equal(what: str, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    if left != right:
        raise ShapeError(
            f"moments of different {what}: {left} and {right}; both must be taken of the same "
            "images and the same list of concepts"
        )
