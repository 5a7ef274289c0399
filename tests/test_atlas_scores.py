"""Concept scores as the atlas reads them: the rows that are asked for, at the sharpness asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import expit

from core.errors import RecordingError
from core.sharpness import NATIVE, Sharpness
from pipeline import report_scores
from pipeline.columns import vectors
from pipeline.report_scores import ConceptScores, SharedRows
from pipeline.scores import ScoreSource, Shards
from pipeline.storage import Folder

SIZES = (5, 0, 17, 1, 9)
CONCEPTS, WIDTH = 23, 8
SLOPE, SHIFT = 11.0, -0.2


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A recording in parts of unequal size: images, embeddings and stored scores."""
    folder = Folder(tmp_path)
    rng = np.random.default_rng(0)
    folder.write_arrays("texts.npz", embedding=rng.normal(size=(CONCEPTS, WIDTH)).astype("f4"))
    for number, size in enumerate(SIZES):
        ids = pa.array([f"{number}-{row}" for row in range(size)], pa.string())
        embedding = rng.normal(size=(size, WIDTH)).astype(np.float16)
        score = rng.random((size, CONCEPTS)).astype(np.float16)
        split = pa.array(["train"] * size, pa.string())
        folder.write_table(f"images-{number}", pa.table({"image_id": ids, "split": split}))
        folder.write_table(
            f"embeddings-{number}", pa.table({"image_id": ids, "embedding": vectors(embedding)})
        )
        folder.write_table(f"scores-{number}", pa.table({"image_id": ids, "score": vectors(score)}))
    return folder


def matrix_of(folder: Folder, table: str, column: str) -> np.ndarray:
    parts = [folder.read_table(f"{table}-{n}")[column].to_pylist() for n in range(len(SIZES))]
    return np.array([row for part in parts for row in part], dtype=np.float64)


def shared(folder: Folder, texts: str | None) -> SharedRows:
    names = [f"{'scores' if texts is None else 'embeddings'}-{n}" for n in range(len(SIZES))]
    shards = Shards([f"images-{number}" for number in range(len(SIZES))], folds=0, seed=0)
    source = ScoreSource(names, texts, SLOPE, SHIFT)
    return SharedRows(folder, shards, source, SIZES, CONCEPTS)


ROWS, PICKED = np.array([0, 4, 5, 6, 21, 22, 23, 31]), np.array([1, 2, 13, 22])


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("lane", [1, 64])
def test_scores_of_a_model_are_made_from_embeddings_at_each_sharpness(
    folder: Folder, lane: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_scores, "LANE", lane)
    rows = shared(folder, "texts.npz")
    images = matrix_of(folder, "embeddings", "embedding")
    texts = folder.read_arrays("texts.npz")["embedding"].astype(np.float64)
    lengths = np.linalg.norm(images, axis=1)[:, None] * np.linalg.norm(texts, axis=1)
    logits = SLOPE * (images @ texts.T / lengths + SHIFT)
    for factor, shift in ((1.0, 0.0), (0.5, 0.0), (2.0, 0.0), (0.5, 1.5)):
        scores = ConceptScores(rows, Sharpness(factor, shift))
        assert scores.shape == (sum(SIZES), CONCEPTS)
        expected = expit(factor * logits + shift)[np.ix_(ROWS, PICKED)]
        assert scores[np.ix_(ROWS, PICKED)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.usefixtures("local_ray")
def test_stored_scores_are_read_as_they_are(folder: Folder) -> None:
    scores = ConceptScores(shared(folder, None), NATIVE)
    expected = matrix_of(folder, "scores", "score")[np.ix_(ROWS, PICKED)]
    assert np.array_equal(scores[np.ix_(ROWS, PICKED)], expected)


@pytest.mark.usefixtures("local_ray")
def test_a_part_that_holds_other_images_is_refused(folder: Folder) -> None:
    other = folder.read_table("scores-2")
    folder.write_table("scores-2", other.take(pa.array(range(len(other) - 1, -1, -1))))
    with pytest.raises(RecordingError, match="other images"):
        ConceptScores(shared(folder, None), NATIVE)[np.ix_(ROWS, PICKED)]
