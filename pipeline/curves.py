"""Running the rest of the network again for a layer: which replacements, shard by shard, and what they show.

For every neuron some validation and test images are drawn, those likelier that move away from its mean.
In each the neuron takes the values of a few nodes; the losses there make the curves that every explanation
is scored by. Importance and joint replacement, if asked for, take every test image. A shard is the unit of
work and of resumption: its images are decoded once, and what comes before the layer runs once for
several replacements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from core.importance_sampling import draw_images
from core.joint_replacement import JointLosses
from core.loss_curves import LossCurves, nodes
from pipeline.ablation_blocks import Curves, Drawn
from pipeline.ablation_config import AblationConfig
from pipeline.fingerprints import fingerprint
from pipeline.held_out import Known
from pipeline.replays import Replacements
from pipeline.targets import Column

#: Values of each neuron at which losses are evaluated.
NODES = 9

#: How far the interval of the nodes goes beyond the values that are known, as a share of their range.
MARGIN = 0.1


@dataclass(frozen=True)
class Values:
    """Recorded and simulated activations of a layer, rows as in `Known`."""

    column: Column
    recorded: np.ndarray
    """(images, neurons)."""
    mean: np.ndarray
    """Mean of each neuron on training images."""
    normed: Sequence[np.ndarray]
    """Simulated activations by `norm`, (images, neurons) each, of every explainer and simulator."""


class Rerun:
    """The replacements at one layer: what is asked of the actors, and what their answers amount to."""

    def __init__(
        self,
        values: Values,
        neurons: np.ndarray,
        known: Known,
        shards: np.ndarray,
        settings: AblationConfig,
        seed: int,
    ) -> None:
        """Draw images and place nodes.

        Args:
            values: Activations of the layer.
            neurons: Those to score.
            known: Logits and classes of the images.
            shards: Shard of each image, ascending.
            settings: How many images, and what else is asked for.
            seed: Another seed draws others.
        """
        self.values, self.neurons, self.known, self.shards = values, neurons, known, shards
        self.settings = settings
        q = values.recorded[:, neurons].astype(np.float64)
        self._mean = values.mean[neurons]
        known_values = [q, *(one[:, neurons] for one in values.normed)]
        used = known.val | known.test
        low = np.min([v[used].min(axis=0) for v in known_values] + [self._mean], axis=0)
        high = np.max([v[used].max(axis=0) for v in known_values] + [self._mean], axis=0)
        margin = MARGIN * (high - low)
        self.low, self.high = low - margin, high + margin
        self.nodes = nodes(torch.from_numpy(self.low), torch.from_numpy(self.high), NODES).numpy()
        draws = [self._draw(q, split, seed) for split in ("val", "test")]
        self._draws = draws
        # Images in rising order, so that those of a shard lie together; each pair once.
        keys = np.concatenate([rows for rows, _ in draws]) * len(neurons) + np.arange(len(neurons))
        pairs, places = np.unique(keys, return_inverse=True)
        self._rows, self._slots = np.divmod(pairs, len(neurons))
        self._places = places.reshape(keys.shape)
        self._recorded = q

    def _draw(self, q: np.ndarray, split: str, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Rows (draws, neurons) and their weights; all images once where there are no more than asked."""
        inside = np.flatnonzero(getattr(self.known, split))
        count = self.settings.images
        if len(inside) <= count:
            return np.repeat(inside[:, None], len(self.neurons), axis=1), None
        rows, weights = [], []
        for slot, neuron in enumerate(self.neurons.tolist()):
            words = fingerprint("draw", seed, self.values.column.name, neuron, split)
            importance = np.abs(q[inside, slot] - self._mean[slot])
            drawn = draw_images(importance, count, np.random.default_rng(int(words, 16)))
            rows.append(inside[drawn.images])
            weights.append(drawn.weights)
        return np.stack(rows, axis=1), np.stack(weights, axis=1)

    def passes(self) -> int:
        """Replacements that will be run."""
        tests = int(self.known.test.sum())
        joint = tests * (len(self.values.normed) + 1) * self.settings.joint
        zero = tests * len(self.neurons) * self.settings.importance
        return len(self._rows) * NODES + zero + joint

    def of_shard(self, shard: int, expand: bool) -> Replacements:
        """What is replaced in the images of a shard."""
        start, stop = np.searchsorted(self.shards, [shard, shard + 1])
        pairs = slice(*np.searchsorted(self._rows, [start, stop]))
        rows, slots = self._rows[pairs], self._slots[pairs]
        shifts = self.nodes[slots] - self._recorded[rows, slots][:, None]
        tests = np.flatnonzero(self.known.test[start:stop])
        zero = tests if self.settings.importance else tests[:0]
        together = tests if self.settings.joint else tests[:0]
        return Replacements(
            column=self.values.column.name,
            expand=expand,
            labels=self.known.labels[start:stop],
            temperature=self.known.temperature,
            rows=rows - start,
            neurons=self.neurons[slots],
            shifts=shifts,
            zero_rows=np.repeat(zero, len(self.neurons)),
            zero_neurons=np.tile(self.neurons, len(zero)),
            joint_rows=np.repeat(together, len(self.values.normed) + 1),
            joint_shifts=self._joint_shifts(start + together),
        )

    def _joint_shifts(self, rows: np.ndarray) -> np.ndarray:
        """For each image the shifts of all neurons, once for each simulation and once for the mean."""
        recorded = self.values.recorded[rows].astype(np.float32)
        means = np.broadcast_to(self.values.mean.astype(np.float32), recorded.shape)
        targets = [*(one[rows] for one in self.values.normed), means]
        shifts = np.stack(targets, axis=1) - recorded[:, None]
        # A neuron that has no finite value is left as it is.
        return finite(shifts.reshape(-1, recorded.shape[1]))

    def curves(self, parts: Sequence[dict[str, np.ndarray]]) -> Curves:
        """Loss curves of all neurons.

        Args:
            parts: What the actors wrote, in the order of the shards.
        """
        losses = np.concatenate([part["curves"] for part in parts])
        cut = len(self._draws[0][0])
        val, test = (
            Drawn(rows, weights, losses[places].transpose(1, 0, 2))
            for (rows, weights), places in zip(
                self._draws, (self._places[:cut], self._places[cut:]), strict=True
            )
        )
        zero = correct = None
        if self.settings.importance:
            shape = (-1, len(self.neurons))
            zero, correct = (
                np.concatenate([p[name] for p in parts if name in p]).reshape(shape)
                for name in ("zero", "zero_correct")
            )
        return Curves(self.low, self.high, val, test, zero, correct)

    def error(self, curves: Curves) -> float:
        """Error of the test curves at recorded activations, where the loss is known.

        Returns:
            Mean over images and neurons, as a share of the mean change of loss at the mean.
        """
        rows = curves.test.rows
        recorded = torch.from_numpy(self._recorded[rows, np.arange(len(self.neurons))])
        low, high = torch.from_numpy(self.low), torch.from_numpy(self.high)
        fitted = LossCurves(low, high, torch.from_numpy(curves.test.losses), recorded)
        missed = fitted.interpolation_error(torch.from_numpy(self.known.loss[rows])).mean()
        moved = fitted.changes(torch.from_numpy(self._mean).expand(recorded.shape)).abs().mean()
        return float(missed / moved) if moved else 0.0

    def joint(self, parts: Sequence[dict[str, np.ndarray]]) -> list[JointLosses]:
        """Accuracy and loss with all neurons replaced, for each simulation."""
        losses, correct = (
            np.concatenate([p[name] for p in parts if name in p])
            .reshape(-1, len(self.values.normed) + 1)
            .mean(axis=0)
            for name in ("joint", "joint_correct")
        )
        accuracy = float(self.known.correct[self.known.test].mean())
        loss = float(self.known.loss[self.known.test].mean())
        return [
            JointLosses(
                accuracy,
                float(correct[n]),
                float(correct[-1]),
                loss,
                float(losses[n]),
                float(losses[-1]),
            )
            for n in range(len(self.values.normed))
        ]


def finite(shifts: np.ndarray) -> np.ndarray:
    """Shifts, zero where they are not finite."""
    return np.where(np.isfinite(shifts), shifts, shifts.dtype.type(0))


def block_of(curves: Curves, slots: slice) -> Curves:
    """The curves of some of the neurons."""

    def some(drawn: Drawn) -> Drawn:
        weights = None if drawn.weights is None else drawn.weights[:, slots]
        return Drawn(drawn.rows[:, slots], weights, drawn.losses[slots])

    zero, correct = (
        None if v is None else np.ascontiguousarray(v[:, slots])
        for v in (curves.zero, curves.zero_correct)
    )
    return Curves(
        curves.low[slots], curves.high[slots], some(curves.val), some(curves.test), zero, correct
    )
