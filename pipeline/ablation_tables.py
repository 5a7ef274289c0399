"""The tables of ablation: their columns, and rows of them from scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa
from torch import Tensor

from core.ablation import AblationScores, Lines
from core.importance import FRACTIONS
from core.joint_replacement import JointLosses
from pipeline.targets import Column

_LAYER = [("layer", pa.string()), ("pooling", pa.string())]

ABLATION_SCHEMA = pa.schema(
    [
        *_LAYER,
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
    [*_LAYER, ("neuron", pa.int32()), ("fraction", pa.float64()), ("share", pa.float64())]
)

_MEASURED = ("accuracy", "accuracy_replaced", "accuracy_mean", "loss", "loss_replaced", "loss_mean")

REPLACEMENT_SCHEMA = pa.schema(
    [
        *_LAYER,
        ("explainer", pa.string()),
        ("simulator", pa.string()),
        ("neurons", pa.int32()),
        ("images", pa.int32()),
        *((name, pa.float64()) for name in (*_MEASURED, "accuracy_kept", "loss_kept")),
    ]
)


def score_rows(
    column: Column,
    neurons: np.ndarray,
    lengths: np.ndarray,
    sought: tuple[str, str],
    kind: str,
    lines: Lines,
    found: AblationScores,
    images: Sequence[int],
    exact: bool,
) -> pa.Table:
    """Rows of `ablations` of those neurons that have an explanation.

    Args:
        column: The layer.
        neurons: Neurons that were scored.
        lengths: Length of the chosen explanation of each neuron of the layer; 0 where there is none.
        sought: Explainer and simulator.
        kind: `norm` or `optim`.
        lines: What simulated activations were scaled by.
        found: The scores.
        images: Different test images that each neuron was replaced in.
        exact: Whether these are all test images.
    """
    count = len(neurons)
    content = _head(column, count) | {
        "neuron": neurons,
        "explainer": [sought[0]] * count,
        "length": lengths[neurons],
        "simulator": [sought[1]] * count,
        "kind": [kind] * count,
        "score": _numbers(found.score),
        "standard_error": _numbers(found.standard_error),
        "images": images,
        "c": _numbers(lines.c),
        "d": _numbers(lines.d),
        "exact": [exact] * count,
    }
    table = pa.table(content).cast(ABLATION_SCHEMA)
    return table.filter(pa.array(lengths[neurons] > 0))


def importance_rows(column: Column, neurons: np.ndarray, shares: Tensor) -> pa.Table:
    """Rows of `importance`, one for each neuron and share of the images."""
    count, width = shares.shape
    content = _head(column, count * width) | {
        "neuron": np.repeat(neurons, width),
        "fraction": np.tile(FRACTIONS, count),
        "share": _numbers(shares.reshape(-1)),
    }
    return pa.table(content).cast(IMPORTANCE_SCHEMA)


def replacement_rows(
    column: Column,
    lengths: Mapping[str, np.ndarray],
    sought: Sequence[tuple[str, str]],
    found: Sequence[JointLosses],
    images: int,
) -> pa.Table:
    """Rows of `replacements`, one for each explainer and simulator."""
    rows = [
        {
            "layer": column.layer,
            "pooling": column.pooling,
            "explainer": explainer,
            "simulator": simulator,
            "neurons": int((lengths[explainer] > 0).sum()),
            "images": images,
            **asdict(losses),
            "accuracy_kept": _number(losses.accuracy_kept),
            "loss_kept": _number(losses.loss_kept),
        }
        for (explainer, simulator), losses in zip(sought, found, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=REPLACEMENT_SCHEMA)


def _head(column: Column, count: int) -> dict[str, object]:
    return {"layer": [column.layer] * count, "pooling": [column.pooling] * count}


def _numbers(values: Tensor) -> pa.Array:
    """Null where a value is not finite."""
    numbers = values.numpy()
    return pa.array(np.where(np.isfinite(numbers), numbers, np.nan), from_pandas=True)


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
