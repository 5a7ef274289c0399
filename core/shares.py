"""How much of a neuron's variance each term of its explanation accounts for.

A weight says how a prediction moves with a concept score, not what the concept is worth: terms that
overlap share what they explain. Averaged over all orders in which the terms could have entered, the
increase in R² when a term enters divides the R² of the whole explanation among its terms.

Source: R. H. Lindeman, P. F. Merenda, R. Z. Gold, *Introduction to Bivariate and Multivariate
Analysis*, 1980 ("LMG"); U. Grömping, *Estimators of relative importance in linear regression based
on variance decomposition*, The American Statistician 61, 2007. It is the Shapley value of R².
"""

from __future__ import annotations

from collections.abc import Iterator
from math import factorial
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int

from core.errors import ShapeError
from core.moments import ConceptMoments, CrossMoments, check_same_concepts
from core.normal_equations import COLLINEAR
from core.status import explainable

_CACHED_ELEMENTS: Final = 524_288
_LARGEST_BLOCK: Final = 8192
_BASE_ORDERS: Final = 8


def variance_shares(
    sets: Int[np.ndarray, "neurons terms"],
    concepts: ConceptMoments,
    cross: CrossMoments,
    max_exact: int = 10,
) -> Float[np.ndarray, "neurons terms"]:
    """Share of each neuron's variance that each term of its explanation explains.

    The weights are those of least squares with a bias on the images of the moments, refitted for
    every subset of the terms. A subset counts for as much as its best part whose terms are not
    collinear, so a term that adds nothing to the others is not paid for rounding.

    With up to ``max_exact`` terms all ``2**terms`` subsets are fitted; time and memory double with
    each further term. With more, the average is taken over ``16 * terms`` fixed orders: eight random
    ones, each shifted cyclically by every amount, so that each term enters equally often at each
    place, and all of them reversed. The standard error of a share is then 0.0001 of R² for concepts
    that are nearly uncorrelated, 0.001 for concepts that all correlate at 0.99, and 0.004 for
    concepts with few common causes, the largest error being 0.02 (11 and 14 terms, against all
    subsets).

    Args:
        sets: Positions of the concepts of each explanation in any order, -1 for no term.
        concepts: Moments of some images, as a rule those of training.
        cross: Moments of the same images with the neurons' activations.
        max_exact: Greatest number of terms for which the shares are exact.

    Returns:
        Shares of the variance in [0, 1] that sum to the R² of the explanation, 0 where there is no
        term. A row of NaN where the neuron's status is not ``ok``.

    Raises:
        ShapeError: Moments that were not taken of the same images and concepts, or sets that do not
            fit them.
    """
    check_sets(sets, concepts, cross)
    usable = explainable(cross)
    out = np.zeros(sets.shape)
    out[~usable] = np.nan
    for rows, places in rows_by_size(sets, usable):
        exact = places.shape[1] <= max_exact
        for block in _blocks(len(rows), places.shape[1], exact):
            at = rows[block, None], places[block]
            gram, right = _correlations(sets[at].T, rows[block], concepts, cross)
            shares = _exact_shares(gram, right) if exact else _sampled_shares(gram, right)
            out[at] = shares.T
    return out


def drop_one(
    sets: Int[np.ndarray, "neurons terms"], concepts: ConceptMoments, cross: CrossMoments
) -> Float[np.ndarray, "neurons terms"]:
    """R² that each neuron's explanation loses without each term, all other weights refitted.

    Of terms that overlap none is needed while the others are there, so these do not sum to R².

    Args:
        sets: Positions of the concepts of each explanation in any order, -1 for no term.
        concepts: Moments of some images, as a rule those of training.
        cross: Moments of the same images with the neurons' activations.

    Returns:
        Losses of R², not negative; 0 where there is no term or where it is collinear with the
        others. A row of NaN where the neuron's status is not ``ok``.

    Raises:
        ShapeError: As for `variance_shares`.
    """
    check_sets(sets, concepts, cross)
    usable = explainable(cross)
    out = np.zeros(sets.shape)
    out[~usable] = np.nan
    for rows, places in rows_by_size(sets, usable):
        terms = places.shape[1]
        for block in _blocks(len(rows), terms, False):
            at = rows[block, None], places[block]
            gram, right = _correlations(sets[at].T, rows[block], concepts, cross)
            lost = [
                _gains(gram, right, np.roll(np.arange(terms), -1 - i))[-1] for i in range(terms)
            ]
            out[at] = np.stack(lost, axis=1)
    return out


def check_sets(
    sets: Int[np.ndarray, "neurons terms"], concepts: ConceptMoments, cross: CrossMoments
) -> None:
    """Refuse sets of terms that do not belong to these neurons and concepts.

    Raises:
        ShapeError: Moments that were not taken of the same images and concepts, a different number
            of neurons, or positions at which there is no concept.
    """
    check_same_concepts(concepts, cross)
    neurons, known = len(cross.neuron_mean), len(concepts.mean)
    if sets.ndim != 2 or len(sets) != neurons:
        raise ShapeError(f"sets of terms have shape {sets.shape}; expected {neurons} rows of terms")
    if sets.size and not -1 <= sets.min() <= sets.max() < known:
        raise ShapeError(
            f"sets hold positions from {sets.min()} to {sets.max()}; expected 0 to {known - 1}, "
            "or -1 for no term"
        )


def rows_by_size(
    sets: Int[np.ndarray, "neurons terms"], usable: Bool[np.ndarray, " neurons"]
) -> Iterator[tuple[Int[np.ndarray, " rows"], Int[np.ndarray, "rows size"]]]:
    """Usable neurons with equally many terms, and the columns in which each has its terms.

    Yields:
        Rows in ascending order and columns in ascending order, for each size above 0.
    """
    missing = sets < 0
    sizes = np.where(usable, sets.shape[1] - missing.sum(axis=1), 0)
    columns = np.argsort(missing, axis=1, kind="stable")
    for size in np.unique(sizes[sizes > 0]).tolist():
        rows = np.flatnonzero(sizes == size)
        yield rows, columns[rows, :size]


def _blocks(problems: int, terms: int, exact: bool) -> Iterator[slice]:
    elements = 2**terms if exact else terms**2
    size = min(max(_CACHED_ELEMENTS // elements, 1), _LARGEST_BLOCK)
    return (slice(start, start + size) for start in range(0, problems, size))


def _correlations(
    chosen: Int[np.ndarray, "terms problems"],
    neurons: Int[np.ndarray, " problems"],
    concepts: ConceptMoments,
    cross: CrossMoments,
) -> tuple[Float[np.ndarray, "terms terms problems"], Float[np.ndarray, "terms problems"]]:
    """Correlations of the terms with each other and with the neuron; 0 for a constant concept."""
    gram = concepts.scatter[chosen[:, None], chosen[None, :]]
    diagonal = np.diagonal(gram, axis1=0, axis2=1).T
    varies = diagonal > 0
    scale = np.where(varies, 1 / np.sqrt(np.where(varies, diagonal, 1.0)), 0.0)
    gram *= scale[:, None] * scale[None, :]
    right = cross.cross[chosen, neurons] * scale
    right /= np.sqrt(cross.neuron_scatter[neurons])
    return gram, right


def _reciprocal(pivot: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """What a term's remaining scatter is divided by; 0 for a term that is collinear."""
    counts = pivot > COLLINEAR
    return np.where(counts, 1 / np.where(counts, pivot, 1.0), 0.0)


def _exact_shares(
    gram: Float[np.ndarray, "terms terms problems"], right: Float[np.ndarray, "terms problems"]
) -> Float[np.ndarray, "terms problems"]:
    """Shapley values from the R² of all subsets."""
    terms, problems = right.shape
    r2 = _subset_r2(gram, right).reshape((2,) * terms + (problems,))
    for axis in range(terms):
        without, having = _split(r2, axis)
        np.maximum(without, having, out=having)
    others = np.array([s.bit_count() for s in range(2 ** (terms - 1))])
    orders = [factorial(k) * factorial(terms - 1 - k) / factorial(terms) for k in range(terms)]
    weight = np.array(orders)[others, None]
    shares = np.empty(right.shape)
    for i in range(terms):
        without, having = _split(r2, terms - 1 - i)
        shares[i] = _folded((having - without).reshape(-1, problems) * weight)
    return shares


def _subset_r2(
    gram: Float[np.ndarray, "terms terms problems"], right: Float[np.ndarray, "terms problems"]
) -> Float[np.ndarray, "subsets problems"]:
    """R² of every subset; bit i of a subset's number says whether it has term i.

    One term after another is settled: of every subset of the terms before it there is one that
    leaves it out, whose residuals stand, and one that takes it in, whose residuals are swept.
    """
    r2 = np.zeros((1, right.shape[1]))
    left, rest = gram[None], right[None]
    for _ in range(len(right)):
        column, reciprocal = left[:, 1:, 0], _reciprocal(left[:, 0, 0])
        step = column * reciprocal[:, None]
        r2 = np.concatenate([r2, r2 + rest[:, 0] ** 2 * reciprocal])
        rest = np.concatenate([rest[:, 1:], rest[:, 1:] - step * rest[:, :1]])
        left = left[:, 1:, 1:]
        left = np.concatenate([left, left - step[:, :, None] * column[:, None]])
    return r2


def _split(
    table: Float[np.ndarray, "*subsets problems"], axis: int
) -> tuple[Float[np.ndarray, "*half problems"], Float[np.ndarray, "*half problems"]]:
    """The halves of a table of subsets without and with one term, as views."""
    without, having = np.moveaxis(table, axis, 0)
    return without, having


def _folded(values: Float[np.ndarray, "subsets problems"]) -> Float[np.ndarray, " problems"]:
    """Sum over a power of two of rows, in an order that does not depend on the problems."""
    while len(values) > 1:
        half = len(values) // 2
        values = values[:half] + values[half:]
    total: np.ndarray = values[0]
    return total


def _sampled_shares(
    gram: Float[np.ndarray, "terms terms problems"], right: Float[np.ndarray, "terms problems"]
) -> Float[np.ndarray, "terms problems"]:
    """Mean increase of R² over the orders of `_orders`."""
    orders = _orders(len(right))
    total = np.zeros(right.shape)
    for order in orders:
        total[order] += _gains(gram, right, order)
    return total / len(orders)


def _orders(terms: int) -> Int[np.ndarray, "orders terms"]:
    """Fixed antithetic orders; the legacy generator's numbers are promised never to change."""
    rng = np.random.RandomState(0)
    base = np.stack([rng.permutation(terms) for _ in range(_BASE_ORDERS)])
    shifted = np.concatenate([np.roll(base, shift, axis=1) for shift in range(terms)])
    return np.concatenate([shifted, shifted[:, ::-1]])


def _gains(
    gram: Float[np.ndarray, "terms terms problems"],
    right: Float[np.ndarray, "terms problems"],
    order: Int[np.ndarray, " terms"],
) -> Float[np.ndarray, "terms problems"]:
    """Increase of R² as each term enters, in the order given."""
    left, rest = gram[np.ix_(order, order)], right[order]
    gains = np.empty(right.shape)
    for k in range(len(order)):
        reciprocal = _reciprocal(left[k, k])
        gains[k] = rest[k] ** 2 * reciprocal
        step = left[k + 1 :, k] * reciprocal
        left[k + 1 :, k + 1 :] -= step[:, None] * left[k, k + 1 :]
        rest[k + 1 :] -= step * rest[k]
    return gains
