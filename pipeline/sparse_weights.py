"""Explanations as a sparse matrix of weights."""

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
