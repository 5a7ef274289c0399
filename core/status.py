"""What can be said of a neuron before any fit: whether there is anything to explain."""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Bool

from core.moments import CrossMoments

STATUSES: Final = ("ok", "constant", "dead", "low-variance", "failed")


def neuron_statuses(cross: CrossMoments) -> np.ndarray:
    """Status of each neuron, from its moments on the training images.

    Returns:
        Strings, one per neuron: ``failed`` where the moments are not finite; ``dead`` where every
        activation is zero; ``constant`` where they are all the same other number;
        ``low-variance`` where they vary by less than the spacing of float16 at their mean, the
        resolution in which activations are stored; ``ok`` otherwise.
    """
    mean, scatter = cross.neuron_mean, cross.neuron_scatter
    finite = np.isfinite(mean) & np.isfinite(scatter) & np.isfinite(cross.cross).all(axis=0)
    limit = float(np.finfo(np.float16).max)
    stored = np.clip(np.abs(np.where(finite, mean, 0.0)), 0.0, limit).astype(np.float16)
    # At the largest number the spacing upwards would be infinite.
    spacing = np.spacing(np.minimum(stored, np.float16(limit / 2))).astype(np.float64)
    std = np.sqrt(np.where(finite, scatter, 0.0) / max(cross.count, 1))
    conditions = [~finite, (std == 0) & (mean == 0), std == 0, std < spacing]
    return np.select(conditions, ["failed", "dead", "constant", "low-variance"], "ok")


def explainable(cross: CrossMoments) -> Bool[np.ndarray, " neurons"]:
    """True for the neurons whose status is ``ok``."""
    return np.asarray(neuron_statuses(cross) == "ok")
