"""Runs with planted explanations, made up in memory, for tests of the atlas.

Concept scores and weights are drawn; activations follow from them with noise. So the tables are
true of the arrays, and every value that the atlas should show is known beforehand.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.atlas.data import AtlasData

HOSTILE = (
    "</script><script>document.title='broken'</script>",
    "<img src=x onerror=\"document.title='broken'\">",
    'a "quoted" concept, with a comma',
    "it's 5 < 6 & 7 > 6",
    "line\u2028separator\u2029paragraph",
    "שלום עולם",
    "🦜 parrot 👩🏽‍🔬",
    "long " + "x" * 295,
    "back\\slash \\u003c ${template} {{braces}}",
    "<!--title--> {version}",
)


@dataclass(frozen=True)
class Layer:
    """A layer to plant."""

    name: str
    neurons: int
    pooling: str = "avg"


def planted(
    images: int = 400,
    layers: Sequence[Layer] = (Layer("blocks.1", 24), Layer("conv_head", 100)),
    concepts: int = 60,
    seed: int = 0,
    longest: int = 6,
    hostile: bool = False,
    pictures: bool = True,
    simulators: Sequence[str] = ("clip-b", "explainer"),
    broken: int = 4,
) -> AtlasData:
    """A run of two explainers, ``attributes`` (0 or 1) and ``clip`` (soft scores).

    Args:
        images: Number of images; 70 % train, 10 % val, 20 % test in a repeating pattern.
        layers: Layers in the order of the network.
        concepts: Concepts of each explainer.
        seed: Of everything that is drawn.
        longest: Longest explanation of each path.
        hostile: Put difficult texts into concepts, labels, ids, the title and a layer's name.
        pictures: Whether there are thumbnails.
        simulators: Simulators of the scores; ``explainer`` is the fit check.
        broken: In each layer, so many neurons are not explainable (one for each bad status).
    """
    rng = np.random.default_rng(seed)
    names = [f"concept {number}" for number in range(concepts)]
    if hostile:
        names[: len(HOSTILE)] = HOSTILE
        layers = [Layer('blocks/<b>"3"</b>?x=1&y#z%', 12, "avg"), *layers]
    split = np.array(["train"] * 7 + ["val"] + ["test"] * 2, dtype=object)[np.arange(images) % 10]
    scores = {
        "attributes": (rng.random((images, concepts)) < 0.2).astype(np.float16),
        "clip": (1 / (1 + np.exp(-rng.normal(-1.5, 1.5, (images, concepts))))).astype(np.float16),
    }
    explained: dict[str, list[object]] = {name: [] for name in EXPLANATION_TYPES}
    scored: dict[str, list[object]] = {name: [] for name in SCORE_TYPES}
    activations = {}
    for layer in layers:
        q = np.zeros((images, layer.neurons))
        for neuron in range(layer.neurons):
            status = "ok"
            if neuron >= layer.neurons - broken:
                status = ("dead", "constant", "low-variance", "failed")[neuron % 4]
            for explainer in scores:
                chosen = int(rng.integers(1, longest + 1))
                terms = rng.permutation(concepts)[:longest]
                weights = rng.normal(1.0, 1.0, longest) * 2.0 ** -np.arange(longest)
                bias = float(rng.normal(0, 0.3))
                if status == "ok":
                    q[:, neuron] += 0.5 * (scores[explainer][:, terms] @ weights + bias)
                where = (layer.name, layer.pooling, neuron, explainer)
                if status != "ok":
                    row = (*where, status, None, True, [], [], None, None, None)
                    _append(explained, row)
                    continue
                top = rng.uniform(0.1, 0.8)
                for length in range(1, longest + 1):
                    grown = top * (1 - 0.6**length)
                    order = np.argsort(-np.abs(weights[:length]))
                    row = (
                        *where,
                        status,
                        length,
                        length == chosen,
                        [names[term] for term in terms[order]],
                        weights[order].tolist(),
                        bias,
                        grown * 1.05,
                        grown * 0.97,
                    )
                    _append(explained, row)
                    for simulator in simulators:
                        if explainer == "attributes" and simulator != "explainer":
                            continue
                        r = grown * (1.0 if simulator == "explainer" else 0.8)
                        score = (*where, length, length == chosen, simulator, r, r - 0.06, r + 0.05)
                        _append(scored, score)
            q[:, neuron] += rng.normal(0, 0.2, images)
            if status == "ok" and neuron % 3:
                q[:, neuron] = np.maximum(q[:, neuron], 0)
            elif status == "dead":
                q[:, neuron] = 0.0
            elif status == "constant":
                q[:, neuron] = 0.25
            elif status == "failed":
                q[3, neuron] = np.nan
        activations[layer.name, layer.pooling] = q.astype(np.float16)

    ids = [f"val/{number:05d}" for number in range(images)]
    labels = [f"class {number % 17}" for number in range(images)]
    if hostile:
        ids[: len(HOSTILE)] = HOSTILE
        labels[: len(HOSTILE)] = HOSTILE
    return AtlasData(
        title=HOSTILE[0] + HOSTILE[9] if hostile else "planted network",
        provenance={
            "model": "planted",
            "command": "neuroscribe run <config> --out 'runs/x'",
            "seconds": {"record": 61.2, "fit": 3.1, "simulate": 0.8},
            "fingerprints": {"images": "9f2c", "explainers": {"clip": "77a0", "attributes": "1b"}},
            "versions": {"python": "3.11", "torch": "2.9"},
            "images": images,
            "odd": [float("nan"), None, np.float32(0.5), HOSTILE[1] if hostile else "text"],
        },
        explanations=pa.table(explained, schema=pa.schema(list(EXPLANATION_TYPES.items()))),
        scores=pa.table(scored, schema=pa.schema(list(SCORE_TYPES.items()))),
        concepts=pa.table(
            {
                "explainer": [explainer for explainer in scores for _ in names],
                "position": list(range(concepts)) * len(scores),
                "concept": names * len(scores),
                "active": [True] * concepts * len(scores),
            }
        ),
        images=pa.table(
            {
                "image_id": ids,
                "path": [f"photos/{name}.jpg" for name in ids],
                "split": split.tolist(),
                "label": labels,
            }
        ),
        activations=lambda layer, pooling: activations[layer, pooling],
        concept_scores=lambda explainer: scores[explainer],
        thumbnails=thumbnails if pictures else None,
    )


def thumbnails(rows: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """A small picture for each row, of a colour that follows from the row."""
    for row in rows:
        picture = Image.new("RGB", (96, 96), (row * 37 % 256, row * 91 % 256, row * 53 % 256))
        file = io.BytesIO()
        picture.save(file, "JPEG")
        yield row, file.getvalue()


def shuffled(data: AtlasData, seed: int) -> AtlasData:
    """The same run with the rows of its scores in another order."""
    order = np.random.default_rng(seed).permutation(len(data.scores))
    return replace(data, scores=data.scores.take(pa.array(order)))


EXPLANATION_TYPES = {
    "layer": pa.string(),
    "pooling": pa.string(),
    "neuron": pa.int32(),
    "explainer": pa.string(),
    "status": pa.string(),
    "length": pa.int32(),
    "chosen": pa.bool_(),
    "concepts": pa.list_(pa.string()),
    "weights": pa.list_(pa.float64()),
    "bias": pa.float64(),
    "train_correlation": pa.float64(),
    "val_correlation": pa.float64(),
}
SCORE_TYPES = {
    "layer": pa.string(),
    "pooling": pa.string(),
    "neuron": pa.int32(),
    "explainer": pa.string(),
    "length": pa.int32(),
    "chosen": pa.bool_(),
    "simulator": pa.string(),
    "correlation": pa.float64(),
    "ci_low": pa.float64(),
    "ci_high": pa.float64(),
}


def _append(table: dict[str, list[object]], row: Sequence[object]) -> None:
    for column, value in zip(table.values(), row, strict=True):
        column.append(value)
