"""Scores from drawn images: unbiased, with intervals that cover, by repeated draws from a made layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from core.ablation import ablation_scores
from core.errors import ConfigError, ShapeError
from core.importance_sampling import EQUAL, doubts, draw_images, first_order_importance

IMAGES, REPEATS = 5000, 2500


def layer(kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Changes of loss of one neuron at its prediction and at its mean, and first-order importance."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(IMAGES)
    q = {"even": x, "rectified": np.maximum(x - 1, 0), "heavy": np.exp(1.2 * x)}[kind]
    doubt = rng.beta(0.5, 1.0, IMAGES) * 1.4
    # What a pass through the network would tell: not known to the draw.
    slope = doubt * rng.standard_normal(IMAGES) * np.exp(0.5 * rng.standard_normal(IMAGES))
    away = q - q.mean()
    replaced = q.mean() + 0.2 * away + 0.3 * q.std() * rng.standard_normal(IMAGES)
    importance = first_order_importance(q, replaced[:, None], float(q.mean()), doubt)
    curved = 1 + 0.1 * np.tanh(replaced)
    return slope * (replaced - q) * curved, slope * away, importance


def repeated(kind: str, draws: int, equal: float = EQUAL) -> tuple[float, np.ndarray, np.ndarray]:
    """The score of all images, and scores and errors of many draws."""
    replaced, at_mean, importance = layer(kind)
    every = torch.from_numpy(np.stack([replaced, at_mean], axis=1))
    true = ablation_scores(every[:, :1], every[:, 1:]).score
    rng = np.random.default_rng(1)
    made = [draw_images(importance, draws, rng, equal) for _ in range(REPEATS)]
    images = torch.from_numpy(np.stack([one.images for one in made], axis=1))
    weights = torch.from_numpy(np.stack([one.weights for one in made], axis=1))
    found = ablation_scores(every[:, 0][images], every[:, 1][images], weights)
    return float(true), found.score.numpy(), found.standard_error.numpy()


@pytest.mark.parametrize("kind", ["even", "rectified", "heavy"])
def test_nineteen_of_twenty_intervals_hold_the_score_of_all_images(kind: str) -> None:
    true, score, error = repeated(kind, 500)
    covered = np.mean(np.abs(score - true) <= 1.96 * error)
    assert 0.93 <= covered <= 0.97
    # A ratio's bias shrinks with the draws; it is far below the error of one score.
    assert abs(score.mean() - true) < 0.1 * error.mean()
    assert error.mean() == pytest.approx(score.std(), rel=0.08)


@pytest.mark.parametrize(("kind", "gain"), [("even", 1.4), ("rectified", 1.4), ("heavy", 1.4)])
def test_drawing_by_importance_needs_fewer_images(kind: str, gain: float) -> None:
    _, by_importance, _ = repeated(kind, 300)
    _, evenly, _ = repeated(kind, 300, equal=1.0)
    assert by_importance.std() * gain < evenly.std()


def test_doubt_is_the_length_of_the_gradient_of_the_loss() -> None:
    made = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 7, generator=made, dtype=torch.float64)
    labels = torch.randint(7, (50,), generator=made)
    scaled = (4 * logits / 1.1).requires_grad_()
    cross_entropy(scaled, labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
    assert scaled.grad is not None
    found = doubts(4 * logits.numpy(), labels.numpy(), 1.1)
    np.testing.assert_allclose(found, scaled.grad.norm(dim=1), rtol=1e-12)


def test_importance_is_the_residual_of_a_ratio_whose_weighted_sum_is_nought() -> None:
    rng = np.random.default_rng(4)
    q, s, doubt = rng.random(60), rng.random((60, 3)), rng.random(60)
    parts = []
    for k in range(3):
        found = first_order_importance(q, s[:, [k]], 0.4, doubt)
        signed = doubt * (np.abs(s[:, k] - q)) - doubt * np.abs(q - 0.4)
        whole = doubt * np.abs(q - 0.4)
        signed -= whole * signed.sum() / whole.sum()
        np.testing.assert_allclose(found, np.abs(signed), atol=1e-12)
        parts.append(found)
    every = first_order_importance(q, s, 0.4, doubt)
    np.testing.assert_allclose(every, np.sqrt(np.mean(np.square(parts), axis=0)))
    assert not first_order_importance(np.full(9, 0.4), np.full((9, 1), 0.4), 0.4, doubt[:9]).any()


def test_weighted_sums_are_unbiased_for_sums_over_all_images() -> None:
    _, at_mean, importance = layer("heavy")
    rng = np.random.default_rng(2)
    sums = []
    for _ in range(4000):
        drawn = draw_images(importance, 50, rng)
        sums.append((np.abs(at_mean[drawn.images]) * drawn.weights).sum())
    error = np.std(sums) / np.sqrt(len(sums))
    assert np.mean(sums) == pytest.approx(np.abs(at_mean).sum(), abs=4 * error)


def test_images_are_drawn_as_often_as_their_chances_say() -> None:
    importance = np.array([0.0, 1.0, 3.0, 0.0])
    drawn = draw_images(importance, 200_000, np.random.default_rng(3), equal=0.2)
    chances = 0.2 / 4 + 0.8 * importance / 4
    found = np.bincount(drawn.images, minlength=4) / 200_000
    np.testing.assert_allclose(found, chances, atol=0.005)
    np.testing.assert_allclose(drawn.weights, 1 / (200_000 * chances[drawn.images]))


def test_without_importance_all_images_are_equally_likely() -> None:
    drawn = draw_images(np.zeros(10), 100, np.random.default_rng(0))
    np.testing.assert_allclose(drawn.weights, 10 / 100)
    assert set(drawn.images) == set(range(10))


def test_the_same_generator_draws_the_same_images() -> None:
    importance = np.arange(100.0)
    one, two = (draw_images(importance, 30, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(one.images, two.images)


def test_what_cannot_be_drawn_from_is_refused() -> None:
    rng = np.random.default_rng(0)
    for importance in (np.array([]), np.array([1.0, -1.0]), np.array([np.nan]), np.ones((2, 2))):
        with pytest.raises(ShapeError, match="none negative"):
            draw_images(importance, 5, rng)
    with pytest.raises(ConfigError, match="expected at least 1"):
        draw_images(np.ones(3), 0, rng)
    with pytest.raises(ConfigError, match="of the chances equal"):
        draw_images(np.ones(3), 3, rng, equal=0.0)
