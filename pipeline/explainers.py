"""Explainers before any model runs: their concepts, and scores that are known of images beforehand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import ConceptError, close_names
from core.labels import Hierarchy, LabelConcepts, label_concepts
from pipeline.concepts_config import ConceptsConfig
from pipeline.fingerprints import fingerprint, fingerprint_file
from pipeline.sources import ImageIndex


@dataclass(frozen=True)
class ExplainerPlan:
    """One source of concept scores and the concepts it knows, in their order."""

    name: str
    kind: str
    concepts: list[str]
    fingerprint: str
    labels: LabelConcepts | None = None
    """`labels`: how labels become concept scores."""
    columns: list[str] | None = None
    """`attributes` and `table`: where each concept's scores are read."""
    path: str | None = None
    """`table`: the Parquet file."""


def read_hierarchy(path: str) -> Hierarchy:
    """Classes and superclasses from a JSON file.

    Raises:
        ConceptError: The file is missing or not of that shape.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        return Hierarchy(
            classes={str(c["wnid"]): str(c["label"]) for c in data["classes"]},
            superclasses={
                str(name): frozenset(map(str, ids)) for name, ids in data["superclasses"].items()
            },
        )
    except OSError as error:
        raise ConceptError(
            f"hierarchy {path!r} cannot be read: {error.strerror or error}"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConceptError(
            f"hierarchy {path!r} is not of the expected shape ({type(error).__name__}: {error}); "
            'expected {"classes": [{"wnid": …, "label": …}], "superclasses": {name: [wnid, …]}}'
        ) from error


def read_concept_list(path: str) -> list[str]:
    """Concepts from a text file, one a line.

    Raises:
        ConceptError: The file is missing, empty, or has blank or repeated lines.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConceptError(f"concept list {path!r} cannot be read: {error}") from error
    concepts = [line.strip() for line in lines]
    if not concepts:
        raise ConceptError(f"concept list {path!r} is empty; expected one concept a line")
    if blank := [number for number, concept in enumerate(concepts, 1) if not concept]:
        raise ConceptError(
            f"concept list {path!r} has {len(blank)} blank lines, the first is line {blank[0]}; "
            "remove them"
        )
    first: dict[str, int] = {}
    for number, concept in enumerate(concepts, 1):
        if concept in first:
            raise ConceptError(
                f"concept list {path!r} has {concept!r} on lines {first[concept]} and {number}, "
                f"and {len(concepts) - len(set(concepts))} repeated lines in all; keep each once"
            )
        first[concept] = number
    return concepts


def plan_explainer(
    config: ConceptsConfig,
    index: ImageIndex,
    hierarchy: Hierarchy | None,
    concepts: list[str] | None,
) -> ExplainerPlan:
    """What an explainer knows, checked against the images.

    Raises:
        ConceptError: Labels, columns or values that are missing or cannot be used.
    """
    if config.kind == "labels":
        return _plan_labels(config.name, index, hierarchy)
    if config.kind in ("attributes", "table"):
        plan = (
            _plan_attributes(config, index) if config.kind == "attributes" else _plan_table(config)
        )
        image_scores(index, plan).of(index.rows["image_id"].to_pylist())
        return plan
    assert concepts is not None
    return ExplainerPlan(config.name, config.kind, concepts, fingerprint("open_clip", concepts))


def _plan_labels(name: str, index: ImageIndex, hierarchy: Hierarchy | None) -> ExplainerPlan:
    labels = index.rows["label"].to_pylist()
    if missing := sum(label is None for label in labels):
        raise ConceptError(
            f"explainer {name!r} needs labels, and {missing:,} of {len(labels):,} images have none; "
            "set images.label to the key or column that holds them"
        )
    # Only training images decide which concepts there are: test images are for scores alone.
    splits = index.rows["split"].to_pylist()
    train = [label for label, split in zip(labels, splits, strict=True) if split == "train"]
    known = label_concepts(train, hierarchy)
    made = fingerprint("labels", known.concepts, sorted(known.members.items()))
    return ExplainerPlan(name, "labels", list(known.concepts), made, labels=known)


def _plan_attributes(config: ConceptsConfig, index: ImageIndex) -> ExplainerPlan:
    columns = _attribute_columns(config, index)
    return ExplainerPlan(
        config.name, config.kind, columns, fingerprint("attributes", columns), columns=columns
    )


def _attribute_columns(config: ConceptsConfig, index: ImageIndex) -> list[str]:
    schema: Mapping[str, Any] = {f.name: f.type for f in index.attributes.schema}
    if config.columns is None:
        columns = [name for name, kind in schema.items() if pa.types.is_boolean(kind)]
        if not columns:
            raise ConceptError(
                f"explainer {config.name!r} found no boolean column in the manifest, which has "
                f"{', '.join(schema) or 'no columns of its own'}; name them in 'columns'"
            )
        return columns
    return _numeric_columns(config.name, config.columns, schema, "the manifest")


def _numeric_columns(
    name: str, columns: list[str], schema: Mapping[str, Any], where: str
) -> list[str]:
    for column in columns:
        if column not in schema:
            raise ConceptError(
                f"explainer {name!r}: {where} has no column {column!r}{close_names(column, schema)}"
            )
        kind = schema[column]
        if not (
            pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
        ):
            raise ConceptError(
                f"explainer {name!r}: column {column!r} of {where} holds {kind}, expected numbers"
            )
    if len(set(columns)) < len(columns):
        raise ConceptError(f"explainer {name!r} names a column twice; name each once")
    return columns


def _plan_table(config: ConceptsConfig) -> ExplainerPlan:
    assert config.path is not None
    try:
        found = pq.read_schema(config.path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ConceptError(f"table {config.path!r} cannot be read as Parquet: {error}") from error
    schema = {field.name: field.type for field in found}
    if "image_id" not in schema:
        raise ConceptError(
            f"table {config.path!r} has no column 'image_id'; it has {', '.join(schema)}"
        )
    wanted = config.columns or [name for name in schema if name != "image_id"]
    columns = _numeric_columns(config.name, wanted, schema, f"table {config.path!r}")
    return ExplainerPlan(
        config.name,
        config.kind,
        columns,
        fingerprint("table", columns, fingerprint_file(config.path)),
        columns=columns,
        path=config.path,
    )


class ImageScores:
    """Concept scores that are known of an image beforehand, looked up by its id."""

    def __init__(self, image_ids: Sequence[str], scores: np.ndarray, where: str) -> None:
        self.rows = {image_id: row for row, image_id in enumerate(image_ids)}
        self.scores, self.where = scores, where

    def of(self, image_ids: Sequence[str]) -> np.ndarray:
        """Scores of these images (images, concepts).

        Raises:
            ConceptError: An image is not listed.
        """
        missing = [image_id for image_id in image_ids if image_id not in self.rows]
        if missing:
            raise ConceptError(
                f"{self.where} has no row for image {missing[0]!r}; every image used needs one"
            )
        return self.scores[[self.rows[image_id] for image_id in image_ids]]


def image_scores(index: ImageIndex, explainer: ExplainerPlan) -> ImageScores:
    """Concept scores of labels, attributes or a table.

    Raises:
        ConceptError: Values that are missing, not finite, or given twice for an image.
    """
    image_ids = index.rows["image_id"].to_pylist()
    if explainer.labels is not None:
        labels = index.rows["label"].to_pylist()
        return ImageScores(image_ids, explainer.labels.scores(labels).astype(np.float16), "labels")
    assert explainer.columns is not None
    if explainer.path is None:
        table, where = index.attributes, "the manifest"
    else:
        table, where = pq.read_table(explainer.path), f"table {explainer.path!r}"
        image_ids = table["image_id"].to_pylist()
        if len(set(image_ids)) < len(image_ids):
            raise ConceptError(f"{where} has an image_id more than once; keep one row for each")
    columns = [table[name].to_numpy().astype(np.float32) for name in explainer.columns]
    scores = np.stack(columns, axis=1).astype(np.float16)
    if not np.isfinite(scores).all():
        column = explainer.columns[int(np.argmin(np.isfinite(scores).all(axis=0)))]
        raise ConceptError(f"{where} has values that are missing or infinite in {column!r}")
    return ImageScores(image_ids, scores, where)
