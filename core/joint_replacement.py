"""What is left of a network when many neurons of a layer are replaced by their simulated activations at once.

Single replacements say nothing of how errors add up. Here accuracy and loss are compared three ways: as
recorded, with every neuron at its simulated activation, and with every neuron at its mean; the *kept*
share is where the second lies between the third, 0, and the first, 1.

Before a linear head, the logits with shifted neurons are ``logits + shifts @ weights.T``; elsewhere they come
from a pass through the rest of the network.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from core.errors import ShapeError


@dataclass(frozen=True)
class JointLosses:
    """Accuracy and mean cross-entropy with nothing replaced, with simulated activations, and at the mean."""

    accuracy: float
    accuracy_replaced: float
    accuracy_mean: float
    loss: float
    loss_replaced: float
    loss_mean: float

    @property
    def accuracy_kept(self) -> float:
        """1 where replacing costs no accuracy, 0 where as much as the mean; NaN where that costs none."""
        return _kept(self.accuracy, self.accuracy_replaced, self.accuracy_mean)

    @property
    def loss_kept(self) -> float:
        """The same of the mean loss."""
        return _kept(self.loss, self.loss_replaced, self.loss_mean)


def joint_losses(
    logits: Float[Tensor, "images classes"],
    replaced: Float[Tensor, "images classes"],
    at_mean: Float[Tensor, "images classes"],
    labels: Int[Tensor, " images"],
    temperature: float,
) -> JointLosses:
    """Accuracy and loss of the three sets of logits.

    A label that shares the highest logit counts as correct, as in `core.linear_head.correct_after`.

    Args:
        logits: With nothing replaced.
        replaced: With every neuron at its simulated activation.
        at_mean: With every neuron at its mean.
        labels: Index of each image's class.
        temperature: The loss is the cross-entropy of logits / temperature.

    Raises:
        ShapeError: Logits of different shape, or no image.
    """
    if not logits.shape == replaced.shape == at_mean.shape or not len(logits) == len(labels) > 0:
        raise ShapeError(
            f"logits of shapes {tuple(logits.shape)}, {tuple(replaced.shape)} and {tuple(at_mean.shape)} for "
            f"{len(labels)} labels; expected the same images and classes, and at least one image"
        )
    accuracies, losses = [], []
    for given in (logits, replaced, at_mean):
        z = given.double()
        own = z.gather(1, labels[:, None])
        accuracies.append(float((own >= z).all(dim=1).double().mean()))
        losses.append(float(cross_entropy(z / temperature, labels)))
    return JointLosses(*accuracies, *losses)


def _kept(original: float, replaced: float, at_mean: float) -> float:
    whole = original - at_mean
    return (replaced - at_mean) / whole if whole else float("nan")
