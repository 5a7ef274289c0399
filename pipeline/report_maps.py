"""Maps of where neurons are active in the images that an atlas shows.

They need the images themselves once more, and the network: actors hold it as when recording.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from actors.heat_maps import BATCH, HeatMapper, Maps, has_map, map_shape, seen_share
from pipeline.atlas.data import Pairs
from pipeline.columns import array_of
from pipeline.engine import Workers
from pipeline.loading import planned_target
from pipeline.plan import Plan, TargetPlan
from pipeline.progress import Progress
from pipeline.replays import Replayers
from pipeline.thumbnails import index_rows


class HeatMapTask:
    """Holds the target on a worker; keeps maps of neurons in decoded images."""

    def __init__(
        self, plan: TargetPlan, layers: Sequence[str], workers: Workers, dtype: str
    ) -> None:
        workers.settle()
        target = planned_target(plan)
        self._mapper = HeatMapper(target, layers, workers.device, getattr(torch, dtype))

    def maps(self, shard: pa.Table, number: int, wanted: Mapping[str, Pairs]) -> Any:
        """Maps in one batch of images; an image that cannot be read any more has none."""
        found = self._mapper.maps(array_of(shard["view0"], self._mapper.view), wanted)
        lost = np.asarray(pc.is_valid(shard["reason"]))
        for layer, (rows, _) in wanted.items():
            found[layer].low[lost[rows]] = np.nan
        return number, found


class RunHeatMaps:
    """Maps of a run's neurons, for `pipeline.atlas.data.AtlasData`."""

    def __init__(self, plan: Plan, images: pa.Table, workers: Workers, dtype: str) -> None:
        self._plan, self._images, self._workers, self._dtype = plan, images, workers, dtype
        self.inset = (1.0 - seen_share(plan.target.preprocess.view)) / 2

    def shape(self, layer: str) -> tuple[int, int] | None:
        """Height and width of the maps of a layer; None where its neurons have no place."""
        info = self._plan.target.infos[layer]
        return map_shape(info) if has_map(info) else None

    def read(self, wanted: Mapping[str, Pairs]) -> dict[str, Maps]:
        """Run the target over the images of all pairs once, a batch to a call."""
        rows = np.unique(np.concatenate([pairs[0] for pairs in wanted.values()]))
        found = {}
        for layer, pairs in wanted.items():
            shape = self.shape(layer)
            assert shape is not None
            count = len(pairs[0])
            ends = (np.full(count, np.nan, np.float32) for _ in range(2))
            found[layer] = Maps(np.zeros((count, *shape), np.uint8), *ends)
        if not len(rows):
            return found
        # Pairs of each layer, by the number of the batch that their image is in.
        batch_of = {
            layer: np.searchsorted(rows, pairs[0]) // BATCH for layer, pairs in wanted.items()
        }
        order = {layer: np.argsort(batch, kind="stable") for layer, batch in batch_of.items()}
        cuts = {
            layer: np.searchsorted(
                batch_of[layer][order[layer]], np.arange(-(-len(rows) // BATCH) + 1)
            )
            for layer in wanted
        }

        def own(layer: str, number: int) -> np.ndarray:
            return order[layer][cuts[layer][number] : cuts[layer][number + 1]]

        def calls() -> Iterator[tuple[pa.Table, tuple[Any, ...]]]:
            index = index_rows(self._plan, self._images, rows.tolist())
            for number, start in enumerate(range(0, len(rows), BATCH)):
                asked = {
                    layer: (np.searchsorted(rows, pairs[0][mine]) - start, pairs[1][mine])
                    for layer, pairs in wanted.items()
                    if len(mine := own(layer, number))
                }
                yield index.slice(start, BATCH).combine_chunks(), (number, asked)

        made = ray.remote(HeatMapTask).options(
            num_cpus=1, num_gpus=self._workers.gpus, max_restarts=3, max_task_retries=3
        )
        target = self._plan.target
        actors = [
            made.remote(target, list(wanted), self._workers, self._dtype)
            for _ in range(self._workers.actors)
        ]
        progress = Progress("heat maps", len(rows), "images")
        try:
            for number, maps in Replayers(actors, target.preprocess.view).map("maps", calls()):
                for layer, some in maps.items():
                    mine = own(layer, number)
                    found[layer].cells[mine] = some.cells
                    found[layer].low[mine] = some.low
                    found[layer].high[mine] = some.high
                progress.advance(min(BATCH, len(rows) - number * BATCH))
            progress.close()
        finally:
            for actor in actors:
                ray.kill(actor)
        return found
