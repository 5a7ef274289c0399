"""The published search: a ranking by elastic net, then a greedy search on validation correlation.

Kept as a preset, so that published figures can be reproduced; `core.forward` is both faster and
better. One fault of the publication is not kept: every reported concept is the one that its weight
was fitted for.

Source: section 4 of T. Oikarinen, T.-W. Weng, *Linear Explanations for Individual Neurons*, ICML
2024 (arXiv:2405.06855).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int

from core.elastic_net import L1_RATIO, PENALTY, elastic_net
from core.lengths import correlation_of_weights
from core.moments import ConceptMoments, CrossMoments, check_same_concepts
from core.normal_equations import least_squares
from core.paths import Paths, fitted_paths, selected_gram
from core.status import explainable

_BLOCK: Final = 1024


def paper_paths(
    concepts: ConceptMoments,
    cross: CrossMoments,
    val_concepts: ConceptMoments,
    val_cross: CrossMoments,
    max_length: int = 10,
    width: int = 10,
    tolerance: float = 0.02,
    l1_ratio: float = L1_RATIO,
    penalty: float = PENALTY,
    gap_tolerance: float = 1e-6,
    max_passes: int = 10_000,
) -> Paths:
    """Explanations by the published procedure, for each neuron on its own.

    Concepts are ranked by their signed standardised weight in the elastic net, largest first, ties
    by position. Then, until no candidate gains the tolerance or the length is reached: refit the
    selection with each of the ``width`` best-ranked concepts that are neither selected nor
    rejected; reject for good those that gain less than the tolerance; add the best. The first
    concept is added whatever it gains, and nothing is rejected before it. A candidate whose
    validation correlation is undefined gains nothing.

    Args:
        concepts: Moments of the training images.
        cross: Moments of the training images with the neurons' activations.
        val_concepts: Moments of the validation images.
        val_cross: Moments of the validation images with the neurons' activations.
        max_length: Greatest number of concepts of an explanation.
        width: Candidates tried at each step.
        tolerance: Validation correlation that a concept must add to be kept.
        l1_ratio: See `core.elastic_net.elastic_net`.
        penalty: See `core.elastic_net.elastic_net`.
        gap_tolerance: See `core.elastic_net.elastic_net`.
        max_passes: See `core.elastic_net.elastic_net`.

    Returns:
        Paths whose greatest length is where the search stopped; empty where the neuron's status
        is not ``ok`` or no concept has a validation correlation.

    Raises:
        ShapeError: Moments that do not fit together.
    """
    check_same_concepts(concepts, cross)
    check_same_concepts(val_concepts, val_cross)
    selection = np.full((len(cross.neuron_mean), max_length), -1, dtype=np.int32)
    usable = np.flatnonzero(explainable(cross))
    for start in range(0, len(usable), _BLOCK):
        rows = usable[start : start + _BLOCK]
        train, val = cross.take_neurons(rows), val_cross.take_neurons(rows)
        fit = elastic_net(concepts, train, l1_ratio, penalty, gap_tolerance, max_passes)
        ranking = np.empty((len(rows), min(len(concepts.mean), max_length * width)), np.int32)
        for row in range(len(rows)):
            weights = fit.weights[[row]].toarray()[0]
            ranking[row] = np.argsort(-weights, kind="stable")[: ranking.shape[1]]
        selection[rows] = greedy_selection(
            ranking, (concepts, train), (val_concepts, val), max_length, width, tolerance
        )
    return fitted_paths(selection, concepts, cross)


def greedy_selection(
    ranking: Int[np.ndarray, "neurons ranked"],
    train: tuple[ConceptMoments, CrossMoments],
    val: tuple[ConceptMoments, CrossMoments],
    max_length: int,
    width: int,
    tolerance: float,
) -> Int[np.ndarray, "neurons max_length"]:
    """Stage 2 of the published procedure, given a ranking of the concepts.

    Args:
        ranking: Positions of concepts, best first. A step looks at ``width`` concepts and at most
            all of them are used up, so ``max_length * width`` positions are enough.
        train: Moments of the training images, without and with the neurons' activations.
        val: Moments of the validation images.
        max_length: Greatest number of concepts to select.
        width: Candidates tried at each step.
        tolerance: Validation correlation that a concept must add to be kept.

    Returns:
        Positions of concepts in order of selection, -1 beyond the end.
    """
    neurons = len(ranking)
    selection = np.full((neurons, max_length), -1, dtype=np.int32)
    used = np.zeros(ranking.shape, dtype=bool)
    reached = np.zeros(neurons)
    going = np.arange(neurons)
    for length in range(max_length):
        places, fresh = _candidates(used[going], width)
        if not places.shape[1]:
            break
        tried = np.where(fresh, np.take_along_axis(ranking[going], places, axis=1), -1)
        correlation = _tried_correlations(selection[going, :length], tried, going, train, val)
        gain = np.where(np.isfinite(correlation), correlation, -np.inf)
        if length:
            gain -= reached[going, None]
            rejected = fresh & (gain < tolerance)
            used[going[:, None], places] |= rejected
            gain[gain < tolerance] = -np.inf
        best = gain.argmax(axis=1)
        each = np.arange(len(going))
        found = np.isfinite(gain[each, best])
        going, each, best = going[found], each[found], best[found]
        selection[going, length] = tried[each, best]
        used[going, places[each, best]] = True
        reached[going] = correlation[each, best]
    return selection


def _candidates(
    used: Bool[np.ndarray, "neurons ranked"], width: int
) -> tuple[Int[np.ndarray, "neurons tried"], Bool[np.ndarray, "neurons tried"]]:
    """Places of the first unused concepts of each ranking, and whether there are that many."""
    places = np.argsort(used, axis=1, kind="stable")[:, :width]
    return places, ~np.take_along_axis(used, places, axis=1)


def _tried_correlations(
    selection: Int[np.ndarray, "neurons length"],
    tried: Int[np.ndarray, "neurons tried"],
    rows: Int[np.ndarray, " neurons"],
    train: tuple[ConceptMoments, CrossMoments],
    val: tuple[ConceptMoments, CrossMoments],
) -> Float[np.ndarray, "neurons tried"]:
    """Validation correlation of the selection refitted with each of the tried concepts."""
    width = tried.shape[1]
    terms = np.vstack([np.repeat(selection, width, axis=0).T, tried.reshape(1, -1)])
    neuron = np.repeat(rows, width)
    weights = least_squares(selected_gram(terms, train[0].scatter), train[1].cross[terms, neuron])
    correlation = correlation_of_weights(
        weights,
        selected_gram(terms, val[0].scatter),
        val[1].cross[terms, neuron],
        val[1].neuron_scatter[neuron],
    )
    return correlation.reshape(tried.shape)
