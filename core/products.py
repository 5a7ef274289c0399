"""Column means and matrix products whose bits do not depend on how the work is cut up.

A general matrix product adds in an order that depends on the shape of the operands and on the
number of threads, so a neuron's numbers would change in the last bits with its neighbours. Here
every call to the library has one fixed shape per number of rows: columns are padded with zeros to
whole tiles, rows to whole groups. Each element is then a function of its own two columns alone, as
long as the processors are of one kind.

The sizes were found by trial with OpenBLAS: one to sixteen threads, seven excepted, divide such
tiles without remainders, and it is the remainders that are summed in another order.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Float, Shaped

LEFT_TILE: Final = 960
RIGHT_TILE: Final = 240

_ROWS: Final = 64


def padded(
    values: Shaped[np.ndarray, "rows columns"], tile: int, spare: int = 0
) -> Float[np.ndarray, "r c"]:
    """The values in float64, with zeros up to whole tiles of columns and whole groups of rows.

    Args:
        values: Any real type.
        tile: Columns of a tile.
        spare: Rows of zeros that there must be at least.
    """
    rows, columns = values.shape
    out = np.empty((-(-(rows + spare) // _ROWS) * _ROWS, -(-columns // tile) * tile))
    out[:rows, :columns] = values
    out[:rows, columns:] = 0.0
    out[rows:] = 0.0
    return out


def centred_columns(
    values: Shaped[np.ndarray, "rows columns"], tile: int, spare: int = 0
) -> tuple[Float[np.ndarray, " columns"], Float[np.ndarray, "r c"]]:
    """Means of the columns, and the columns without their means.

    Columns are shifted by their first element before anything is summed: a constant column gives
    its exact value and exact zeros, and a large mean costs no precision.

    Args:
        values: Any real type, at least one row. Arithmetic is in float64.
        tile: As for `padded`; at least 2.
        spare: As for `padded`.

    Returns:
        The means, and the centred columns, padded. A column that holds a value that is not finite
        has mean NaN and zeros.
    """
    rows, columns = values.shape
    centred = padded(values, tile, spare)
    inside = centred[:rows]
    origin = inside[0].copy()
    with np.errstate(invalid="ignore", over="ignore"):
        inside -= origin
        offset = inside.sum(axis=0) / rows
        mean = origin + offset
    # A value that is not finite leaves no finite mean.
    failed = np.flatnonzero(~np.isfinite(mean))
    inside[:, failed], offset[failed], mean[failed] = 0.0, 0.0, np.nan
    inside -= offset
    return mean[:columns], centred


def product_of_tiles(
    left: Float[np.ndarray, "r left_padded"],
    right: Float[np.ndarray, "r right_padded"],
    shape: tuple[int, int],
) -> Float[np.ndarray, "left right"]:
    """``left.T @ right`` of matrices padded to ``LEFT_TILE`` and ``RIGHT_TILE``.

    Args:
        left: Padded matrix.
        right: Padded matrix.
        shape: Numbers of columns of both before they were padded.
    """
    out = np.empty(shape)
    for a in range(0, shape[0], LEFT_TILE):
        tile = np.ascontiguousarray(left[:, a : a + LEFT_TILE])
        for b in range(0, shape[1], RIGHT_TILE):
            place = out[a : a + LEFT_TILE, b : b + RIGHT_TILE]
            block = tile.T @ right[:, b : b + RIGHT_TILE]
            place[...] = block[: place.shape[0], : place.shape[1]]
    return out
