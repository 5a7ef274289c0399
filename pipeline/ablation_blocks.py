"""Scoring a block of neurons: changes of loss → ablation scores and importance, written by Ray tasks.

Where a linear head follows the layer, changes of loss are algebra over all images. Elsewhere they are
read off loss curves of drawn images, each neuron its own, that `pipeline.curves` has gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from core.ablation import ablation_scores, norm_lines, optimal_lines
from core.importance import FRACTIONS, impacts, importance_shares
from core.linear_head import LinearHead, correct_after
from core.loss_curves import LossCurves
from pipeline.held_out import Known
from pipeline.storage import Folder
from pipeline.targets import Column

#: Neurons that one task scores.
BLOCK = 128

ABLATION_SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("pooling", pa.string()),
        ("neuron", pa.int32()),
        ("explainer", pa.string()),
        ("length", pa.int32()),
        ("simulator", pa.string()),
        ("kind", pa.string()),
        ("score", pa.float64()),
        ("standard_error", pa.float64()),
        ("images", pa.int32()),
        ("c", pa.float64()),
        ("d", pa.float64()),
        ("exact", pa.bool_()),
    ]
)

IMPORTANCE_SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("pooling", pa.string()),
        ("neuron", pa.int32()),
        ("fraction", pa.float64()),
        ("share", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Block:
    """Some neurons of a layer, and what to score them by."""

    column: Column
    neurons: np.ndarray
    kinds: Sequence[str]
    """`norm`, `optim`."""
    simulated: Sequence[tuple[str, str]]
    """Explainer and simulator of each matrix of simulated activations."""
    lengths: Mapping[str, np.ndarray]
    """By explainer, the length of each neuron's chosen explanation; 0 where it has none."""
    scores: str
    """Part to write."""
    importance: str | None
    """Part to write, if the importance of high activations is asked for."""


@dataclass(frozen=True)
class Drawn:
    """Loss curves of the images that were drawn for some neurons, of one split."""

    rows: np.ndarray
    """(draws, neurons): images among those known."""
    weights: np.ndarray | None
    """(draws, neurons): what each counts for; None where all images were taken."""
    losses: np.ndarray
    """(neurons, draws, nodes)."""


@dataclass(frozen=True)
class Curves:
    """What running the rest of the network again has shown of some neurons."""

    low: np.ndarray
    high: np.ndarray
    val: Drawn
    test: Drawn
    zero: np.ndarray | None
    """(test images, neurons): losses with the neuron at zero."""
    zero_correct: np.ndarray | None


@dataclass(frozen=True)
class _Split:
    """Images of one split as each neuron of a block has them."""

    rows: np.ndarray
    """(images, neurons)."""
    recorded: Tensor
    changes: Callable[[Tensor], Tensor]
    weights: Tensor | None = None

    def take(self, values: np.ndarray, neurons: np.ndarray) -> Tensor:
        """Values (images, neurons of the layer) of these images and neurons, float64."""
        return torch.from_numpy(values[self.rows, neurons].astype(np.float64))

    def weighted(self, values: Tensor) -> Tensor:
        """Changes, each as often as it counts: sums estimate those over all images."""
        changes = self.changes(values)
        return changes if self.weights is None else changes * self.weights


def score_exactly(
    folder: Folder,
    block: Block,
    known: Known,
    activations: np.ndarray,
    mean: np.ndarray,
    weight: np.ndarray,
    *simulated: np.ndarray,
) -> int:
    """Score a block before a linear head; returns the bytes written.

    Args:
        folder: The run.
        block: The neurons.
        known: Logits and classes of the images.
        activations: Recorded activations, (images, neurons of the layer).
        mean: Mean of each neuron of the layer on training images.
        weight: Weights of the head, (classes, neurons of the layer).
        simulated: Simulated activations, (images, neurons of the layer) each.
    """
    columns = torch.from_numpy(np.ascontiguousarray(weight[:, block.neurons]))
    middle = torch.from_numpy(mean[block.neurons])
    splits = {}
    for name, inside in (("val", known.val), ("test", known.test)):
        rows = np.flatnonzero(inside)[:, None]
        logits, labels = (torch.from_numpy(v[inside]) for v in (known.logits, known.labels))
        recorded = torch.from_numpy(activations[rows, block.neurons].astype(np.float64))
        typical = middle - recorded
        head = LinearHead(logits, labels, columns, known.temperature, typical)

        def changes(values: Tensor, head: LinearHead = head, q: Tensor = recorded) -> Tensor:
            return head.changes(values - q)

        splits[name] = _Split(rows, recorded, changes)
    size = _write_scores(folder, block, known, activations, splits, middle, simulated, exact=True)
    if block.importance is not None:
        test = splits["test"]
        zero = torch.zeros_like(test.recorded)
        correct = correct_after(logits, labels, columns, -test.recorded)
        size += _write_importance(folder, block, known, test.recorded, test.changes(zero), correct)
    return size


def score_by_curves(
    folder: Folder,
    block: Block,
    known: Known,
    activations: np.ndarray,
    mean: np.ndarray,
    curves: Curves,
    *simulated: np.ndarray,
) -> int:
    """Score a block by loss curves of drawn images; otherwise as `score_exactly`."""
    middle = torch.from_numpy(mean[block.neurons])
    low, high = torch.from_numpy(curves.low), torch.from_numpy(curves.high)
    splits = {}
    for name, drawn in (("val", curves.val), ("test", curves.test)):
        recorded = torch.from_numpy(activations[drawn.rows, block.neurons].astype(np.float64))
        fitted = LossCurves(low, high, torch.from_numpy(drawn.losses), recorded)
        weights = None if drawn.weights is None else torch.from_numpy(drawn.weights)
        splits[name] = _Split(drawn.rows, recorded, fitted.changes, weights)
    size = _write_scores(folder, block, known, activations, splits, middle, simulated, exact=False)
    if block.importance is not None:
        assert curves.zero is not None
        assert curves.zero_correct is not None
        recorded = _of(activations, known.test, block)
        change = torch.from_numpy(curves.zero - known.loss[known.test][:, None])
        correct = torch.from_numpy(curves.zero_correct > 0.5)
        size += _write_importance(folder, block, known, recorded, change, correct)
    return size


def _of(values: np.ndarray, inside: np.ndarray, block: Block) -> Tensor:
    """Values of some images, and of the block's neurons, float64."""
    return torch.from_numpy(values[inside][:, block.neurons].astype(np.float64))


def _write_scores(
    folder: Folder,
    block: Block,
    known: Known,
    activations: np.ndarray,
    splits: Mapping[str, _Split],
    mean: Tensor,
    simulated: Sequence[np.ndarray],
    exact: bool,
) -> int:
    val, test = splits["val"], splits["test"]
    count = len(block.neurons)
    at_mean = test.changes(mean.expand(len(test.rows), count))
    images = [len(np.unique(rows)) for rows in np.broadcast_to(test.rows, at_mean.shape).T]
    tables = []
    for (explainer, simulator), predictions in zip(block.simulated, simulated, strict=True):
        lengths = block.lengths[explainer][block.neurons]
        for kind in block.kinds:
            if kind == "norm":
                lines = norm_lines(*(_of(v, known.val, block) for v in (activations, predictions)))
            else:
                seen = val.take(predictions, block.neurons)
                lines = optimal_lines(val.weighted, val.recorded, seen)
            replaced = test.changes(lines.values(test.take(predictions, block.neurons)))
            found = ablation_scores(replaced, at_mean, test.weights)
            content = {
                "layer": [block.column.layer] * count,
                "pooling": [block.column.pooling] * count,
                "neuron": block.neurons,
                "explainer": [explainer] * count,
                "length": lengths,
                "simulator": [simulator] * count,
                "kind": [kind] * count,
                "images": images,
                "exact": [exact] * count,
            }
            numbers = {
                "score": found.score,
                "standard_error": found.standard_error,
                "c": lines.c,
                "d": lines.d,
            }
            content |= {
                n: pa.array(np.where(np.isfinite(v), v, np.nan), from_pandas=True)
                for n, v in ((n, v.numpy()) for n, v in numbers.items())
            }
            table = pa.table(content).select(ABLATION_SCHEMA.names).cast(ABLATION_SCHEMA)
            tables.append(table.filter(pa.array(lengths > 0)))
    return folder.write_table(block.scores, pa.concat_tables(tables))


def _write_importance(
    folder: Folder,
    block: Block,
    known: Known,
    recorded: Tensor,
    changes: Tensor,
    correct: Tensor,
) -> int:
    assert block.importance is not None
    right, loss = (torch.from_numpy(v[known.test]) for v in (known.correct, known.loss))
    shares = importance_shares(impacts(right, correct, loss, changes), recorded).numpy()
    count, width = shares.shape
    content = {
        "layer": [block.column.layer] * (count * width),
        "pooling": [block.column.pooling] * (count * width),
        "neuron": np.repeat(block.neurons, width),
        "fraction": np.tile(FRACTIONS, count),
        "share": pa.array(shares.ravel(), from_pandas=True),
    }
    return folder.write_table(block.importance, pa.table(content).cast(IMPORTANCE_SCHEMA))
