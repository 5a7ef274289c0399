"""Cosine, AUPRC, F1 and IoU against scikit-learn, SciPy and counting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cosine as scipy_cosine
from scipy.stats import pearsonr
from sklearn.metrics import average_precision_score, f1_score, jaccard_score

from core.errors import ConfigError, ShapeError
from core.metrics import METRICS, auprc, average_precision, cosine, f1, iou, pearson, switched_on


def sparse_pair(images: int = 400, neurons: int = 70) -> tuple[np.ndarray, np.ndarray]:
    """Rectified activations with many zeros and ties, and predictions with ties."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((images, neurons))
    rising = np.linspace(-2.5, 1, neurons)
    actual = np.maximum(x + rising, 0).astype(np.float16)
    return actual, np.round(x + rng.standard_normal(x.shape), 1)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_average_precision_is_that_of_scikit_learn_with_any_ties(data: st.DataObject) -> None:
    images = data.draw(st.integers(2, 60))
    levels = st.one_of(st.integers(-3, 3), st.floats(-10, 10, allow_subnormal=False))
    scores = np.array(data.draw(st.lists(levels, min_size=images, max_size=images)), dtype=float)
    positive = np.array(data.draw(st.lists(st.booleans(), min_size=images, max_size=images)))
    found = average_precision(positive[:, None], scores[:, None])[0]
    if positive.any():
        assert found == pytest.approx(average_precision_score(positive, scores), abs=1e-12)
    else:
        assert np.isnan(found)


def test_all_measures_are_those_of_scikit_learn_and_scipy() -> None:
    actual, simulated = sparse_pair()
    found = {name: metric(actual, simulated) for name, metric in METRICS.items()}
    on, predicted = switched_on(actual), switched_on(simulated)
    for j in range(actual.shape[1]):
        a, s = actual[:, j].astype(float), simulated[:, j]
        if not on[:, j].any():
            assert np.isnan([found[name][j] for name in ("auprc", "f1", "iou")]).all()
            continue
        expected = {
            "pearson": pearsonr(a, s)[0],
            "cosine": 1 - scipy_cosine(a, s),
            "auprc": average_precision_score(on[:, j], s),
            "f1": f1_score(on[:, j], predicted[:, j]),
            "iou": jaccard_score(on[:, j], predicted[:, j]),
        }
        for name, value in expected.items():
            assert found[name][j] == pytest.approx(value, abs=1e-12), name


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_neuron_is_on_where_its_activation_is_among_the_highest(data: st.DataObject) -> None:
    images = data.draw(st.integers(2, 40))
    values = np.array(data.draw(st.lists(st.integers(0, 4), min_size=images, max_size=images)))
    tenths = data.draw(st.integers(1, 9))
    on = switched_on(values[:, None], tenths / 10)[:, 0]
    wanted = -(-tenths * images // 10)
    at_least_kth = np.array([np.sum(values > v) < wanted for v in values])
    np.testing.assert_array_equal(on, at_least_kth & (values > values.min()))


def test_a_neuron_without_ties_is_on_for_its_share_of_the_images() -> None:
    values = np.random.default_rng(1).standard_normal((1000, 3))
    for top in (0.001, 0.01, 0.05, 0.07, 0.5):
        assert switched_on(values, top).sum(axis=0).tolist() == [round(1000 * top)] * 3


def test_a_mostly_silent_neuron_is_on_only_where_it_is_active() -> None:
    values = np.zeros((100, 2))
    values[:3, 0] = 1, 2, 3
    values[:20, 1] = 6  # saturated: all twenty are the fifth highest
    assert switched_on(values).sum(axis=0).tolist() == [3, 20]


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 100), st.floats(-50, 50))
def test_units_change_nothing_but_a_shift_changes_the_cosine(scale: float, shift: float) -> None:
    actual, simulated = sparse_pair(120, 40)
    moved = simulated * scale + shift
    for name in ("pearson", "f1", "iou", "auprc"):
        before = METRICS[name](actual, simulated)
        np.testing.assert_allclose(METRICS[name](actual, moved), before, atol=1e-9)
    np.testing.assert_allclose(
        cosine(actual, simulated * scale), cosine(actual, simulated), atol=1e-12
    )


def test_a_centred_cosine_is_pearsons_correlation() -> None:
    actual, simulated = (v.astype(float) for v in sparse_pair())
    centred = [v - v.mean(axis=0) for v in (actual, simulated)]
    np.testing.assert_allclose(cosine(*centred), pearson(actual, simulated), atol=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", sorted(METRICS))
def test_undefined_scores_are_nan_and_disturb_no_other(name: str) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.random((2, 80, 7))
    clean = METRICS[name](x, y)
    x[:, 1], y[:, 2] = 0.0, 0.0
    x[3, 3], y[4, 4], x[5, 5] = np.nan, np.inf, -np.inf
    found = METRICS[name](x, y)
    assert np.isnan(found[1:6]).all()
    np.testing.assert_array_equal(found[[0, 6]], clean[[0, 6]])


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_neuron_has_the_same_score_whatever_neurons_are_beside_it(name: str) -> None:
    actual, simulated = sparse_pair(150, 130)
    whole = METRICS[name](actual, simulated)
    part = METRICS[name](actual[:, 60:101], simulated[:, 60:101])
    np.testing.assert_array_equal(part, whole[60:101])


def test_a_perfect_prediction_scores_one_and_a_useless_one_the_base_rate() -> None:
    rng = np.random.default_rng(3)
    actual = rng.random((20000, 2))
    simulated = np.column_stack([np.exp(actual[:, 0]), rng.random(20000)])
    assert auprc(actual, simulated) == pytest.approx([1, 0.05], abs=0.01)
    assert f1(actual, simulated) == pytest.approx([1, 0.05], abs=0.02)
    assert iou(actual, simulated) == pytest.approx([1, 0.026], abs=0.02)


def test_arrays_and_shares_that_do_not_fit_are_refused() -> None:
    x = np.random.default_rng(4).random((10, 2))
    for metric in METRICS.values():
        with pytest.raises(ShapeError, match="at least two images"):
            metric(x, x[:9])
    for top in (0, 1, 5):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            auprc(x, x, top)
