"""Simple searches to compare with: the largest weights of an elastic net, and one concept alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from core.elastic_net import L1_RATIO, PENALTY, elastic_net
from core.errors import ConfigError
from core.forward import forward_paths
from core.lengths import path_correlations
from core.moments import ConceptMoments, CrossMoments, check_same_concepts
from core.nonnegative import Sign, all_positive, check_sign
from core.normal_equations import least_squares
from core.paths import Paths, fitted_paths, padded_gram
from core.status import explainable

_BLOCK: Final = 1024


def elastic_net_top_k_paths(
    concepts: ConceptMoments,
    cross: CrossMoments,
    max_length: int,
    sign: Sign = "any",
    penalties: Sequence[float] = (PENALTY,),
    val: tuple[ConceptMoments, CrossMoments] | None = None,
    l1_ratio: float = L1_RATIO,
    gap_tolerance: float = 1e-6,
    max_passes: int = 10_000,
) -> Paths:
    """The concepts of largest weight in an elastic net, refitted by least squares.

    The explanation of length k has the first k concepts by |standardised weight|, ties by position.
    A concept that is collinear with those before it is passed over. With ``positive`` only positive
    weights of the elastic net are ranked, and a concept is also passed over where the refit would
    give it, or one before it, a weight that is not positive.

    Args:
        concepts: Moments of the training images.
        cross: Moments of the same images with the neurons' activations.
        max_length: Greatest number of concepts of an explanation.
        sign: Signs that weights may have.
        penalties: One penalty for all neurons; of several, each neuron has the one whose best
            explanation correlates best on validation, the earlier of equal ones.
        val: Moments of the validation images, needed for several penalties.
        l1_ratio: See `core.elastic_net.elastic_net`.
        gap_tolerance: See `core.elastic_net.elastic_net`.
        max_passes: See `core.elastic_net.elastic_net`.

    Returns:
        Paths that end where the elastic net has no more concepts; empty where it has none or the
        neuron's status is not ``ok``.

    Raises:
        ConfigError: An unknown sign, no penalty, or several without validation images.
        ShapeError: Moments that do not fit together.
    """
    check_sign(sign)
    check_same_concepts(concepts, cross)
    if not len(penalties) or (len(penalties) > 1 and val is None):
        raise ConfigError(
            f"{len(penalties)} penalties {'without' if val is None else 'with'} validation images; "
            "expected one penalty, or several and the images to choose among them"
        )
    best = np.full((len(cross.neuron_mean), max_length), -1, dtype=np.int32)
    reached = np.full(len(best), -np.inf)
    for place, penalty in enumerate(penalties):
        settings = (l1_ratio, penalty, gap_tolerance, max_passes)
        selection = _selections(concepts, cross, max_length, sign, settings)
        if val is None or len(penalties) == 1:
            return fitted_paths(selection, concepts, cross)
        correlation = path_correlations(fitted_paths(selection, concepts, cross), *val)
        value = np.where(np.isfinite(correlation), correlation, -np.inf).max(axis=1, initial=-2.0)
        better = (value > reached) | (place == 0)
        best[better], reached[better] = selection[better], value[better]
    return fitted_paths(best, concepts, cross)


def single_paths(concepts: ConceptMoments, cross: CrossMoments, sign: Sign = "any") -> Paths:
    """The one concept that correlates best with each neuron on the training images.

    Args:
        concepts: Moments of the training images.
        cross: Moments of the same images with the neurons' activations.
        sign: ``any`` looks at the magnitude of the correlation, ``positive`` at its value.

    Returns:
        Paths of length one at most, whose largest length is one.

    Raises:
        ConfigError: An unknown sign.
        ShapeError: Moments that were not taken of the same images and concepts.
    """
    return forward_paths(concepts, cross, max_length=1, sign=sign)


def _selections(
    concepts: ConceptMoments,
    cross: CrossMoments,
    max_length: int,
    sign: Sign,
    settings: tuple[float, float, float, int],
) -> Int[np.ndarray, "neurons max_length"]:
    """Concepts of every neuron in the order of one elastic net, -1 beyond the end."""
    selection = np.full((len(cross.neuron_mean), max_length), -1, dtype=np.int32)
    usable = np.flatnonzero(explainable(cross))
    for start in range(0, len(usable), _BLOCK):
        rows = usable[start : start + _BLOCK]
        train = cross.take_neurons(rows)
        weights = elastic_net(concepts, train, *settings).weights
        ranked = []
        for row in range(len(rows)):
            part = slice(weights.indptr[row], weights.indptr[row + 1])
            value, place = weights.data[part], weights.indices[part]
            size = np.abs(value) if sign == "any" else value
            by_place = np.argsort(place, kind="stable")
            by_size = by_place[np.argsort(-size[by_place], kind="stable")]
            ranked.append(place[by_size[size[by_size] > 0]])
        most = max(map(len, ranked))
        ranking = np.full((len(rows), most), -1, dtype=np.int32)
        for row, order in enumerate(ranked):
            ranking[row, : len(order)] = order
        selection[rows] = _first_that_fit(ranking, concepts, train, max_length, sign)
    return selection


def _first_that_fit(
    ranking: Int[np.ndarray, "neurons ranked"],
    concepts: ConceptMoments,
    cross: CrossMoments,
    max_length: int,
    sign: Sign,
) -> Int[np.ndarray, "neurons max_length"]:
    """The first concepts of each ranking whose refit is determined and has the wanted signs."""
    selection = np.full((len(ranking), max_length), -1, dtype=np.int32)
    size = np.zeros(len(ranking), dtype=np.int64)
    for candidate in ranking.T:
        going = np.flatnonzero((candidate >= 0) & (size < max_length))
        if not going.size:
            break
        longest = int(size[going].max()) + 1
        terms = selection[going, :longest].T.copy()
        terms[size[going], np.arange(len(going))] = candidate[going]
        weights, norm = _refit(terms, going, concepts, cross)
        accepted = np.isfinite(weights).all(axis=0)
        if sign == "positive":
            accepted &= all_positive(weights * norm, terms >= 0)
        entering = going[accepted]
        selection[entering, size[entering]] = candidate[entering]
        size[entering] += 1
    return selection


def _refit(
    terms: Int[np.ndarray, "terms problems"],
    rows: Int[np.ndarray, " problems"],
    concepts: ConceptMoments,
    cross: CrossMoments,
) -> tuple[Float[np.ndarray, "terms problems"], Float[np.ndarray, "terms problems"]]:
    """Least-squares weights of each problem's concepts, zero in the padding, and their norms."""
    gram = padded_gram(terms, concepts.scatter)
    right = np.where(terms >= 0, cross.cross[terms, rows], 0.0)
    return least_squares(gram, right), np.sqrt(np.diagonal(gram, axis1=0, axis2=1).T)
