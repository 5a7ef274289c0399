"""Recording a decoded shard: what the actors of the record stage do.

Writing happens in the actor that holds the result, so that activations never travel.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from actors.clip import load_clip
from actors.gpu_decode import DeviceDecoder, DeviceViews
from actors.recorder import ClipPart, Images, Recorder, TargetPart
from actors.targets import load_target
from actors.undecoded import Undecoded
from core.errors import RecordingError
from pipeline.columns import activation_column, array_of, vectors
from pipeline.decoding import FILE, PADDING
from pipeline.engine import Workers
from pipeline.expected import ACTIVATIONS, QUARANTINE
from pipeline.plan import ClipPlan, TargetPlan
from pipeline.planning import clip_fingerprint, target_fingerprint
from pipeline.storage import Folder, parquet_bytes


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
                [_load_target(p) if isinstance(p, TargetPlan) else _load_clip(p)],
                device=workers.device,
                dtype=dtype,
                batch_size=batch_size,
                compiled=compiled,
            )
            for table, p in plans.items()
        }
        self._decoded: dict[str, DeviceViews] = {}

    def __call__(self, block: pa.Table) -> pa.Table:
        """Record one shard and write the parts that it lacks."""
        block = block.filter(pc.not_equal(block["shard"], PADDING))
        numbers = block["shard"].unique().to_pylist()
        if len(numbers) != 1:
            raise RecordingError(
                f"a block holds shards {numbers}, expected one: a fault in streaming"
            )
        parts: dict[str, str] = json.loads(block["parts"][0].as_py())
        images, bad, written = self.usable(numbers[0], block, parts[QUARANTINE])
        if self.keep != "all":
            images = images.filter(pc.equal(images["split"], self.keep))
        views = self.pixels(images)
        infer = write = 0.0
        overflowed = 0
        for table in (table for table in parts if table != QUARANTINE):
            begun = time.perf_counter()
            columns, beyond = self.columns(table, views)
            overflowed += beyond
            inferred = time.perf_counter()
            written += self.write(parts[table], images["image_id"], columns)
            infer += inferred - begun
            write += time.perf_counter() - inferred
        return pa.table(
            {
                "shard": numbers,
                "images": [images.num_rows],
                "quarantined": [bad],
                "overflowed": [overflowed],
                "bytes": [written],
                "infer_seconds": [infer],
                "write_seconds": [write],
            }
        )

    def pixels(self, images: pa.Table) -> dict[str, Images]:
        """What each model looks at, by view: of some images of the block that `usable` was last given.

        Where files of the block came undecoded these are tensors on the device, else arrays.
        """
        here, self._decoded = self._decoded, {}
        arrived = {
            key: array_of(images[f"view{number}"], view)
            for number, (key, view) in enumerate(self.views.items())
        }
        image_ids = images["image_id"].to_pylist()
        if here.keys().isdisjoint(image_ids):
            return dict(arrived)
        found: dict[str, Images] = {}
        for key, arrays in arrived.items():
            others = iter(torch.tensor(arrays, device=self.device))
            rows = [
                here[image_id][key] if image_id in here else next(others) for image_id in image_ids
            ]
            found[key] = torch.stack(rows)
        return found

    def write(
        self, name: str, image_ids: pa.ChunkedArray, columns: Mapping[str, np.ndarray]
    ) -> int:
        """Write a part of a table with columns of fixed-size lists; returns its bytes."""
        lists = {column: vectors(values) for column, values in columns.items()}
        return self.folder.write_table(name, pa.table({"image_id": image_ids, **lists}))

    def usable(self, number: int, block: pa.Table, quarantine: str) -> tuple[pa.Table, int, int]:
        """The images to use, how many are not, and the bytes written to say so.

        What cannot be used is decided when a shard is first recorded, and written before anything
        else: every later pass, by whatever model, uses the same images.
        """
        block = self._with_files_decoded(block)
        good = pc.is_null(block["reason"])
        bad = block.filter(pc.invert(good)).select(["image_id", "path", "reason"])
        data = parquet_bytes(bad)
        if self.folder.create(quarantine, data):
            return block.filter(good), bad.num_rows, len(data)
        known = self.folder.read_table(quarantine, ["image_id"])["image_id"].combine_chunks()
        used = pc.invert(pc.is_in(block["image_id"], value_set=known))
        lost = block.filter(pc.and_(used, pc.invert(good)))
        if lost.num_rows:
            raise RecordingError(
                f"shard {number}: {lost.num_rows} images that could be used when it was first "
                f"recorded cannot be used now, for instance {lost['path'][0].as_py()!r} "
                f"({lost['reason'][0].as_py()}), yet the files look unchanged; run again when the "
                "storage is well"
            )
        return block.filter(used), len(known), 0

    def _with_files_decoded(self, block: pa.Table) -> pa.Table:
        """The block with a reason for each file that came undecoded and cannot be used."""
        self._decoded = {}
        if not set(FILE) <= set(block.column_names):
            return block
        places = np.flatnonzero(pc.is_valid(block["data"]).to_numpy())
        files = block.select(list(FILE)).take(pa.array(places)).to_pylist()
        image_ids, reasons = block["image_id"].to_pylist(), block["reason"].to_pylist()
        decode = DeviceDecoder(self.views, self.device)
        answers = decode([Undecoded(**file) for file in files])
        for place, (reason, views) in zip(places, answers, strict=True):
            reasons[place] = reason
            if reason is None:
                self._decoded[image_ids[place]] = views
        block = block.drop_columns(list(FILE))
        number = block.column_names.index("reason")
        return block.set_column(number, "reason", pa.array(reasons, pa.string()))

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


def _load_target(plan: TargetPlan) -> TargetPart:
    target = load_target(plan.model, plan.weights, base=plan.base)
    if target_fingerprint(target, plan.preprocess) != plan.fingerprint:
        raise RecordingError(_differs(plan.model))
    directions = [some.load() for some in plan.directions.values()]
    return TargetPart(target, plan.own_layers, directions)


def _load_clip(plan: ClipPlan) -> ClipPart:
    clip = load_clip(plan.model, base=plan.base)
    if clip_fingerprint(clip, plan.preprocess) != plan.fingerprint:
        raise RecordingError(_differs(plan.model))
    return ClipPart(clip, plan.name)


def _differs(model: str) -> str:
    return (
        f"{model!r} has other weights on this worker than where the run was planned; "
        "give every node the same files"
    )
