"""Concept scores, and which concepts occur."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.concept_scores import ConceptActivity, sigmoid_scores
from core.errors import ShapeError


def embeddings(rows: int, dimension: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float16)


def test_scores_are_the_sigmoid_of_scaled_and_shifted_cosines() -> None:
    images, texts = embeddings(30, 17, 0), embeddings(11, 17, 1)
    found = sigmoid_scores(images, texts, slope=60.0, shift=-0.09)
    assert found.dtype == np.float32
    for i, j in itertools.product(range(30), range(11)):
        a, b = images[i].astype(float), texts[j].astype(float)
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert found[i, j] == pytest.approx(1 / (1 + np.exp(-60 * (cosine - 0.09))), rel=1e-5)


def test_norms_of_embeddings_do_not_matter() -> None:
    images, texts = embeddings(9, 8, 2).astype(np.float64), embeddings(5, 8, 3).astype(np.float64)
    lengths = np.geomspace(1e-3, 1e3, 9)[:, None]
    np.testing.assert_allclose(
        sigmoid_scores(images * lengths, 7 * texts, 20.0, 0.1),
        sigmoid_scores(images, texts, 20.0, 0.1),
        rtol=1e-6,
    )


def test_an_image_has_the_same_scores_whatever_images_are_beside_it() -> None:
    images, texts = embeddings(500, 96, 4), embeddings(70, 96, 5)
    whole = sigmoid_scores(images, texts, 58.0, -0.1)
    for part in (slice(0, 1), slice(3, 40), slice(200, 500)):
        np.testing.assert_array_equal(sigmoid_scores(images[part], texts, 58.0, -0.1), whole[part])
    np.testing.assert_array_equal(sigmoid_scores(images, texts[20:33], 58.0, -0.1), whole[:, 20:33])


def test_an_embedding_without_direction_has_no_scores_and_steep_slopes_stay_in_range() -> None:
    images, texts = embeddings(4, 8, 6), embeddings(3, 8, 7)
    images[2] = 0
    found = sigmoid_scores(images, texts, 1e4, 0.0)
    assert np.isnan(found[2]).all()
    others = found[[0, 1, 3]]
    assert ((others >= 0) & (others <= 1)).all()


def test_embeddings_of_two_models_are_refused() -> None:
    with pytest.raises(ShapeError, match="one model"):
        sigmoid_scores(embeddings(4, 8, 0), embeddings(4, 9, 0), 1.0, 0.0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=5))
def test_merged_activity_equals_one_pass_for_any_partition(cuts: list[int]) -> None:
    scores = np.random.default_rng(8).random((40, 6)).astype(np.float16)
    edges = [0, *sorted(cuts), 40]
    total = ConceptActivity.of(scores[:0])
    for a, b in itertools.pairwise(edges):
        total = total.merge(ConceptActivity.of(scores[a:b]))
    exact = scores.astype(np.float64)
    assert total.count == 40
    np.testing.assert_allclose(total.mean, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(total.scatter, 40 * exact.var(axis=0), rtol=1e-11)
    np.testing.assert_array_equal(total.top, np.sort(exact, axis=0)[::-1][:5])


def test_a_concept_is_active_when_it_gets_high_and_varies() -> None:
    scores = np.zeros((1000, 5))
    scores[:5, 0] = 0.5  # exactly at the limit
    scores[:4, 1] = 0.6  # high, but not often enough: the mean of five is .48
    scores[:, 2] = 0.9  # high everywhere
    scores[:, 3] = 0.9 + 2e-5 * (np.arange(1000) % 2 * 2 - 1)
    scores[:50, 4] = 0.49
    assert ConceptActivity.of(scores).active().tolist() == [True, False, False, True, False]
    assert ConceptActivity.of(scores).active(min_top_mean=0.48).tolist()[1]
    assert ConceptActivity.of(scores).active(min_std=1e-4).tolist()[3] is False


def test_fewer_than_five_images_are_judged_by_those_that_are_there() -> None:
    scores = np.array([[0.9, 0.2], [0.3, 0.3]])
    assert ConceptActivity.of(scores).active().tolist() == [True, False]
    assert ConceptActivity.of(scores[:0]).active().tolist() == [False, False]


def test_activities_of_two_lists_are_refused() -> None:
    with pytest.raises(ShapeError, match="one concept list"):
        ConceptActivity.of(np.ones((3, 2))).merge(ConceptActivity.of(np.ones((3, 4))))
