"""CLIP-Dissect: soft-WPMI against a plain loop over its definition, and planted neurons."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.dissect import (
    FIRST,
    LAST,
    TEMPERATURE,
    TOP,
    Likelihoods,
    TopImages,
    concept_probabilities,
    membership,
    soft_wpmi,
)
from core.errors import ShapeError


def plain_soft_wpmi(
    similarity: np.ndarray, activations: np.ndarray, top: int, prior_weight: float
) -> np.ndarray:
    """The definition, one image, neuron and concept at a time."""
    images, concepts = similarity.shape
    neurons = activations.shape[1]
    given_image = np.empty((images, concepts))
    for x in range(images):
        scaled = [math.exp(TEMPERATURE * s) for s in similarity[x]]
        given_image[x] = [value / sum(scaled) for value in scaled]
    log_likelihood = np.empty((neurons, concepts))
    for k in range(neurons):
        ranked = sorted(range(images), key=lambda x: (-activations[x, k], x))[:top]
        for t in range(concepts):
            log_likelihood[k, t] = 0.0
            for place, x in enumerate(ranked):
                m = FIRST + (LAST - FIRST) * place / (len(ranked) - 1)
                log_likelihood[k, t] += math.log(1 + m * (given_image[x, t] - 1))
    prior = np.log([np.mean([math.exp(v) for v in column]) for column in log_likelihood.T])
    return log_likelihood - prior_weight * prior


def in_pieces(similarity: np.ndarray, activations: np.ndarray, top: int, pieces: int) -> np.ndarray:
    """log p(t | k) with images coming by a few at a time, in any number of lots."""
    parts = np.array_split(np.arange(len(activations)), pieces)
    found = TopImages.of(activations[parts[0]], parts[0], top)
    for part in parts[1:]:
        found = found.merge(TopImages.of(activations[part], part, top), top)
    likelihoods = Likelihoods(activations.shape[1], similarity.shape[1])
    places, neurons = np.indices(found.images.shape)
    members = membership(len(found.images))[places]
    for part in parts:
        hit = np.isin(found.images, part)
        rows = found.images[hit] - part[0]
        likelihoods.add(concept_probabilities(similarity[part]), rows, neurons[hit], members[hit])
    return likelihoods.log


@pytest.mark.parametrize("prior_weight", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("pieces", [1, 7])
def test_soft_wpmi_is_that_of_a_plain_loop(pieces: int, prior_weight: float) -> None:
    rng = np.random.default_rng(0)
    similarity = rng.uniform(-0.1, 0.4, (60, 9))
    activations = np.maximum(rng.standard_normal((60, 5)), 0)  # with many ties at zero
    found = soft_wpmi(in_pieces(similarity, activations, 40, pieces), prior_weight)
    expected = plain_soft_wpmi(similarity, activations, 40, prior_weight)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 9))
def test_the_top_images_do_not_depend_on_how_images_are_divided(
    seed: int, pieces: int, top: int
) -> None:
    rng = np.random.default_rng(seed)
    activations = rng.integers(0, 4, (13, 3)).astype(np.float16)  # ties everywhere
    images = np.arange(100, 113)
    whole = TopImages.of(activations, images, top)
    parts = np.array_split(np.arange(13), pieces)
    total = TopImages.of(activations[parts[0]], images[parts[0]], top)
    for part in parts[1:]:
        total = total.merge(TopImages.of(activations[part], images[part], top), top)
    np.testing.assert_array_equal(total.images, whole.images)
    np.testing.assert_array_equal(total.values, whole.values)


def test_equal_activations_are_ranked_by_the_order_of_the_images() -> None:
    top = TopImages.of(np.array([[1.0], [3.0], [3.0], [np.nan], [2.0]]), np.arange(5), 4)
    assert top.images[:, 0].tolist() == [1, 2, 4, 0]


def test_planted_neurons_are_named_by_their_concept() -> None:
    rng = np.random.default_rng(1)
    images, concepts = 3000, 50
    similarity = rng.normal(0.15, 0.02, (images, concepts))
    present = rng.random((images, concepts)) < 0.05
    similarity[present] += 0.12
    # One concept looks like everything: the prior must keep it from naming every neuron.
    similarity[:, 0] += 0.15
    owner = 1 + rng.permutation(concepts - 1)[:30]
    activations = present[:, owner] + 0.2 * rng.standard_normal((images, 30))
    likelihood = in_pieces(similarity, activations, TOP, 4)
    named = soft_wpmi(likelihood).argmax(axis=1)
    assert (named == owner).mean() == 1.0
    assert (soft_wpmi(likelihood, prior_weight=0.0).argmax(axis=1) == 0).mean() > 0.9


def test_probabilities_of_an_image_sum_to_one_and_follow_the_similarity() -> None:
    similarity = np.random.default_rng(2).uniform(-1, 1, (8, 6)).astype(np.float32)
    found = concept_probabilities(similarity)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-14)
    np.testing.assert_array_equal(found.argsort(axis=1), similarity.argsort(axis=1))


def test_a_hundred_impossible_images_leave_a_likelihood_that_is_still_a_number() -> None:
    likelihoods = Likelihoods(1, 1)
    zero = np.zeros(TOP, dtype=np.int64)
    likelihoods.add(np.zeros((1, 1)), zero, zero, membership(TOP))
    expected = np.log1p(-membership(TOP)).sum()
    assert likelihoods.log[0, 0] == pytest.approx(expected, rel=1e-12)


def test_arrays_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ShapeError, match="expected as many"):
        TopImages.of(np.zeros((3, 2)), np.arange(4))
    two, three = (TopImages.of(np.zeros((3, n)), np.arange(3)) for n in (2, 3))
    with pytest.raises(ShapeError, match="same neurons"):
        two.merge(three)
