"""The calibrated temperature against SciPy's minimiser and labels drawn at a known one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn.functional import cross_entropy

from core.errors import ConfigError, ShapeError
from core.temperature import calibrated_temperature


def drawn(temperature: float, images: int = 6000) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(images, 20, generator=made)
    chances = torch.softmax(logits / temperature, dim=1)
    return logits, torch.multinomial(chances, 1, generator=made)[:, 0]


@pytest.mark.parametrize("true", [0.4, 1.1, 3.0])
def test_labels_drawn_at_a_temperature_give_it_back(true: float) -> None:
    assert calibrated_temperature(*drawn(true)) == pytest.approx(true, rel=0.05)


@pytest.mark.parametrize("true", [0.4, 1.1, 3.0])
def test_no_other_temperature_has_a_lower_loss(true: float) -> None:
    logits, labels = drawn(true, images=500)
    best = minimize_scalar(
        lambda t: float(cross_entropy(logits.double() / np.exp(t), labels)),
        bounds=(-3, 3),
        method="bounded",
        options={"xatol": 1e-10},
    )
    # A minimum is flat: SciPy's place is as sure as the square root of its loss.
    assert calibrated_temperature(logits, labels) == pytest.approx(np.exp(best.x), rel=1e-6)


def test_labels_that_are_the_networks_own_classes_have_no_best_temperature() -> None:
    logits, _ = drawn(1.0, images=200)
    with pytest.raises(ConfigError, match="give a number"):
        calibrated_temperature(logits, logits.argmax(dim=1))


def test_a_network_worse_than_chance_has_no_best_temperature() -> None:
    logits, _ = drawn(1.0, images=200)
    with pytest.raises(ConfigError, match="no temperature between"):
        calibrated_temperature(logits, logits.argmin(dim=1))


def test_labels_outside_of_the_classes_are_refused() -> None:
    logits, labels = drawn(1.0, images=200)
    with pytest.raises(ShapeError, match="expected indices of 20 classes"):
        calibrated_temperature(logits, labels + 20)
