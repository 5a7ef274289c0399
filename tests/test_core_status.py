"""Statuses: every neuron gets one, and none touches another."""

from __future__ import annotations

import numpy as np
import pytest

from core.moments import CrossMoments
from core.status import STATUSES, explainable, neuron_statuses


def moments(columns: list[np.ndarray]) -> CrossMoments:
    images = len(columns[0])
    p = np.random.default_rng(0).random((images, 3))
    return CrossMoments.of(p, np.stack(columns, axis=1))


def test_each_status_is_given_for_its_own_reason() -> None:
    rng = np.random.default_rng(1)
    alive = rng.standard_normal(400)
    columns = [
        alive,
        np.zeros(400),
        np.full(400, 0.1),
        100 + 1e-3 * alive,
        np.where(np.arange(400) == 7, np.nan, alive),
        np.where(np.arange(400) == 7, np.inf, alive),
    ]
    expected = ["ok", "dead", "constant", "low-variance", "failed", "failed"]
    cross = moments(columns)
    assert neuron_statuses(cross).tolist() == expected
    assert set(expected) == set(STATUSES)
    assert explainable(cross).tolist() == [True] + [False] * 5


@pytest.mark.parametrize("mean", [0.01, 1.0, 37.0, 2000.0])
def test_low_variance_means_below_the_resolution_of_float16(mean: float) -> None:
    above = float(np.nextafter(np.float16(mean), np.float16(np.inf)))
    step = above - float(np.float16(mean))
    signs = np.where(np.arange(1000) % 2, 1.0, -1.0)
    centre = float(np.float16(mean))
    statuses = neuron_statuses(moments([centre + 0.9 * step * signs, centre + 1.1 * step * signs]))
    assert statuses.tolist() == ["low-variance", "ok"]


def test_activations_that_would_overflow_float16_get_a_status_too() -> None:
    signs = np.where(np.arange(100) % 2, 1.0, -1.0)
    statuses = neuron_statuses(moments([1e9 + signs, 1e9 * (1 + signs), 65504 + 0 * signs]))
    assert statuses.tolist() == ["low-variance", "ok", "constant"]
