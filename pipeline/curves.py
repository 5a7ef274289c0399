"""Running the rest of the network again for a layer: which replacements, shard by shard, and what they show.

For every neuron some validation and test images are drawn, those likelier that tell most about its scores
(`core.importance_sampling`). In the validation images it takes the values of a few nodes, and the curves of
the losses there give the line that scales each explanation best. In the test images it then takes the scaled
values themselves, so that nothing is interpolated in a score. Importance and joint replacement, if asked
for, take every test image. A shard is the unit of work and of resumption: its images are decoded once, and
what comes before the layer runs once for several replacements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.ablation import AblationScores, Lines, ablation_scores, norm_lines, optimal_lines
from core.importance_sampling import doubts, draw_images, first_order_importance
from core.joint_replacement import JointLosses
from core.loss_curves import LossCurves, nodes
from pipeline.ablation_blocks import finite, shares_of_impact
from pipeline.ablation_config import AblationConfig
from pipeline.fingerprints import fingerprint
from pipeline.held_out import Known
from pipeline.replays import Replacements
from pipeline.targets import Column

#: Values of each neuron at which losses of validation images are evaluated.
NODES = 13

#: How far the interval of the nodes goes beyond the values that are known, as a share of their range.
MARGIN = 0.1


@dataclass(frozen=True)
class Values:
    """Recorded and simulated activations of the neurons that are scored, rows as in `Known`."""

    column: Column
    neurons: np.ndarray
    recorded: np.ndarray
    """(images, neurons), float64."""
    mean: np.ndarray
    """Of training images."""
    simulated: Sequence[np.ndarray]
    """(images, neurons), by every explainer and simulator; NaN without an explanation."""


@dataclass(frozen=True)
class Together:
    """Activations of all neurons of the layer, for replacing them at once."""

    recorded: np.ndarray
    targets: Sequence[np.ndarray]
    """What they take, (images, neurons) each: by every explainer and simulator, and at last the mean."""

    def shifts(self, rows: np.ndarray) -> np.ndarray:
        """Shifts of all neurons in some images, one row for each target of each image, float32."""
        recorded = self.recorded[rows].astype(np.float32)
        stacked = np.stack([target[rows] for target in self.targets], axis=1)
        return finite((stacked - recorded[:, None]).reshape(-1, recorded.shape[1]))


class Draws:
    """Images of one split that are drawn for each of some neurons."""

    def __init__(
        self,
        values: Values,
        inside: np.ndarray,
        importance: Callable[[int], np.ndarray],
        count: int,
        *words: object,
    ) -> None:
        """Draw, or take all images once where there are no more than asked for.

        Args:
            values: Of the neurons.
            inside: Rows of the images to draw from.
            importance: Of these images, for a neuron by its place among those that are scored.
            count: Draws.
            words: What the draws depend on, beside layer and neuron.
        """
        self.exact = len(inside) <= count
        rows, weights = [], []
        for slot, neuron in enumerate(values.neurons.tolist()):
            if self.exact:
                rows.append(inside)
                weights.append(np.ones(len(inside)))
                continue
            seed = fingerprint("draw", values.column.name, neuron, *words)
            drawn = draw_images(importance(slot), count, np.random.default_rng(int(seed, 16)))
            rows.append(inside[drawn.images])
            weights.append(drawn.weights)
        self.rows = np.stack(rows, axis=1)
        """(draws, neurons)."""
        self.weights = np.stack(weights, axis=1)
        # Each pair of image and neuron once, in the order of images: those of a shard lie together.
        width = len(values.neurons)
        keys, places = np.unique(self.rows * width + np.arange(width), return_inverse=True)
        self.pair_rows, self.pair_slots = np.divmod(keys, width)
        self._places = places.reshape(self.rows.shape)

    def pairs(self, start: int, stop: int) -> slice:
        """Pairs whose images lie between two rows."""
        first, last = np.searchsorted(self.pair_rows, [start, stop])
        return slice(int(first), int(last))

    def drawn(self, of_pairs: np.ndarray) -> np.ndarray:
        """What is known of each pair, for each draw: (draws, neurons, …)."""
        found: np.ndarray = of_pairs[self._places]
        return found

    def images(self) -> list[int]:
        """Different images of each neuron."""
        return [len(np.unique(rows)) for rows in self.rows.T]


class Rerun:
    """The replacements at one layer: what is asked of the actors, and what their answers amount to.

    The answers are given as the arrays of their parts, in the order of the shards.
    """

    def __init__(
        self,
        values: Values,
        known: Known,
        shards: np.ndarray,
        settings: AblationConfig,
        seed: int,
        expand: bool,
        together: Together | None,
    ) -> None:
        """Draw images, and find the lines of `norm`.

        Args:
            values: Activations of the neurons to score.
            known: Logits and classes of the images.
            shards: Shard of each image, ascending.
            settings: What is asked for.
            seed: Another seed draws others.
            expand: As `Replay.expand`.
            together: What all neurons take at once, if that is asked for.
        """
        self.values, self.known, self.shards = values, known, shards
        self.settings, self.expand, self.together = settings, expand, together
        self._slots = np.arange(len(values.neurons))
        recorded = torch.from_numpy(values.recorded)
        simulated = [torch.from_numpy(s.astype(np.float64)) for s in values.simulated]
        val, used = torch.from_numpy(known.val), torch.from_numpy(known.val | known.test)
        norm = [norm_lines(recorded[val], one[val]) for one in simulated]
        self.lines: dict[tuple[int, str], Lines] = {}
        """By number of the simulation and kind."""
        if "norm" in settings.scores:
            self.lines = {(n, "norm"): line for n, line in enumerate(norm)}
        replaced = [line.values(one) for line, one in zip(norm, simulated, strict=True)]
        of_test = self._importance(np.flatnonzero(known.test), [one.numpy() for one in replaced])
        of_val = self._importance(np.flatnonzero(known.val), [])
        self.test = Draws(
            values, np.flatnonzero(known.test), of_test, settings.images, seed, "test"
        )
        self.val = Draws(values, np.flatnonzero(known.val), of_val, settings.images, seed, "val")
        spans = [recorded, *replaced]
        self._ends = _ends([span[used] for span in spans], torch.from_numpy(values.mean))

    def _importance(
        self, inside: np.ndarray, replaced: Sequence[np.ndarray]
    ) -> Callable[[int], np.ndarray]:
        """How much images matter to a neuron: to its scores, or to any line where nothing is given."""
        doubt = doubts(self.known.logits[inside], self.known.labels[inside], self.known.temperature)

        def importance(slot: int) -> np.ndarray:
            own = [one[inside, slot] for one in replaced]
            own = [one for one in own if np.isfinite(one).all()]
            if not own:
                return doubt
            recorded, mean = self.values.recorded[inside, slot], float(self.values.mean[slot])
            return first_order_importance(recorded, np.stack(own, axis=1), mean, doubt)

        return importance

    def for_lines(self, shard: int) -> Replacements:
        """What is replaced in validation images of a shard: drawn neurons, by the values of nodes."""
        start, stop = np.searchsorted(self.shards, [shard, shard + 1]).tolist()
        pairs = self.val.pairs(start, stop)
        places = nodes(*self._ends, NODES).numpy()[self.val.pair_slots[pairs]]
        return self._replacements(start, stop, self.val, places, tests=np.zeros(0, np.int64))

    def fit(self, parts: Sequence[Mapping[str, np.ndarray]]) -> float:
        """Find the lines of `optim`.

        Returns:
            Error of the curves at recorded activations, where the loss is known, as a share of the
            change of loss at the mean.
        """
        rows = self.val.rows
        losses = self.val.drawn(np.concatenate([part["pairs"] for part in parts]))
        recorded = torch.from_numpy(self.values.recorded[rows, self._slots])
        at_nodes = torch.from_numpy(np.ascontiguousarray(losses.transpose(1, 0, 2)))
        curves = LossCurves(*self._ends, at_nodes, recorded)
        weights = torch.from_numpy(self.val.weights)

        def changes(values: Tensor) -> Tensor:
            return curves.changes(values) * weights

        for n, simulated in enumerate(self.values.simulated):
            seen = torch.from_numpy(simulated[rows, self._slots].astype(np.float64))
            self.lines[n, "optim"] = optimal_lines(changes, recorded, seen)
        missed = curves.interpolation_error(torch.from_numpy(self.known.loss[rows])) * weights
        moved = changes(torch.from_numpy(self.values.mean).expand(recorded.shape)).abs()
        return float(missed.sum() / moved.sum().clamp_min(1e-12))

    def for_scores(self, shard: int) -> Replacements:
        """What is replaced in test images of a shard: by the mean, then by each line's values."""
        start, stop = np.searchsorted(self.shards, [shard, shard + 1]).tolist()
        pairs = self.test.pairs(start, stop)
        rows, slots = self.test.pair_rows[pairs], self.test.pair_slots[pairs]
        places = [self.values.mean[slots]]
        for (n, _), line in self.lines.items():
            c, d = line.c.numpy()[slots], line.d.numpy()[slots]
            places.append(c * self.values.simulated[n][rows, slots] + d)
        tests = np.flatnonzero(self.known.test[start:stop])
        return self._replacements(start, stop, self.test, np.stack(places, axis=1), tests)

    def _replacements(
        self, start: int, stop: int, draws: Draws, places: np.ndarray, tests: np.ndarray
    ) -> Replacements:
        pairs = draws.pairs(start, stop)
        rows, slots = draws.pair_rows[pairs], draws.pair_slots[pairs]
        zero = tests if self.settings.importance else tests[:0]
        joint_rows, joint_shifts = np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
        if self.together is not None and len(tests):
            joint_rows = np.repeat(tests, len(self.together.targets))
            joint_shifts = self.together.shifts(start + tests)
        return Replacements(
            column=self.values.column.name,
            expand=self.expand,
            labels=self.known.labels[start:stop],
            temperature=self.known.temperature,
            rows=rows - start,
            neurons=self.values.neurons[slots],
            shifts=finite(places - self.values.recorded[rows, slots][:, None]),
            zero_rows=np.repeat(zero, len(self.values.neurons)),
            zero_neurons=np.tile(self.values.neurons, len(zero)),
            joint_rows=joint_rows,
            joint_shifts=joint_shifts,
        )

    def scores(
        self, parts: Sequence[Mapping[str, np.ndarray]]
    ) -> dict[tuple[int, str], AblationScores]:
        """Ablation scores, by number of the simulation and kind."""
        losses = self.test.drawn(np.concatenate([part["pairs"] for part in parts]))
        changes = torch.from_numpy(losses - self.known.loss[self.test.rows][:, :, None])
        weights = torch.from_numpy(self.test.weights)
        return {
            key: ablation_scores(changes[:, :, place], changes[:, :, 0], weights)
            for place, key in enumerate(self.lines, start=1)
        }

    def shares(self, parts: Sequence[Mapping[str, np.ndarray]]) -> Tensor:
        """Shares of impact that the highest activations carry, (neurons, fractions)."""
        zero, correct = (
            np.concatenate([part[name] for part in parts if name in part]).reshape(
                -1, len(self._slots)
            )
            for name in ("zero", "zero_correct")
        )
        tests = self.known.test
        changes = torch.from_numpy(zero - self.known.loss[tests][:, None])
        recorded = torch.from_numpy(self.values.recorded[tests])
        return shares_of_impact(self.known, recorded, changes, torch.from_numpy(correct > 0.5))

    def joint(self, parts: Sequence[Mapping[str, np.ndarray]]) -> list[JointLosses]:
        """Accuracy and loss with all neurons replaced, for each simulation."""
        assert self.together is not None
        losses, correct = (
            np.concatenate([part[name] for part in parts if name in part])
            .reshape(-1, len(self.together.targets))
            .mean(axis=0)
            .tolist()
            for name in ("joint", "joint_correct")
        )
        accuracy, loss = (
            float(v[self.known.test].mean()) for v in (self.known.correct, self.known.loss)
        )
        return [
            JointLosses(accuracy, correct[n], correct[-1], loss, losses[n], losses[-1])
            for n in range(len(losses) - 1)
        ]


def _ends(spans: Sequence[Tensor], mean: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of an interval for each neuron that holds its mean and all values, with a margin."""
    low, high = mean, mean
    for span in spans:
        known = torch.where(span.isfinite(), span, mean)
        low, high = torch.minimum(low, known.amin(dim=0)), torch.maximum(high, known.amax(dim=0))
    margin = MARGIN * (high - low)
    return low - margin, high + margin
