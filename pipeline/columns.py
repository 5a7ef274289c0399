"""Columns of arrays: matrices as fixed-size lists, images as fixed-size binaries, without copies."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from actors.views import View


def activation_column(layer: str, pooling: str) -> str:
    """Column of a layer's activations."""
    return f"act.{layer}.{pooling}"


def vectors(values: np.ndarray) -> pa.FixedSizeListArray:
    """Rows of a matrix as a column of fixed-size lists."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A column of fixed-size lists as the matrix it was made from."""
    width = column.type.list_size
    pieces = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    flat = pieces[0] if len(pieces) == 1 else np.concatenate(pieces) if pieces else np.zeros(0)
    return flat.astype(column.type.value_type.to_pandas_dtype(), copy=False).reshape(-1, width)


def binary_column(array: np.ndarray) -> pa.Array:
    """Arrays of one shape as a column, without a copy."""
    width = array[0].nbytes
    buffer = pa.py_buffer(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(array), [None, buffer])


def array_of(column: pa.ChunkedArray, view: View) -> np.ndarray:
    """The inverse of `binary_column`, without a copy where the column is one piece."""
    dtype = np.float32 if view.whole else np.uint8
    pieces = [np.zeros((0, *view.shape), dtype)] if not len(column) else []
    for chunk in column.chunks:
        width = chunk.type.byte_width
        data = np.frombuffer(chunk.buffers()[1], np.uint8)
        data = data[chunk.offset * width : (chunk.offset + len(chunk)) * width]
        pieces.append(data.view(dtype).reshape(len(chunk), *view.shape))
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
