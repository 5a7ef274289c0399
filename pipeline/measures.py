"""What chosen explanations are measured by beside correlation, and how far simulators agree.

Correlation is taken of every length; these are of the chosen one alone. Simulated activations carry
the bias here, since the cosine is not blind to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from core.metrics import Metric, auprc, cosine, f1, iou, pearson


def measures_of(names: Sequence[str], top: float) -> dict[str, Metric]:
    """Measures by name, correlation always among them.

    Args:
        names: From the configuration.
        top: Share of the images on which a neuron counts as on.
    """
    known: dict[str, Metric] = {"correlation": pearson, "cosine": cosine}
    known |= {name: partial(m, top=top) for name, m in (("auprc", auprc), ("f1", f1), ("iou", iou))}
    return {name: m for name, m in known.items() if name in ("correlation", *names)}


def agreement(simulated: Sequence[np.ndarray]) -> np.ndarray:
    """How far each simulator agrees with the others, (simulators, neurons).

    Args:
        simulated: For each simulator its simulated activations, (images, neurons).

    Returns:
        For each its mean correlation with the simulated activations of the others; NaN where there
        is no other, or where a prediction is constant.
    """
    count = len(simulated)
    found = np.full((count, count, simulated[0].shape[1]), np.nan)
    for one in range(count):
        for other in range(one):
            found[one, other] = found[other, one] = pearson(simulated[one], simulated[other])
    if count == 1:
        return np.full((1, simulated[0].shape[1]), np.nan)
    between = ~np.eye(count, dtype=bool)
    return np.stack([found[one, between[one]].mean(axis=0) for one in range(count)])
