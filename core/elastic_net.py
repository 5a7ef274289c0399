"""Elastic net from moments: the first stage of the published procedure, certified by duality gap.

Concepts and neurons are standardised, so the problem of a neuron is

    minimise over w:  ½ (1 − 2 w·r + w'Rw) + λη |w|₁ + ½ λ(1−η) |w|²

with R the correlations of the concepts and r those of the concepts with the neuron. Coordinate
descent with Newton steps runs on a small working set of concepts; the gradient over all concepts
then says which concepts are missing and, by a dual point made from it, how far the objective is
from its minimum.

Every neuron goes through its own sequence of elementwise operations, many neurons side by side, so
a neuron's weights are the same bits whatever neurons share its block.

Source: coordinate descent, J. Friedman, T. Hastie, R. Tibshirani, J. Stat. Softw. 33, 2010; working
sets and gap, M. Massias, A. Gramfort, J. Salmon, *Celer*, ICML 2018; steps on the signs, H. Lee et
al., *Efficient sparse coding algorithms*, NeurIPS 2006.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int

from core.errors import ConfigError
from core.moments import ConceptMoments, CrossMoments, check_same_concepts
from core.normal_equations import least_squares
from core.status import explainable

L1_RATIO: Final = 0.99
PENALTY: Final = 0.05 / 0.99

_BLOCK: Final = 64
_FIRST_WORKING_SET: Final = 32
_PASSES_BETWEEN_CHECKS: Final = 10


@dataclass(frozen=True, slots=True, eq=False)
class ElasticNetFit:
    """Elastic nets of some neurons, in standardised units."""

    weights: scipy.sparse.csr_array
    """``(neurons, concepts)``: standard deviations of activation per one of concept score."""
    gap: Float[np.ndarray, " neurons"]
    """Upper bound on how far the objective is above its minimum; NaN for a failed neuron."""
    converged: Bool[np.ndarray, " neurons"]
    """True where the gap is within the tolerance."""


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    """What all neurons of a fit have in common."""

    scatter: Float[np.ndarray, "concepts concepts"]
    inverse_norm: Float[np.ndarray, " concepts"]
    l1: float
    l2: float
    tolerance: float
    max_passes: int


def elastic_net(
    concepts: ConceptMoments,
    cross: CrossMoments,
    l1_ratio: float = L1_RATIO,
    penalty: float = PENALTY,
    gap_tolerance: float = 1e-6,
    max_passes: int = 10_000,
) -> ElasticNetFit:
    """Fit the elastic net of every neuron on standardised concepts and activations.

    Args:
        concepts: Moments of the training images. A concept that does not vary gets weight zero.
        cross: Moments of the same images with the neurons' activations.
        l1_ratio: η above: the share of the penalty that is on absolute values, in (0, 1].
        penalty: λ above, greater than zero; ``alpha`` in scikit-learn's terms.
        gap_tolerance: Duality gap to reach, relative to ½, the objective of no weights at all.
        max_passes: Passes of coordinate descent over a neuron's working set before giving up.

    Returns:
        Weights, and the gap that proves how good they are. A neuron that does not vary enough to
        be explained gets zeros.

    Raises:
        ConfigError: A penalty or ratio outside of its range.
        ShapeError: Moments that were not taken of the same images and concepts.
    """
    if not (0 < l1_ratio <= 1 and penalty > 0):
        raise ConfigError(
            f"elastic net with l1_ratio {l1_ratio} and penalty {penalty}; expected a ratio in "
            f"(0, 1] and a penalty above 0, for instance {L1_RATIO} and {PENALTY:.4f}"
        )
    check_same_concepts(concepts, cross)
    diagonal = np.diagonal(concepts.scatter)
    inverse_norm = np.zeros(len(diagonal))
    np.divide(1.0, np.sqrt(diagonal), out=inverse_norm, where=diagonal > 0)
    problem = _Problem(
        concepts.scatter,
        inverse_norm,
        penalty * l1_ratio,
        penalty * (1 - l1_ratio),
        gap_tolerance / 2,
        max_passes,
    )
    neurons = len(cross.neuron_mean)
    usable = explainable(cross)
    failed = ~np.isfinite(cross.neuron_scatter)
    gap = np.where(failed, np.nan, 0.0)
    rows = np.flatnonzero(usable) if len(diagonal) else np.arange(0)
    parts = []
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        norm = np.sqrt(cross.neuron_scatter[block])
        correlation = cross.cross[:, block].T * inverse_norm / norm[:, None]
        weights, gap[block] = _fit_block(problem, correlation)
        parts.append(scipy.sparse.csr_array(weights))
    fitted = scipy.sparse.csr_array((neurons, len(diagonal)))
    if parts:
        # Rows of neurons without a fit are put back as empty rows.
        stacked = scipy.sparse.vstack(parts, format="csr")
        lengths = np.zeros(neurons, dtype=np.int64)
        lengths[rows] = np.diff(stacked.indptr)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        fitted = scipy.sparse.csr_array(
            (stacked.data, stacked.indices, starts), shape=(neurons, len(diagonal))
        )
    return ElasticNetFit(fitted, gap, gap <= problem.tolerance)


def _fit_block(
    problem: _Problem, correlation: Float[np.ndarray, "neurons concepts"]
) -> tuple[Float[np.ndarray, "neurons concepts"], Float[np.ndarray, " neurons"]]:
    """Fit some neurons; all of them take the same steps, each for as long as it needs."""
    neurons = len(correlation)
    weights = np.zeros_like(correlation)
    gradient = correlation.copy()
    gap = np.full(neurons, np.inf)
    passes = np.zeros(neurons, dtype=np.int64)
    going = np.arange(neurons)
    while going.size:
        support = [np.flatnonzero(weights[row]) for row in going]
        padded, size = _padded(support)
        terms = (_gather(weights, going, padded, size), _gather(correlation, going, padded, size))
        steepest = np.abs(gradient[going]).max(axis=1)
        slope = _gather(gradient, going, padded, size)
        gap[going] = _duality_gap(*terms, slope, steepest, problem.l1)
        left = (gap[going] > problem.tolerance) & (passes[going] < problem.max_passes)
        going = going[left]
        if not going.size:
            break
        sets = [_working_set(weights[row], gradient[row], problem.l1) for row in going]
        goal = np.maximum(0.1 * gap[going], 0.3 * problem.tolerance)
        capacity = np.array([1 << (len(chosen) - 1).bit_length() for chosen in sets])
        for common in np.unique(capacity):
            members = np.flatnonzero(capacity == common)
            rows = going[members]
            chosen, size = _padded([sets[member] for member in members])
            budget = problem.max_passes - passes[rows]
            solution, spent = _descend(
                problem, (chosen, size), weights, correlation, gradient, rows, goal[members], budget
            )
            passes[rows] += spent
            for column, row in enumerate(rows):
                count = size[column]
                weights[row] = 0.0
                weights[row, chosen[:count, column]] = solution[:count, column]
        scaled = scipy.sparse.csr_array(weights[going] * problem.inverse_norm)
        product = (scaled @ problem.scatter) * problem.inverse_norm
        gradient[going] = correlation[going] - product - problem.l2 * weights[going]
    return weights, gap


def _working_set(
    weights: Float[np.ndarray, " concepts"], gradient: Float[np.ndarray, " concepts"], l1: float
) -> Int[np.ndarray, " chosen"]:
    """The support and the concepts that violate optimality most, as many again; sorted."""
    support = np.flatnonzero(weights)
    steep = np.abs(gradient)
    outside = np.flatnonzero((weights == 0) & (steep > l1))
    room = max(_FIRST_WORKING_SET, 2 * len(support)) - len(support)
    worst = outside[np.argsort(-steep[outside], kind="stable")[:room]]
    return np.sort(np.concatenate([support, worst]))


def _descend(
    problem: _Problem,
    working: tuple[Int[np.ndarray, "terms neurons"], Int[np.ndarray, " neurons"]],
    weights: Float[np.ndarray, "all concepts"],
    correlation: Float[np.ndarray, "all concepts"],
    gradient: Float[np.ndarray, "all concepts"],
    rows: Int[np.ndarray, " neurons"],
    goal: Float[np.ndarray, " neurons"],
    budget: Int[np.ndarray, " neurons"],
) -> tuple[Float[np.ndarray, "terms neurons"], Int[np.ndarray, " neurons"]]:
    """Coordinate descent on the working sets until each neuron's own gap reaches its goal."""
    chosen, size = working
    terms, count = chosen.shape
    w = _gather(weights, rows, chosen, size)
    r = _gather(correlation, rows, chosen, size)
    g = _gather(gradient, rows, chosen, size)
    norm = np.where(np.arange(terms)[:, None] < size, problem.inverse_norm[chosen], 0.0)
    curvature = problem.scatter[chosen[:, None], chosen[None, :]]
    curvature *= norm[:, None] * norm[None, :]
    curvature[np.arange(terms), np.arange(terms)] += problem.l2
    # Padding has no curvature and no gradient; any divisor keeps its weight at zero.
    own = np.where(norm > 0, np.diagonal(curvature, axis1=0, axis2=1).T, 1.0)
    solution = np.zeros_like(w)
    spent = np.zeros(count, dtype=np.int64)
    active = np.arange(count)
    while active.size:
        for _ in range(_PASSES_BETWEEN_CHECKS):
            for k in range(terms):
                wanted = g[k] + own[k] * w[k]
                shrunk = np.maximum(np.abs(wanted) - problem.l1, 0.0)
                new = np.copysign(shrunk, wanted) / own[k]
                step = new - w[k]
                if step.any():
                    w[k] = new
                    g -= curvature[k] * step
        spent[active] += _PASSES_BETWEEN_CHECKS
        leap = _newton_step(w, g, curvature, problem.l1)
        w += leap
        for moved in np.flatnonzero(leap.any(axis=1)):
            g -= curvature[moved] * leap[moved]
        gap = _duality_gap(w, r, g, np.abs(g).max(axis=0), problem.l1)
        left = (gap > goal[active]) & (spent[active] < budget[active])
        solution[:, active[~left]] = w[:, ~left]
        if not left.all():
            active, w, r, g, own = active[left], w[:, left], r[:, left], g[:, left], own[:, left]
            curvature = curvature[:, :, left]
    return solution, spent


def _newton_step(
    weights: Float[np.ndarray, "terms neurons"],
    gradient: Float[np.ndarray, "terms neurons"],
    curvature: Float[np.ndarray, "terms terms neurons"],
    l1: float,
) -> Float[np.ndarray, "terms neurons"]:
    """The step to the minimum for the present support and signs, or to the first sign change.

    Concepts that say nearly the same make coordinate descent creep; this step does not mind them.
    The objective is quadratic as long as no sign changes, so it never rises.
    """
    count = weights.shape[1]
    support = weights != 0
    size = int(np.max(support.sum(axis=0)))
    place = np.argsort(~support, axis=0, kind="stable")[:size]
    each = np.arange(count)
    inside = support[place, each]
    system = curvature[place[:, None], place[None, :], each]
    system *= inside[:, None] & inside[None, :]
    system[np.arange(size), np.arange(size)] += ~inside
    start = weights[place, each]
    target = np.where(inside, gradient[place, each] - l1 * np.sign(start), 0.0)
    direction = least_squares(system, target)
    direction[:, np.isnan(direction).any(axis=0)] = 0.0
    crosses = inside & (np.sign(start + direction) != np.sign(start))
    share = np.ones_like(start)
    np.divide(-start, direction, out=share, where=crosses)
    reach = share.min(axis=0, initial=1.0)
    step = np.zeros_like(weights)
    # What crosses first ends at exactly zero.
    moved = np.where(crosses & (share == reach), -start, reach * direction)
    step[place, each] = np.where(inside, moved, 0.0)
    return step


def _duality_gap(
    weights: Float[np.ndarray, "terms neurons"],
    correlation: Float[np.ndarray, "terms neurons"],
    gradient: Float[np.ndarray, "terms neurons"],
    steepest: Float[np.ndarray, " neurons"],
    l1: float,
) -> Float[np.ndarray, " neurons"]:
    """Gap between the objective and the dual objective of the scaled residual.

    The elastic net is a lasso on data to which a row √λ₂ is added for each concept. With g = r − Rw
    − λ₂w its residual has the squared norm 1 − w·r − w·g and the product 1 − w·r with the target.

    Args:
        weights: Weights that may differ from zero.
        correlation: r of the same concepts.
        gradient: g of the same concepts.
        steepest: Largest |g| over all concepts of the problem.
        l1: The penalty on absolute values.
    """
    along = 1.0 - _row_sums(weights * correlation)
    residual = np.maximum(along - _row_sums(weights * gradient), 1e-300)
    primal = 0.5 * residual + l1 * _row_sums(np.abs(weights))
    limit = l1 / np.maximum(steepest, 1e-300)
    scale = np.clip(along / residual, -limit, limit)
    dual = scale * (along - 0.5 * scale * residual)
    return np.asarray(np.maximum(primal - dual, 0.0))


def _row_sums(values: Float[np.ndarray, "terms neurons"]) -> Float[np.ndarray, " neurons"]:
    """Sums over terms one after the other, so that padding changes no bit."""
    if not len(values):
        return np.zeros(values.shape[1])
    return np.asarray(np.add.accumulate(values, axis=0)[-1])


def _padded(
    sets: list[Int[np.ndarray, " _"]],
) -> tuple[Int[np.ndarray, "terms neurons"], Int[np.ndarray, " neurons"]]:
    """Sets of positions as columns of one array, filled up with zeros, and their sizes."""
    size = np.array([len(chosen) for chosen in sets])
    columns = np.zeros((size.max(), len(sets)), dtype=np.int64)
    for column, chosen in enumerate(sets):
        columns[: len(chosen), column] = chosen
    return columns, size


def _gather(
    values: Float[np.ndarray, "all concepts"],
    rows: Int[np.ndarray, " neurons"],
    columns: Int[np.ndarray, "terms neurons"],
    size: Int[np.ndarray, " neurons"],
) -> Float[np.ndarray, "terms neurons"]:
    """Values of each neuron's set of concepts, zero in the padding."""
    inside = np.arange(len(columns))[:, None] < size
    return np.where(inside, values[rows, columns], 0.0)
