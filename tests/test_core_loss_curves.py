"""Loss curves against passes through a network at the values themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from core.ablation import norm_lines, optimal_lines
from core.errors import ShapeError
from core.loss_curves import LossCurves, nodes

WIDE, NEURONS, IMAGES = 24, 6, 80


class Rest:
    """What follows a layer, two more layers of some kind, and the losses of some images."""

    def __init__(self, kind: type[nn.Module]) -> None:
        torch.manual_seed(0)
        layers = [nn.Linear(WIDE, 32), kind(), nn.Linear(32, 32), kind(), nn.Linear(32, 7)]
        self.rest = nn.Sequential(*layers).double().requires_grad_(False)
        self.q = torch.relu(torch.randn(IMAGES, WIDE, dtype=torch.float64))
        self.labels = torch.randint(7, (IMAGES,))
        self.base = cross_entropy(self.rest(self.q), self.labels, reduction="none")
        self.low = self.q[:, :NEURONS].amin(dim=0)
        self.high = self.q[:, :NEURONS].amax(dim=0)

    def losses(self, values: Tensor) -> Tensor:
        """With each of the first neurons, alone, at its column of values."""
        columns = []
        for k in range(values.shape[1]):
            moved = self.q.clone()
            moved[:, k] = values[:, k]
            columns.append(cross_entropy(self.rest(moved), self.labels, reduction="none"))
        return torch.stack(columns, dim=1)

    def curves(self, count: int) -> LossCurves:
        table = [self.losses(v.expand(IMAGES, -1)) for v in nodes(self.low, self.high, count).T]
        return LossCurves(
            self.low, self.high, torch.stack(table, dim=2).transpose(0, 1), self.recorded
        )

    @property
    def recorded(self) -> Tensor:
        return self.q[:, :NEURONS]


def test_a_polynomial_of_lower_degree_is_given_back_exactly() -> None:
    made = torch.Generator().manual_seed(0)
    low = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    high = torch.tensor([1.0, 5.0, 2.5], dtype=torch.float64)
    values = low + (high - low) * torch.rand(50, 3, generator=made, dtype=torch.float64)
    recorded = low + (high - low) * torch.rand(50, 3, generator=made, dtype=torch.float64)
    slope = torch.randn(50, 3, generator=made, dtype=torch.float64)

    def loss(v: Tensor) -> Tensor:
        return 1 + slope * v - 0.3 * v**2 + 0.05 * slope * v**4

    table = torch.stack([loss(v.expand(50, 3)) for v in nodes(low, high, 5).T], dim=2)
    curves = LossCurves(low, high, table.transpose(0, 1), recorded)
    torch.testing.assert_close(curves.changes(values), loss(values) - loss(recorded))
    assert float(curves.interpolation_error(loss(recorded)).max()) < 1e-12


def test_nodes_rise_and_lie_inside_of_the_interval() -> None:
    low = torch.tensor([-3.0, 10.0], dtype=torch.float64)
    found = nodes(low, low + 4, 9)
    assert found.shape == (2, 9)
    assert (found.diff(dim=1) > 0).all()
    assert (found > low[:, None]).all()
    assert (found < low[:, None] + 4).all()
    torch.testing.assert_close(found.mean(dim=1), low + 2)


@pytest.mark.parametrize(("kind", "error"), [(nn.Softplus, 1e-6), (nn.ReLU, 0.03)])
def test_changes_are_those_of_passes_at_the_values(kind: type[nn.Module], error: float) -> None:
    rest = Rest(kind)
    values = rest.low + (rest.high - rest.low) * torch.rand(IMAGES, NEURONS, dtype=torch.float64)
    true = rest.losses(values) - rest.base[:, None]
    few, many = ((rest.curves(n).changes(values) - true).abs().mean() for n in (3, 9))
    assert float(many) < error * float(true.abs().mean())
    assert float(many) < float(few) / 3


def test_a_perfect_prediction_changes_nothing_whatever_the_error() -> None:
    curves = Rest(nn.ReLU).curves(3)
    recorded = Rest(nn.ReLU).recorded
    assert torch.equal(curves.changes(recorded), torch.zeros_like(recorded))


def test_the_error_told_is_that_at_the_recorded_activations() -> None:
    rest = Rest(nn.ReLU)
    curves = rest.curves(4)
    base = rest.base[:, None].expand(IMAGES, NEURONS)
    told = curves.interpolation_error(base)
    # Another way to the polynomial at the recorded value: Lagrange's formula.
    x, q = nodes(rest.low, rest.high, 4), rest.recorded
    losses = torch.zeros_like(q)
    for j in range(4):
        term = torch.ones_like(q)
        for m in set(range(4)) - {j}:
            term = term * (q - x[:, m]) / (x[:, j] - x[:, m])
        losses += term * rest.losses(x[:, j].expand(IMAGES, NEURONS))
    torch.testing.assert_close(told, (losses - base).abs())
    assert float(told.max()) > 1e-4


def test_values_outside_of_an_interval_count_as_its_end_and_are_counted() -> None:
    rest = Rest(nn.Softplus)
    curves = rest.curves(9)
    values = rest.recorded.clone()
    values[:20] = rest.high + 5
    values[20:30] = rest.low - 5
    torch.testing.assert_close(curves.outside(values), torch.full((NEURONS,), 30 / IMAGES).double())
    ends = values.clamp(min=rest.low, max=rest.high)
    assert torch.equal(curves.changes(values), curves.changes(ends))


def test_a_neuron_that_does_not_vary_has_a_flat_curve() -> None:
    low = torch.tensor([2.0], dtype=torch.float64)
    losses = torch.rand(1, 5, 1, dtype=torch.float64).expand(1, 5, 4)
    curves = LossCurves(low, low, losses, low.expand(5, 1))
    assert float(curves.changes(low.expand(5, 1) + 7).abs().max()) < 1e-14


def test_the_best_line_on_curves_is_the_best_line_on_passes() -> None:
    rest = Rest(nn.Softplus)
    made = torch.Generator().manual_seed(5)
    s = rest.recorded + 0.5 * torch.randn(IMAGES, NEURONS, generator=made, dtype=torch.float64)
    curves = rest.curves(13)

    def passes(values: Tensor) -> Tensor:
        ends = values.clamp(min=rest.low, max=rest.high)
        return rest.losses(ends) - rest.base[:, None]

    by_curves = optimal_lines(curves.changes, rest.recorded, s)
    by_passes = optimal_lines(passes, rest.recorded, s)
    left, least = (passes(line.values(s)).abs().sum(dim=0) for line in (by_curves, by_passes))
    torch.testing.assert_close(left, least, rtol=1e-4, atol=0)
    assert (least < passes(norm_lines(rest.recorded, s).values(s)).abs().sum(dim=0)).all()


def test_what_does_not_fit_together_is_refused() -> None:
    ends = torch.zeros(3)
    with pytest.raises(ShapeError, match="at least two nodes"):
        nodes(ends, ends + 1, 1)
    with pytest.raises(ShapeError, match="one lower and one upper end"):
        nodes(ends, ends[:2], 5)
    with pytest.raises(ShapeError, match="neurons × images × nodes"):
        LossCurves(ends, ends + 1, torch.zeros(3, 4, 5), torch.zeros(3, 4))
