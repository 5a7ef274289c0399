"""Vision-language models: the real one beside the images, and what cannot be loaded."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional as F

from actors.clip import PUBLISHED, Clip, check_clip, load_clip, published
from actors.decode import decode
from core.errors import ModelError


@pytest.fixture(scope="module")
def clip(shared: Path) -> Clip:
    return load_clip("local-dir:models/tinyclip-a", base=shared)


@pytest.fixture(scope="module")
def classes(shared: Path) -> list[dict[str, Any]]:
    listed = json.loads((shared / "data" / "imagenet-hierarchy.json").read_text())["classes"]
    return list(listed[::80])


@pytest.fixture(scope="module")
def photographs(shared: Path, clip: Clip, classes: list[dict[str, Any]]) -> torch.Tensor:
    folder = shared / "data" / "imagenet-sample"
    files = [next((folder / one["wnid"]).iterdir()) for one in classes]
    return torch.stack([clip.transform(decode(file.read_bytes())) for file in files])


def test_images_are_nearest_to_the_names_of_what_they_show(
    clip: Clip, photographs: torch.Tensor, classes: list[dict[str, Any]]
) -> None:
    images = clip.encode_images(photographs).numpy()
    texts = clip.encode_texts([one["label"] for one in classes])
    found = (images @ texts.T).argmax(axis=1)
    assert np.mean(found == np.arange(len(classes))) > 0.6  # by chance 8 %


def test_embeddings_have_length_one_in_float32(clip: Clip, photographs: torch.Tensor) -> None:
    images = clip.encode_images(photographs[:4])
    texts = clip.encode_texts(["tench", "a long neck"])
    assert images.dtype == torch.float32
    assert texts.dtype == np.float32
    torch.testing.assert_close(images.norm(dim=1), torch.ones(4))
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, rtol=1e-6)


def test_the_calibration_gives_the_models_own_logits(clip: Clip, photographs: torch.Tensor) -> None:
    names = ["tench", "goldfish", "webbed feet"]
    model: Any = clip.model
    tokens = open_clip.get_tokenizer("ViT-B-32", context_length=24)(names)
    with torch.inference_mode():
        image = F.normalize(model.encode_image(photographs[:5]), dim=-1)
        text = F.normalize(model.encode_text(tokens), dim=-1)
        logits = model.logit_scale.exp() * image @ text.T + model.logit_bias
    assert clip.slope is not None
    assert clip.shift is not None
    cosines = clip.encode_images(photographs[:5]).numpy() @ clip.encode_texts(names).T
    np.testing.assert_allclose(clip.slope * (cosines + clip.shift), logits.numpy(), atol=2e-5)


def test_texts_are_embedded_in_order_whatever_the_batch(clip: Clip) -> None:
    texts = [f"a photograph of number {number}" for number in range(11)]
    whole = clip.encode_texts(texts)
    np.testing.assert_allclose(clip.encode_texts(texts, batch=4), whole, atol=1e-6)
    np.testing.assert_allclose(clip.encode_texts(texts[::-1], batch=3)[::-1], whole, atol=1e-6)
    with pytest.raises(ModelError, match="at least one concept"):
        clip.encode_texts([])


def test_a_model_without_a_bias_has_no_calibration_of_its_own(
    shared: Path, tmp_path: Path, clip: Clip
) -> None:
    folder = tmp_path / "contrastive"
    folder.mkdir()
    config = json.loads((shared / "models/tinyclip-a/open_clip_config.json").read_text())
    del config["model_cfg"]["init_logit_bias"]
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    state = {k: v for k, v in clip.model.state_dict().items() if k != "logit_bias"}
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    loaded = load_clip("local-dir:contrastive", base=tmp_path)
    assert (loaded.slope, loaded.shift) == (None, None)
    np.testing.assert_array_equal(loaded.encode_texts(["tench"]), clip.encode_texts(["tench"]))


def test_weights_that_do_not_fit_their_configuration_are_refused(
    shared: Path, tmp_path: Path
) -> None:
    shutil.copytree(shared / "models" / "tinyclip-a", tmp_path / "mixed")
    (tmp_path / "mixed").chmod(0o755)
    weights = tmp_path / "mixed" / "open_clip_model.safetensors"
    weights.unlink()
    weights.symlink_to(shared / "models" / "tinyclip-b" / "open_clip_model.safetensors")
    with pytest.raises(ModelError, match="mixed cannot be loaded"):
        load_clip("local-dir:mixed", base=tmp_path)


def test_every_siglip_of_open_clip_is_trained_with_a_bias_and_so_has_its_own_calibration() -> None:
    named = [name for name in open_clip.list_models() if "siglip" in name.lower()]
    assert named
    for name in named:
        assert open_clip.get_model_config(name)["init_logit_bias"] is not None


def test_published_calibrations_are_of_models_that_open_clip_knows() -> None:
    known = {f"{name}/{tag}" for name, tag in open_clip.list_pretrained()}
    assert set(PUBLISHED) <= known


@pytest.mark.parametrize(
    ("hub", "name"),
    [
        ("timm/ViT-L-16-SigLIP-384", "ViT-L-16-SigLIP-384/webli"),
        ("timm/ViT-SO400M-14-SigLIP-384", "ViT-SO400M-14-SigLIP-384/webli"),
        ("timm/vit_large_patch14_clip_336.openai", "ViT-L-14-336/openai"),
        ("timm/ViT-B-16-SigLIP", None),
        ("other/ViT-L-16-SigLIP-384", None),
    ],
)
def test_a_hub_id_has_the_calibration_of_the_name_that_open_clip_lists_it_for(
    hub: str, name: str | None
) -> None:
    assert published(f"hf-hub:{hub}") == (PUBLISHED[name] if name else None)
    if name:
        assert published(*name.split("/")) == PUBLISHED[name]


@pytest.mark.parametrize(
    "change",
    [
        lambda: open_clip.SimpleTokenizer(context_length=24),
        lambda: open_clip.SimpleTokenizer(context_length=24, clean="whitespace"),
        lambda: open_clip.SimpleTokenizer(context_length=24, clean="canonicalize"),
        lambda: open_clip.SimpleTokenizer(context_length=23),
        lambda: open_clip.SimpleTokenizer(context_length=24, additional_special_tokens=["[CLS]"]),
    ],
)
def test_another_tokenizer_reads_otherwise(clip: Clip, change: Any) -> None:
    own = clip.reading()
    assert own == clip.reading()
    other = replace(clip, tokenizer=change())
    settings = vars(other.tokenizer)
    same = settings["context_length"] == 24 and settings["clean_fn"].__name__ == "_clean_lower"
    assert (other.reading() == own) == (same and "[CLS]" not in settings["encoder"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "there is no folder"),
        ({}, "has no open_clip_config.json; expected open_clip's local-dir layout"),
        ({"open_clip_config.json": "{"}, "is not a configuration of open_clip .JSONDecodeError"),
        ({"open_clip_config.json": "{}"}, "is not a configuration of open_clip .KeyError"),
        (
            {"open_clip_config.json": '{"model_cfg": {"text_cfg": {}}}'},
            "has no weights; expected open_clip_model.safetensors",
        ),
        (
            {
                "open_clip_config.json": '{"model_cfg": {"text_cfg": {"hf_tokenizer_name": "t5"}}}',
                "open_clip_model.safetensors": "",
            },
            "has no tokenizer.*save 't5' there",
        ),
    ],
)
def test_an_incomplete_folder_is_refused_without_loading(
    files: dict[str, str] | None, message: str, tmp_path: Path
) -> None:
    if files is not None:
        (tmp_path / "model").mkdir()
        for name, text in files.items():
            (tmp_path / "model" / name).write_text(text)
    with pytest.raises(ModelError, match=message):
        check_clip("local-dir:model", base=tmp_path)


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("ViT-B-23/openai", None, "open_clip has no model 'ViT-B-23'; close names: .*'ViT-B-32'"),
        ("ViT-B-32/opena1", None, "ViT-B-32 has no weights 'opena1'; close names: 'openai'"),
        ("ViT-B-32", "opena1", "ViT-B-32 has no weights 'opena1'"),
        ("ViT-B-32", None, r"ViT-B-32 has several weights; say which: ViT-B-32/\{openai, "),
        ("hf-hub:SigLIP", None, "expected 'hf-hub:OWNER/NAME'"),
    ],
)
def test_an_unknown_name_is_refused_without_loading(
    model: str, pretrained: str | None, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        check_clip(model, pretrained)


@pytest.mark.parametrize(
    ("model", "pretrained"),
    [("ViT-B-32/openai", None), ("ViT-B/32", "openai"), ("hf-hub:timm/ViT-B-16-SigLIP", None)],
)
def test_a_known_name_passes_the_check(model: str, pretrained: str | None) -> None:
    check_clip(model, pretrained)
