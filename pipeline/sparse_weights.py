"""Explanations as a sparse matrix of weights, and what they predict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse


def sparse_weights(explanations: pa.Table, places: Mapping[str, int]) -> tuple[Any, np.ndarray]:
    """Weights as a sparse matrix (explanations, used concepts), and the used concepts' places."""
    lists = explanations["concepts"].combine_chunks()
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    texts = pc.list_flatten(lists).to_pylist()
    values = pc.list_flatten(explanations["weights"].combine_chunks()).to_numpy()
    columns = np.array([places[text] for text in texts], dtype=np.int64)
    used, local = np.unique(columns, return_inverse=True)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    shape = (len(lengths), len(used))
    return sparse.csr_array((values, (rows, local)), shape=shape), used


def simulated_activations(explanations: pa.Table, weights: Any, scores: np.ndarray) -> np.ndarray:
    """What explanations predict, their bias included, (images, explanations).

    Args:
        explanations: Rows of the explanations table.
        weights: Their weights, as `sparse_weights` gives them.
        scores: Scores of the used concepts, (images, used concepts).
    """
    bias = explanations["bias"].to_numpy()
    simulated: np.ndarray = (weights @ scores.T.astype(np.float64)).T + bias
    return simulated
