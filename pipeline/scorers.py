"""Concept scores where images are recorded: from embeddings that are at hand, on a CPU or a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from core.concept_scores import concept_logits, sharpened
from core.sharpness import Sharpness


class Scorer:
    """Makes concept scores from image embeddings, the same bits as from stored ones."""

    def __init__(self, texts: np.ndarray, slope: float, shift: float) -> None:
        """Take the embeddings of the concepts, (concepts, d), and the model's calibration."""
        self.texts, self.slope, self.shift = texts, slope, shift

    def levels(self, values: np.ndarray) -> Any:
        """Logits of image embeddings (images, d), (images, concepts) float32."""
        return concept_logits(values, self.texts, self.slope, self.shift)

    def scores(self, levels: Any, sharpness: Sharpness) -> Any:
        """Scores at a sharpness, float32."""
        return sharpened(levels, sharpness)


class GpuScorer(Scorer):
    """The same on a GPU, where the scores stay, by the same steps in float64.

    Sums of products are added in another order there, so that in a hundred million scores a few
    differ in the last bit of float32.
    """

    def __init__(self, texts: np.ndarray, slope: float, shift: float, device: str) -> None:
        """Take what `Scorer` takes, and the device."""
        super().__init__(texts, slope, shift)
        self._device = device
        self._texts = self._normalised(texts).T

    def _normalised(self, values: np.ndarray) -> torch.Tensor:
        rows = torch.from_numpy(np.ascontiguousarray(values)).to(self._device).to(torch.float64)
        return rows / rows.square().sum(dim=1, keepdim=True).sqrt()

    def levels(self, values: np.ndarray) -> torch.Tensor:
        """Logits of image embeddings (images, d), (images, concepts) float32, on the device."""
        cosine = self._normalised(values) @ self._texts
        return ((cosine + self.shift) * self.slope).float()

    def scores(self, levels: Any, sharpness: Sharpness) -> torch.Tensor:
        """Scores at a sharpness, float32, on the device."""
        made: torch.Tensor = (levels.double() * -sharpness.factor - sharpness.shift).exp_()
        return made.add_(1.0).reciprocal_().float()
