"""Moments of images that come shard by shard, added up in place.

What a recording machine keeps while images pass by: one concept block and one block of cross
moments, whatever the number of images. On a CPU the blocks are worked through tile by tile, so that
beside the block itself little memory is needed and a number's bits depend on its own two columns
alone; on a GPU the same sums are float64 matrix products over whole blocks.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from core.errors import RecordingError, ShapeError
from core.products import LEFT_TILE, RIGHT_TILE, centred_columns


class MomentSum:
    """Centred sums of products between the columns of two arrays, over images that come in shards."""

    def __init__(self, left: int, right: int | None = None, device: str = "cpu") -> None:
        """Start without images.

        Args:
            left: Number of columns of the first array.
            right: Number of columns of the second; None for the products of the first with itself.
            device: ``cpu``, or a GPU (``cuda``, ``cuda:N``) where the sums are kept until they are
                read. Between devices results differ by rounding in float64.
        """
        self.count = 0
        self.symmetric = right is None
        columns = left, left if right is None else right
        self._block: Any
        if device == "cpu":
            self._block = _CpuBlock(*columns, self.symmetric)
        else:
            from core.moment_sums_gpu import GpuBlock  # PyTorch takes seconds to import

            self._block = GpuBlock(*columns, self.symmetric, device)
        self.left_mean = np.zeros(left)
        self.right_mean = np.zeros(left if right is None else right)

    def add(
        self,
        left: Shaped[np.ndarray, "images left"],
        right: Shaped[np.ndarray, "images right"] | None = None,
    ) -> None:
        """Add the images of one shard; any real types.

        Raises:
            ShapeError: Arrays of other widths than the sum's, or of different numbers of images.
            RecordingError: Values of the first array that are not finite.
        """
        self._check(left, right)
        rows = self._block.rows or len(left)
        for start in range(0, len(left), max(rows, 1)):
            piece = slice(start, start + rows)
            self._add(left[piece], None if right is None else right[piece])

    def _add(self, left: np.ndarray, right: np.ndarray | None) -> None:
        count = self.count + len(left)
        share = len(left) / count
        between = self.count * share
        left_mean, right_mean = self._block.add(
            left, right, self.left_mean, self.right_mean, between if self.count else 0.0
        )
        bad = np.flatnonzero(~np.isfinite(left_mean))
        if bad.size:
            raise RecordingError(
                f"{bad.size} of {left_mean.size} concepts have scores that are not finite, the "
                f"first at position {bad[0]}; expected numbers; record the embeddings of these "
                "images again"
            )
        self.left_mean = self.left_mean + (left_mean - self.left_mean) * share
        self.right_mean = self.right_mean + (right_mean - self.right_mean) * share
        self.count = count

    def products(self) -> Float[np.ndarray, "left right"]:
        """Centred sums of products, not divided by the count; NaN in failed columns of the second.

        On a CPU these are the sums themselves, not a copy: read them when all shards are in.
        """
        block: np.ndarray = self._block.products()
        if not self.symmetric:
            block[:, ~np.isfinite(self.right_mean)] = np.nan
        return block

    def squares(self) -> Float[np.ndarray, " right"]:
        """Centred sums of squares of the second array's columns; NaN in failed ones."""
        if self.symmetric:
            return np.diagonal(self._block.products()).copy()
        return np.where(np.isfinite(self.right_mean), self._block.squares(), np.nan)

    def _check(self, left: np.ndarray, right: np.ndarray | None) -> None:
        for name, values, width in (
            ("concept scores", left, len(self.left_mean)),
            ("activations", right, len(self.right_mean)),
        ):
            if values is not None and (values.ndim != 2 or values.shape[1] != width):
                raise ShapeError(
                    f"{name} have shape {values.shape}; expected one row per image and {width} columns"
                )
        if self.symmetric != (right is None):
            raise ShapeError("moments of one array take one, those of two take two")
        if right is not None and len(right) != len(left):
            raise ShapeError(
                f"moments of different images: {len(left)} rows of concept scores and {len(right)} "
                "of activations; both must be of the same images"
            )


class _CpuBlock:
    """Sums in main memory, updated tile by tile."""

    rows = 767
    """Images at once, which bounds the memory of centred columns; one row short of whole groups."""

    def __init__(self, left: int, right: int, symmetric: bool) -> None:
        self.symmetric = symmetric
        self._sums = np.zeros((left, right))
        self._squares = np.zeros(0 if symmetric else right)

    def add(
        self,
        left: np.ndarray,
        right: np.ndarray | None,
        left_before: np.ndarray,
        right_before: np.ndarray,
        between: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Add a shard, and the squared distance of its means from those before; its means.

        That distance is one more row below the centred columns, so that one product adds both.
        Columns are centred once: those of the right, usually the fewer, are kept meanwhile.
        """
        rows, columns = self._sums.shape
        left_mean, right_mean = np.empty(rows), np.empty(columns)
        outer = _tiles(columns, LEFT_TILE if self.symmetric else RIGHT_TILE)
        room = np.empty(LEFT_TILE**2)  # for one product after the other

        def tile(values: np.ndarray, mean: np.ndarray, before: np.ndarray, size: int) -> Any:
            mean[:], centred = centred_columns(values, size, spare=1)
            if between:
                centred[len(values), : len(mean)] = math.sqrt(between) * (mean - before)
            return centred

        if right is None:
            sides = [(a, tile(left[:, a], left_mean[a], left_before[a], w)) for a, w in outer]
            for number, (b, q) in enumerate(sides):
                for a, p in sides[: number + 1]:
                    self._add(a, b, p, q, room)
            return left_mean, left_mean
        sides = [(b, tile(right[:, b], right_mean[b], right_before[b], w)) for b, w in outer]
        for a, width in _tiles(rows, RIGHT_TILE):
            p = tile(left[:, a], left_mean[a], left_before[a], width)
            for b, q in sides:
                self._add(a, b, p, q, room)
        for b, q in sides:
            np.square(q, out=q)
            self._squares[b] += q.sum(axis=0)[: len(self._squares[b])]
        return left_mean, right_mean

    def _add(
        self, a: slice, b: slice, p: np.ndarray, q: np.ndarray, room: Float[np.ndarray, " tile"]
    ) -> None:
        shape = p.shape[1], q.shape[1]
        found = np.matmul(p.T, q, out=room[: math.prod(shape)].reshape(shape))
        if q is p:
            found = np.triu(found) + np.triu(found, 1).T
        place = self._sums[a, b]
        place += found[: place.shape[0], : place.shape[1]]
        if self.symmetric and q is not p:
            self._sums[b, a] = place.T

    def products(self) -> np.ndarray:
        return self._sums

    def squares(self) -> np.ndarray:
        return self._squares


def _tiles(columns: int, narrow: int) -> list[tuple[slice, int]]:
    """Columns in tiles, and the width that each is padded to: wide ones, then narrow ones.

    A product costs least in wide tiles; the last columns would be mostly padding in them.
    """
    wide = columns - columns % LEFT_TILE
    starts = [(a, LEFT_TILE) for a in range(0, wide, LEFT_TILE)]
    starts += [(a, narrow) for a in range(wide, columns, narrow)]
    return [(slice(a, min(a + width, columns)), width) for a, width in starts]
