"""Everything that can be known before work starts: images, shards, layers, models, concepts.

`prepare` loads what is cheap to load and refuses what cannot work, so that a job that starts is a job
that can finish. The fingerprints made here decide what is fresh.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.clip import Clip, check_clip, load_clip
from actors.fingerprint import state_fingerprint
from actors.layers import LayerInfo, assign_poolings, check_layers, describe_layers, match_layers
from actors.targets import Target, load_target
from actors.views import Preprocess, split_transform
from core.errors import ConceptError, ConfigError, SourceError, close_names
from core.labels import Hierarchy, LabelConcepts, label_concepts
from pipeline.config import Calibration, ConceptsConfig, Config
from pipeline.fingerprints import fingerprint, fingerprint_file, fingerprint_table
from pipeline.rundir import FORMAT_VERSION
from pipeline.sources import ImageIndex, read_index

#: Fewest images that a split needs for its correlations to be defined at all.
MIN_SPLIT_IMAGES = 3


@dataclass(frozen=True)
class Shard:
    """A run of consecutive images of the index: the unit of work, of commit and of resumption."""

    number: int
    start: int
    stop: int
    pixels: str
    """Fingerprint of the images' ids and content."""
    rows: str
    """Fingerprint of the above with labels, splits and attributes."""


@dataclass(frozen=True)
class TargetPlan:
    """The network to explain, checked: its layers exist, run once, and can be pooled as asked."""

    model: str
    weights: str
    base: Path
    preprocess: Preprocess
    layers: dict[str, tuple[str, ...]]
    infos: dict[str, LayerInfo]
    fingerprint: str

    @property
    def neurons(self) -> int:
        """Number of neurons to explain, each pooling of a layer counted on its own."""
        return sum(self.infos[name].neurons * len(pools) for name, pools in self.layers.items())


@dataclass(frozen=True)
class ClipPlan:
    """A vision-language model, checked, with the calibration of its concept scores."""

    name: str
    model: str
    base: Path
    preprocess: Preprocess
    slope: float
    shift: float
    fingerprint: str


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


@dataclass(frozen=True)
class Plan:
    """A run that can be carried out."""

    config: Config
    index: ImageIndex
    shards: list[Shard]
    target: TargetPlan
    clips: dict[str, ClipPlan]
    """Every vision-language model by the name of its explainer or simulator."""
    explainers: list[ExplainerPlan]


def prepare(config: Config) -> Plan:
    """Check a configuration against the images and models that it names.

    Raises:
        UsageError: Something cannot work; the message says what, and what to do.
    """
    hierarchies = {c.name: read_hierarchy(c.hierarchy) for c in config.concepts if c.hierarchy}
    lists = {c.name: read_concept_list(c.concepts) for c in config.concepts if c.concepts}
    models = _clip_models(config)
    for model, _ in models.values():
        check_clip(model, base=config.base)
    index = read_index(config.images)
    _check_splits(index)
    explainers = [
        _plan_explainer(c, index, hierarchies.get(c.name), lists.get(c.name))
        for c in config.concepts
    ]
    target = plan_target(config)
    clips = {
        name: _plan_clip(name, model, calibration, config.base)
        for name, (model, calibration) in models.items()
    }
    shards = cut_shards(index, config.recordings.shard_size)
    return Plan(config, index, shards, target, clips, explainers)


def cut_shards(index: ImageIndex, size: int) -> list[Shard]:
    """Cut the index into shards of `size` images, each with the fingerprint of its content."""
    shards = []
    for number, start in enumerate(range(0, index.rows.num_rows, size)):
        rows = index.rows.slice(start, size)
        extra = (
            index.attributes.slice(start, size) if index.attributes.num_columns else pa.table({})
        )
        shards.append(
            Shard(
                number=number,
                start=start,
                stop=start + rows.num_rows,
                pixels=fingerprint_table(rows.select(["image_id", "stamp"])),
                rows=fingerprint(fingerprint_table(rows), fingerprint_table(extra)),
            )
        )
    return shards


def plan_target(config: Config) -> TargetPlan:
    """Load the target once, match its layers and refuse what would record nothing.

    Raises:
        ModelError: The network or its weights cannot be loaded.
        LayerError: A layer or pooling that does not fit.
    """
    wanted = config.target
    target = load_target(wanted.model, wanted.weights, base=config.base)
    preprocess = split_transform(target.transform)
    names = [name for name, _ in target.module.named_modules() if name]
    layers = assign_poolings(match_layers(names, wanted.layers), wanted.pooling)
    infos = describe_layers(target.module, image_size(preprocess))
    layers = check_layers(infos, layers)
    plan = TargetPlan(
        model=wanted.model,
        weights=wanted.weights,
        base=config.base,
        preprocess=preprocess,
        layers=layers,
        infos={info.name: info for info in infos if info.name in layers},
        fingerprint=target_fingerprint(target, preprocess),
    )
    del target
    gc.collect()
    return plan


def image_size(preprocess: Preprocess) -> tuple[int, int]:
    """Height and width of the images that a model takes."""
    shape = preprocess.view.shape
    return (shape[1], shape[2]) if preprocess.view.whole else (shape[0], shape[1])


def target_fingerprint(target: Target, preprocess: Preprocess) -> str:
    """What a target's activations depend on, beside the images: network, weights, preprocessing."""
    return fingerprint(FORMAT_VERSION, state_fingerprint(target.module), preprocess.key)


def clip_fingerprint(clip: Clip, preprocess: Preprocess) -> str:
    """What a vision-language model's embeddings depend on, beside the images and texts."""
    return fingerprint(FORMAT_VERSION, state_fingerprint(clip.model), preprocess.key)


def _clip_models(config: Config) -> dict[str, tuple[str, Calibration | str]]:
    models: dict[str, tuple[str, Calibration | str]] = {
        c.name: (c.model, c.calibration) for c in config.concepts if c.model is not None
    }
    return models | {s.name: (s.model, s.calibration) for s in config.simulators}


def _plan_clip(name: str, model: str, calibration: Calibration | str, base: Path) -> ClipPlan:
    clip = load_clip(model, base=base)
    if isinstance(calibration, Calibration):
        slope, shift = calibration.a, calibration.b
    elif clip.slope is None or clip.shift is None:
        raise ConfigError(
            f"{model!r} carries no calibration of its own and none is published for it; give "
            f"calibration: {{a: …, b: …}} for {name!r} (concept score = sigmoid(a · (cosine + b)))"
        )
    else:
        slope, shift = clip.slope, clip.shift
    preprocess = split_transform(clip.transform)
    return ClipPlan(
        name=name,
        model=model,
        base=base,
        preprocess=preprocess,
        slope=slope,
        shift=shift,
        fingerprint=clip_fingerprint(clip, preprocess),
    )


def _check_splits(index: ImageIndex) -> None:
    counts = {c["values"]: c["counts"] for c in index.rows["split"].value_counts().to_pylist()}
    for split in ("train", "val", "test"):
        if counts.get(split, 0) < MIN_SPLIT_IMAGES:
            raise SourceError(
                f"the {split} split has {counts.get(split, 0)} of {index.rows.num_rows:,} images, "
                f"expected at least {MIN_SPLIT_IMAGES}; use more images or other fractions"
            )


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


def _plan_explainer(
    config: ConceptsConfig,
    index: ImageIndex,
    hierarchy: Hierarchy | None,
    concepts: list[str] | None,
) -> ExplainerPlan:
    if config.kind == "labels":
        return _plan_labels(config.name, index, hierarchy)
    if config.kind == "attributes":
        columns = _attribute_columns(config, index)
        return ExplainerPlan(
            config.name, config.kind, columns, fingerprint("attributes", columns), columns=columns
        )
    if config.kind == "table":
        return _plan_table(config)
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
    return ExplainerPlan(
        name, "labels", list(known.concepts), fingerprint("labels", repr(known)), labels=known
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
