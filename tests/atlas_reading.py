"""An atlas built in memory and read back, for tests of what its shards say."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from atlas_planted import Layer, planted

from pipeline.atlas.build import build_atlas
from pipeline.atlas.data import AtlasData

Files = dict[str, bytes]


@dataclass(frozen=True)
class Built:
    """A planted run, the files of its atlas, and the overview among them."""

    data: AtlasData
    files: Files
    overview: Any


@cache
def planted_atlas() -> Built:
    """One atlas of three groups of neurons that many tests only read."""
    layers = (Layer("late", 70), Layer("early", 20), Layer("early", 20, "max"))
    data = planted(images=900, layers=layers, seed=1)
    files = built(data)
    return Built(data, files, value_of(files, "overview"))


def built(data: AtlasData) -> Files:
    """All files of an atlas; each is written once."""
    files: Files = {}

    def write(path: str, content: bytes) -> None:
        assert path not in files, f"{path} was written twice"
        files[path] = content

    build_atlas(data, write)
    return files


def value_of(files: Files, key: str) -> Any:
    """What a shard says, and that it says it under its own key."""
    text = files[f"data/{key}.js"].decode("ascii")
    match = re.fullmatch(r"atlas\.put\((\"[^\"]*\"),(.*)\);\n", text)
    assert match is not None
    assert json.loads(match[1]) == key
    return json.loads(match[2])


def typed(stored: dict[str, str]) -> np.ndarray:
    """A typed column."""
    return np.frombuffer(base64.b64decode(stored["data"]), np.dtype(stored["type"]))


def half(text: str) -> np.ndarray:
    """float16 values."""
    return np.frombuffer(base64.b64decode(text), "<f2")


def records(files: Files, overview: dict[str, Any]) -> dict[tuple[str, str, int], Any]:
    """Each neuron's record and the concept texts of its shard."""
    found = {}
    for number, group in enumerate(overview["groups"]):
        for first in range(0, group["count"], overview["neurons_per_shard"]):
            shard = value_of(files, f"neurons/{number}/{first // overview['neurons_per_shard']}")
            for record in shard["neurons"]:
                found[group["layer"], group["pooling"], record["n"]] = record, shard["concepts"]
    return found
