"""Concept scores and their moments where images are recorded: on a GPU the same as from stored embeddings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.moment_sums import MomentSum
from core.sharpness import Sharpness
from pipeline.scorers import GpuScorer, Scorer


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_scores_and_moments_made_on_a_gpu_are_those_of_the_stored_path_up_to_rounding_in_float64(
    device: str,
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    rng = np.random.default_rng(2)
    images = rng.normal(size=(7000, 64)).astype(np.float16)
    texts = rng.normal(size=(150, 64)).astype(np.float32)
    activations = rng.normal(3, 2, size=(7000, 5)).astype(np.float16)
    here, there = Scorer(texts, 60.0, -0.1), GpuScorer(texts, 60.0, -0.1, device)
    for sharpness in (Sharpness(2.0), Sharpness(2.0 ** (-5 / 3)), Sharpness(0.3, 1.5)):
        expected = here.scores(here.levels(images), sharpness)
        found = there.scores(there.levels(images), sharpness)
        scores = found.cpu().numpy()
        assert scores.dtype == expected.dtype == np.float32
        np.testing.assert_array_max_ulp(scores, expected, maxulp=2)
        assert (scores != expected).sum() <= 10  # of a million
        sums = {}
        # Under another name than "cpu" sums are made as on a GPU, wherever it is.
        there_too = "cpu:0" if device == "cpu" else device
        for name, values, where in (("stored", expected, "cpu"), ("here", found, there_too)):
            sums[name] = MomentSum(150, 5, where)
            sums[name].add(values, activations)
        scale = np.sqrt(
            np.outer((expected - expected.mean(0)).var(0), activations.var(0, np.float64))
        )
        off = np.abs(sums["here"].products() - sums["stored"].products()) / (7000 * scale)
        assert off.max() < 1e-12  # of a correlation: rounding in float64
