"""Joint replacement against passes through a small network and scikit-learn's measures."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch import Tensor, nn

from core.errors import ShapeError
from core.joint_replacement import joint_losses

TEMPERATURE = 1.3


def network() -> tuple[nn.Linear, Tensor, Tensor]:
    """A head, the maps that it pools, and labels that it mostly gets right."""
    torch.manual_seed(0)
    last = nn.Linear(16, 5).requires_grad_(False)
    last.weight *= 8
    maps = torch.relu(torch.randn(400, 16, 3, 3))
    logits = last(maps.mean(dim=(2, 3)))
    labels = torch.softmax(logits, dim=1).multinomial(1)[:, 0]
    return last, maps, labels


def test_accuracy_and_loss_are_those_of_passes_with_all_neurons_replaced() -> None:
    last, maps, labels = network()
    q = maps.mean(dim=(2, 3))
    simulated = q + 0.3 * q.std() * torch.randn_like(q)
    shifts = {"": torch.zeros_like(q), "_replaced": simulated - q, "_mean": q.mean(dim=0) - q}
    logits = last(q)
    given = [logits + t @ last.weight.T for t in shifts.values()]
    found = joint_losses(*given, labels, TEMPERATURE)
    for suffix, t in shifts.items():
        passed = last((maps + t[:, :, None, None]).mean(dim=(2, 3)))
        chances = torch.softmax(passed.double() / TEMPERATURE, dim=1).numpy()
        loss = log_loss(labels.numpy(), chances, labels=range(5))
        assert getattr(found, f"loss{suffix}") == pytest.approx(loss, abs=1e-5)
        accuracy = accuracy_score(labels.numpy(), passed.argmax(dim=1).numpy())
        assert getattr(found, f"accuracy{suffix}") == pytest.approx(accuracy, abs=1e-9)
    assert found.accuracy_kept == pytest.approx(
        (found.accuracy_replaced - found.accuracy_mean) / (found.accuracy - found.accuracy_mean)
    )
    gained = found.loss_replaced - found.loss_mean
    assert found.loss_kept == pytest.approx(gained / (found.loss - found.loss_mean))
    assert 0 < found.loss_kept < 1


def test_perfect_predictions_keep_everything_and_means_keep_nothing() -> None:
    last, maps, labels = network()
    q = maps.mean(dim=(2, 3))
    logits, at_mean = last(q), last(q.mean(dim=0).expand_as(q))
    best = joint_losses(logits, logits, at_mean, labels, TEMPERATURE)
    assert (best.accuracy_kept, best.loss_kept) == (1.0, 1.0)
    worst = joint_losses(logits, at_mean, at_mean, labels, TEMPERATURE)
    assert (worst.accuracy_kept, worst.loss_kept) == (0.0, 0.0)


def test_where_the_mean_costs_nothing_no_share_is_kept() -> None:
    logits = torch.tensor([[1.0, 0.0]])
    found = joint_losses(logits, logits, logits, torch.tensor([0]), 1.0)
    assert math.isnan(found.accuracy_kept)
    assert math.isnan(found.loss_kept)


def test_what_does_not_fit_together_is_refused() -> None:
    logits = torch.zeros(3, 2)
    with pytest.raises(ShapeError, match="expected the same images and classes"):
        joint_losses(logits, logits[:2], logits, torch.zeros(3).long(), 1.0)
    with pytest.raises(ShapeError, match="at least one image"):
        joint_losses(logits[:0], logits[:0], logits[:0], torch.zeros(0).long(), 1.0)
