"""The demo's two vision-language models and its configuration: they load offline and are good."""

from __future__ import annotations

import json
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from sklearn.metrics import roc_auc_score

from pipeline.demo import train_clip
from pipeline.demo.attributes import CONCEPTS, FAMILIES, attributes
from pipeline.demo.config import IMAGES, SEED, demo_config
from pipeline.demo.scenes import render, scene_seed

DEMO = Path(train_clip.__file__).parent
STREAM = 4242
"""Pictures that no model was trained or measured on."""


@cache
def pictures(count: int) -> tuple[list[Image.Image], np.ndarray]:
    """Pictures as the demo stores them, and which concepts are true."""
    images, truth = [], np.empty((count, len(CONCEPTS)), bool)
    for index in range(count):
        picture, scene = render(scene_seed(STREAM, index))
        stored = BytesIO()
        picture.save(stored, "JPEG", quality=92)
        images.append(Image.open(stored).convert("RGB"))
        true = attributes(scene)
        truth[index] = [name in true for name in CONCEPTS]
    return images, truth


@cache
def predicted(role: str, count: int) -> np.ndarray:
    """Concept scores as any user of open_clip would compute them."""
    where = f"local-dir:{DEMO / 'models' / role}"
    model, _, transform = open_clip.create_model_and_transforms(where)
    tokens = open_clip.get_tokenizer(where)(list(CONCEPTS))
    model.eval()
    with torch.inference_mode():
        batch = torch.stack([transform(image) for image in pictures(count)[0]])
        cosine = (
            model.encode_image(batch, normalize=True) @ model.encode_text(tokens, normalize=True).T
        )
        return torch.sigmoid(model.logit_scale.exp() * cosine + model.logit_bias).numpy()


def metrics(role: str) -> dict:
    return json.loads((DEMO / "models" / role / "metrics.json").read_text())


def aurocs(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    return {
        name: roc_auc_score(truth[:, column], scores[:, column])
        for column, name in enumerate(CONCEPTS)
        if 0 < truth[:, column].sum() < len(truth)
    }


@pytest.mark.parametrize("role", ["explainer", "simulator"])
def test_a_shipped_model_knows_the_concepts_as_well_as_it_says(role: str) -> None:
    count = 1000
    found = aurocs(predicted(role, count), pictures(count)[1])
    claimed = metrics(role)
    assert claimed["auroc"] >= 0.85
    assert np.mean(list(found.values())) >= claimed["auroc"] - 0.02
    for family, names in FAMILIES.items():
        known = [found[name] for name in names if name in found]
        assert np.mean(known) >= claimed["auroc_by_family"][family] - 0.05, family


@pytest.mark.parametrize("role", ["explainer", "simulator"])
def test_scores_of_a_shipped_model_are_probabilities(role: str) -> None:
    scores, truth = predicted(role, 1000), pictures(1000)[1]
    for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.0)):
        inside = (scores >= low) & (scores < high)
        assert inside.sum() > 500
        assert truth[inside].mean() == pytest.approx(scores[inside].mean(), abs=0.08)


def test_explainer_and_simulator_are_different_models_that_make_different_mistakes() -> None:
    settings = [
        json.loads((DEMO / "models" / role / "open_clip_config.json").read_text())["model_cfg"]
        for role in ("explainer", "simulator")
    ]
    explainer, simulator = (config["vision_cfg"] for config in settings)
    assert explainer["image_size"] != simulator["image_size"]
    assert ("timm_model_name" in explainer) != ("timm_model_name" in simulator)
    assert metrics("explainer")["seed"] != metrics("simulator")["seed"]
    truth = pictures(1000)[1]
    errors = [predicted(role, 1000) - truth for role in ("explainer", "simulator")]
    assert np.corrcoef(errors[0].ravel(), errors[1].ravel())[0, 1] < 0.95


@pytest.mark.parametrize("role", ["explainer", "simulator"])
def test_a_shipped_model_is_small_and_stores_nothing_for_words_it_does_not_know(role: str) -> None:
    path = DEMO / "models" / role / "open_clip_model.safetensors"
    assert path.stat().st_size < 6e6
    with safe_open(path, "pt") as weights:
        words = weights.get_tensor("text.token_embedding.weight")
    config = json.loads((path.parent / "open_clip_config.json").read_text())
    length = config["model_cfg"]["text_cfg"]["context_length"]
    used = torch.unique(open_clip.SimpleTokenizer(context_length=length)(list(CONCEPTS)))
    known = torch.nonzero(words.float().abs().sum(dim=1)).ravel()
    assert set(known.tolist()) == set(used.tolist())


def test_no_concept_is_cut_short_by_the_context_length() -> None:
    for role in ("explainer", "simulator"):
        tokenizer = open_clip.get_tokenizer(f"local-dir:{DEMO / 'models' / role}")
        tokens = tokenizer(list(CONCEPTS))
        assert (tokens[:, -1] == 0).all()
        assert len(torch.unique(tokens, dim=0)) == len(CONCEPTS)


def test_the_concept_list_of_the_explainer_is_all_concepts() -> None:
    text = (DEMO / "concepts.txt").read_text(encoding="utf-8")
    assert text == "".join(f"{name}\n" for name in CONCEPTS)


def test_the_configuration_names_files_that_exist_and_pictures_that_are_new() -> None:
    config = demo_config(Path("somewhere"))
    explainer, simulator = config["concepts"][1], config["simulators"][0]
    for model in (explainer["model"], simulator["model"]):
        folder = Path(model.removeprefix("local-dir:"))
        assert folder.is_absolute()
        assert (folder / "open_clip_config.json").is_file()
    assert explainer["model"] != simulator["model"]
    assert Path(explainer["concepts"]).is_file()
    assert Path(config["images"]["path"]) == Path("somewhere").resolve() / "manifest.parquet"
    trained_on = {recipe.stream for recipe in train_clip.RECIPES.values()}
    assert len(trained_on) == 2
    assert not trained_on & {SEED, STREAM, metrics("explainer")["held_out_stream"]}
    assert 3000 <= IMAGES <= 4000


def test_areas_agree_with_scikit_learn_ties_included() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 20, 400) / 20
    truth = rng.random(400) < 0.2 + 0.5 * scores
    assert train_clip.auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores))
    assert np.isnan(train_clip.auroc(scores, np.zeros(400, bool)))


def test_the_calibration_error_is_the_distance_of_what_was_said_from_what_was_true() -> None:
    rng = np.random.default_rng(1)
    scores = rng.random(200_000)
    assert train_clip.calibration_error(scores, rng.random(200_000) < scores) < 0.01
    always = np.full(1000, 0.75)
    assert train_clip.calibration_error(always, np.arange(1000) < 500) == pytest.approx(0.25)


def test_a_short_training_learns_and_writes_a_folder_that_open_clip_reads(tmp_path: Path) -> None:
    arguments = "--model b --images 768 --epochs 4 --batch 64 --threads 1 --held-out 400"
    assert train_clip.main([*arguments.split(), "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["training_steps"] == 48
    assert record["auroc"] > 0.53
    open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
