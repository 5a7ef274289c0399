"""Impacts and shares against plain loops over the images of one neuron."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ConfigError, ShapeError
from core.importance import FRACTIONS, impacts, importance_shares


def test_an_impact_is_the_mean_of_lost_accuracy_and_added_loss() -> None:
    made = torch.Generator().manual_seed(0)
    correct = torch.rand(30, generator=made) < 0.7
    at_zero = torch.rand(30, 4, generator=made) < 0.5
    loss = torch.rand(30, generator=made).double()
    changes = torch.randn(30, 4, generator=made).double()
    found = impacts(correct, at_zero, loss, changes)
    for i in range(30):
        for k in range(4):
            lost = (int(correct[i]) - int(at_zero[i, k])) / int(correct.sum())
            added = (float(loss[i] + changes[i, k]) - float(loss[i])) / float(loss.sum())
            assert float(found[i, k]) == pytest.approx((lost + added) / 2, abs=1e-14)


def test_a_network_that_is_never_right_has_the_impact_of_its_loss() -> None:
    wrong = torch.zeros(5, dtype=torch.bool)
    changes = torch.ones(5, 1, dtype=torch.float64)
    found = impacts(wrong, wrong[:, None], torch.ones(5), changes)
    torch.testing.assert_close(found, changes / 10)
    assert not impacts(wrong, wrong[:, None], torch.zeros(5), changes).any()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_share_is_the_mean_over_all_orders_of_tied_images(data: st.DataObject) -> None:
    images = data.draw(st.integers(1, 5))
    levels = st.lists(st.integers(0, 3), min_size=images, max_size=images)
    q = np.array(data.draw(levels), dtype=float)
    size = np.array(data.draw(levels), dtype=float) - 1
    fraction = data.draw(st.floats(0.001, 1))
    found = importance_shares(torch.tensor(size[:, None]), torch.tensor(q[:, None]), [fraction])
    if not np.abs(size).sum():
        assert math.isnan(float(found))
        return
    count = math.ceil(fraction * images)
    sums = []
    for order in itertools.permutations(range(images)):
        ranked = sorted(order, key=lambda i: -q[i])  # stable: ties stay in this order
        sums.append(np.abs(size[ranked[:count]]).sum())
    assert float(found) == pytest.approx(np.mean(sums) / np.abs(size).sum(), abs=1e-12)


def test_planted_impact_is_found_where_it_lies() -> None:
    q = torch.randperm(10_000, generator=torch.Generator().manual_seed(0)).double()[:, None]
    impact = torch.where(q >= 9_980, -1.0, 0.0)
    impact[q < 5_000] = 1 / 250
    found = importance_shares(impact, q)[0].tolist()
    # Of 40 in all, 20 lie in the top 20 images and 20 in the lower half.
    assert found == pytest.approx([3 / 40, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert len(FRACTIONS) == 6
    assert float(importance_shares(impact, q, [1.0])) == pytest.approx(1.0)


def test_a_rectified_neurons_zeros_count_evenly() -> None:
    q = torch.zeros(100, 1)
    q[:10] = torch.arange(1, 11)[:, None].float()
    impact = torch.ones(100, 1)
    shares = importance_shares(impact, q, [0.05, 0.1, 0.5, 0.07])
    assert shares[0].tolist() == pytest.approx([0.05, 0.1, 0.5, 0.07])


def test_the_smallest_fraction_is_one_image() -> None:
    q = torch.tensor([[1.0], [3.0], [2.0]])
    impact = torch.tensor([[1.0], [5.0], [4.0]])
    assert float(importance_shares(impact, q, [1e-9])) == pytest.approx(0.5)


def test_a_neuron_without_impact_has_no_shares_and_others_do() -> None:
    q = torch.rand(20, 3, dtype=torch.float64)
    impact = torch.ones(20, 3)
    impact[:, 0] = 0
    q[4, 2] = torch.nan
    found = importance_shares(impact, q, [0.5])
    assert torch.isnan(found[:, 0]).tolist() == [True, False, True]


def test_what_does_not_fit_together_is_refused() -> None:
    q = torch.ones(4, 2)
    with pytest.raises(ShapeError, match="expected the same images and neurons"):
        importance_shares(q, q[:3])
    with pytest.raises(ConfigError, match="above 0, up to 1"):
        importance_shares(q, q, [0.0])
    with pytest.raises(ShapeError, match="expected the same images and neurons"):
        impacts(torch.ones(3) > 0, q > 0, torch.ones(4), q)
