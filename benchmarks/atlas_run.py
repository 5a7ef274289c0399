"""A finished run of made-up neurons, written by the product's own writers, up to the stage `report`.

The configuration is real: images of a few pixels, a network of many layers, the demo's models as explainer
and simulator. The tables are drawn, since fitting so many neurons would take longer than all that is
measured here; activations follow no concept, and scores are drawn beside them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import yaml
from PIL import Image
from torch import nn
from torchvision import transforms

from pipeline.columns import activation_column, vectors
from pipeline.concepts import write_lists
from pipeline.config import load_config
from pipeline.degenerate import SCHEMA as DEGENERATE_SCHEMA
from pipeline.expected import (
    ACTIVATIONS,
    ATLAS,
    CONCEPTS,
    EXPLANATIONS,
    IMAGES,
    QUARANTINE,
    SANITY,
    SCORES,
    SHARPNESS,
    SYNONYMS,
    Expected,
    expect,
    moments_table,
    scores_table,
    table_path,
)
from pipeline.fit import PATH_SCHEMA
from pipeline.moments import blocks_of
from pipeline.plan import Plan
from pipeline.planning import prepare
from pipeline.rundir import Run, part_name
from pipeline.sanity import SANITY_SCHEMA
from pipeline.scores import read_sharpness, shards_of
from pipeline.sharpen import SHARPNESS_SCHEMA
from pipeline.simulate import SCORE_SCHEMA

MODELS = Path(__file__).resolve().parents[1] / "pipeline" / "demo" / "models"
LAYERS, NEURONS, LONGEST, FOLDS = 50, 2000, 10, 5
IMAGE_COUNT, CONCEPT_COUNT = 5000, 1000
KINDS = ("striped", "spotted", "wooden", "metal", "red", "small", "wet", "old", "broken",
         "blurred", "furry", "leather", "glass", "woven", "painted", "rusty", "green", "round", "dark",
         "young")  # fmt: skip
THINGS = ("dog", "cat", "wheel", "leaf", "face", "window", "lamp", "grass", "water", "sky",
          "bottle", "chair", "fence", "boat", "bird", "hand", "cup", "shoe", "text", "wall",
          "fish", "tree", "road", "snow", "sand", "flower", "fruit", "cloth", "brick", "engine",
          "eye", "ear", "horn", "wing", "tail", "roof", "door", "rope", "net", "fire",
          "cloud", "rock", "bread", "screen", "clock", "guitar", "insect", "ball", "bag", "hat")  # fmt: skip


class Many(nn.Module):
    """Layers side by side; a run of them is never recorded here, only planned."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        for number in range(LAYERS):
            setattr(self, layer_name(number), nn.Linear(3, NEURONS))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = self.pool(images).flatten(1)
        return torch.cat([getattr(self, layer_name(n))(pooled) for n in range(LAYERS)], 1)


def layer_name(number: int) -> str:
    return f"block{number // 10}_{number % 10}"


def network() -> tuple[nn.Module, transforms.Compose]:
    """Factory for ``python:atlas_run:network``."""
    torch.manual_seed(0)
    return Many(), transforms.Compose([transforms.CenterCrop(8), transforms.ToTensor()])


def concept_names() -> list[str]:
    return [f"{kind} {thing}" for thing in THINGS for kind in KINDS]


@dataclass(frozen=True)
class Drawn:
    """What a layer's explanations and scores are made from, a row a neuron."""

    terms: np.ndarray
    """Concepts in the order in which a search would take them, (neurons, `LONGEST`)."""
    chosen: np.ndarray
    """Chosen lengths."""
    train: np.ndarray
    """Correlations of every length on training images, (neurons, `LONGEST`)."""


def write_run(folder: Path) -> tuple[Path, Path]:
    """Write images, configuration and all tables before the atlas.

    Returns:
        The configuration and the run directory.
    """
    config_path, out = _configuration(folder), folder / "run"
    plan = prepare(load_config(config_path))
    expected = expect(plan, plan.config.target.dtype)
    run = Run(out)
    rng = np.random.default_rng(0)
    _recordings(run, plan, expected, rng)
    made = expected.tables
    popularity = 1 / (5 + rng.permutation(CONCEPT_COUNT))
    layers = [_draw(rng, popularity) for _ in range(LAYERS)]
    explanations = pa.concat_tables([_explanations(n, one, rng) for n, one in enumerate(layers)])
    run.write(EXPLANATIONS, "explanations.parquet", explanations, made[EXPLANATIONS])
    scores = pa.concat_tables([_scores(n, one, rng) for n, one in enumerate(layers)])
    run.write(SCORES, "scores.parquet", scores, made[SCORES])
    sharpness = [
        {"explainer": "clip", "layer": layer_name(number), "pooling": "avg", "neurons": 128}
        | {
            "factor": factor,
            "shift": 0.0,
            "chosen": factor == 1.0,
            "val_correlation": 0.3 - 0.01 * abs(factor - 1),
        }
        for number in range(LAYERS)
        for factor in (0.5, 1.0, 2.0)
    ]
    table = pa.Table.from_pylist(sharpness, schema=SHARPNESS_SCHEMA)
    run.write(SHARPNESS, "sharpness.parquet", table, made[SHARPNESS])
    run.write(SANITY, "sanity.parquet", SANITY_SCHEMA.empty_table(), made[SANITY])
    run.write(
        SYNONYMS, "degenerate_concepts.parquet", DEGENERATE_SCHEMA.empty_table(), made[SYNONYMS]
    )
    write_lists(run, plan, expected)
    moments = moments_table("clip")  # of which it reads the concepts alone
    blocks = blocks_of(plan, shards_of(run, plan), read_sharpness(run, "clip"))
    names = np.array([f"block {number}" for number in range(len(blocks))])
    part = part_name(moments, 0, made[moments], "npz")
    run.folder.write_arrays(part, positions=np.arange(CONCEPT_COUNT), files=names)
    run.commit(moments, moments, made[moments], len(blocks))
    for name in made.keys() - run.tables().keys() - {ATLAS}:  # which the last stage does not read
        run.commit(name, f"{name}.parquet", made[name], 0)
    return config_path, out


def _configuration(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    colours = np.random.default_rng(1).integers(0, 256, (IMAGE_COUNT, 3))
    for number, colour in enumerate(colours.tolist()):
        Image.new("RGB", (8, 8), tuple(colour)).save(folder / f"images/{number:05d}.png")
    (folder / "concepts.txt").write_text("\n".join(concept_names()) + "\n")
    config = {
        "images": {"path": "images", "format": "folder"},
        "target": {"model": "python:atlas_run:network", "layers": ["block*"], "dtype": "float32"},
        "concepts": [
            {"name": "clip", "kind": "open_clip", "model": f"local-dir:{MODELS / 'explainer'}"}
            | {"concepts": "concepts.txt"}
        ],
        "simulators": [{"name": "clip-b", "model": f"local-dir:{MODELS / 'simulator'}"}],
        "fit": {"max_length": LONGEST, "folds": FOLDS},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _recordings(run: Run, plan: Plan, expected: Expected, rng: np.random.Generator) -> None:
    """Images, activations, embeddings and concept scores, a part a shard."""
    rows = plan.index.rows
    for shard in plan.shards:
        images = rows.slice(shard.start, shard.stop - shard.start)
        ids = images["image_id"]

        def part(table: str, columns: dict[str, np.ndarray], number: int = shard.number) -> None:
            lists = {name: vectors(values) for name, values in columns.items()}
            content = pa.table({"image_id": ids, **lists})  # noqa: B023
            run.folder.write_table(expected.parts[table][number], content)

        run.folder.write_table(
            expected.parts[IMAGES][shard.number],
            images.select(["image_id", "path", "split", "label"]),
        )
        values = rng.standard_normal((len(ids), LAYERS * NEURONS), dtype=np.float32)
        values[:, 1::2] = np.maximum(values[:, 1::2], 0)  # half of the neurons are rectified
        part(
            ACTIVATIONS,
            {
                activation_column(layer_name(n), "avg"): values[:, n * NEURONS : (n + 1) * NEURONS]
                .astype(np.float16)
                for n in range(LAYERS)
            },
        )  # fmt: skip
        for name, model in (("clip", "explainer"), ("clip-b", "simulator")):
            settings = json.loads((MODELS / model / "open_clip_config.json").read_text())
            width = settings["model_cfg"]["embed_dim"]
            embedding = rng.standard_normal((len(ids), width), dtype=np.float32)
            embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
            part(f"embeddings/{name}", {"embedding": embedding.astype(np.float16)})
        scores = rng.random((len(ids), CONCEPT_COUNT), dtype=np.float32).astype(np.float16)
        part(scores_table("clip"), {"score": scores})
    for name in (IMAGES, ACTIVATIONS, "embeddings/clip", "embeddings/clip-b", scores_table("clip")):
        run.commit(name, table_path(name), expected.tables[name], IMAGE_COUNT)
    quarantine = pa.table(
        {name: pa.array([], pa.string()) for name in ("image_id", "path", "reason")}
    )
    run.write(QUARANTINE, "quarantine.parquet", quarantine, expected.tables[QUARANTINE])
    concepts = concept_names()
    table = {"explainer": ["clip"] * len(concepts), "position": range(len(concepts))}
    table |= {"concept": concepts, "active": [True] * len(concepts)}
    run.write(CONCEPTS, "concepts.parquet", pa.table(table), expected.tables[CONCEPTS])


def _draw(rng: np.random.Generator, popularity: np.ndarray) -> Drawn:
    keys = rng.exponential(size=(NEURONS, CONCEPT_COUNT)) / popularity
    first = np.argpartition(keys, LONGEST, axis=1)[:, :LONGEST]
    best = rng.beta(2, 3, NEURONS)[:, None]
    grown = best * (1 - 0.6 ** np.arange(1, LONGEST + 1))
    return Drawn(first, rng.integers(2, 9, NEURONS), grown)


def _explanations(number: int, drawn: Drawn, rng: np.random.Generator) -> pa.Table:
    """Ten lengths of every neuron of a layer, each with the terms of the one before and one more."""
    size = NEURONS * LONGEST
    lengths = np.tile(np.arange(1, LONGEST + 1), NEURONS)
    nested = np.concatenate([np.arange(length) for length in range(1, LONGEST + 1)])
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    flat = drawn.terms[:, nested].ravel()
    texts = pa.array(concept_names()).take(pa.array(flat))
    weights = rng.normal(0.5, 1.0, len(flat)) * 2.0 ** -np.tile(nested, NEURONS)
    chosen = lengths == np.repeat(drawn.chosen, LONGEST)
    shares = rng.random(len(flat)) / 20
    stability = rng.integers(0, FOLDS + 1, len(flat)) / FOLDS

    def lists(values: np.ndarray | pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(offsets, values)

    columns = {
        "layer": pa.array([layer_name(number)] * size),
        "pooling": pa.array(["avg"] * size),
        "neuron": pa.array(np.repeat(np.arange(NEURONS), LONGEST), pa.int32()),
        "explainer": pa.array(["clip"] * size),
        "status": pa.array(["ok"] * size),
        "length": pa.array(lengths, pa.int32()),
        "concepts": lists(texts),
        "weights": lists(weights),
        "bias": pa.array(rng.normal(0, 0.3, size)),
        "train_correlation": pa.array(drawn.train.ravel()),
        "val_correlation": pa.array(drawn.train.ravel() * 0.95),
        "cv_correlation": pa.array(drawn.train.ravel() * 0.96),
        "cv_error": pa.array(np.full(size, 0.01)),
        "shares": lists(shares),
        "stability": lists(stability),
    }
    table = pa.table(columns).cast(PATH_SCHEMA)
    table = table.add_column(table.column_names.index("length") + 1, "chosen", pa.array(chosen))
    return table.append_column("synonyms", _synonyms(flat, offsets, chosen))


def _synonyms(flat: np.ndarray, offsets: pa.Array, chosen: np.ndarray) -> pa.Array:
    """For each term of a chosen explanation two concepts that could stand in for it."""
    inside = np.repeat(chosen, np.diff(offsets.to_numpy()))
    others = (flat[inside][:, None] + [1, 2]) % CONCEPT_COUNT
    texts = pa.array(concept_names()).take(pa.array(others.ravel()))
    pairs = pa.ListArray.from_arrays(pa.array(np.arange(len(others) + 1) * 2, pa.int32()), texts)
    ends = np.cumsum(np.where(chosen, np.diff(offsets.to_numpy()), 0))
    starts = pa.array(np.concatenate([[0], ends]), pa.int32())
    return pa.ListArray.from_arrays(starts, pairs, mask=pa.array(~chosen))


def _scores(number: int, drawn: Drawn, rng: np.random.Generator) -> pa.Table:
    """Every length by both, in the order in which the stage `simulate` writes them."""
    size = NEURONS * LONGEST
    lengths = np.tile(np.arange(1, LONGEST + 1), NEURONS)
    chosen = lengths == np.repeat(drawn.chosen, LONGEST)
    tables = []
    for simulator, worth in (("explainer", 0.93), ("clip-b", 0.8)):
        r = drawn.train.ravel() * worth
        own = simulator == "explainer"
        marks = {name: rng.random(size) / 20 for name in ("p_value", "q_value")}
        columns = {
            "layer": [layer_name(number)] * size,
            "pooling": ["avg"] * size,
            "neuron": np.repeat(np.arange(NEURONS), LONGEST),
            "explainer": ["clip"] * size,
            "length": lengths,
            "chosen": chosen,
            "simulator": [simulator] * size,
            "correlation": r,
            "ci_low": r - 0.05,
            "ci_high": r + 0.04,
            "selection_gap": pa.array(drawn.train.ravel() * 0.95 - r, mask=np.full(size, not own)),
            "agreement": pa.array(np.full(size, 0.8), mask=~chosen),
        }
        table = pa.table(columns).cast(SCORE_SCHEMA)
        for name, values in marks.items():
            table = table.append_column(name, pa.array(values, mask=~chosen))
        tables.append(table)
    return pa.concat_tables(tables)
