"""Neurons before a linear head, block by block: scores and importance by algebra over all images.

The tasks of this module take what is known of validation and test images from Ray's object store. A
block's rows are written as parts, so that a restart goes on with the next block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from core.ablation import ablation_scores, norm_lines, optimal_lines
from core.importance import impacts, importance_shares
from core.joint_replacement import JointLosses, joint_losses
from core.linear_head import LinearHead, correct_after
from pipeline.ablation_tables import importance_rows, score_rows
from pipeline.held_out import Known
from pipeline.storage import Folder
from pipeline.targets import Column

#: Neurons that one task scores.
BLOCK = 128


@dataclass(frozen=True)
class Block:
    """Some neurons of a layer, and what to score them by."""

    column: Column
    neurons: np.ndarray
    kinds: Sequence[str]
    """`norm`, `optim`."""
    sought: Sequence[tuple[str, str]]
    """Explainer and simulator of each matrix of simulated activations."""
    lengths: Mapping[str, np.ndarray]
    """By explainer, the length of each neuron's chosen explanation; 0 where it has none."""
    scores: str
    """Part to write."""
    importance: str | None
    """Part to write, if the importance of high activations is asked for."""


def score_block(
    folder: Folder,
    block: Block,
    known: Known,
    recorded: np.ndarray,
    mean: np.ndarray,
    weight: np.ndarray,
    *simulated: np.ndarray,
) -> int:
    """Score a block and write its parts; returns the number of neurons.

    Args:
        folder: The run.
        block: The neurons.
        known: Logits and classes of the images.
        recorded: Recorded activations, (images, neurons of the layer).
        mean: Mean of each neuron of the layer on training images.
        weight: Weights of the head, (classes, neurons of the layer).
        simulated: Simulated activations, (images, neurons of the layer) each.
    """
    columns = torch.from_numpy(np.ascontiguousarray(weight[:, block.neurons]))
    middle = torch.from_numpy(mean[block.neurons])
    q_val, q_test = (of(recorded, inside, block.neurons) for inside in (known.val, known.test))
    logits, labels = (torch.from_numpy(v[known.test]) for v in (known.logits, known.labels))
    test = LinearHead(logits, labels, columns, known.temperature, middle - q_test)
    at_mean = test.changes(middle - q_test)
    if "optim" in block.kinds:
        seen, right = (torch.from_numpy(v[known.val]) for v in (known.logits, known.labels))
        val = LinearHead(seen, right, columns, known.temperature, middle - q_val, uses=100)
    tables = []
    for sought, predictions in zip(block.sought, simulated, strict=True):
        s_val, s_test = (of(predictions, v, block.neurons) for v in (known.val, known.test))
        for kind in block.kinds:
            if kind == "norm":
                lines = norm_lines(q_val, s_val)
            else:
                lines = optimal_lines(lambda values: val.changes(values - q_val), q_val, s_val)
            found = ablation_scores(test.changes(lines.values(s_test) - q_test), at_mean)
            images = [len(q_test)] * len(block.neurons)
            about = (block.column, block.neurons, block.lengths[sought[0]], sought, kind)
            tables.append(score_rows(*about, lines, found, images, exact=True))
    folder.write_table(block.scores, pa.concat_tables(tables))
    if block.importance is not None:
        correct = correct_after(logits, labels, columns, -q_test)
        shares = shares_of_impact(known, q_test, test.changes(-q_test), correct)
        folder.write_table(block.importance, importance_rows(block.column, block.neurons, shares))
    return len(block.neurons)


def of(values: np.ndarray, inside: np.ndarray, neurons: np.ndarray) -> Tensor:
    """Values of some images and neurons, float64."""
    return torch.from_numpy(values[inside][:, neurons].astype(np.float64))


def shares_of_impact(known: Known, recorded: Tensor, changes: Tensor, correct: Tensor) -> Tensor:
    """Shares of impact that the highest activations on test images carry, (neurons, fractions)."""
    right, loss = (torch.from_numpy(v[known.test]) for v in (known.correct, known.loss))
    return importance_shares(impacts(right, correct, loss, changes), recorded)


def normed(
    known: Known, recorded: np.ndarray, mean: np.ndarray, simulated: np.ndarray
) -> np.ndarray:
    """Simulated activations by `norm`, (images, neurons) float32; the mean where there are none."""
    out = np.empty(simulated.shape, np.float32)
    for start in range(0, simulated.shape[1], BLOCK):
        some = slice(start, start + BLOCK)
        q, s = (torch.from_numpy(v[:, some].astype(np.float64)) for v in (recorded, simulated))
        found = norm_lines(q[known.val], s[known.val]).values(s).numpy()
        out[:, some] = np.where(np.isfinite(found), found, mean[some])
    return out


def replace_all(
    known: Known, recorded: np.ndarray, mean: np.ndarray, weight: np.ndarray, values: np.ndarray
) -> JointLosses:
    """Accuracy and loss of test images with all neurons of the layer at other values.

    Args:
        known: Logits and classes of the images.
        recorded: Recorded activations, (images, neurons).
        mean: Mean of each neuron on training images.
        weight: Weights of the head, (classes, neurons).
        values: What the neurons take, (images, neurons).
    """
    actual = recorded[known.test].astype(np.float64)
    logits, labels = (torch.from_numpy(v[known.test]) for v in (known.logits, known.labels))
    replaced, at_mean = (
        logits.double() + torch.from_numpy(finite(v - actual) @ weight.T.astype(np.float64))
        for v in (values[known.test], mean)
    )
    return joint_losses(logits, replaced, at_mean, labels, known.temperature)


def finite(shifts: np.ndarray) -> np.ndarray:
    """Shifts, zero where they are not finite: such a neuron is left as it is."""
    return np.where(np.isfinite(shifts), shifts, shifts.dtype.type(0))
