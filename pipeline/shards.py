"""Recording a decoded shard: what the actors of the record stage do.

Writing happens in the actor that holds the result, so that activations never travel.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from actors.gpu_decode import DeviceDecoder, DeviceViews
from actors.recorder import Images, Recorder
from actors.staging import Ahead
from actors.undecoded import Undecoded
from core.errors import RecordingError
from pipeline.columns import activation_column, array_of, vectors
from pipeline.decoding import FILE, ON_CPUS, ON_DEVICE, PADDING
from pipeline.engine import Workers
from pipeline.expected import ACTIVATIONS, QUARANTINE
from pipeline.loading import clip_part, target_part
from pipeline.plan import ClipPlan, TargetPlan
from pipeline.storage import Folder, parquet_bytes


@dataclass(frozen=True)
class Among:
    """Where some images of a shard stand among all of it."""

    image_ids: pa.Array
    """All images of the shard, in its order."""
    bad: pa.Table
    """Others of them that cannot be used: image_id, path, reason."""

    def with_others(self, bad: pa.Table) -> pa.Table:
        """Images that cannot be used, these and the others, in the shard's order."""
        rows = pa.concat_tables([self.bad.cast(bad.schema), bad])
        return rows.take(self.order(rows["image_id"]))

    def order(self, image_ids: pa.ChunkedArray) -> pa.Array:
        """What brings some of the images into the shard's order."""
        return pc.sort_indices(pc.index_in(image_ids, value_set=self.image_ids))


class RecordShard:
    """Holds the models; maps a block of images to written parts and a row of figures.

    Files that come undecoded are decoded here, on the device of the models.
    """

    def __init__(
        self,
        folder: Folder,
        targets: Mapping[str, TargetPlan],
        clips: Mapping[str, ClipPlan],
        workers: Workers,
        dtype: str,
        batch_size: int | Literal["auto"],
        compiled: bool = False,
        keep: str = "all",
    ) -> None:
        workers.settle()
        self.device = workers.device
        self.folder = folder
        self.keep = keep
        plans: dict[str, TargetPlan | ClipPlan] = {**targets, **clips}
        self.views = {p.preprocess.view.key: p.preprocess.view for p in plans.values()}
        self.recorders = {
            table: Recorder(
                [target_part(p) if isinstance(p, TargetPlan) else clip_part(p)],
                device=workers.device,
                dtype=dtype,
                batch_size=batch_size,
                compiled=compiled,
            )
            for table, p in plans.items()
        }
        self._ahead = Ahead(workers.device)
        #: Two shards may be under way: while one computes, the other waits for storage.
        self._computing = threading.Lock()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Record one shard and write the parts that it lacks."""
        block = block.filter(pc.not_equal(block["shard"], PADDING))
        numbers = block["shard"].unique().to_pylist()
        if len(numbers) != 1:
            raise RecordingError(
                f"a block holds shards {numbers}, expected one: a fault in streaming"
            )
        parts: dict[str, str] = json.loads(block["parts"][0].as_py())
        with self._computing:
            block, decoded, places = self.files_decoded(block)
        images, bad, written = self.usable(numbers[0], block, parts[QUARANTINE])
        if self.keep != "all":
            images = images.filter(pc.equal(images["split"], self.keep))
        views, copied = self._ahead.begin(self.pixels(images, decoded))
        with self._computing:
            begun = time.perf_counter()
            self._ahead.wait(views, copied)
            made = {table: self.columns(table, views) for table in parts if table != QUARANTINE}
            infer = time.perf_counter() - begun
        begun = time.perf_counter()
        for table, (columns, _) in made.items():
            written += self.write(parts[table], images["image_id"], columns)
        write = time.perf_counter() - begun
        overflowed = sum(beyond for _, beyond in made.values())
        return pa.table(
            {
                "shard": numbers,
                "images": [images.num_rows],
                "quarantined": [bad],
                "overflowed": [overflowed],
                "batch_size": [self.batch_size],
                "bytes": [written],
                "infer_seconds": [infer],
                "write_seconds": [write],
                **{place: [count] for place, count in places.items()},
            }
        )

    @property
    def batch_size(self) -> int:
        """Images in one pass: of all models the fewest."""
        return min((recorder.batch_size for recorder in self.recorders.values()), default=0)

    def pixels(self, images: pa.Table, decoded: Mapping[str, DeviceViews]) -> dict[str, Images]:
        """What each model looks at, by view, of some images.

        Args:
            images: Of a block; what was decoded before are arrays, and stay so where all of a view are.
            decoded: By image, what was decoded on the device.
        """
        arrived = {
            key: array_of(images[f"view{number}"], view)
            for number, (key, view) in enumerate(self.views.items())
        }
        image_ids = images["image_id"].to_pylist()
        found: dict[str, Images] = dict(arrived)
        if decoded.keys().isdisjoint(image_ids):
            return found
        for key, arrays in arrived.items():
            if self.views[key].plain:
                others = iter(torch.tensor(arrays, device=self.device))
                rows = [decoded[i][key] if i in decoded else next(others) for i in image_ids]
                found[key] = torch.stack(rows)
        return found

    def write(
        self, name: str, image_ids: pa.ChunkedArray, columns: Mapping[str, np.ndarray]
    ) -> int:
        """Write a part of a table with columns of fixed-size lists; returns its bytes."""
        lists = {column: vectors(values) for column, values in columns.items()}
        return self.folder.write_table(name, pa.table({"image_id": image_ids, **lists}))

    def usable(
        self, number: int, block: pa.Table, quarantine: str, among: Among | None = None
    ) -> tuple[pa.Table, int, int]:
        """The images to use, how many are not, and the bytes written to say so.

        What cannot be used is decided when a shard is first recorded, and written before anything
        else: every later pass, by whatever model, uses the same images.

        Args:
            number: The shard.
            block: Decoded images, all or some of it.
            quarantine: Its part of the quarantine.
            among: The shard's other images, where the block is not all of it.
        """
        good = pc.is_null(block["reason"])
        bad = block.filter(pc.invert(good)).select(["image_id", "path", "reason"])
        if among is not None:
            bad = among.with_others(bad)
        data = parquet_bytes(bad)
        if self.folder.create(quarantine, data):
            return block.filter(good), bad.num_rows, len(data)
        known = self.folder.read_table(quarantine, ["image_id"])["image_id"].combine_chunks()
        lost = bad.filter(pc.invert(pc.is_in(bad["image_id"], value_set=known)))
        if lost.num_rows:
            raise RecordingError(
                f"shard {number}: {lost.num_rows} images that could be used when it was first "
                f"recorded cannot be used now, for instance {lost['path'][0].as_py()!r} "
                f"({lost['reason'][0].as_py()}), yet the files look unchanged; run again when the "
                "storage is well"
            )
        used = pc.invert(pc.is_in(block["image_id"], value_set=known))
        return block.filter(used), len(known), 0

    def files_decoded(
        self, block: pa.Table
    ) -> tuple[pa.Table, dict[str, DeviceViews], dict[str, int]]:
        """Decode what came undecoded.

        Returns:
            The block with a reason for each file that cannot be used; by image, on the device, what
            the others look like to each model whose view is plain; and how many images the device has
            decoded and how many Pillow, no figures where none come undecoded.
        """
        if not set(FILE) <= set(block.column_names):
            return block, {}, {}
        places = np.flatnonzero(pc.is_valid(block["data"]).to_numpy())
        files = block.select(list(FILE)).take(pa.array(places)).to_pylist()
        image_ids, reasons = block["image_id"].to_pylist(), block["reason"].to_pylist()
        plain = {key: view for key, view in self.views.items() if view.plain}
        decode = DeviceDecoder(plain, self.device)
        found: dict[str, DeviceViews] = {}
        for place, (reason, views) in zip(
            places, decode([Undecoded(**file) for file in files]), strict=True
        ):
            reasons[place] = reason
            if reason is None:
                found[image_ids[place]] = views
        block = block.drop_columns(list(FILE))
        number = block.column_names.index("reason")
        block = block.set_column(number, "reason", pa.array(reasons, pa.string()))
        used = reasons.count(None)
        return block, found, {ON_DEVICE: decode.decoded, ON_CPUS: max(0, used - decode.decoded)}

    def columns(self, table: str, views: Mapping[str, Images]) -> tuple[dict[str, np.ndarray], int]:
        """What one model makes of some images, by column, float16, and how much did not fit."""
        recorded = self.recorders[table].record(views)
        if table == ACTIVATIONS:
            columns = {
                activation_column(layer, pooling): values
                for (layer, pooling), values in recorded.activations.items()
            }
        else:
            (values,) = recorded.embeddings.values()
            columns = {"embedding": values}
        return columns, recorded.overflowed
