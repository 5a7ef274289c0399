"""Beam search: forward selection that follows several sets of concepts at a time.

Forward selection keeps one set and never takes a concept back, so an early concept that later ones
make superfluous costs a place. Here the best sets of each length are all continued, and the best of
them is the explanation of that length; it need not contain the shorter ones. The gain of every
concept beside every set is exact, by the same orthogonalisation as in `core.forward`.

With weights that must be positive only sets whose least-squares weights are all positive are
followed. None of them is out of reach: leaving out the term of a positive set whose weight is least
(relative to its standard error) leaves a positive set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from core.errors import ConfigError
from core.forward import forward_paths
from core.moments import ConceptMoments, CrossMoments, check_same_concepts
from core.nonnegative import Sign, all_positive, check_sign
from core.normal_equations import COLLINEAR, NEGLIGIBLE, least_squares
from core.paths import Paths, fitted_sets, padded_gram
from core.status import explainable

WIDTH: Final = 8
"""Sets that are followed at a time."""

_CACHED_ELEMENTS: Final = 131_072

_ROUNDS: Final = 4
"""Times ``width`` candidates of a set that are looked at for ones with positive weights."""


def beam_paths(
    concepts: ConceptMoments,
    cross: CrossMoments,
    max_length: int,
    width: int = WIDTH,
    sign: Sign = "any",
    block: int | None = None,
) -> Paths:
    """Beam search by training residual, for each neuron on its own.

    Args:
        concepts: Moments of the training images.
        cross: Moments of the same images with the neurons' activations.
        max_length: Greatest number of concepts of an explanation, at least 1.
        width: Sets that are followed at a time; one is forward selection.
        sign: With ``positive`` every weight of every explanation is above zero. Of each set that
            is followed, at most four times ``width`` of its best continuations are then looked at.
        block: Neurons worked on at a time; changes speed and memory, never a bit of the result.

    Returns:
        The best set seen of each length, forward selection's among them, so that no length
        explains less of the training images than `core.forward.forward_paths` does. A path ends
        where a longer set explains no more. Of sets that explain equally much, forward selection's
        is taken, else the one found from the better set and earlier concept.

    Raises:
        ConfigError: A width below 1, or an unknown sign.
        ShapeError: Moments that were not taken of the same images and concepts.
    """
    check_sign(sign)
    check_same_concepts(concepts, cross)
    if width < 1:
        raise ConfigError(f"beam of width {width}; expected at least 1, for instance {WIDTH}")
    sets = np.full((len(cross.neuron_mean), max_length, max_length), -1, dtype=np.int32)
    usable = np.flatnonzero(explainable(cross)) if len(concepts.mean) else np.arange(0)
    block = block or max(1, _CACHED_ELEMENTS // max(len(concepts.mean) * width, 1))
    for start in range(0, len(usable), block):
        rows = usable[start : start + block]
        search = _Search(
            concepts.scatter,
            np.ascontiguousarray(cross.cross[:, rows].T),
            cross.neuron_scatter[rows],
            width,
            sign,
        )
        sets[rows] = search.best_sets(max_length)
    forward = forward_paths(concepts, cross, max_length, sign=sign)
    return _better(fitted_sets(sets, concepts, cross), forward, cross)


def _better(beam: Paths, forward: Paths, cross: CrossMoments) -> Paths:
    """Of each length the path that explains more; ends where a longer one explains no more."""
    of_beam, of_forward = _explained(beam, cross), _explained(forward, cross)
    margin = NEGLIGIBLE * cross.neuron_scatter[:, None]
    taken = of_beam > np.where(np.isfinite(of_forward), of_forward + margin, -np.inf)
    explained = np.where(taken, of_beam, of_forward)
    shorter = np.concatenate([np.full((len(explained), 1), -np.inf), explained[:, :-1]], axis=1)
    exists = np.logical_and.accumulate(explained > shorter, axis=1)
    each = (taken & exists)[:, :, None], exists[:, :, None]
    return Paths(
        np.where(each[0], beam.concepts, np.where(each[1], forward.concepts, -1)),
        np.where(each[0], beam.weights, np.where(each[1], forward.weights, 0.0)),
        np.where(taken & exists, beam.bias, np.where(exists, forward.bias, np.nan)),
        exists.sum(axis=1, dtype=np.int32),
    )


def _explained(paths: Paths, cross: CrossMoments) -> Float[np.ndarray, "neurons lengths"]:
    """Scatter of the neurons that each explanation explains; -inf where there is none."""
    if not len(cross.concept_mean):
        return np.full(paths.bias.shape, -np.inf)
    rows = np.arange(len(paths.bias))
    total = np.zeros(paths.bias.shape)
    with np.errstate(invalid="ignore"):
        for term in range(paths.weights.shape[2]):
            covariance = cross.cross[paths.concepts[:, :, term], rows[:, None]]
            total += paths.weights[:, :, term] * covariance
    return np.where(np.isfinite(paths.bias), total, -np.inf)


@dataclass(slots=True, eq=False)
class _Beam:
    """Sets of one length that are followed, best first; a set that explains -inf is not one."""

    explained: Float[np.ndarray, "neurons sets"]
    sets: Int[np.ndarray, "neurons sets terms"]
    names: UInt64[np.ndarray, "neurons sets"]
    """A number for each set, whatever the order of its concepts."""
    chain: Int[np.ndarray, "neurons sets terms"]
    """Where in the basis of each length the set's part lies."""
    cross: Float[np.ndarray, "neurons sets concepts"]
    left: Float[np.ndarray, "neurons sets concepts"]


@dataclass(slots=True, eq=False)
class _Search:
    """The search for a block of neurons."""

    scatter: Float[np.ndarray, "concepts concepts"]
    cross: Float[np.ndarray, "neurons concepts"]
    neuron_scatter: Float[np.ndarray, " neurons"]
    width: int
    sign: Sign

    def best_sets(self, max_length: int) -> Int[np.ndarray, "neurons lengths terms"]:
        """The best set found of each length, -1 beyond."""
        neurons, concepts = self.cross.shape
        best = np.full((neurons, max_length, max_length), -1, dtype=np.int32)
        names = _names(concepts)
        diagonal = np.diagonal(self.scatter)
        beam = _Beam(
            np.zeros((neurons, 1)),
            np.empty((neurons, 1, 0), dtype=np.int32),
            np.zeros((neurons, 1), dtype=np.uint64),
            np.empty((neurons, 1, 0), dtype=np.int64),
            self.cross[:, None],
            np.tile(np.where(diagonal > 0, diagonal, np.inf), (neurons, 1, 1)),
        )
        basis: list[Float[np.ndarray, "_ concepts"]] = []
        for k in range(max_length):
            candidates, explained = self._candidates(beam)
            parent, concept, explained = self._distinct(beam, candidates, explained, names)
            # A neuron is done when a longer set explains no more than the best shorter one.
            reached = beam.explained[:, 0] + NEGLIGIBLE * self.neuron_scatter
            explained[~(explained[:, 0] > reached)] = -np.inf
            found = np.isfinite(explained[:, 0])
            if not found.any():
                break
            longer = np.take_along_axis(beam.sets, parent[:, :, None], axis=1)
            longer = np.concatenate([longer, concept[:, :, None]], axis=2)
            best[found, k, : k + 1] = longer[found, 0]
            if k + 1 < max_length:
                beam = self._continued(beam, parent, concept, explained, longer, names, basis)
        return best

    def _candidates(
        self, beam: _Beam
    ) -> tuple[Int[np.ndarray, "neurons sets tried"], Float[np.ndarray, "neurons sets tried"]]:
        """The best concepts to add to each set, best first, and what is then explained."""
        gain = beam.cross if self.sign == "any" else np.maximum(beam.cross, 0.0)
        gain = gain * gain
        gain /= beam.left
        neurons, sets, concepts = gain.shape
        wanted = min(self.width, concepts)
        least = np.where(
            np.isfinite(beam.explained), NEGLIGIBLE * self.neuron_scatter[:, None], np.inf
        )
        tried: list[np.ndarray] = []
        gained: list[np.ndarray] = []
        flat, each = gain.reshape(-1, concepts), np.arange(neurons * sets)
        for _ in range(_ROUNDS if self.sign == "positive" else 1):
            for _ in range(wanted):
                concept = flat.argmax(axis=1)
                value = flat[each, concept].reshape(neurons, sets)
                flat[each, concept] = 0.0
                tried.append(concept.astype(np.int32).reshape(neurons, sets))
                gained.append(np.where(value > least, value, -np.inf))
            if self.sign == "positive":
                latest = slice(len(tried) - wanted, None)
                ending = ~np.isfinite(gained[-1])
                bad = ~self._positive(beam, np.stack(tried[latest], axis=2))
                for place, refused in enumerate(np.moveaxis(bad, 2, 0), latest.start):
                    gained[place][refused] = -np.inf
                enough = np.isfinite(np.stack(gained)).sum(axis=0) >= wanted
                if (enough | ending).all():
                    break
        return np.stack(tried, axis=2), beam.explained[:, :, None] + np.stack(gained, axis=2)

    def _positive(
        self, beam: _Beam, tried: Int[np.ndarray, "neurons sets tried"]
    ) -> Bool[np.ndarray, "neurons sets tried"]:
        """Whether the least squares of each set with each of these concepts is all positive."""
        neurons = len(tried)
        sets = np.repeat(beam.sets[:, :, None], tried.shape[2], axis=2)
        terms = np.concatenate([sets, tried[..., None]], axis=3)
        terms = terms.reshape(-1, terms.shape[3]).T
        rows = np.repeat(np.arange(neurons), tried[0].size)
        gram = padded_gram(terms, self.scatter)
        weights = least_squares(gram, self.cross[rows, terms])
        sizes = weights * np.sqrt(np.diagonal(gram, axis1=0, axis2=1).T)
        return all_positive(sizes, terms >= 0).reshape(tried.shape)

    def _distinct(
        self,
        beam: _Beam,
        candidates: Int[np.ndarray, "neurons sets tried"],
        explained: Float[np.ndarray, "neurons sets tried"],
        names: UInt64[np.ndarray, " concepts"],
    ) -> tuple[
        Int[np.ndarray, "neurons kept"],
        Int[np.ndarray, "neurons kept"],
        Float[np.ndarray, "neurons kept"],
    ]:
        """Parent, concept and explained scatter of the best different sets, best first."""
        neurons, _, tried = candidates.shape
        concept = candidates.reshape(neurons, -1)
        value = explained.reshape(neurons, -1)
        order = np.argsort(-value, axis=1, kind="stable")
        concept, value = (np.take_along_axis(a, order, axis=1) for a in (concept, value))
        parent = order // tried
        name = np.take_along_axis(beam.names, parent, axis=1) + names[concept]
        # Equal names side by side, in the order of quality: all but the first are repetitions.
        by_name = np.argsort(name, axis=1, kind="stable")
        sorted_names = np.take_along_axis(name, by_name, axis=1)
        repeated = np.zeros(name.shape, dtype=bool)
        repeated[:, 1:] = sorted_names[:, 1:] == sorted_names[:, :-1]
        refused = np.empty_like(repeated)
        np.put_along_axis(refused, by_name, repeated, axis=1)
        refused |= ~np.isfinite(value)
        most = int(min(self.width, max(1, (~refused).sum(axis=1).max(initial=0))))
        kept = np.argsort(refused, axis=1, kind="stable")[:, :most]
        parent, concept, value, refused = (
            np.take_along_axis(a, kept, axis=1) for a in (parent, concept, value, refused)
        )
        return parent, concept, np.where(refused, -np.inf, value)

    def _continued(
        self,
        beam: _Beam,
        parent: Int[np.ndarray, "neurons kept"],
        concept: Int[np.ndarray, "neurons kept"],
        explained: Float[np.ndarray, "neurons kept"],
        longer: Int[np.ndarray, "neurons kept terms"],
        names: UInt64[np.ndarray, " concepts"],
        basis: list[Float[np.ndarray, "_ concepts"]],
    ) -> _Beam:
        """The beam of the longer sets; adds their part to the basis."""
        neurons, kept = parent.shape
        each = np.arange(neurons)[:, None]
        alive = np.isfinite(explained)
        chain = beam.chain[each, parent]
        row = self.scatter[concept]
        row[~alive] = 0.0
        for i, part in enumerate(basis):
            before = part[chain[:, :, i]]
            before *= np.take_along_axis(before, concept[:, :, None], axis=2)
            row -= before
        root = np.sqrt(np.where(alive, beam.left[each, parent, concept], 1.0))[:, :, None]
        row /= root
        cross, left = beam.cross[each, parent], beam.left[each, parent]
        share = np.take_along_axis(cross, concept[:, :, None], axis=2) / root
        cross -= row * share
        left -= row * row
        threshold = COLLINEAR * np.diagonal(self.scatter)
        left[left <= threshold] = np.inf
        np.put_along_axis(left, concept[:, :, None], np.inf, axis=2)
        basis.append(row.reshape(neurons * kept, -1))
        place = np.arange(neurons * kept).reshape(neurons, kept, 1)
        return _Beam(
            explained,
            longer,
            beam.names[each, parent] + names[concept],
            np.concatenate([chain, place], axis=2),
            cross,
            left,
        )


def _names(concepts: int) -> UInt64[np.ndarray, " concepts"]:
    """A number for each concept such that sums over different sets differ.

    They do so but for a chance of 2⁻⁶⁴ a pair, in which case a candidate would be lost.

    Source: SplitMix64, G. L. Steele, D. Lea, C. H. Flood, OOPSLA 2014.
    """
    value = np.arange(1, concepts + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(value ^ (value >> np.uint64(31)))
