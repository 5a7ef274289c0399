"""Where in the pictures neurons are active: shards of small maps, loaded when somebody asks for them.

The value of ``maps/<group>/<number>`` belongs to the shard of neurons of the same number: a list with,
for each neuron, null or ``[rows, low, high, cells]``: rows of images in ascending order, the lowest and
highest value of each map, and the maps in 8 bits between these two, one after the other. Heights and
widths are in the overview's ``maps``, by group.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from pipeline.atlas.catalogue import NeuronGroup
from pipeline.atlas.data import HeatMaps, Pairs
from pipeline.atlas.details import NEURONS_PER_SHARD
from pipeline.atlas.encode import significant

Shown = Sequence[Int[np.ndarray, " rows"]]
"""For each neuron of a group the rows of the images that its page shows, ascending."""


def put_maps(
    heat_maps: HeatMaps,
    groups: Sequence[NeuronGroup],
    shown: Sequence[Shown],
    put: Callable[[str, Any], None],
) -> dict[str, object]:
    """Write the maps of all groups that have some.

    Args:
        heat_maps: Makes them.
        groups: Layers and poolings.
        shown: For each group and neuron the images.
        put: Takes a shard's key and value.

    Returns:
        What the overview says of maps: ``inset``, and ``shapes`` (height and width, or null, by group).
    """
    shapes = [heat_maps.shape(group.layer) for group in groups]
    # Two poolings of a layer show different images of the same maps.
    wanted: dict[str, list[Pairs]] = {}
    slices: list[slice] = []
    for group, shape, rows in zip(groups, shapes, shown, strict=True):
        own = wanted.setdefault(group.layer, []) if shape else []
        start = sum(len(pair[0]) for pair in own)
        sizes = [len(one) for one in rows]
        slices.append(slice(start, start + sum(sizes)))
        own.append(
            (
                np.concatenate([*rows, np.empty(0, np.int64)]).astype(np.int64),
                np.repeat(group.neurons, sizes),
            )
        )
    pairs = {layer: _joined(own) for layer, own in wanted.items()}
    found = heat_maps.read(pairs) if pairs else {}
    for number, (group, shape, rows, part) in enumerate(
        zip(groups, shapes, shown, slices, strict=True)
    ):
        if shape is None:
            continue
        maps = found[group.layer]
        cells, low, high = maps.cells[part], maps.low[part], maps.high[part]
        ends = np.cumsum([0, *(len(one) for one in rows)])
        records = [
            _record(one, low[a:b], high[a:b], cells[a:b])
            for one, a, b in zip(rows, ends[:-1].tolist(), ends[1:].tolist(), strict=True)
        ]
        for first in range(0, len(records), NEURONS_PER_SHARD):
            put(
                f"maps/{number}/{first // NEURONS_PER_SHARD}",
                records[first : first + NEURONS_PER_SHARD],
            )
    return {"inset": round(heat_maps.inset, 4), "shapes": [s and list(s) for s in shapes]}


def _joined(pairs: Sequence[Pairs]) -> Pairs:
    rows, neurons = zip(*pairs, strict=True)
    return np.concatenate(rows), np.concatenate(neurons)


def _record(
    rows: np.ndarray, low: np.ndarray, high: np.ndarray, cells: np.ndarray
) -> list[object] | None:
    there = np.isfinite(low)
    if not there.any():
        return None
    return [
        rows[there].tolist(),
        significant(low[there], 3),
        significant(high[there], 3),
        base64.b64encode(np.ascontiguousarray(cells[there]).tobytes()).decode("ascii"),
    ]
