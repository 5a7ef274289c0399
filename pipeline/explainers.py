"""Explainers before any model runs: their concepts, and scores that are known of images beforehand."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Shaped

from core.errors import ConceptError, close_names
from core.labels import Hierarchy, LabelConcepts, label_concepts
from pipeline.concept_lists import ConceptList, union
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
    lists: tuple[ConceptList, ...] = ()
    """`open_clip`: the lists that the concepts are from."""


def plan_explainer(
    config: ConceptsConfig,
    index: ImageIndex,
    hierarchy: Hierarchy | None,
    lists: Sequence[ConceptList],
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
        image_scores(index, plan).refuse_missing(index.rows["image_id"])
        return plan
    concepts = union(lists)
    made = fingerprint("open_clip", concepts)
    return ExplainerPlan(config.name, config.kind, concepts, made, lists=tuple(lists))


def _plan_labels(name: str, index: ImageIndex, hierarchy: Hierarchy | None) -> ExplainerPlan:
    labels = index.rows["label"]
    if missing := labels.null_count:
        raise ConceptError(
            f"explainer {name!r} needs labels, and {missing:,} of {len(labels):,} images have none; "
            "set images.label to the key or column that holds them"
        )
    # Only training images decide which concepts there are: test images are for scores alone.
    train = labels.filter(pc.equal(index.rows["split"], "train")).unique().to_pylist()
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


def is_numeric(kind: pa.DataType) -> bool:
    """Whether values of a type can be concept scores."""
    types = pa.types
    return bool(types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind))


def _numeric_columns(
    name: str, columns: list[str], schema: Mapping[str, Any], where: str
) -> list[str]:
    for column in columns:
        if column not in schema:
            raise ConceptError(
                f"explainer {name!r}: {where} has no column {column!r}{close_names(column, schema)}"
            )
        if not is_numeric(schema[column]):
            raise ConceptError(
                f"explainer {name!r}: column {column!r} of {where} holds {schema[column]}, expected "
                "booleans, integers or floating-point numbers"
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
    """Concept scores that are known of an image beforehand, looked up by its id.

    Images that share their scores, as those of one label do, share a row of them; so a million
    labelled images take no more than their ids.
    """

    def __init__(
        self,
        image_ids: pa.ChunkedArray,
        scores: Shaped[np.ndarray, "rows concepts"],
        where: str,
        rows: Shaped[np.ndarray, " images"] | None = None,
    ) -> None:
        """Keep the scores.

        Args:
            image_ids: Ids, each once.
            scores: Concept scores.
            where: What to call them in a message.
            rows: Which row of scores an image has; by default its own.
        """
        order = pc.sort_indices(image_ids).to_numpy()
        self._ids = image_ids.combine_chunks().take(order)
        self._rows = order if rows is None else rows[order]
        self._scores, self._where = scores, where

    def of(self, image_ids: Sequence[str]) -> np.ndarray:
        """Scores of these images (images, concepts).

        Raises:
            ConceptError: An image is not listed.
        """
        if not image_ids:
            return self._scores[:0]
        # Ids of a shard lie together: only their stretch is searched.
        first = self._place(min(image_ids))
        stretch = self._ids[first : self._place(max(image_ids)) + 1]
        wanted = pa.array(image_ids, pa.string())
        found = pc.index_in(wanted, value_set=stretch)
        if found.null_count:
            self._refuse(wanted.filter(pc.is_null(found)))
        scores: np.ndarray = self._scores[self._rows[found.to_numpy() + first]]
        return scores

    def refuse_missing(self, image_ids: pa.ChunkedArray) -> None:
        """Refuse images that are not listed.

        Raises:
            ConceptError: There is one.
        """
        listed = pc.is_in(image_ids, value_set=self._ids)
        if not pc.all(listed).as_py():
            self._refuse(image_ids.filter(pc.invert(listed)))

    def _refuse(self, missing: pa.Array | pa.ChunkedArray) -> NoReturn:
        raise ConceptError(
            f"{self._where} has no row for image {missing[0].as_py()!r}; every image used needs one"
        )

    def _place(self, image_id: str) -> int:
        """Position of the first id that is not before this one."""
        return bisect_left(range(len(self._ids)), image_id, key=lambda n: self._ids[n].as_py())


def image_scores(index: ImageIndex, explainer: ExplainerPlan) -> ImageScores:
    """Concept scores of labels, attributes or a table.

    Raises:
        ConceptError: Values that are missing, not finite, or given twice for an image.
    """
    image_ids = index.rows["image_id"]
    if explainer.labels is not None:
        coded = index.rows["label"].combine_chunks().dictionary_encode()
        scores = explainer.labels.scores(coded.dictionary.to_pylist()).astype(np.float16)
        return ImageScores(image_ids, scores, "labels", coded.indices.to_numpy())
    assert explainer.columns is not None
    if explainer.path is None:
        table, where = index.attributes, "the manifest"
    else:
        table = pq.read_table(explainer.path, columns=["image_id", *explainer.columns])
        where = f"table {explainer.path!r}"
        image_ids = table["image_id"].cast(pa.string())
        if pc.count_distinct(image_ids).as_py() < len(image_ids):
            raise ConceptError(f"{where} has an image_id more than once; keep one row for each")
    scores = np.empty((table.num_rows, len(explainer.columns)), np.float16)
    for position, name in enumerate(explainer.columns):
        with np.errstate(over="ignore"):
            scores[:, position] = table[name].to_numpy().astype(np.float32)
    if not np.isfinite(scores).all():
        column = explainer.columns[int(np.argmin(np.isfinite(scores).all(axis=0)))]
        raise ConceptError(f"{where} has values that are missing or infinite in {column!r}")
    return ImageScores(image_ids, scores, where)
