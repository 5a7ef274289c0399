"""What explanations predict of test images: the terms along the activation range, and the worst failures.

Both are computed when the atlas is built, from more images than the sample that every page holds:
high activations and large errors are rare. Test images beyond `TEST_SIZE` are thinned evenly.

A neuron's test images are cut into bins along its range of activation. For each concept of its
explanations the mean concept score in each bin is kept; times a weight it is the mean contribution of
the term, at any length of the explanation.

The worst failures of a chosen explanation are the test images where its prediction is furthest above
and furthest below the activation. An explainer's own prediction is taken as it is. A simulator's
concept scores have another scale, so its prediction is brought to the neuron's mean and standard
deviation on these images first, as the ablation score ``norm`` does.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from core.range_bins import bin_means, range_bins
from pipeline.atlas.catalogue import Catalogue, ExplainerCatalogue
from pipeline.atlas.data import FIT_CHECK, AtlasData
from pipeline.atlas.samples import check_scores, sample_rows

TEST_SIZE = 10_000
BINS, SMALLEST_BIN = 16, 3
FURTHEST = 3
"""Images shown for each direction in which a prediction fails."""

Failure = tuple[int, float, float]
"""Row of an image, what was predicted and what was recorded."""

_Scores = tuple[Int[np.ndarray, " used"], dict[str, Float[np.ndarray, "used tests"]]]


class Predictions:
    """Concept scores on test images, read when an explainer's turn comes, and what follows from them."""

    def __init__(self, data: AtlasData, catalogue: Catalogue, split: np.ndarray) -> None:
        self.rows: Int[np.ndarray, " tests"] = sample_rows(split, TEST_SIZE)
        self.simulators = catalogue.simulators
        self._data = data
        self._kept: dict[str, tuple[int, _Scores]] = {}

    def bins(
        self, actual: Float[np.ndarray, " tests"]
    ) -> tuple[Int[np.ndarray, " tests"], Int[np.ndarray, " bins"]]:
        """Order of the test images by activation, and the positions in it at which bins begin."""
        order = np.argsort(actual, kind="stable")
        return order, range_bins(actual[order], BINS, SMALLEST_BIN)

    def profile(
        self,
        explainer: ExplainerCatalogue,
        level: int,
        concepts: Int[np.ndarray, " own"],
        cut: tuple[Int[np.ndarray, " tests"], Int[np.ndarray, " bins"]],
    ) -> Float[np.ndarray, "own bins"]:
        """Mean concept score of some of the explainer's concepts in each bin."""
        order, starts = cut
        used, scores = self._of(explainer, level)
        own = scores[FIT_CHECK][np.searchsorted(used, concepts)]
        return bin_means(own[:, order], starts)

    def failures(
        self,
        explainer: ExplainerCatalogue,
        level: int,
        row: int,
        actual: Float[np.ndarray, " tests"],
    ) -> list[tuple[list[Failure], list[Failure]] | None]:
        """For each simulator the images predicted furthest too high and furthest too low.

        Args:
            explainer: Whose explanation it is.
            level: Which sharpness of its own.
            row: Of the explainer's explanations.
            actual: Recorded activations on the test images.
        """
        terms = slice(explainer.offsets[row], explainer.offsets[row + 1])
        weights = explainer.term_weights[terms]
        used, scores = self._of(explainer, level)
        places = np.searchsorted(used, explainer.term_concepts[terms])
        found: list[tuple[list[Failure], list[Failure]] | None] = []
        for simulator in self.simulators:
            if simulator not in scores:
                found.append(None)
                continue
            predicted = weights @ scores[simulator][places].astype(np.float64)
            if simulator == FIT_CHECK:
                predicted += explainer.bias[row]
            else:
                spread = predicted.std()
                if not spread > 0:
                    found.append(None)
                    continue
                predicted = (predicted - predicted.mean()) * (actual.std() / spread) + actual.mean()
            found.append(self._furthest(predicted, actual))
        return found

    def _furthest(
        self, predicted: Float[np.ndarray, " tests"], actual: Float[np.ndarray, " tests"]
    ) -> tuple[list[Failure], list[Failure]]:
        error = predicted - actual
        order = np.argsort(-error, kind="stable")

        def told(places: Int[np.ndarray, " some"]) -> list[Failure]:
            return [
                (int(self.rows[place]), float(predicted[place]), float(actual[place]))
                for place in places
            ]

        high = order[:FURTHEST]
        low = order[::-1][:FURTHEST]
        return told(high[error[high] > 0]), told(low[error[low] < 0])

    def _of(self, explainer: ExplainerCatalogue, level: int) -> _Scores:
        """Concepts in use at a sharpness, and for each judge their scores, (concepts, tests)."""
        kept = self._kept.get(explainer.name)
        if kept is None or kept[0] != level:
            # Layers come in the order of the network, and neighbours often share their sharpness.
            kept = level, self._read(explainer, level)
            self._kept[explainer.name] = kept
        return kept[1]

    def _read(self, explainer: ExplainerCatalogue, level: int) -> _Scores:
        used, sharpness = explainer.used_at(level), explainer.sharpness[level]
        sources = {FIT_CHECK: self._data.concept_scores(explainer.name, sharpness)}
        for number, simulator in enumerate(self.simulators):
            scored = np.isfinite(explainer.scores[number]).any()
            if simulator != FIT_CHECK and scored and self._data.simulated_scores is not None:
                made = self._data.simulated_scores(simulator, explainer.name, sharpness)
                sources[simulator] = made
        columns = explainer.positions[used]
        for judge, source in sources.items():
            whose = explainer.name if judge == FIT_CHECK else judge
            check_scores(whose, source, len(self._data.images), columns)
        places = np.ix_(self.rows, columns)
        return used, {
            judge: np.ascontiguousarray(np.asarray(source[places]).T, dtype=np.float32)
            for judge, source in sources.items()
        }
