"""Forward selection on a GPU: the same steps as `core.forward`, for thousands of neurons at a time.

Selections agree with those of the CPU except where two concepts explain equally much up to rounding.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from core.moments import ConceptMoments, CrossMoments, check_same_concepts
from core.normal_equations import COLLINEAR, NEGLIGIBLE
from core.paths import Paths, fitted_paths
from core.status import explainable

_MEMORY_SHARE: Final = 0.5


def gpu_forward_paths(
    concepts: ConceptMoments,
    cross: CrossMoments,
    max_length: int,
    device: str = "cuda",
    block: int | None = None,
    ridge: float = 0.0,
) -> Paths:
    """What `core.forward.forward_paths` gives, selected on a GPU.

    Args:
        concepts: Moments of the training images.
        cross: Moments of the same images with the neurons' activations.
        max_length: Greatest number of concepts of an explanation, at least 1.
        device: The GPU; ``cpu`` works too, for tests.
        block: Neurons worked on at a time; by default as many as half of the free memory holds.
        ridge: As in `core.forward.forward_paths`.

    Raises:
        ShapeError: Moments that were not taken of the same images and concepts.
    """
    check_same_concepts(concepts, cross)
    neurons, size = len(cross.neuron_mean), len(concepts.mean)
    selection = np.full((neurons, max_length), -1, dtype=np.int32)
    usable = np.flatnonzero(explainable(cross))
    if size and usable.size:
        scatter = torch.from_numpy(concepts.scatter).to(device)
        if block is None:
            free = torch.cuda.mem_get_info(device)[0] if device != "cpu" else 2**30
            block = max(1, int(_MEMORY_SHARE * free) // (8 * size * (max_length + 8)))
        for start in range(0, len(usable), block):
            rows = usable[start : start + block]
            part = torch.from_numpy(cross.cross).to(device) if block >= neurons else None
            if part is None:
                part = torch.from_numpy(np.ascontiguousarray(cross.cross[:, rows])).to(device)
            elif len(rows) < neurons:
                part = part[:, torch.from_numpy(rows).to(device)]
            scale = torch.from_numpy(cross.neuron_scatter[rows]).to(device)
            own = part.T.clone(memory_format=torch.contiguous_format)
            chosen = _select(scatter, own, scale, max_length, ridge)
            selection[rows] = chosen.cpu().numpy()
    return fitted_paths(selection, concepts, cross)


def _select(
    scatter: Float[Tensor, "concepts concepts"],
    cross: Float[Tensor, "neurons concepts"],
    neuron_scatter: Float[Tensor, " neurons"],
    max_length: int,
    ridge: float,
) -> Int[Tensor, "neurons max_length"]:
    """Select concepts for some neurons; ``cross`` is used up as working memory."""
    neurons = len(cross)
    diagonal = scatter.diagonal()
    threshold = COLLINEAR * diagonal
    selection = torch.full((neurons, max_length), -1, dtype=torch.int32, device=cross.device)
    # A concept that may not be chosen has infinite scatter left, so its gain is zero.
    left = torch.where(diagonal > 0, diagonal, torch.inf).repeat(neurons, 1)
    basis: list[Any] = []
    going = torch.ones(neurons, dtype=torch.bool, device=cross.device)
    for k in range(max_length):
        gain, best = (cross * cross / (left + ridge * diagonal)).max(dim=1)
        going = going & (gain > NEGLIGIBLE * neuron_scatter)
        selection[:, k] = torch.where(going, best, -1).to(torch.int32)
        place = best[:, None]
        row = scatter[best] * going[:, None]
        for earlier in basis:
            row.addcmul_(earlier, earlier.gather(1, place), value=-1.0)
        root = torch.where(going[:, None], left.gather(1, place), 1.0).sqrt()
        row /= root
        basis.append(row)
        cross.addcmul_(row, cross.gather(1, place) / root, value=-1.0)
        left.addcmul_(row, row, value=-1.0)
        left.masked_fill_(left <= threshold, torch.inf)
        left.scatter_(1, place, torch.inf)
    return selection
