"""A run that can be carried out: images, shards, layers, models, concepts; `pipeline.planning` makes it.

Tasks that read tables get parts of it, and do without PyTorch: nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from actors.layer_info import LayerInfo
from actors.views import Preprocess
from pipeline.config import Config
from pipeline.explainers import ExplainerPlan, is_numeric
from pipeline.fingerprints import fingerprint, fingerprint_table
from pipeline.sources import ImageIndex

if TYPE_CHECKING:
    from pipeline.directions import DirectionsPlan

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
    """Fingerprint of the above with what the images table holds of them: paths, splits and labels."""
    attributes: dict[str, str]
    """Fingerprints of their values in each column beside the images that can be a concept."""

    def scores(self, explainer: ExplainerPlan) -> list[str]:
        """Fingerprints of the attributes that an explainer's concept scores are; none of another kind."""
        named = explainer.columns or () if explainer.kind == "attributes" else ()
        return [self.attributes[column] for column in named]


@dataclass(frozen=True)
class TargetPlan:
    """The network to explain, checked: its layers exist, run once, and can be pooled as asked."""

    model: str
    weights: str
    base: Path
    preprocess: Preprocess
    layers: dict[str, tuple[str, ...]]
    """Poolings by layer, and by set of directions, which count as layers after those of the network."""
    infos: dict[str, LayerInfo]
    fingerprint: str
    directions: dict[str, DirectionsPlan] = field(default_factory=dict)
    unfolded: tuple[str, ...] = ()
    """Convolutions that a batch normalisation is not folded into, since they are recorded or read by
    directions. The numbers of all layers after them are rounded otherwise than in a folded network."""

    @property
    def own_layers(self) -> dict[str, tuple[str, ...]]:
        """Poolings by layer of the network."""
        return {name: p for name, p in self.layers.items() if name not in self.directions}

    @property
    def neurons(self) -> int:
        """Number of neurons to explain, each pooling of a layer counted on its own."""
        return sum(self.infos[name].neurons * len(pools) for name, pools in self.layers.items())


@dataclass(frozen=True)
class LabelTexts:
    """What the labels of training images are called; what a calibration is measured on."""

    labels: tuple[str, ...]
    places: tuple[int, ...]
    """Position of each label's text."""
    texts: tuple[str, ...]
    """All different."""


@dataclass(frozen=True)
class ClipPlan:
    """A vision-language model, checked, with the calibration of its concept scores.

    Slope and shift are NaN where they are to be measured on labels and have not been yet.
    """

    name: str
    model: str
    base: Path
    preprocess: Preprocess
    slope: float
    shift: float
    fingerprint: str
    """What embeddings depend on, beside the images or texts."""
    text_fingerprint: str
    """What embeddings of texts depend on, beside the texts: the above, and how texts are read."""
    labels: LabelTexts | None = None
    """What slope and shift are measured on, where the configuration asks for it."""


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


def cut_shards(index: ImageIndex, size: int) -> list[Shard]:
    """Cut the index into shards of `size` images, each with the fingerprint of its content."""
    count = index.rows.num_rows
    return cut_at(index, [*range(0, count, size), count])


def cut_at(index: ImageIndex, bounds: Sequence[int]) -> list[Shard]:
    """Cut the index where shards begin and end; where nothing lies between two bounds, there is none."""
    shards: list[Shard] = []
    numeric = [field.name for field in index.attributes.schema if is_numeric(field.type)]
    for start, stop in pairwise(bounds):
        if stop == start:
            continue
        rows = index.rows.slice(start, stop - start)
        shards.append(
            Shard(
                number=len(shards),
                start=start,
                stop=stop,
                pixels=fingerprint_table(rows.select(["image_id", "stamp"])),
                # Not where the bytes lie: a data set may be moved or mounted elsewhere.
                rows=fingerprint_table(
                    rows.select(["image_id", "path", "label", "split", "stamp"])
                ),
                attributes={
                    name: _values(index.attributes[name].slice(start, stop - start))
                    for name in numeric
                },
            )
        )
    return shards


def _values(column: pa.ChunkedArray) -> str:
    if pa.types.is_floating(column.type):
        column = column.cast(pa.float64())  # half floats have no Python type of their own
    return fingerprint(column.to_pylist())
