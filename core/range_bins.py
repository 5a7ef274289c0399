"""Bins along the range of a quantity, each with enough values to speak of a mean."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from core.errors import ShapeError


def range_bins(
    rising: Float[np.ndarray, " values"], bins: int, smallest: int
) -> Int[np.ndarray, " starts"]:
    """Cut ascending values into equal parts of their range, none with too few values.

    Going down from the highest values, a part that holds too few of them is joined to the next lower
    one; what is left at the bottom is joined to the one above it. Equal parts of the range, unlike
    equal numbers of values, keep the few high values apart from the many low ones.

    Args:
        rising: Finite values in ascending order, at least one.
        bins: Parts of the range.
        smallest: Fewest values of a bin.

    Returns:
        Positions at which bins begin, ascending, the first of them 0; one bin where there are fewer
        than ``smallest`` values, or where all are equal.

    Raises:
        ShapeError: There are no values, or they do not ascend.
    """
    if len(rising) == 0 or (np.diff(rising) < 0).any():
        raise ShapeError(f"{len(rising)} values that do not all ascend; sort at least one of them")
    edges = np.linspace(rising[0], rising[-1], bins + 1)[1:-1]
    starts = np.unique(np.append(np.searchsorted(rising, edges, "left"), 0))
    kept: list[int] = []
    stop = len(rising)
    for start in starts[::-1].tolist():
        if stop - start >= smallest:
            kept.append(start)
            stop = start
    if not kept:
        kept = [0]
    kept[-1] = 0
    return np.array(kept[::-1], dtype=np.int64)


def bin_means(
    values: Float[np.ndarray, "rows values"], starts: Int[np.ndarray, " starts"]
) -> Float[np.ndarray, "rows starts"]:
    """Mean of each row's values in each bin, in float64.

    Args:
        values: In the order of the values that were cut.
        starts: As from `range_bins`.
    """
    counts = np.diff(np.append(starts, values.shape[1]))
    sums: np.ndarray = np.add.reduceat(values.astype(np.float64), starts, axis=1)
    return sums / counts
