"""The outputs of a classifier and the labels of the images: which output each label means.

The loss that ablation measures needs the class of every image. It is the one that the network itself
puts first, or it is read from the images' labels by a file that names the outputs in their order.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from core.errors import ConfigError, close_names
from pipeline.ablation_config import PREDICTED

#: Class of an image that has no label.
UNKNOWN = -1


def read_classes(path: str) -> tuple[dict[str, int], int]:
    """Output by label, and the number of outputs, from a file.

    Args:
        path: A text file with one label a line, or JSON with a list `classes` of objects that have
            `index` and one or both of `wnid` and `label`, which are labels both.

    Raises:
        ConfigError: The file cannot be read, is of another shape, or names a label twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        named = _from_json(text) if path.endswith(".json") else _from_lines(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"ablation.classes {path!r} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"ablation.classes {path!r} is not of the expected shape ({type(error).__name__}: "
            f'{error}); expected {{"classes": [{{"index": 0, "wnid": …, "label": …}}, …]}}'
        ) from error
    if [index for index, _ in named] != list(range(len(named))):
        raise ConfigError(
            f"ablation.classes {path!r} has {len(named):,} classes whose indices are not 0 to "
            f"{len(named) - 1:,}; every output of the network needs its class"
        )
    places = {names[0]: index for index, names in reversed(named)}
    if twice := [names[0] for index, names in named if places[names[0]] != index]:
        raise ConfigError(
            f"ablation.classes {path!r} names {twice[0]!r} for two outputs; each needs its own name"
        )
    texts = Counter(names[-1] for _, names in named)
    for index, names in named:
        if texts[names[-1]] == 1:  # a text that two classes share says neither
            places.setdefault(names[-1], index)
    return places, len(named)


def _from_lines(text: str) -> list[tuple[int, list[str]]]:
    return [(n, [line.strip()]) for n, line in enumerate(text.splitlines())]


def _from_json(text: str) -> list[tuple[int, list[str]]]:
    classes = sorted(json.loads(text)["classes"], key=lambda c: int(c["index"]))
    return [
        (int(c["index"]), [str(c[key]) for key in ("wnid", "label") if key in c]) for c in classes
    ]


def refuse_unknown_labels(
    path: str, places: Mapping[str, int], labels: Sequence[str | None]
) -> None:
    """Refuse labels that no class is named by, before any work.

    Args:
        path: The file that names the classes.
        places: Output by label.
        labels: Labels of the images; None where there is none.

    Raises:
        ConfigError: An unknown label, or no label at all.
    """
    known = {label for label in labels if label is not None}
    if not known:
        raise ConfigError(
            f"ablation.classes {path!r} takes labels to outputs, and no image has a label; set "
            f"images.label, or use 'ablation: {{classes: {PREDICTED}}}'"
        )
    if unknown := sorted(known - set(places)):
        raise ConfigError(
            f"{len(unknown):,} labels of the images are not among the {len(places):,} names of "
            f"ablation.classes {path!r}, the first is {unknown[0]!r}"
            f"{close_names(unknown[0], places)}; name every class as the labels do, or use "
            f"'ablation: {{classes: {PREDICTED}}}'"
        )


def class_of(classes: str, labels: Sequence[str | None], logits: np.ndarray) -> np.ndarray:
    """Class of each image, `UNKNOWN` where it has no label.

    Args:
        classes: `predicted`, or the file that names the outputs.
        labels: Labels of the images.
        logits: What the network gives, (images, classes).
    """
    if classes == PREDICTED:
        found: np.ndarray = logits.argmax(axis=1)
        return found
    places, _ = read_classes(classes)
    return np.array([UNKNOWN if label is None else places[label] for label in labels])
