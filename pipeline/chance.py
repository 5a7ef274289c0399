"""Could a score be chance? Chosen explanations against those of the other neurons of their layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from core.concept_scores import sharpened
from core.metrics import pearson
from core.null import null_p_values, q_values, swapped_correlations
from core.sharpness import Sharpness
from pipeline.sparse_weights import simulated_activations, sparse_weights


def layer_p_values(
    explanations: pa.Table,
    places: Mapping[str, int],
    activations: np.ndarray,
    simulators: Sequence[tuple[str, bool]],
    sharpness: Sharpness,
    *levels: np.ndarray,
) -> np.ndarray:
    """P-value of each neuron's chosen explanation by each simulator, (simulators, neurons).

    Args:
        explanations: Chosen explanations of one layer, pooling and explainer, one a neuron.
        places: Column of each concept in `levels`.
        activations: Recorded activations on test images, (images, neurons of the layer).
        simulators: Names, and whether their levels are logits, in the order of `levels`.
        sharpness: What logits are multiplied by, and what is added.
        levels: For each simulator, logits or scores on test images, (images, concepts).
    """
    weights, used = sparse_weights(explanations, places)
    actual = activations[:, explanations["neuron"].to_numpy()]
    found = []
    for (_, logits), values in zip(simulators, levels, strict=True):
        known = values[:, used]
        known = sharpened(known, sharpness) if logits else known
        simulated = simulated_activations(explanations, weights, known)
        correlation = pearson(actual, simulated)
        found.append(null_p_values(correlation, swapped_correlations(actual, simulated)))
    return np.array(found)


def with_p_values(scores: pa.Table, found: Mapping[tuple[Any, ...], float]) -> pa.Table:
    """The table of scores with p-values of chosen explanations, and q-values over the network.

    Args:
        scores: Rows of all explanations.
        found: P-value by layer, pooling, neuron, explainer and simulator.
    """
    keys = ("layer", "pooling", "neuron", "explainer", "simulator")
    p = np.full(scores.num_rows, np.nan)
    rows = np.flatnonzero(scores["chosen"].to_numpy())
    chosen = scores.select(list(keys)).take(pa.array(rows))
    for row, *key in zip(rows, *(chosen[name].to_pylist() for name in keys), strict=True):
        p[row] = found.get(tuple(key), np.nan)
    q = np.full_like(p, np.nan)
    explainers, simulators = (scores[name].to_numpy() for name in ("explainer", "simulator"))
    for explainer in dict.fromkeys(explainers.tolist()):
        for simulator in dict.fromkeys(simulators.tolist()):
            mine = (explainers == explainer) & (simulators == simulator)
            q[mine] = q_values(p[mine])
    table = scores.append_column("p_value", pa.array(p, from_pandas=True))
    return table.append_column("q_value", pa.array(q, from_pandas=True))
