"""A calibration measured on the labels of real photographs, through a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from actors.clip import load_clip
from core.calibration import PRIOR
from core.concept_scores import sigmoid_scores
from core.errors import ConfigError
from pipeline.config import parse_config
from pipeline.planning import prepare
from pipeline.run import carry_out
from pipeline.rundir import Run

IMAGES = 192
WORDS = ["a dog", "a cat", "water", "long neck"]


def sections(shared: Path, words: Path, **changes: Any) -> dict[str, Any]:
    data = shared / "data"
    clip = {
        "name": "clip",
        "kind": "open_clip",
        "model": f"local-dir:{shared}/models/tinyclip-a",
        "concepts": [str(words), f"hierarchy:{data}/imagenet-hierarchy.json"],
        "calibration": "labels",
        "hierarchy": str(data / "imagenet-hierarchy.json"),
    }
    return {
        "images": {"path": str(data / "tiny-imagenet/*0.tar"), "label": "wnid", "limit": IMAGES},
        "target": {
            "model": "python:pipeline.planted:network",
            "layers": ["neurons"],
            "dtype": "float32",
        },
        "concepts": [clip | changes],
        "recordings": {"shard_size": 64},
    }


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text("\n".join(WORDS))
    return path


@pytest.fixture(scope="module")
def run(
    shared: Path, words: Path, local_ray: None, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    made = Run(tmp_path_factory.mktemp("calibrated") / "run")
    plan = prepare(parse_config(sections(shared, words), Path.cwd()))
    carry_out(made, plan, ["record", "concepts"])
    return made


def test_slope_and_shift_are_the_logistic_regression_on_the_recorded_embeddings(
    run: Run, shared: Path
) -> None:
    known = json.loads((shared / "data/imagenet-hierarchy.json").read_text())["classes"]
    names = {one["wnid"]: one["label"] for one in known}
    images = run.read("images").to_pylist()
    train = [row["split"] == "train" for row in images]
    labels = [names[row["label"]] for row in images if row["split"] == "train"]
    texts = sorted(set(labels))
    clip = load_clip(f"local-dir:{shared}/models/tinyclip-a")
    embedded = np.array(run.read("embeddings/clip")["embedding"].to_pylist(), np.float64)[train]
    embedded /= np.linalg.norm(embedded, axis=1, keepdims=True)
    cosines = embedded @ clip.encode_texts(texts).T.astype(np.float64)
    matches = np.array([[text == label for text in texts] for label in labels])
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=2000)
    model.fit(cosines.reshape(-1, 1), matches.ravel())
    (row,) = run.read("calibration").to_pylist()
    slope = float(model.coef_[0, 0])
    assert row["slope"] == pytest.approx(slope, rel=5e-3)
    assert row["labels_shift"] == pytest.approx(float(model.intercept_[0]) / slope, abs=1e-3)
    odds = np.log(PRIOR / (1 - PRIOR)) - np.log(1 / (len(texts) - 1))
    assert row["slope"] * (row["shift"] - row["labels_shift"]) == pytest.approx(odds, abs=1e-6)
    assert (row["labels"], row["images"]) == (len(texts), len(labels))
    assert row["match_error"] < 0.15


def test_concept_scores_are_made_with_it(run: Run, shared: Path) -> None:
    (row,) = run.read("calibration").to_pylist()
    concepts = run.read("concepts")["concept"].to_pylist()
    assert concepts[: len(WORDS)] == WORDS
    texts = load_clip(f"local-dir:{shared}/models/tinyclip-a").encode_texts(concepts)
    embedded = np.array(run.read("embeddings/clip")["embedding"].to_pylist(), np.float32)
    expected = sigmoid_scores(embedded, texts, row["slope"], row["shift"])
    found = np.array(run.read("concept_scores/clip")["score"].to_pylist())
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)


def test_the_picture_is_a_drawing_with_a_dot_for_every_bin(run: Run) -> None:
    (row,) = run.read("calibration").to_pylist()
    root = ElementTree.fromstring(run.folder.read(row["figure"]))
    dots = root.findall("{http://www.w3.org/2000/svg}circle")
    assert len(dots) == len(row["score"]) == len(row["observed"]) == len(row["pairs"])


def test_lists_are_told_with_source_and_licence(run: Run, words: Path) -> None:
    own, hierarchy = run.read("concept_lists").to_pylist()
    assert (own["explainer"], own["list"], own["added"]) == ("clip", str(words), len(WORDS))
    assert hierarchy["list"].startswith("hierarchy:")
    assert own["added"] + hierarchy["added"] == run.tables()["concepts"].rows
    assert own["digest"] != hierarchy["digest"]


def test_what_a_calibration_cannot_be_measured_on_is_refused(shared: Path, words: Path) -> None:
    unlabelled = sections(shared, words)
    unlabelled["images"]["label"] = None
    with pytest.raises(ConfigError, match="needs images with labels, two different ones at least"):
        prepare(parse_config(unlabelled, Path.cwd()))
    kept = sections(shared, words) | {"recordings": {"keep": "test"}}
    with pytest.raises(ConfigError, match="measured on recorded training images"):
        prepare(parse_config(kept, Path.cwd()))
    with pytest.raises(ConfigError, match="does not take hierarchy"):
        parse_config(sections(shared, words, calibration="auto"), Path.cwd())


def test_a_model_of_a_sigmoid_loss_has_its_own_calibration_and_others_say_so(
    shared: Path, words: Path, tmp_path: Path
) -> None:
    own = sections(shared, words, calibration="own", hierarchy=None)
    plan = prepare(parse_config(own, Path.cwd()))
    model: Any = load_clip(f"local-dir:{shared}/models/tinyclip-a").model
    slope = float(torch.exp(model.logit_scale))
    assert plan.clips["clip"].slope == pytest.approx(slope)
    assert slope * plan.clips["clip"].shift == pytest.approx(float(model.logit_bias), rel=1e-5)
    # The same model as if trained with a softmax, which needs no bias.
    config = json.loads((shared / "models/tinyclip-a/open_clip_config.json").read_text())
    del config["model_cfg"]["init_logit_bias"]
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    state = {k: v for k, v in model.state_dict().items() if k != "logit_bias"}
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    for calibration in ("own", "auto"):
        other = sections(shared, words, calibration=calibration, hierarchy=None)
        other["concepts"][0]["model"] = f"local-dir:{tmp_path}"
        with pytest.raises(ConfigError, match=r"no calibration of its own.* calibration: labels"):
            prepare(parse_config(other, Path.cwd()))
