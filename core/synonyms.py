"""Which concepts stand for each other: in an explanation, and in the list of concepts itself.

Many concepts of a vision-language model have almost the same score. Which of them an explanation
names is then an accident of the training images, and a reader should know the others.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int

from core.errors import ShapeError
from core.moments import ConceptMoments, CrossMoments
from core.normal_equations import COLLINEAR, forward_solve, inner, scaled_cholesky
from core.shares import check_sets, rows_by_size
from core.status import explainable

CONCEPT_STATUSES: Final = ("", "constant", "duplicate", "collinear")

DUPLICATE: Final = 1e-9
"""How far from 1 the absolute correlation of two concepts may be that are the same concept."""

_ROUNDING: Final = 1e-12
_CACHED_ELEMENTS: Final = 65_536
_TILE: Final = 128


def near_synonyms(
    sets: Int[np.ndarray, "neurons terms"],
    concepts: ConceptMoments,
    cross: CrossMoments,
    most: int = 3,
    loss: float = 0.02,
    block: int | None = None,
) -> tuple[Int[np.ndarray, "neurons terms most"], Float[np.ndarray, "neurons terms most"]]:
    """For each term of each explanation, the other concepts that would have done about as well.

    A concept would do in place of a term if the explanation with the one for the other, all weights
    refitted by least squares, keeps ``1 - loss`` of the correlation with the neuron. The weight may
    change its sign: a concept's opposite says the same. A term that can be left out at less than
    ``loss`` can be replaced by anything, and `core.shares.drop_one` tells which terms those are.

    Args:
        sets: Positions of the concepts of each explanation in any order, -1 for no term.
        concepts: Moments of the training images.
        cross: Moments of the same images with the neurons' activations.
        most: Greatest number of replacements of a term.
        loss: Share of the correlation that may be lost.
        block: Neurons worked on at a time; changes speed and memory, never a bit of the result.

    Returns:
        Positions of the concepts, best first and of equal ones the first in the list first, -1
        where there are no more; and the share of the correlation that each loses, negative where
        it would be gained, NaN where there is none. No concept of the explanation itself is named,
        nor one that is collinear with the other terms. A neuron whose status is not ``ok``, or
        whose own terms are collinear, has none.

    Raises:
        ShapeError: Moments that were not taken of the same images and concepts, or sets that do not
            fit them.
    """
    check_sets(sets, concepts, cross)
    block = block or max(1, _CACHED_ELEMENTS // max(len(concepts.mean), 1))
    positions = np.full((*sets.shape, most), -1, dtype=np.int32)
    losses = np.full((*sets.shape, most), np.nan)
    diagonal = np.diagonal(concepts.scatter).copy()
    for rows, places in rows_by_size(sets, explainable(cross)):
        for start in range(0, len(rows), block):
            part = rows[start : start + block]
            at = part[:, None], places[start : start + block]
            rest = np.ascontiguousarray(cross.cross[:, part].T)
            positions[at], losses[at] = _replacements(
                sets[at], concepts.scatter, diagonal, rest, most, loss
            )
    return positions, losses


def _replacements(
    chosen: Int[np.ndarray, "neurons terms"],
    scatter: Float[np.ndarray, "concepts concepts"],
    diagonal: Float[np.ndarray, " concepts"],
    rest: Float[np.ndarray, "neurons concepts"],
    most: int,
    loss: float,
) -> tuple[Int[np.ndarray, "neurons terms most"], Float[np.ndarray, "neurons terms most"]]:
    """Replacements for a few neurons; ``rest``, the cross moments, is used up as working memory.

    All concepts are orthogonalised against the whole explanation once. What a term explains that
    the others do not is one direction in the span of the explanation; giving it back turns the
    residuals of the explanation into those of the explanation without the term.
    """
    neurons, terms = chosen.shape
    each = np.arange(neurons)
    positions = np.full((neurons, terms, most), -1, dtype=np.int32)
    losses = np.full((neurons, terms, most), np.nan)
    factor, scale = scaled_cholesky(scatter[chosen.T[:, None], chosen.T[None, :]])
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        half = forward_solve(factor, rest[each, chosen.T] / scale)
        basis, left = _orthogonalised(chosen, scatter, diagonal, factor, scale)
        work, own = np.empty(left.shape), np.empty(left.shape)
        for k in range(terms):
            np.multiply(basis[k], half[k][:, None], out=work)
            rest -= work
        r2 = inner(half, half)
        limit = COLLINEAR * diagonal
        for i in range(terms):
            unit = np.zeros((terms, neurons))
            unit[i] = 1.0
            direction = forward_solve(factor, unit)
            direction /= np.sqrt(inner(direction, direction))
            without = r2 - inner(direction, half) ** 2
            np.multiply(basis[i], direction[i][:, None], out=own)
            for k in range(i + 1, terms):
                np.multiply(basis[k], direction[k][:, None], out=work)
                own += work
            gain = own * inner(direction, half)[:, None]
            gain += rest
            gain *= gain
            own *= own
            own += left
            own[own <= limit] = np.inf
            gain /= own
            gain[each[:, None], chosen] = 0.0
            for rank in range(most):
                best = gain.argmax(axis=1)
                gained = gain[each, best]
                kept = without + gained
                good = (gained > 0) & (kept >= ((1 - loss) ** 2 - _ROUNDING) * r2)
                if not good.any():
                    break
                positions[good, i, rank] = best[good]
                losses[good, i, rank] = 1 - np.sqrt(kept[good] / r2[good])
                gain[each, best] = 0.0
    return positions, losses


def _orthogonalised(
    chosen: Int[np.ndarray, "neurons terms"],
    scatter: Float[np.ndarray, "concepts concepts"],
    diagonal: Float[np.ndarray, " concepts"],
    factor: Float[np.ndarray, "terms terms neurons"],
    scale: Float[np.ndarray, "terms neurons"],
) -> tuple[Float[np.ndarray, "terms neurons concepts"], Float[np.ndarray, "neurons concepts"]]:
    """All concepts in an orthonormal basis of each explanation, and the scatter that it leaves."""
    neurons, terms = chosen.shape
    basis = np.empty((terms, neurons, len(diagonal)))
    work = np.empty(basis.shape[1:])
    left = np.tile(diagonal, (neurons, 1))
    for k in range(terms):
        row = basis[k]
        np.take(scatter, chosen[:, k], axis=0, out=row, mode="clip")
        row /= scale[k][:, None]
        for i in range(k):
            np.multiply(basis[i], factor[k, i][:, None], out=work)
            row -= work
        row /= factor[k, k][:, None]
        np.multiply(row, row, out=work)
        left -= work
    return basis, left


def degenerate_concepts(
    concepts: ConceptMoments,
) -> tuple[np.ndarray, Int[np.ndarray, " concepts"]]:
    """Concepts that a list could do without, judged in the order of the list.

    Time grows with the third power of the number of concepts, in matrix products; memory is, beyond
    the moments, one matrix of their size. A core of a server needs about 2 s and 0.2 GB for 5,000
    concepts, 75 s and 3.2 GB for 20,000.

    Args:
        concepts: Moments of any images, as a rule those of training.

    Returns:
        Strings, one per concept: ``constant``; ``duplicate`` where its scores are those of an
        earlier concept up to a scale, a sign and a shift; ``collinear`` where they are a weighted
        sum of several earlier ones that are themselves not degenerate; empty where the concept is
        none of these. And the position of the first concept of which it is a duplicate, -1
        otherwise; int32.
    """
    count = len(concepts.mean)
    status = np.full(count, "", dtype="<U9")
    partner = np.full(count, -1, dtype=np.int32)
    inverse = _inverse_norms(concepts)
    status[inverse == 0] = "constant"
    for start in range(0, count, _TILE):
        end = min(start + _TILE, count)
        same = _correlated(concepts, inverse, slice(start, end), slice(0, end), 1 - DUPLICATE)
        same &= np.arange(end) < np.arange(start, end)[:, None]
        found = start + np.flatnonzero(same.any(axis=1))
        status[found] = "duplicate"
        partner[found] = same.argmax(axis=1)[found - start]
    remaining = np.flatnonzero(status == "")
    status[remaining[_collinear(concepts.scatter, inverse, remaining)]] = "collinear"
    return status, partner


def collinearity_groups(
    concepts: ConceptMoments, threshold: float = 0.95
) -> Int[np.ndarray, " concepts"]:
    """Groups of concepts that are linked by high correlations, of either sign.

    Concepts are linked directly or through others (single linkage), so the ends of a long chain
    may be less alike than the threshold says. Memory is a strip of the matrix of correlations.

    Args:
        concepts: Moments of any images, as a rule those of training.
        threshold: Absolute correlation from which two concepts are linked, in (0, 1].

    Returns:
        For each concept the smallest position in its group, its own where it is in no other's
        group, as a constant concept always is; int32.

    Raises:
        ShapeError: A threshold outside (0, 1], which would link everything or nothing.
    """
    if not 0 < threshold <= 1:
        raise ShapeError(f"the threshold is {threshold}; expected a correlation in (0, 1]")
    count = len(concepts.mean)
    parent = np.arange(count, dtype=np.int32)
    inverse = _inverse_norms(concepts)
    for start in range(0, count, _TILE):
        end = min(start + _TILE, count)
        linked = _correlated(concepts, inverse, slice(start, end), slice(start, count), threshold)
        left, right = np.nonzero(linked)
        _join(parent, left + start, right + start)
    return parent


def _join(
    parent: Int[np.ndarray, " concepts"],
    left: Int[np.ndarray, " links"],
    right: Int[np.ndarray, " links"],
) -> None:
    """Join the groups that these links connect, in place; ``parent`` names groups throughout."""
    while True:
        left, right = parent[left], parent[right]
        apart = left != right
        if not apart.any():
            return
        left, right = left[apart], right[apart]
        np.minimum.at(parent, np.maximum(left, right), np.minimum(left, right))
        while not np.array_equal(parent, parent[parent]):
            parent[:] = parent[parent]


def _inverse_norms(concepts: ConceptMoments) -> Float[np.ndarray, " concepts"]:
    """What turns centred sums of products into correlations; 0 for a constant concept."""
    diagonal = np.diagonal(concepts.scatter)
    varies = diagonal > 0
    return np.where(varies, 1 / np.sqrt(np.where(varies, diagonal, 1.0)), 0.0)


def _correlated(
    concepts: ConceptMoments,
    inverse: Float[np.ndarray, " concepts"],
    rows: slice,
    columns: slice,
    threshold: float,
) -> Bool[np.ndarray, "rows columns"]:
    """Which concepts of a strip have at least this absolute correlation."""
    strip = concepts.scatter[rows, columns] * inverse[rows, None]
    strip *= inverse[columns]
    return np.asarray(np.abs(strip, out=strip) >= threshold)


def _collinear(
    scatter: Float[np.ndarray, "concepts concepts"],
    inverse: Float[np.ndarray, " concepts"],
    remaining: Int[np.ndarray, " remaining"],
) -> Bool[np.ndarray, " remaining"]:
    """Which of some concepts are weighted sums of those before them, by a Cholesky factorisation.

    A concept of whose scatter too little remains is passed over: its row of the factor is zero and
    those after it are not compared with it.
    """
    count = len(remaining)
    passed = np.zeros(count, dtype=bool)
    upper = np.empty((count, count))
    for start in range(0, count, _TILE):
        end = min(start + _TILE, count)
        rows, columns = remaining[start:end], remaining[start:]
        strip = scatter[rows[:, None], columns]
        strip *= inverse[rows, None]
        strip *= inverse[columns]
        strip -= upper[:start, start:end].T @ upper[:start, start:]
        width = end - start
        corner = strip[:, :width].copy()
        for k in range(width):
            if corner[k, k] > COLLINEAR:
                corner[k, k:] /= np.sqrt(corner[k, k])
                corner[k + 1 :, k + 1 :] -= np.outer(corner[k, k + 1 :], corner[k, k + 1 :])
            else:
                passed[start + k] = True
                corner[k, k:] = 0.0
        corner = np.triu(corner)
        missing = np.flatnonzero(passed[start:end])
        solved = corner.copy()
        solved[missing, missing] = 1.0
        upper[start:end, start:end] = corner
        upper[start:end, end:] = np.linalg.solve(solved.T, strip[:, width:])
        upper[start + missing, end:] = 0.0
    return passed
