"""Columns of arrays: matrices as fixed-size lists, images as fixed-size binaries, without copies."""

from __future__ import annotations

from collections.abc import Sequence

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


def sparse_column(arrays: Sequence[np.ndarray], rows: Sequence[int], count: int) -> pa.Array:
    """Arrays of one shape for some rows of a column, in their order; the others take no space."""
    lengths = np.zeros(count + 1, np.int64)
    lengths[np.asarray(rows, np.int64) + 1] = [array.nbytes for array in arrays]
    data = np.stack(arrays).reshape(-1).view(np.uint8) if len(arrays) else np.zeros(0, np.uint8)
    buffers = [None, pa.py_buffer(lengths.cumsum()), pa.py_buffer(data)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), count, buffers)


def array_of(column: pa.ChunkedArray, view: View) -> np.ndarray:
    """The inverse of `binary_column`, without a copy where the column is one piece.

    Of a `sparse_column` it gives the rows alone that have an array.
    """
    dtype = np.float32 if view.whole else np.uint8
    pieces: list[np.ndarray] = []
    for chunk in (chunk for chunk in column.chunks if len(chunk)):
        first, last = chunk.offset, chunk.offset + len(chunk)
        if pa.types.is_large_binary(chunk.type):
            ends = np.frombuffer(chunk.buffers()[1], np.int64)
            first, last = ends[first], ends[last]
        else:
            first, last = first * chunk.type.byte_width, last * chunk.type.byte_width
        if last > first:
            data = np.frombuffer(chunk.buffers()[-1], np.uint8)[first:last]
            pieces.append(data.view(dtype).reshape(-1, *view.shape))
    if not pieces:
        return np.zeros((0, *view.shape), dtype)
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
