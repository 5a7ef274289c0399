"""Two sanity tests of a measure of explanations: does it notice labels that are wrong?

A measure that barely changes when half of the true labels of a concept are taken away, or as many
false ones added, cannot tell a good explanation from one that is too narrow or too broad. Given the
true explanation of each neuron, both changes are made many times at random, and the measure passes if
for nearly all neurons its score falls, by more than the chance of the draws and by more than a little.
Recall and the area under the ROC curve fail the first, precision the second, and accuracy both where
concepts are rare.

Source: T. Oikarinen, G. Yan, T.-W. Weng, *Evaluating Neuron Explanations: A Unified Framework with
Sanity Checks*, ICML 2025 (arXiv:2506.05774). The tests are theirs. The limits of a passing grade here
are this module's own, and its parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Shaped
from scipy.special import stdtrit

from core.errors import ConfigError, ShapeError
from core.metrics import Metric

REPEATS: Final = 10
"""Random draws of the labels that are changed, for each test."""

SMALL: Final = 0.05
"""Share of the score by which it must fall."""

NEARLY_ALL: Final = 0.9
"""Share of the neurons for which it must fall."""

_ERROR: Final = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class SanityReport:
    """What one measure did in both tests."""

    score: Float[np.ndarray, " neurons"]
    """Scores of the explanations as they are."""

    missing_drop: Float[np.ndarray, " neurons"]
    """Mean fall of the score when half of the positive labels are removed."""

    extra_drop: Float[np.ndarray, " neurons"]
    """Mean fall of the score when as many wrong positive labels are added."""

    missing_share: float
    """Share of the neurons whose score fell for sure when labels were removed."""

    extra_share: float
    """Share of the neurons whose score fell for sure when labels were added."""

    nearly_all: float
    """Share wanted."""

    @property
    def passes_missing(self) -> bool:
        """Whether the score falls for nearly all neurons when labels are missing."""
        return self.missing_share >= self.nearly_all

    @property
    def passes_extra(self) -> bool:
        """Whether the score falls for nearly all neurons when there are labels too many."""
        return self.extra_share >= self.nearly_all

    @property
    def passes(self) -> bool:
        """Whether the measure may be trusted with both faults."""
        return self.passes_missing and self.passes_extra


def sanity_tests(
    metrics: Mapping[str, Metric],
    activations: Shaped[np.ndarray, "images neurons"],
    concepts: Shaped[np.ndarray, "images neurons"],
    *,
    positive: float | Float[np.ndarray, " neurons"] = 0.5,
    seed: int = 0,
    repeats: int = REPEATS,
    small: float = SMALL,
    nearly_all: float = NEARLY_ALL,
) -> dict[str, SanityReport]:
    """Put measures to both tests on neurons whose explanations are known or believed.

    A neuron takes part with a measure if its score is defined and above zero, and if its concept has
    at least two positive labels and more negative than positive ones. Its score fell for sure if the
    mean fall over the draws is at least `small` of the score, and above zero by a one-sided t test at
    5 %. Every measure sees the same draws.

    Args:
        metrics: Measures by name: functions of activations and of concepts, as `core.metrics.METRICS`.
        activations: Recorded activations.
        concepts: For each neuron the labels (0 and 1, or False and True) or the scores of its
            concept, or its simulated activations. With scores, a label that is removed becomes the
            score of another image drawn among the negative ones, and one that is added that of a
            positive one.
        positive: Least concept score of a positive image; may differ from neuron to neuron.
        seed: Of the draws. Column by column they depend on this and on the column's position.
        repeats: Draws for each test, at least 2.
        small: Least fall that counts, as a share of the score.
        nearly_all: Share of the neurons for a passing grade.

    Returns:
        A report for each measure. Falls are NaN for neurons that do not take part, shares NaN where
        none does, and then no test is passed.

    Raises:
        ShapeError: Activations and concepts of different shape.
        ConfigError: Fewer than two draws.
    """
    if activations.shape != concepts.shape or activations.ndim != 2:
        raise ShapeError(
            f"activations of shape {activations.shape} and concepts of shape {concepts.shape}; "
            "expected the same images, and for each neuron the concept of its explanation"
        )
    if repeats < 2:
        raise ConfigError(f"{repeats} draws; expected at least 2, to know the chance of the draws")
    values = concepts.astype(np.float64)
    labels = values >= positive
    count = labels.sum(axis=0)
    fit = (count >= 2) & (2 * count < len(labels)) & np.isfinite(values).all(axis=0)
    scores = {name: np.asarray(metric(activations, values)) for name, metric in metrics.items()}
    falls = {name: np.empty((2, repeats, len(fit))) for name in metrics}
    for repeat in range(repeats):
        for test, change in enumerate((_missing, _extra)):
            changed = values.copy()
            for column in np.flatnonzero(fit):
                rng = np.random.default_rng((seed, test, repeat, int(column)))
                change(rng, changed[:, column], labels[:, column])
            for name, metric in metrics.items():
                falls[name][test, repeat] = scores[name] - metric(activations, changed)
    reports = {}
    for name, score in scores.items():
        takes_part = fit & (score > 0)
        drop = np.where(takes_part, falls[name].mean(axis=1), np.nan)
        error = falls[name].std(axis=1, ddof=1) / np.sqrt(repeats)
        sure = drop > stdtrit(repeats - 1, 1 - _ERROR) * error
        fell = sure & (drop >= small * score)
        shares = [float(row[takes_part].mean()) if takes_part.any() else np.nan for row in fell]
        reports[name] = SanityReport(score, drop[0], drop[1], shares[0], shares[1], nearly_all)
    return reports


def _missing(rng: np.random.Generator, values: np.ndarray, positive: np.ndarray) -> None:
    """Take away half of the positive labels, rounded down, in place."""
    true, false = np.flatnonzero(positive), np.flatnonzero(~positive)
    gone = rng.choice(true, len(true) // 2, replace=False)
    values[gone] = values[rng.choice(false, len(gone))]


def _extra(rng: np.random.Generator, values: np.ndarray, positive: np.ndarray) -> None:
    """Add as many wrong positive labels as there are right ones, in place."""
    true, false = np.flatnonzero(positive), np.flatnonzero(~positive)
    added = rng.choice(false, len(true), replace=False)
    values[added] = values[rng.choice(true, len(added))]
