"""The correlation score and its interval on a GPU: the same steps, for thousands of explanations at a time.

Scores agree with those of the CPU up to rounding; their last bits may depend on the size of a block.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.nn.functional import embedding_bag

from core.correlation import (
    CorrelationScores,
    check_confidence,
    check_explanations,
    intervals,
)

_MEMORY_SHARE: Final = 0.5
_ARRAYS: Final = 7
_EXACT: Final = 1e-12


def gpu_explanation_correlations(
    actual: Num[np.ndarray, "images neurons"],
    weights: Any,
    terms: Float[np.ndarray, "concepts images"],
    neurons: Int[np.ndarray, " explanations"],
    confidence: float = 0.95,
    device: str = "cuda",
    block: int | None = None,
) -> CorrelationScores:
    """What `core.correlation.explanation_correlations` gives, worked out on a GPU in float64.

    Args:
        actual: Recorded activations, any real type and units.
        weights: Sparse matrix in rows of scipy (csr), explanations by concepts.
        terms: Concept scores of the same images, one concept a row; they stay on the GPU.
        neurons: The column of `actual` that each explanation is of.
        confidence: Coverage wanted, in (0, 1).
        device: The GPU; ``cpu`` works too, for tests.
        block: Explanations worked on at a time; by default as many as half of the free memory holds.

    Raises:
        ShapeError: Arrays that do not fit together, or fewer than two images.
        ConfigError: A confidence outside of (0, 1).
    """
    check_explanations(actual, weights, terms, neurons)
    check_confidence(confidence)
    images = len(actual)
    known = torch.from_numpy(np.ascontiguousarray(terms)).to(device).double()
    if block is None:
        free = torch.cuda.mem_get_info(device)[0] if device != "cpu" else 2**30
        block = max(1, int(_MEMORY_SHARE * free) // (8 * images * _ARRAYS))
    order = np.argsort(neurons, kind="stable")
    sums = np.full((5, len(neurons)), np.nan)
    for start in range(0, len(order), block):
        rows = order[start : start + block]
        of, owner = np.unique(neurons[rows], return_inverse=True)
        part = weights[rows]
        # Columns between them that no explanation is of cost little.
        columns = np.ascontiguousarray(actual[:, of[0] : of[-1] + 1])
        recorded = torch.from_numpy(columns).to(device).T.double()
        a = _scaled(recorded[torch.from_numpy(of - of[0]).to(device)].contiguous())
        s = _scaled(_predicted(part, known))
        found = _sums(a, s, torch.from_numpy(owner.reshape(-1)).to(device))
        sums[:, rows] = found.cpu().numpy()
    return intervals(sums, images, confidence)


def _predicted(
    weights: Any, terms: Float[Tensor, "concepts images"]
) -> Float[Tensor, "explanations images"]:
    """The weighted sums of terms, each row summed in the order of its weights."""
    device = terms.device
    return embedding_bag(
        torch.from_numpy(weights.indices.astype(np.int64)).to(device),
        terms,
        torch.from_numpy(weights.indptr[:-1].astype(np.int64)).to(device),
        mode="sum",
        per_sample_weights=torch.from_numpy(weights.data.astype(np.float64)).to(device),
    )


def _scaled(rows: Float[Tensor, "rows images"]) -> Float[Tensor, "rows images"]:
    """The rows, in place, standardised and divided by √(images − 1); NaN where undefined."""
    images = rows.shape[1]
    rows -= rows[:, :1].clone()
    rows -= rows.mean(dim=1, keepdim=True)
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True) * np.sqrt((images - 1) / images)
    rows /= torch.where(torch.isfinite(norm) & (norm > 0), norm, torch.nan)
    return rows


def _sums(
    a: Float[Tensor, "neurons images"],
    s: Float[Tensor, "explanations images"],
    owner: Int[Tensor, " explanations"],
) -> Float[Tensor, "5 explanations"]:
    """Correlations of scaled rows, and power sums of the changes of z without each image."""
    images = s.shape[1]
    c = a[owner]
    h = s.square().neg_().add_(1.0)
    one = h.amin(dim=1) < _EXACT
    left = a.square().neg_().add_(1.0)
    one |= (left.amin(dim=1) < _EXACT)[owner]
    h *= left[owner]
    h.sqrt_()
    c *= s
    r = c.sum(dim=1, keepdim=True) * ((images - 1) / images)
    # As on the CPU, z moves by artanh (c − r h)/(h − r c), with c the correlation lost and h its norm.
    c.neg_().add_(r)
    moved = c - r * h
    c.mul_(r).neg_().add_(h)
    moved /= c
    sure = moved.abs() > 1.0 - _EXACT
    z = moved.clamp_(-1.0, 1.0).atanh_().masked_fill_(sure, torch.inf)
    square = torch.square(z, out=h)
    sums = [r[:, 0], z.sum(dim=1), square.sum(dim=1)]
    sums += [z.mul_(square).sum(dim=1), square.square_().sum(dim=1)]
    found = torch.stack(sums)
    found[1:, one] = torch.nan
    return found
