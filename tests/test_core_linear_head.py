"""Changes of loss before a linear head, against cross-entropies of whole logits and true forward passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from core.errors import ShapeError
from core.linear_head import DEGREES, TOLERANCE, LinearHead, correct_after, loss_changes

TEMPERATURE = 1.1


def head(
    images: int = 300, classes: int = 50, neurons: int = 70, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, labels, weights with a heavy tail, and rectified activations."""
    made = torch.Generator().manual_seed(seed)
    w = torch.randn(classes, neurons, generator=made, dtype=torch.float64)
    w = 0.1 * w + 0.05 * w**3
    labels = torch.randint(classes, (images,), generator=made)
    noise = torch.randn(images, neurons, generator=made, dtype=torch.float64)
    q = torch.relu(3 * w[labels] + noise)
    return q @ w.T, labels, w, q


def by_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor, shifts: Tensor) -> Tensor:
    before = cross_entropy(logits / TEMPERATURE, labels, reduction="none")
    columns = []
    for k in range(weights.shape[1]):
        moved = logits + shifts[:, k, None] * weights[:, k]
        columns.append(cross_entropy(moved / TEMPERATURE, labels, reduction="none") - before)
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("size", [0.01, 0.3, 1.0, 4.0, 30.0])
def test_changes_are_those_of_cross_entropy_however_large_the_shifts(size: float) -> None:
    logits, labels, weights, q = head()
    shifts = size * (q.mean(dim=0) - q)
    found = loss_changes(logits, labels, weights, shifts, TEMPERATURE)
    expected = by_cross_entropy(logits, labels, weights, shifts)
    assert float((found - expected).abs().max()) < 2 * TOLERANCE
    assert float(expected.abs().max()) > 0.1 * size


def test_many_images_and_neurons_are_worked_on_in_blocks_that_do_not_show() -> None:
    logits, labels, weights, q = head(images=2500, classes=6, neurons=300)
    found = loss_changes(logits, labels, weights, -q, TEMPERATURE)
    expected = by_cross_entropy(logits, labels, weights, -q)
    assert float((found - expected).abs().max()) < 2 * TOLERANCE


def test_the_bound_of_the_series_holds_where_it_is_tightest() -> None:
    # All probability on the class at one end of the weights' range is the worst case of the bound.
    weights = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    logits = torch.tensor([[30.0, 0.0], [0.0, 30.0], [0.3, 0.0]], dtype=torch.float64)
    for size in torch.linspace(0.05, 12, 120):
        for sign in (-1, 1):
            shifts = torch.full((3, 1), sign * float(size), dtype=torch.float64)
            for label in (0, 1):
                labels = torch.full((3,), label)
                found = loss_changes(logits, labels, weights, shifts, TEMPERATURE)
                expected = by_cross_entropy(logits, labels, weights, shifts)
                assert float((found - expected).abs().max()) < 2 * TOLERANCE


def test_answers_do_not_depend_on_the_shifts_that_a_head_was_made_for() -> None:
    logits, labels, weights, q = head()
    shifts = q.mean(dim=0) - q
    expected = by_cross_entropy(logits, labels, weights, shifts)
    for size in (0.0, 0.1, 1.0, 100.0):
        for uses in (1, 100):
            made = LinearHead(logits, labels, weights, TEMPERATURE, size * shifts, uses)
            assert float((made.changes(shifts) - expected).abs().max()) < 2 * TOLERANCE


def test_every_degree_is_of_use() -> None:
    logits, labels, weights, q = head(neurons=5)
    reach = (weights.amax(dim=0) - weights.amin(dim=0)) / 2 / TEMPERATURE
    sizes = torch.tensor([0.1, 0.6, 1.8, 3.7, 6.0], dtype=torch.float64)
    typical = torch.ones_like(q) * sizes / reach
    made = LinearHead(logits, labels, weights, TEMPERATURE, typical)
    degrees = [len(terms) for _, terms in made._groups]
    assert degrees == list(DEGREES)


def test_a_true_pass_through_a_network_gives_the_same_changes() -> None:
    torch.manual_seed(0)
    front = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 40, 3), nn.ReLU())
    last = nn.Linear(40, 12)
    last.weight.data *= 5
    with torch.inference_mode():
        maps = front(torch.randn(64, 3, 12, 12))
        pooled = maps.mean(dim=(2, 3))
        logits = last(pooled)
        labels = torch.randint(12, (64,))
        values = pooled.roll(7, dims=0)
        found = loss_changes(logits, labels, last.weight, values - pooled, TEMPERATURE)
        before = cross_entropy(logits / TEMPERATURE, labels, reduction="none")
        for k in range(40):
            moved = maps.clone()
            moved[:, k] += (values - pooled)[:, k, None, None]
            after = last(moved.mean(dim=(2, 3))) / TEMPERATURE
            change = cross_entropy(after, labels, reduction="none") - before
            torch.testing.assert_close(found[:, k].float(), change, rtol=0, atol=1e-5)


def test_no_shift_changes_nothing_at_all_and_nan_stays_where_it_is() -> None:
    logits, labels, weights, q = head()
    shifts = -q.clone()
    shifts[q > 0.5] = 0.0
    shifts[5, 3] = torch.nan
    found = loss_changes(logits, labels, weights, shifts, TEMPERATURE)
    assert torch.equal(found[shifts == 0], torch.zeros(int((shifts == 0).sum()), dtype=q.dtype))
    assert torch.equal(torch.isnan(found), torch.isnan(shifts))


def test_a_neurons_changes_do_not_depend_on_its_neighbours() -> None:
    logits, labels, weights, q = head(neurons=150)
    whole = loss_changes(logits, labels, weights, -2 * q, TEMPERATURE)
    some = torch.tensor([3, 149, 40, 41, 77])
    alone = loss_changes(logits, labels, weights[:, some], -2 * q[:, some], TEMPERATURE)
    torch.testing.assert_close(alone, whole[:, some], rtol=1e-12, atol=1e-13)


def test_logits_of_half_the_precision_are_taken_as_they_are() -> None:
    logits, labels, weights, q = head()
    short = logits.float()
    found = loss_changes(short, labels, weights.float(), -q.float(), TEMPERATURE)
    expected = by_cross_entropy(
        short.double(), labels, weights.float().double(), -q.float().double()
    )
    assert found.dtype == torch.float64
    assert float((found - expected).abs().max()) < 2 * TOLERANCE


@pytest.mark.parametrize("size", [0.0, 0.5, 3.0])
def test_the_label_stays_on_top_where_a_look_at_all_classes_says_so(size: float) -> None:
    made = torch.Generator().manual_seed(1)
    # Whole numbers, so that classes tie, before and after.
    logits = torch.randint(-4, 5, (400, 6), generator=made).double()
    weights = torch.randint(-2, 3, (6, 9), generator=made).double()
    labels = torch.randint(6, (400,), generator=made)
    shifts = size * torch.randint(-2, 3, (400, 9), generator=made).double()
    found = correct_after(logits, labels, weights, shifts)
    for k in range(9):
        moved = logits + shifts[:, k, None] * weights[:, k]
        expected = moved[torch.arange(400), labels] == moved.amax(dim=1)
        assert torch.equal(found[:, k], expected)


def test_what_does_not_fit_together_is_refused() -> None:
    logits, labels, weights, q = head()
    with pytest.raises(ShapeError, match="expected one label an image"):
        loss_changes(logits, labels[:-1], weights, q, TEMPERATURE)
    with pytest.raises(ShapeError, match="a row of weights a class"):
        loss_changes(logits, labels, weights[:-1], q, TEMPERATURE)
    with pytest.raises(ShapeError, match="expected one for each of 300 images and 70 neurons"):
        loss_changes(logits, labels, weights, q[:, :-1], TEMPERATURE)
    with pytest.raises(ShapeError, match="leave out images"):
        correct_after(logits, labels + 1, weights, q)
