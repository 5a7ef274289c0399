"""Train the two small vision-language models that the demo ships with.

    python -m pipeline.demo.train_clip --model a --epochs 18 --out pipeline/demo/models/explainer
    python -m pipeline.demo.train_clip --model b --epochs 14 --out pipeline/demo/models/simulator

Both start from random weights and learn from pictures drawn for them alone, with the sigmoid loss
of SigLIP: for every picture and every concept the target is 1 if the concept is true of the picture
and 0 if not. So sigmoid(logit_scale · cos + logit_bias) is a probability and needs no calibration.
They differ in architecture, resolution, initial weights, pictures and order of pictures, so that
one may explain and the other simulate. They know the texts of `attributes.CONCEPTS` and no others.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.demo.attributes import CONCEPTS, FAMILIES
from pipeline.demo.dataset import draw

_EVALUATION_STREAM = 900
"""Seed of the pictures for the metrics; no model is trained on them."""


@dataclass(frozen=True)
class Recipe:
    """One model: what it is and what it sees.

    Attributes:
        vision: The image tower, as in open_clip's configuration.
        size: Side of the images it is given, pixels.
        stream: Seed of its weights, its pictures and their order.
        peak_rate: Highest learning rate.
    """

    vision: dict[str, Any]
    size: int
    stream: int
    peak_rate: float


RECIPES = {
    "a": Recipe(
        {
            "timm_model_name": "test_byobnet",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
        },
        size=96,
        stream=101,
        peak_rate=4e-3,
    ),
    "b": Recipe(
        {"layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
        size=80,
        stream=202,
        peak_rate=2e-3,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one model, write it, and write how good it is."""
    parser = argparse.ArgumentParser(description="Train one of the demo's vision-language models.")
    parser.add_argument("--model", choices=sorted(RECIPES), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=30_000, help="different pictures")
    parser.add_argument("--epochs", type=int, default=14, help="times that each is seen")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--held-out", type=int, default=3_000, help="pictures for the metrics")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    recipe = RECIPES[options.model]
    started = time.monotonic()

    images, truth = draw(recipe.stream, options.images, recipe.size, options.threads)
    print(f"{len(images)} pictures in {time.monotonic() - started:.0f} s", flush=True)
    settings = configuration(recipe, float(truth.mean()))
    model, tokens = fresh_model(settings, recipe.stream)
    steps = fit(model, tokens, images, truth, recipe, options.epochs, options.batch)
    save(model, settings, options.out)

    seen, seen_truth = draw(_EVALUATION_STREAM, options.held_out, recipe.size, options.threads)
    metrics = evaluate(options.out, seen, seen_truth)
    record = {
        **metrics,
        "held_out_images": options.held_out,
        "held_out_stream": _EVALUATION_STREAM,
        "training_images": options.images,
        "training_steps": steps,
        "batch": options.batch,
        "seed": recipe.stream,
        "seconds": round(time.monotonic() - started),
        "command": "python -m pipeline.demo.train_clip "
        + " ".join(arguments if arguments is not None else sys.argv[1:]),
    }
    (options.out / "metrics.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    return 0


def configuration(recipe: Recipe, base_rate: float) -> dict[str, Any]:
    """The model in open_clip's words, with a bias that starts from the concepts' base rate."""
    return {
        "model_cfg": {
            "embed_dim": 64,
            "init_logit_scale": math.log(10),
            "init_logit_bias": math.log(base_rate / (1 - base_rate)),
            "custom_text": True,
            "vision_cfg": {**recipe.vision, "image_size": recipe.size},
            "text_cfg": {
                "context_length": 12,
                "vocab_size": 49408,
                "width": 48,
                "heads": 3,
                "layers": 2,
            },
        },
        "preprocess_cfg": {
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "resize_mode": "shortest",
            "size": [recipe.size, recipe.size],
        },
    }


def fresh_model(settings: dict[str, Any], seed: int) -> tuple[open_clip.CustomTextCLIP, Tensor]:
    """A model with random weights, and the concepts as token ids.

    Word vectors stay as they are drawn: random ones tell words apart, and the layers above learn
    what they mean. So they can be drawn in 8 bits, and the words that no concept uses are left at
    zero, which keeps the file small.
    """
    torch.manual_seed(seed)
    model = open_clip.CustomTextCLIP(
        **{key: value for key, value in settings["model_cfg"].items() if key != "custom_text"}
    )
    length = settings["model_cfg"]["text_cfg"]["context_length"]
    tokens = open_clip.SimpleTokenizer(context_length=length)(list(CONCEPTS))
    words = model.text.token_embedding.weight
    with torch.no_grad():
        used = torch.unique(tokens)
        drawn = torch.randn(len(used), words.shape[1]).to(torch.float8_e4m3fn).to(words.dtype)
        words.zero_()
        words[used] = drawn
    words.requires_grad_(False)
    return model, tokens


def fit(
    model: open_clip.CustomTextCLIP,
    tokens: Tensor,
    images: UInt8[np.ndarray, "images size size 3"],
    truth: Bool[np.ndarray, "images concepts"],
    recipe: Recipe,
    epochs: int,
    batch: int,
) -> int:
    """Minimise the sigmoid loss with AdamW, a short warm-up and a cosine to zero.

    Returns:
        The number of steps.
    """
    model.train().to(memory_format=torch.channels_last)
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.03}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.peak_rate,
        betas=(0.9, 0.98),
    )
    per_epoch = len(images) // batch
    steps, warm_up = per_epoch * epochs, min(200, per_epoch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(1, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / steps)),
    )
    rng = np.random.default_rng(recipe.stream)
    targets = torch.from_numpy(truth)
    started = time.monotonic()
    for step in range(steps):
        if step % per_epoch == 0:
            order = rng.permutation(len(images))
        rows = np.sort(order[(step % per_epoch) * batch :][:batch])
        pixels = _moved(torch.from_numpy(images[rows]), rng)
        with torch.autocast("cpu", torch.bfloat16):
            pictures, texts = model.encode_image(pixels), model.encode_text(tokens)
        cosine = F.normalize(pictures.float(), dim=1) @ F.normalize(texts.float(), dim=1).T
        logits = model.logit_scale.exp() * cosine + model.logit_bias
        loss = F.binary_cross_entropy_with_logits(logits, targets[rows].float())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            seconds = time.monotonic() - started
            print(f"step {step}/{steps} loss {loss:.4f} {seconds:.0f} s", flush=True)
    return steps


def _moved(
    pixels: UInt8[Tensor, "images size size 3"], rng: np.random.Generator, reach: int = 3
) -> Float[Tensor, "images 3 size size"]:
    """A batch in [-1, 1], moved by a few pixels, so that no picture is seen twice alike."""
    size = pixels.shape[1]
    right, down = (int(v) for v in rng.integers(0, 2 * reach + 1, 2))
    batch = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    padded = F.pad(batch, (reach, reach, reach, reach), mode="replicate")
    moved = padded[:, :, down : down + size, right : right + size]
    return moved.contiguous(memory_format=torch.channels_last)


def save(model: nn.Module, settings: dict[str, Any], folder: Path) -> None:
    """Write a model in open_clip's local-dir layout: 16-bit weights, 8-bit word vectors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    weights = {}
    for name, tensor in model.state_dict().items():
        if name == "text.token_embedding.weight":
            weights[name] = tensor.to(torch.float8_e4m3fn)
        elif tensor.is_floating_point() and tensor.ndim:
            weights[name] = tensor.to(torch.float16).contiguous()
        else:
            weights[name] = tensor
    path = folder / "open_clip_model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)


def evaluate(
    folder: Path,
    images: UInt8[np.ndarray, "images size size 3"],
    truth: Bool[np.ndarray, "images concepts"],
) -> dict[str, Any]:
    """How well the model in a folder knows the concepts, on pictures that it has not seen.

    Returns:
        `auroc`: the mean over concepts; `auroc_by_family`; `worst`: the five worst concepts;
        `calibration_error`: the mean distance of predicted and true frequency over ten equal bins
        of the predicted probability, weighted by the number of predictions in them; and the
        model's own `logit_scale` and `logit_bias`.
    """
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    with torch.inference_mode():
        texts = model.encode_text(tokenizer(list(CONCEPTS)), normalize=True)
        cosines = []
        for start in range(0, len(images), 250):
            pixels = torch.from_numpy(images[start : start + 250]).permute(0, 3, 1, 2)
            seen = model.encode_image(pixels.float() / 127.5 - 1, normalize=True)
            cosines.append(seen @ texts.T)
        scale, bias = float(model.logit_scale.exp()), float(model.logit_bias)
        predicted = torch.sigmoid(scale * torch.cat(cosines) + bias).numpy()
    areas = {
        concept: auroc(predicted[:, column], truth[:, column])
        for column, concept in enumerate(CONCEPTS)
    }
    return {
        "auroc": round(float(np.nanmean(list(areas.values()))), 4),
        "auroc_by_family": {
            family: round(float(np.nanmean([areas[name] for name in names])), 4)
            for family, names in FAMILIES.items()
        },
        "worst": {n: round(areas[n], 4) for n in sorted(CONCEPTS, key=lambda n: areas[n])[:5]},
        "calibration_error": round(calibration_error(predicted.ravel(), truth.ravel()), 4),
        "logit_scale": round(scale, 4),
        "logit_bias": round(bias, 4),
    }


def auroc(predicted: Float[np.ndarray, " images"], truth: Bool[np.ndarray, " images"]) -> float:
    """Chance that a picture with the concept scores above one without; NaN without either kind."""
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return math.nan
    _, inverse, counts = np.unique(predicted, return_inverse=True, return_counts=True)
    middle_rank = np.cumsum(counts) - (counts - 1) / 2
    ranks = float(middle_rank[inverse][truth].sum())
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)


def calibration_error(
    predicted: Float[np.ndarray, " cases"], truth: Bool[np.ndarray, " cases"]
) -> float:
    """Mean distance of predicted and true frequency over ten bins of the prediction."""
    bins = np.minimum((predicted * 10).astype(int), 9)
    total = 0.0
    for k in range(10):
        inside = bins == k
        if inside.any():
            total += inside.mean() * abs(float(predicted[inside].mean()) - truth[inside].mean())
    return total


if __name__ == "__main__":
    sys.exit(main())
