"""Forward selection for a GPU held against the CPU's, and the ridge of both against raw data."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ShapeError
from core.forward import forward_paths
from core.forward_gpu import gpu_forward_paths
from core.moments import ConceptMoments, CrossMoments
from core.paths import Paths

Moments = tuple[ConceptMoments, CrossMoments]

devices = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
        ),
    ],
)
ridges = pytest.mark.parametrize("ridge", [0.0, 0.1, 3.0])


def recorded(images: int, concepts: int, neurons: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores that share causes, and neurons that are noisy sums of a few of them."""
    rng = np.random.default_rng(seed)
    causes = rng.standard_normal((images, max(2, concepts // 5)))
    logits = causes @ rng.standard_normal((causes.shape[1], concepts))
    p = 1 / (1 + np.exp(1 - logits - rng.standard_normal((images, concepts))))
    chosen = rng.random((concepts, neurons)) < min(0.5, 6 / concepts)
    q = p @ (rng.standard_normal(chosen.shape) * chosen)
    return p, q + 0.3 * rng.standard_normal(q.shape)


def moments(p: np.ndarray, q: np.ndarray) -> Moments:
    return ConceptMoments.of(p), CrossMoments.of(p, q)


def order(paths: Paths) -> list[list[int]]:
    """Concepts of each neuron in order of selection: the explanation of its greatest length."""
    return [
        paths.explanation(n, int(k))[0].tolist() if k else [] for n, k in enumerate(paths.available)
    ]


def assert_same(found: Paths, expected: Paths) -> None:
    """The same concepts; weights come from the same code, so they are the same bits."""
    np.testing.assert_array_equal(found.concepts, expected.concepts)
    np.testing.assert_array_equal(found.available, expected.available)
    np.testing.assert_array_equal(found.weights, expected.weights)
    np.testing.assert_array_equal(found.bias, expected.bias)


@devices
@ridges
@pytest.mark.parametrize("block", [None, 1, 2, 7, 30, 31, 1000])
def test_the_gpus_steps_are_the_cpus_in_blocks_of_any_size(
    device: str, ridge: float, block: int | None
) -> None:
    train = moments(*recorded(200, 60, 31, 0))
    expected = forward_paths(*train, 10, ridge=ridge)
    assert (expected.available == 10).all()
    assert_same(gpu_forward_paths(*train, 10, device, block, ridge), expected)


@devices
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    concepts=st.integers(2, 25),
    ridge=st.sampled_from([0.0, 0.1, 1.0]),
    block=st.integers(1, 8),
)
def test_they_agree_for_any_numbers_of_concepts_and_neurons(
    device: str, seed: int, concepts: int, ridge: float, block: int
) -> None:
    train = moments(*recorded(60, concepts, 2 + seed % 7, seed))
    expected = forward_paths(*train, 6, ridge=ridge)
    assert_same(gpu_forward_paths(*train, 6, device, block, ridge), expected)


@pytest.mark.parametrize(("concepts", "neurons"), [(1, 5), (12, 1)])
def test_moments_are_left_as_they_were_given(concepts: int, neurons: int) -> None:
    train = moments(*recorded(60, concepts, neurons, 9))
    before = train[1].cross.copy()
    gpu_forward_paths(*train, 4, "cpu")
    np.testing.assert_array_equal(train[1].cross, before)


@devices
@ridges
@pytest.mark.parametrize("block", [None, 1, 3, 9])
def test_neurons_with_nothing_to_explain_get_an_empty_path_and_disturb_no_other(
    device: str, ridge: float, block: int | None
) -> None:
    p, q = recorded(150, 30, 6, 1)
    clean = gpu_forward_paths(*moments(p, q), 8, device, ridge=ridge)
    mixed = np.column_stack([np.zeros(150), q[:, :3], np.full(150, 3.3), q[:, 3:], q[:, :2]])
    mixed[4, 8], mixed[5, 9] = np.nan, np.inf
    train = moments(p, mixed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = gpu_forward_paths(*train, 8, device, block, ridge)
    assert_same(paths, forward_paths(*train, 8, ridge=ridge))
    assert paths.available.tolist() == [0, 8, 8, 8, 0, 8, 8, 8, 0, 0]
    living = paths.available > 0
    np.testing.assert_array_equal(paths.concepts[living], clean.concepts)


@devices
def test_both_stop_where_everything_is_explained(device: str) -> None:
    p, _ = recorded(200, 30, 1, 2)
    train = moments(p, np.column_stack([2 * p[:, 5] - p[:, 8] + 4, p[:, 1]]))
    paths = gpu_forward_paths(*train, 10, device)
    assert paths.available.tolist() == [2, 1]
    assert [set(chosen) for chosen in order(paths)] == [{5, 8}, {1}]


@devices
def test_concepts_that_do_not_vary_or_do_not_exist_are_never_chosen(device: str) -> None:
    p, q = recorded(100, 8, 4, 3)
    p[:, [0, 5]] = 0.4
    paths = gpu_forward_paths(*moments(p, q), 10, device)
    assert (paths.available == 6).all()
    assert not np.isin(paths.concepts, [0, 5]).any()
    assert not gpu_forward_paths(*moments(p[:, :0], q), 4, device).available.any()


def test_moments_of_other_images_are_refused() -> None:
    p, q = recorded(50, 6, 2, 4)
    with pytest.raises(ShapeError, match="images and concepts"):
        gpu_forward_paths(ConceptMoments.of(p[:40]), CrossMoments.of(p, q), 3, "cpu")


def test_no_ridge_is_a_ridge_of_zero() -> None:
    train = moments(*recorded(200, 40, 12, 5))
    assert_same(forward_paths(*train, 10, ridge=0.0), forward_paths(*train, 10))


def left_of(values: np.ndarray, selection: np.ndarray) -> np.ndarray:
    """What least squares of columns on the selection, with a bias, leaves of them."""
    design = np.column_stack([selection, np.ones(len(values))])
    return np.asarray(values - design @ np.linalg.lstsq(design, values, rcond=None)[0])


def chosen_on_raw_data(p: np.ndarray, q: np.ndarray, max_length: int, ridge: float) -> list[int]:
    """Each step refits every candidate's residual, and fits its weight with the penalty."""
    centred = p - p.mean(axis=0)
    chosen: list[int] = []
    for _ in range(max_length):
        rest = left_of(q, p[:, chosen])
        losses = {}
        for concept in sorted(set(range(p.shape[1])) - set(chosen)):
            column = left_of(p[:, concept], p[:, chosen])
            penalty = ridge * centred[:, concept] @ centred[:, concept]
            weight = column @ rest / (column @ column + penalty)
            losses[concept] = np.sum((rest - weight * column) ** 2) + penalty * weight**2
        chosen.append(min(losses, key=losses.__getitem__))
    return chosen


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    concepts=st.integers(5, 11),
    ridge=st.sampled_from([0.0, 0.03, 0.1, 1.0, 10.0]),
)
def test_with_a_ridge_each_concept_has_the_least_penalised_residual(
    seed: int, concepts: int, ridge: float
) -> None:
    p, q = recorded(70, concepts, 2, seed)
    found = order(forward_paths(*moments(p, q), 5, ridge=ridge))
    assert found == [chosen_on_raw_data(p, neuron, 5, ridge) for neuron in q.T]


@devices
@ridges
def test_of_a_concept_and_its_copies_one_at_most_is_chosen(device: str, ridge: float) -> None:
    p, q = recorded(120, 10, 6, 6)
    p[:, 7] = p[:, 2]
    p[:, 9] = 1 - 0.5 * p[:, 2]
    q += 2 * p[:, [2]]
    train = moments(p, q)
    for paths in (
        forward_paths(*train, 10, ridge=ridge),
        gpu_forward_paths(*train, 10, device, ridge=ridge),
    ):
        assert (paths.available == 8).all()
        for chosen in order(paths):
            assert len({2, 7, 9} & set(chosen)) == 1


def test_the_ridge_is_for_the_choice_and_weights_are_those_of_least_squares() -> None:
    p, q = recorded(200, 30, 5, 7)
    paths = forward_paths(*moments(p, q), 6, ridge=0.5)
    for neuron in range(5):
        concepts, weights, bias = paths.explanation(neuron, 6)
        design = np.column_stack([p[:, concepts], np.ones(200)])
        expected = np.linalg.lstsq(design, q[:, neuron], rcond=None)[0]
        np.testing.assert_allclose([*weights, bias], expected, rtol=1e-8, atol=1e-10)


def test_a_ridge_passes_over_what_the_selection_has_nearly_said() -> None:
    rng = np.random.default_rng(8)
    p = rng.standard_normal((2000, 3))
    p[:, 1] = p[:, 0] + 0.05 * p[:, 1]  # nearly the first concept
    # What is left of one beside the other explains more than the third concept does.
    q = (2 * p[:, 0] + 0.8 * (p[:, 1] - p[:, 0]) / 0.05 + 0.4 * p[:, 2])[:, None]
    q += 0.1 * rng.standard_normal(q.shape)
    train = moments(p, q)
    assert order(forward_paths(*train, 2))[0][1] != 2
    assert order(forward_paths(*train, 2, ridge=0.1))[0][1] == 2
