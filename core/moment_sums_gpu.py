"""The sums of `core.moment_sums` in a GPU's memory: matrix products of whole blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

#: Rows of sums that are averaged with their mirror image at a time.
HALVES = 1024


class GpuBlock:
    """Sums in a GPU's memory; float64 matrix products over whole blocks."""

    rows = None

    def __init__(self, left: int, right: int, symmetric: bool, device: str) -> None:
        self.symmetric = symmetric
        self._device = torch.device(device)
        self._sums = self._zeros(left, right)
        self._squares = self._zeros(0 if symmetric else right)

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self._device)

    def add(
        self,
        left: Any,
        right: Any,
        left_before: np.ndarray,
        right_before: np.ndarray,
        between: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Add images, and what lies between their means and the means before; returns their means."""
        left_mean, p = self._centred(left)
        right_mean, q = (left_mean, p) if right is None else self._centred(right)
        self._sums.addmm_(p.T, q)
        if not self.symmetric:
            self._squares += torch.linalg.vector_norm(q, dim=0).square()
        if between:
            shift = left_mean - torch.from_numpy(left_before).to(self._device)
            other = right_mean - torch.from_numpy(right_before).to(self._device)
            self._sums.addr_(shift, other, alpha=between)
            if not self.symmetric:
                self._squares += between * other * other
        return left_mean.cpu().numpy(), right_mean.cpu().numpy()

    def _centred(self, values: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Means, NaN for columns that are not finite, and the columns without their means."""
        if isinstance(values, np.ndarray):
            values = torch.from_numpy(np.ascontiguousarray(values))
        values = values.to(self._device)
        finite = values.isfinite().all(dim=0)
        if not finite.all():
            values = torch.where(finite, values, 0.0)
        if values.dtype == torch.float64:
            origin = values[0].clone()
            centred = values - origin
        else:  # sums of shorter numbers are exact, and with them the mean of a constant column
            origin = torch.zeros((), dtype=torch.float64, device=self._device)
            centred = values.to(torch.float64)
        offset = centred.mean(dim=0)
        centred -= offset
        return torch.where(finite, origin + offset, torch.nan), centred

    def products(self) -> np.ndarray:
        """Sums of products, (left, right)."""
        if self.symmetric:  # what rounding leaves between the halves of a product
            for a in range(
                0, len(self._sums), HALVES
            ):  # by stripes: a GPU may hold no second matrix
                b = a + HALVES
                mean = (self._sums[a:b, a:] + self._sums[a:, a:b].T) / 2
                self._sums[a:b, a:] = mean
                self._sums[a:, a:b] = mean.T
        return self._sums.cpu().numpy()

    def squares(self) -> np.ndarray:
        """Sums of squares of the second array's columns."""
        return self._squares.cpu().numpy()
