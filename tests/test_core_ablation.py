"""Ablation scores and their lines, against plain sums, NumPy's fits, SciPy's minimisers and Adam."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import differential_evolution
from torch import Tensor

from core.ablation import Lines, ablation_scores, norm_lines, optimal_lines
from core.errors import ShapeError
from core.linear_head import LinearHead, loss_changes

TEMPERATURE = 1.1


class Head:
    """A made layer before a linear head, with predictions, and its changes of loss two ways."""

    def __init__(self, images: int = 300, neurons: int = 40, noise: float = 1.5) -> None:
        made = torch.Generator().manual_seed(images)
        classes = 40
        self.weights = 0.15 * torch.randn(classes, neurons, generator=made, dtype=torch.float64)
        self.labels = torch.randint(classes, (images,), generator=made)
        cause = 4 * self.weights[self.labels]
        cause += torch.randn(images, neurons, generator=made, dtype=torch.float64)
        self.q = torch.relu(cause)
        self.s = 2 * cause + 1 + noise * torch.randn(cause.shape, generator=made).double()
        self.logits = self.q @ self.weights.T
        typical = self.q.mean(dim=0) - self.q
        self.head = LinearHead(self.logits, self.labels, self.weights, TEMPERATURE, typical, 100)
        self._log_p = torch.log_softmax(self.logits / TEMPERATURE, dim=1)
        self._steps = self.weights - self.weights[self.labels][:, None]

    def changes(self, values: Tensor) -> Tensor:
        return self.head.changes(values - self.q)

    def plain(self, values: Tensor, columns: slice = slice(None)) -> Tensor:
        """The same by a softmax over all classes, as automatic differentiation can follow it."""
        u = (values - self.q[:, columns]) / TEMPERATURE
        return torch.logsumexp(
            self._log_p[:, :, None] + u[:, None, :] * self._steps[:, :, columns], dim=1
        )

    def left(self, lines: Lines) -> Tensor:
        return self.plain(lines.values(self.s)).abs().sum(dim=0)


def adam(made: Head, rate: float, steps: int = 100) -> Lines:
    """The published search, every neuron on its own."""
    c = torch.ones(made.q.shape[1], dtype=torch.float64, requires_grad=True)
    d = torch.zeros(made.q.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([c, d], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        made.plain(c * made.s + d).abs().sum().backward()
        optimizer.step()
    return Lines(c.detach(), d.detach())


def test_a_perfect_prediction_scores_one_and_the_mean_scores_zero() -> None:
    made = Head()
    mean = made.q.mean(dim=0).expand_as(made.q)
    at_mean = made.changes(mean)
    perfect, none = (ablation_scores(made.changes(v), at_mean) for v in (made.q, mean))
    assert torch.equal(perfect.score, torch.ones(40, dtype=torch.float64))
    assert torch.equal(none.score, torch.zeros(40, dtype=torch.float64))
    assert torch.equal(perfect.standard_error, torch.zeros(40, dtype=torch.float64))


def test_a_score_is_one_less_the_ratio_of_sums_of_absolute_changes() -> None:
    made = Head()
    mean = made.q.mean(dim=0)
    lines = norm_lines(made.q, made.s)
    found = ablation_scores(
        made.changes(lines.values(made.s)), made.changes(mean.expand_as(made.q))
    )
    for k in range(made.q.shape[1]):
        column = slice(k, k + 1)
        value = lines.c[k] * made.s[:, column] + lines.d[k]
        above = made.plain(value, column).abs().sum()
        below = made.plain(mean[k].expand(len(value), 1), column).abs().sum()
        assert float(found.score[k]) == pytest.approx(float(1 - above / below), abs=1e-7)


def test_the_standard_error_is_that_of_the_bootstrap() -> None:
    made = Head(images=2000, neurons=3)
    lines = norm_lines(made.q, made.s)
    x = made.changes(lines.values(made.s)).abs()
    y = made.changes(made.q.mean(dim=0).expand_as(made.q)).abs()
    found = ablation_scores(x, y)
    rng = np.random.default_rng(0)
    again = torch.from_numpy(rng.integers(0, len(x), (2000, len(x))))
    spread = (1 - x[again].sum(dim=1) / y[again].sum(dim=1)).std(dim=0)
    torch.testing.assert_close(found.standard_error, spread, rtol=0.06, atol=0)


def test_a_neuron_whose_mean_costs_nothing_has_no_score() -> None:
    dead = torch.zeros(10, 2, dtype=torch.float64)
    dead[:, 1] = 1.0
    found = ablation_scores(dead, dead)
    assert torch.isnan(found.score).tolist() == [True, False]
    assert torch.isnan(ablation_scores(dead[:1], dead[:1]).standard_error).all()


def test_norm_is_the_least_squares_line_and_the_published_formula() -> None:
    made = Head()
    lines = norm_lines(made.q, made.s)
    for k in range(made.q.shape[1]):
        q, s = made.q[:, k].numpy(), made.s[:, k].numpy()
        c, d = np.polyfit(s, q, 1)
        assert (float(lines.c[k]), float(lines.d[k])) == pytest.approx((c, d), abs=1e-10)
        rho = np.corrcoef(q, s)[0, 1]
        published = (s - s.mean()) / s.std() * q.std() * rho + q.mean()
        np.testing.assert_allclose(lines.values(made.s)[:, k], published, atol=1e-10)


def test_no_line_found_by_a_hundred_steps_of_adam_is_better() -> None:
    worse = 0
    for images, noise in ((100, 1.0), (300, 4.0)):
        made = Head(images, 40, noise)
        ours = made.left(optimal_lines(made.changes, made.q, made.s))
        for rate in (0.01, 0.1):
            worse += int((ours > made.left(adam(made, rate)) * (1 + 1e-6)).sum())
    assert worse <= 1  # of 160


def test_no_line_found_by_a_search_over_the_whole_plane_is_better() -> None:
    made = Head(images=60, neurons=6)
    found = optimal_lines(made.changes, made.q, made.s)
    for k in range(6):
        column = slice(k, k + 1)

        def objective(line: np.ndarray, column: slice = column) -> float:
            value = line[0] * made.s[:, column] + line[1]
            return float(made.plain(value, column).abs().sum())

        best = differential_evolution(objective, [(-3, 3), (-3, 3)], seed=0, maxiter=60, tol=1e-8)
        assert objective(np.array([float(found.c[k]), float(found.d[k])])) <= best.fun * (1 + 1e-5)


def test_a_planted_line_is_found() -> None:
    made = Head(images=200)
    planted = (made.q + 1.7) / 0.4
    lines = optimal_lines(made.changes, made.q, planted)
    assert float(made.changes(lines.values(planted)).abs().max()) < 1e-6
    torch.testing.assert_close(lines.c, torch.full_like(lines.c, 0.4), rtol=0, atol=1e-5)
    torch.testing.assert_close(lines.d, torch.full_like(lines.d, -1.7), rtol=0, atol=1e-5)


def test_a_line_is_no_worse_than_any_of_its_starts() -> None:
    made = Head(noise=30.0)
    ours = made.left(optimal_lines(made.changes, made.q, made.s))
    zero, one = torch.zeros(40, dtype=torch.float64), torch.ones(40, dtype=torch.float64)
    starts = [Lines(one, zero), Lines(zero, made.q.mean(dim=0)), norm_lines(made.q, made.s)]
    for start in starts:
        assert (ours <= made.left(start) * (1 + 1e-7)).all()


def test_a_line_depends_on_its_own_neuron_alone() -> None:
    made = Head()
    whole = optimal_lines(made.changes, made.q, made.s)
    some = torch.tensor([39, 7, 8])
    head = LinearHead(
        made.logits, made.labels, made.weights[:, some], TEMPERATURE, -made.q[:, some]
    )
    q, s = made.q[:, some], made.s[:, some]
    alone = optimal_lines(lambda v: head.changes(v - q), q, s)
    torch.testing.assert_close(alone.c, whole.c[some], rtol=0, atol=1e-4)
    torch.testing.assert_close(alone.d, whole.d[some], rtol=0, atol=1e-4)


def test_neurons_and_predictions_that_do_not_vary_get_the_mean() -> None:
    made = Head()
    q, s = made.q.clone(), made.s.clone()
    q[:, 0], s[:, 1] = 0.25, 3.0

    def changes(values: Tensor) -> Tensor:
        return loss_changes(made.logits, made.labels, made.weights, values - q, TEMPERATURE)

    for lines in (norm_lines(q, s), optimal_lines(changes, q, s)):
        assert torch.isfinite(lines.c).all()
        torch.testing.assert_close(lines.values(s)[:, 0], q[:, 0], rtol=0, atol=1e-9)
        assert float(lines.values(s)[:, 1].std()) == 0.0


def test_a_prediction_that_is_not_finite_costs_its_own_neuron_only() -> None:
    made = Head()
    s = made.s.clone()
    s[4, 2] = torch.nan
    lines = optimal_lines(made.changes, made.q, s)
    assert torch.nonzero(torch.isnan(lines.c)).flatten().tolist() == [2]
    clean = optimal_lines(made.changes, made.q, made.s)
    others = torch.arange(40) != 2
    assert torch.equal(lines.c[others], clean.c[others])


def test_what_does_not_fit_together_is_refused() -> None:
    made = Head(images=20)
    with pytest.raises(ShapeError, match="expected the same images and neurons"):
        norm_lines(made.q, made.s[:-1])
    with pytest.raises(ShapeError, match="at least one image"):
        optimal_lines(made.changes, made.q[:0], made.s[:0])
    with pytest.raises(ShapeError, match="changes of loss of shapes"):
        ablation_scores(made.q, made.q, torch.ones(3, 3))
