"""The temperature at which a classifier's probabilities fit its labels best."""

from __future__ import annotations

from math import exp, log
from typing import Final

import torch
from jaxtyping import Float, Int
from scipy.optimize import brentq
from torch import Tensor

from core.errors import ConfigError
from core.linear_head import check_head

LEAST: Final = 0.01
GREATEST: Final = 100.0

_IMAGES: Final = 4096


def calibrated_temperature(
    logits: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]
) -> float:
    """The temperature T with the least mean cross-entropy of logits / T.

    The mean is convex in 1/T; its derivative, the mean of the expected logit less the label's, rises
    with 1/T, and its root is bracketed.

    Args:
        logits: Of validation images, any float type.
        labels: Index of each image's class.

    Raises:
        ConfigError: No temperature between 0.01 and 100 is best. So it is when all images are classified
            correctly, as with the network's own classes for labels: the loss then falls all the way to 0.
        ShapeError: Tensors that do not fit together, or a label that is no class.

    Source:
        Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017 (arXiv:1706.04599).
    """
    check_head(logits, labels, logits.new_empty((logits.shape[1], 0)))

    def slope(log_temperature: float) -> float:
        total = 0.0
        for start in range(0, len(logits), _IMAGES):
            z, y = logits[start : start + _IMAGES], labels[start : start + _IMAGES]
            # The label's own logit is subtracted first: near the root only small numbers are summed.
            lead = z.double() - z.gather(1, y[:, None]).double()
            total += float((torch.softmax(lead * exp(-log_temperature), dim=1) * lead).sum())
        return total / len(logits)

    low, high = log(LEAST), log(GREATEST)
    # A derivative by 1/T: at the lowest temperature it is positive, at the highest negative.
    if not (slope(low) > 0 > slope(high)):
        raise ConfigError(
            f"no temperature between {LEAST} and {GREATEST} fits best: the loss of {len(logits)} images "
            "keeps falling towards one end, as it does where all are classified correctly; "
            "give a number, as 1.1"
        )
    return exp(brentq(slope, low, high, xtol=1e-10))
