"""Everything that can be known before work starts: images, shards, layers, models, concepts.

`prepare` loads what is cheap to load and refuses what cannot work, so that a job that starts is a job
that can finish. The fingerprints made here decide what is fresh.
"""

from __future__ import annotations

import gc
import hashlib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from PIL import Image

from actors.clip import Clip, check_clip, load_clip
from actors.fingerprint import state_fingerprint
from actors.folding import foldable
from actors.layers import assign_poolings, check_layers, describe_layers, match_layers
from actors.preprocessing import split_transform
from actors.targets import Target, load_target
from actors.views import Preprocess
from core.errors import ConfigError, SourceError
from core.labels import Hierarchy
from pipeline.concept_lists import read_concepts, read_hierarchy
from pipeline.concepts_config import Calibration, ConceptsConfig, SimulatorConfig
from pipeline.config import Config
from pipeline.directions import plan_directions
from pipeline.explainers import plan_explainer
from pipeline.fingerprints import fingerprint
from pipeline.plan import MIN_SPLIT_IMAGES, ClipPlan, LabelTexts, Plan, TargetPlan, cut_shards
from pipeline.sources import ImageIndex, read_index

#: Raised when the same model and settings would give other recordings.
RECORD_VERSION = 3


def prepare(config: Config) -> Plan:
    """Check a configuration against the images and models that it names.

    Raises:
        UsageError: Something cannot work; the message says what, and what to do.
    """
    hierarchies = {c.name: read_hierarchy(c.hierarchy) for c in config.concepts if c.hierarchy}
    lists = {c.name: read_concepts(c.concepts) for c in config.concepts if c.concepts}
    models = _clip_models(config)
    for model, _ in models.values():
        check_clip(model, base=config.base)
    index = read_index(config.images)
    _check_splits(index)
    explainers = [
        plan_explainer(c, index, hierarchies.get(c.name), lists.get(c.name, []))
        for c in config.concepts
    ]
    target = plan_target(config)
    if config.recordings.keep == "test" and any(c == "labels" for _, c in models.values()):
        raise ConfigError(
            "calibration 'labels' is measured on recorded training images, which recordings.keep "
            "'test' does not keep; give {a: …, b: …}, as from the table `calibration` of another run"
        )
    clips = {
        name: _plan_clip(name, model, calibration, config.base)
        for name, (model, calibration) in models.items()
    }
    named: list[ConceptsConfig | SimulatorConfig] = [*config.concepts, *config.simulators]
    for one in named:
        if one.calibration == "labels":
            known = read_hierarchy(one.hierarchy) if one.hierarchy else None
            labels = _label_texts(one.name, index, known)
            clips[one.name] = replace(clips[one.name], labels=labels)
    shards = cut_shards(index, config.recordings.shard_size)
    return Plan(config, index, shards, target, clips, explainers)


def plan_target(config: Config) -> TargetPlan:
    """Load the target once, match its layers and refuse what would record nothing.

    Raises:
        ModelError: The network or its weights cannot be loaded.
        LayerError: A layer or pooling that does not fit.
    """
    wanted = config.target
    target = load_target(wanted.model, wanted.weights, base=config.base)
    preprocess = split_transform(target.transform)
    made = target_fingerprint(target, preprocess)  # before it runs, as on a worker
    names = [name for name, _ in target.module.named_modules() if name]
    infos = describe_layers(target.module, image_size(preprocess))
    layers: dict[str, tuple[str, ...]] = {}
    if wanted.layers:
        layers = assign_poolings(match_layers(names, wanted.layers), wanted.pooling)
        layers = check_layers(infos, layers)
    directions = {some.name: plan_directions(some, infos) for some in wanted.directions}
    layers |= {some.name: tuple(dict.fromkeys(some.pooling)) for some in wanted.directions}
    infos = [*infos, *(info for _, info in directions.values())]
    read = [name for name in layers if name not in directions]
    read += [some.settings.layer for some, _ in directions.values()]
    plan = TargetPlan(
        model=wanted.model,
        weights=wanted.weights,
        base=config.base,
        preprocess=preprocess,
        layers=layers,
        infos={info.name: info for info in infos if info.name in layers},
        fingerprint=made,
        directions={name: some for name, (some, _) in directions.items()},
        unfolded=tuple(foldable(target.module, read)),
    )
    del target
    gc.collect()
    return plan


def image_size(preprocess: Preprocess) -> tuple[int, int]:
    """Height and width of the images that a model takes."""
    shape = preprocess.view.shape
    return (shape[1], shape[2]) if preprocess.view.whole else (shape[0], shape[1])


def target_fingerprint(target: Target, preprocess: Preprocess) -> str:
    """What a target's activations depend on, beside the images: network, weights, code, preprocessing."""
    made = state_fingerprint(target.module, target.made_in)
    return fingerprint(RECORD_VERSION, made, _sight(preprocess))


def clip_fingerprint(clip: Clip, preprocess: Preprocess) -> str:
    """What a vision-language model's embeddings depend on, beside the images and texts."""
    return fingerprint(RECORD_VERSION, state_fingerprint(clip.model), _sight(preprocess))


def text_fingerprint(clip: Clip, made: str) -> str:
    """What its embeddings of texts depend on, given what those of images do: how texts are read as well."""
    return fingerprint(made, clip.reading())


def _sight(preprocess: Preprocess) -> list[str]:
    """What a preprocessing is made from; one that is kept whole is also tried on a picture.

    A user's own function may read what its code does not show, such as a constant of a module.
    """
    if not preprocess.view.whole:
        return [preprocess.key]
    pixels = np.random.RandomState(0).randint(0, 256, (97, 131, 3)).astype(np.uint8)
    seen = preprocess.view.apply(Image.fromarray(pixels))
    return [preprocess.key, hashlib.blake2b(seen.tobytes(), digest_size=12).hexdigest()]


def _clip_models(config: Config) -> dict[str, tuple[str, Calibration | str]]:
    models: dict[str, tuple[str, Calibration | str]] = {
        c.name: (c.model, c.calibration) for c in config.concepts if c.model is not None
    }
    return models | {s.name: (s.model, s.calibration) for s in config.simulators}


def _plan_clip(name: str, model: str, calibration: Calibration | str, base: Path) -> ClipPlan:
    clip = load_clip(model, base=base)
    if isinstance(calibration, Calibration):
        slope, shift = calibration.a, calibration.b
    elif calibration == "labels":
        slope = shift = math.nan
    elif calibration == "own":
        if clip.own is None:
            raise ConfigError(
                f"{model!r} was not trained with a sigmoid loss and has no calibration of its own; "
                f"{name!r} can take calibration: labels, or {{a: …, b: …}}"
            )
        slope, shift = clip.own
    elif clip.slope is None or clip.shift is None:
        raise ConfigError(
            f"{model!r} carries no calibration of its own and none is published for it; give "
            f"calibration: labels (measured on the images' labels) or {{a: …, b: …}} for {name!r} "
            "(concept score = sigmoid(a · (cosine + b)))"
        )
    else:
        slope, shift = clip.slope, clip.shift
    preprocess = split_transform(clip.transform)
    made = clip_fingerprint(clip, preprocess)
    return ClipPlan(
        name=name,
        model=model,
        base=base,
        preprocess=preprocess,
        slope=slope,
        shift=shift,
        fingerprint=made,
        text_fingerprint=text_fingerprint(clip, made),
    )


def _label_texts(name: str, index: ImageIndex, hierarchy: Hierarchy | None) -> LabelTexts:
    """Texts of the labels that training images have; names of folders lose their underscores."""
    train = index.rows["label"].filter(pc.equal(index.rows["split"], "train"))
    labels = sorted(label for label in train.unique().to_pylist() if label)
    known = hierarchy.classes if hierarchy else {}
    called = [known.get(label, label.replace("_", " ")) for label in labels]
    texts = list(dict.fromkeys(called))
    if len(texts) < 2:
        raise ConfigError(
            f"calibration 'labels' of {name!r} needs images with labels, two different ones at least, "
            f"and the training images have {len(texts)}; set images.label, or give {{a: …, b: …}}"
        )
    return LabelTexts(tuple(labels), tuple(texts.index(text) for text in called), tuple(texts))


def _check_splits(index: ImageIndex) -> None:
    counts = index.split_counts
    for split in ("train", "val", "test"):
        if counts[split] < MIN_SPLIT_IMAGES:
            raise SourceError(
                f"the {split} split has {counts[split]} of {index.rows.num_rows:,} images, "
                f"expected at least {MIN_SPLIT_IMAGES}; use more images or other fractions"
            )
