"""Vision-language models: embeddings of images and of concept texts in one space.

Any model that open_clip loads will do: SigLIP, CLIP, MobileCLIP and their kin, by name, by hub id
or from a local folder. Concept scores are sigmoid(slope · (cosine + shift)). The two numbers are
known for models that were trained or measured so; for others labelled images have to tell them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import ModelError, close_names

PUBLISHED = {
    "ViT-L-16-SigLIP-384/webli": (60.0, -0.09),
    "ViT-SO400M-14-SigLIP-384/webli": (58.0, -0.13),
    "ViT-L-14-336/openai": (58.0, -0.25),
}
"""Slope and shift of the models in Oikarinen & Weng, ICML 2024 (arXiv:2405.06855)."""

_PROBES = (
    *("a photo of a cat", "A Photo Of A CAT", "a photo of a cat.", "photo", "cats", "", " "),
    *("  two   spaces\tand a\nnew line ", "well-known, isn't it? (yes!) #1 & 50% @ $3.50 / 1,000"),
    *(
        "snake_case and camelCase",
        "&amp;lt; &quot;html&quot; <b>bold</b>",
        "<|endoftext|> [CLS] </s>",
    ),
    *("0123456789 3.14159 1e-5 2026-01-31", "antidisestablishmentarianism pterodactyl quokka"),
    *("Crème brûlée, naïve Ångström, Straße, İstanbul", "cafe\u0301 and caf\u00e9", "ﬁne ½ ² Ⅷ"),
    *(
        "черепаха на камне",
        "η χελώνα",
        "海龟在石头上",
        "カメとイシ",
        "거북이",
        "سلحفاة",
        "כלב",
        "कछुआ",
    ),
    *("🐢 👩‍🔬 🇺🇳", "“quoted” ‘text’ — with… dashes", "\u00a0no\u200bbreak\ufeff", "ça và garçon"),
    "red green blue yellow pink striped spotted furry metal wooden glass round square small large",
    "the turtle " * 400,
)
"""Texts of many kinds, one longer than any context, that show how a tokenizer reads."""

_LOCAL, _HUB = "local-dir:", "hf-hub:"
#: Texts that are encoded at once come in groups of so many.
_TEXTS = 32
_WEIGHTS = ("*.safetensors", "*.bin", "*.pth")
_FORMS = "'local-dir:PATH', 'hf-hub:OWNER/NAME' or 'NAME/TAG' from open_clip.list_pretrained()"


@dataclass(frozen=True, slots=True)
class Clip:
    """A vision-language model ready for inference, with its preprocessing and tokenizer."""

    model: nn.Module
    """In evaluation mode, without gradients; its image tower is `model.visual`."""
    transform: Callable[[Any], Tensor]
    """From a PIL image in RGB to floats (3, height, width)."""
    tokenizer: Callable[[list[str]], Tensor]
    """From texts to token numbers (texts, context length)."""
    slope: float | None
    """Slope of the sigmoid; None where the model has no calibration of its own."""
    shift: float | None
    """What is added to the cosine before the slope; None likewise."""
    name: str
    """The model as it was asked for."""
    own: tuple[float, float] | None = None
    """Slope and shift that it was trained with; None where it was not trained with a sigmoid loss."""

    def to(self, device: str | torch.device) -> Clip:
        """Move both towers, in place."""
        self.model.to(device)
        return self

    def encode_images(self, images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch d"]:
        """Embed preprocessed images, on the device and in the number format of the image tower.

        Returns:
            float32, each row of length 1.
        """
        model: Any = self.model
        tower = next(model.visual.parameters())
        with torch.inference_mode():
            embedded = model.encode_image(images.to(tower.device, tower.dtype))
            return F.normalize(embedded.float(), dim=-1)

    def reading(self) -> str:
        """Fingerprint of how texts are read: the token numbers of fixed texts of many kinds."""
        numbers = self.tokenizer(list(_PROBES)).cpu().numpy().astype(np.int64)
        digest = hashlib.blake2b(repr(numbers.shape).encode(), digest_size=16)
        digest.update(numbers.tobytes())
        return digest.hexdigest()

    def encode_texts(self, texts: Sequence[str], batch: int = 256) -> Float[np.ndarray, "texts d"]:
        """Embed texts, on the device of the text tower.

        Args:
            texts: Concepts, in the order of the result.
            batch: Texts in one pass.

        Returns:
            float32, each row of length 1.

        Raises:
            ModelError: There are no texts.
        """
        if not texts:
            raise ModelError("no texts to embed; give at least one concept")
        model: Any = self.model
        device = model.logit_scale.device
        rows = []
        with torch.inference_mode():
            for start in range(0, len(texts), batch):
                some = list(texts[start : start + batch])
                # Whole groups, so that a text's embedding does not depend on how many there are.
                filled = some + some[:1] * (-len(some) % _TEXTS)
                embedded = model.encode_text(self.tokenizer(filled).to(device))[: len(some)]
                rows.append(F.normalize(embedded.float(), dim=-1).cpu())
        return torch.cat(rows).numpy()


def check_clip(model: str, pretrained: str | None = None, base: Path | None = None) -> None:
    """Refuse a model that cannot be loaded, as far as can be told without reading its weights.

    Args:
        model: As for `load_clip`.
        pretrained: As for `load_clip`.
        base: As for `load_clip`.

    Raises:
        ModelError: The folder or a file in it is missing, or open_clip knows no such name or tag.
    """
    if model.startswith(_LOCAL):
        _check_folder(_folder(model, base))
    elif model.startswith(_HUB):
        if model.removeprefix(_HUB).count("/") != 1:
            raise ModelError(f"{model!r} names no model on the hub; expected 'hf-hub:OWNER/NAME'")
    else:
        _name_and_tag(model, pretrained, base)


def load_clip(model: str, pretrained: str | None = None, base: Path | None = None) -> Clip:
    """Load a vision-language model.

    Args:
        model: ``local-dir:PATH`` (open_clip's own layout), ``hf-hub:OWNER/NAME``, or ``NAME/TAG``
            or ``NAME`` from open_clip's list.
        pretrained: Tag or file of weights for a bare ``NAME``.
        base: Folder that relative paths start from.

    Returns:
        The model on the CPU in float32. Its calibration is the published one where there is one,
        else the model's own where it was trained with a sigmoid loss, else None.

    Raises:
        ModelError: The model is unknown, incomplete, or cannot be reached.
    """
    import open_clip

    check_clip(model, pretrained, base)
    if model.startswith(_LOCAL):
        name, tag = _LOCAL + str(_folder(model, base)), None
    elif model.startswith(_HUB):
        name, tag = model, None
    else:
        name, tag = _name_and_tag(model, pretrained, base)
    try:
        module, _, transform = open_clip.create_model_and_transforms(
            name, pretrained=tag, require_pretrained=True
        )
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        raise ModelError(
            f"{model} cannot be loaded ({reason}); use a 'local-dir:' folder, or run once where "
            "the network is reachable"
        ) from error
    module = module.eval().requires_grad_(False)
    own = _own_calibration(module)
    slope, shift = published(name, tag) or own or (None, None)
    return Clip(module, transform, tokenizer, slope, shift, model, own)


def published(name: str, tag: str | None = None) -> tuple[float, float] | None:
    """The published slope and shift of a model, where there are some.

    Args:
        name: Name in open_clip's list, or ``hf-hub:OWNER/NAME``, which has the calibration of the name
            and tag that open_clip lists it for.
        tag: Tag of its weights in open_clip's list.
    """
    from open_clip import get_pretrained_cfg

    if not name.startswith(_HUB):
        return PUBLISHED.get(f"{name}/{tag}")
    for known, calibration in PUBLISHED.items():
        listed = get_pretrained_cfg(*known.rsplit("/", 1)).get("hf_hub", "")
        if listed.rpartition("/")[0] == name.removeprefix(_HUB):
            return calibration
    return None


def _own_calibration(module: Any) -> tuple[float, float] | None:
    """A sigmoid loss trains sigmoid(scale · cosine + bias), which is the form used here."""
    bias = getattr(module, "logit_bias", None)
    if bias is None:
        return None
    slope = math.exp(float(module.logit_scale))
    return slope, float(bias) / slope


def _folder(model: str, base: Path | None) -> Path:
    return ((base or Path()) / Path(model.removeprefix(_LOCAL)).expanduser()).resolve()


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ModelError(f"there is no folder {folder}; check the path after 'local-dir:'")
    config = folder / "open_clip_config.json"
    if not config.is_file():
        raise ModelError(
            f"{folder} has no open_clip_config.json; expected open_clip's local-dir layout: that "
            "file and open_clip_model.safetensors"
        )
    try:
        text = json.loads(config.read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{config} is not a configuration of open_clip ({type(error).__name__}: {error}); "
            "expected JSON with 'model_cfg' and 'preprocess_cfg'"
        ) from error
    if not any(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        raise ModelError(f"{folder} has no weights; expected open_clip_model.safetensors beside it")
    if text.get("hf_tokenizer_name") and not any(folder.glob("tokenizer*")):
        raise ModelError(
            f"{folder} has no tokenizer, and its configuration asks for one; save "
            f"{text['hf_tokenizer_name']!r} there (tokenizer.json, tokenizer_config.json)"
        )


def _name_and_tag(model: str, pretrained: str | None, base: Path | None) -> tuple[str, str]:
    import open_clip

    known = open_clip.list_models()
    name, tag = model, pretrained
    if "/" in model and model.replace("/", "-") not in known:
        name, _, tag = model.rpartition("/")
    name = name.replace("/", "-")
    if name not in known:
        raise ModelError(
            f"open_clip has no model {name!r}{close_names(name, known)}; expected {_FORMS}"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag is None:
        raise ModelError(f"{name} has several weights; say which: {name}/{{{', '.join(tags)}}}")
    path = ((base or Path()) / tag).resolve()
    if path.is_file():
        return name, str(path)
    if tag not in tags:
        raise ModelError(
            f"{name} has no weights {tag!r}{close_names(tag, tags)}; open_clip offers "
            f"{', '.join(tags) or 'none'}"
        )
    return name, tag
