"""Models that a worker has otherwise than the plan, and what depends on how texts are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from core.errors import RecordingError
from pipeline import planted
from pipeline.concepts import _embed_texts
from pipeline.config import parse_config
from pipeline.expected import EXPLANATIONS, SCORES, Expected, expect
from pipeline.loading import clip_part, text_model
from pipeline.plan import Plan
from pipeline.planning import prepare
from pipeline.storage import Folder

MODELS = Path(__file__).parents[1] / "pipeline/demo/models"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    planted.write_images(tmp_path, 60)
    (tmp_path / "words.txt").write_text("red circle\nCafé")
    for name in ("explainer", "simulator"):
        shutil.copytree(MODELS / name, tmp_path / name)
    return tmp_path


def planned(folder: Path) -> tuple[Plan, Expected]:
    calibration = {"a": 8.0, "b": 0.5}
    clip = {
        "name": "clip",
        "kind": "open_clip",
        "model": f"local-dir:{folder / 'explainer'}",
        "concepts": str(folder / "words.txt"),
        "calibration": calibration,
    }
    other = {"name": "other", "model": f"local-dir:{folder / 'simulator'}"}
    sections = planted.config(folder) | {
        "concepts": [clip],
        "simulators": [other | {"calibration": calibration}],
    }
    plan = prepare(parse_config(sections, base=folder))
    return plan, expect(plan, "float32")


def read_otherwise(model: Path) -> None:
    """Keep capitals, which the tokenizer would otherwise make small."""
    path = model / "open_clip_config.json"
    config: Any = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "whitespace"}
    path.write_text(json.dumps(config))


def test_another_tokenizer_costs_what_depends_on_texts_and_no_image(folder: Path) -> None:
    plan, before = planned(folder)
    read_otherwise(folder / "simulator")
    _, judged = planned(folder)
    changed = {name for name, made in before.tables.items() if judged.tables[name] != made}
    assert SCORES in changed
    assert not changed & {EXPLANATIONS, "concept_scores/clip", "embeddings/other"}

    read_otherwise(folder / "explainer")
    again, explained = planned(folder)
    changed = {name for name, made in before.tables.items() if explained.tables[name] != made}
    assert changed >= {"concept_scores/clip", "concepts", "moments/clip", EXPLANATIONS, SCORES}
    assert not changed & {"images", "activations", "embeddings/clip", "embeddings/other"}
    # Nor is a sum of moments taken for one of the same scores.
    changed = {name for name, made in before.summed.items() if explained.summed[name] != made}
    assert changed == {"clip"}
    assert again.clips["clip"].fingerprint == plan.clips["clip"].fingerprint
    assert again.clips["clip"].text_fingerprint != plan.clips["clip"].text_fingerprint


def test_a_worker_with_another_tokenizer_embeds_images_and_no_texts(folder: Path) -> None:
    plan, _ = planned(folder)
    clip = plan.clips["clip"]
    read_otherwise(folder / "explainer")
    clip_part(clip)
    with pytest.raises(RecordingError, match="reads texts otherwise on this worker"):
        text_model(clip)
    texts, name = Folder(str(folder / "run")), "texts.npz"
    with pytest.raises(RecordingError, match="reads texts otherwise"):
        _embed_texts(texts, name, clip, ["red circle"])
    assert not texts.exists(name)
    _embed_texts(texts, name, plan.clips["other"], ["red circle"])
    assert texts.exists(name)


def test_a_worker_with_other_weights_embeds_no_texts(folder: Path) -> None:
    plan, _ = planned(folder)
    weights = "open_clip_model.safetensors"
    content = bytearray((folder / "explainer" / weights).read_bytes())
    content[-1] ^= 1
    (folder / "explainer" / weights).write_bytes(content)
    texts = Folder(str(folder / "run"))
    with pytest.raises(RecordingError, match="other weights, settings or code on this worker"):
        _embed_texts(texts, "texts.npz", plan.clips["clip"], ["red circle"])
    assert not texts.exists("texts.npz")
