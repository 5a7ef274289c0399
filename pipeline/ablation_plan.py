"""What ablation would do, checked before any work: layers, poolings, classes, and the network's output."""

from __future__ import annotations

import numpy as np

from actors.layers import match_layers
from actors.replay import Replay, refuse_pooling
from actors.targets import load_target
from core.errors import ConfigError, LayerError, close_names
from pipeline.ablation_config import PREDICTED, AblationConfig
from pipeline.classes import read_classes, refuse_unknown_labels
from pipeline.held_out import HELD_OUT
from pipeline.plan import MIN_SPLIT_IMAGES, Plan
from pipeline.targets import Column, columns_of


def refuse_impossible_ablation(plan: Plan) -> None:
    """Refuse an ablation that cannot be carried out.

    Raises:
        ConfigError: Recordings that are not kept, layers that are not recorded, a pooling that no shift
            belongs to, classes that do not fit the labels or the network.
        ModelError: A network that gives no logits.
    """
    settings = plan.config.ablation
    if settings is None:
        return
    if plan.config.recordings.keep != "all":
        raise ConfigError(
            "ablation needs activations and embeddings of validation images, and recordings.keep 'test' "
            "keeps those of test images alone; set recordings.keep to 'all', or leave ablation out"
        )
    columns = ablated_columns(plan, settings)
    for column in columns:
        refuse_pooling(column.layer, column.pooling)
    outputs = _outputs(plan, columns[0])
    if settings.classes == PREDICTED:
        return
    places, count = read_classes(settings.classes)
    if count != outputs:
        raise ConfigError(
            f"ablation.classes {settings.classes!r} names {count:,} classes, and {plan.target.model!r} "
            f"has {outputs:,} outputs; expected one for each, in their order"
        )
    rows = zip(*(plan.index.rows[name].to_pylist() for name in ("label", "split")), strict=True)
    labels: dict[str, list[str | None]] = {split: [] for split in HELD_OUT}
    for label, split in rows:
        if split in labels:
            labels[split].append(label)
    refuse_unknown_labels(settings.classes, places, [*labels["val"], *labels["test"]])
    for split, found in labels.items():
        if (known := sum(label is not None for label in found)) < MIN_SPLIT_IMAGES:
            raise ConfigError(
                f"{known} images of the {split} split have a label, and ablation against "
                f"{settings.classes!r} needs at least {MIN_SPLIT_IMAGES}; label more images, or use "
                f"'ablation: {{classes: {PREDICTED}}}'"
            )


def ablated_columns(plan: Plan, settings: AblationConfig) -> list[Column]:
    """The columns of the activations table whose neurons are replaced.

    Raises:
        ConfigError: A pattern that matches no layer of the target section.
    """
    chosen = list(plan.target.own_layers)
    for pattern in settings.layers:
        try:
            match_layers(chosen, [pattern.removeprefix("!")])
        except LayerError:
            raise ConfigError(
                f"ablation.layers: {pattern!r} matches none of the layers that target.layers chooses "
                f"(directions are not part of the network, and cannot be ablated)"
                f"{close_names(pattern, chosen)}; they are {', '.join(chosen)}"
            ) from None
    layers = match_layers(chosen, settings.layers)
    return [column for column in columns_of(plan) if column.layer in layers]


def _outputs(plan: Plan, column: Column) -> int:
    """Number of outputs of the network, from a pass of a blank image."""
    target = load_target(plan.target.model, plan.target.weights, base=plan.target.base)
    replay = Replay(target, column.layer, column.pooling, batch_size=1)
    dtype = np.float32 if replay.view.whole else np.uint8
    return int(replay.logits(np.zeros((1, *replay.view.shape), dtype)).shape[1])
