"""Decoding a shard: what tasks on CPUs do in the record stage, in processes without PyTorch.

Where recording actors decode JPEG files themselves (`recordings.decode: gpu`), files that they surely can
decode travel as they are, and arrays of the others alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from actors.allocator import keep_freed_memory
from actors.decode import Decoder
from actors.undecoded import Undecoded
from actors.views import View
from pipeline.columns import binary_column, sparse_column
from pipeline.fetching import fetch
from pipeline.sources_parquet import ParquetRows

#: Shard number of the rows that fill the last block up to the size of the others.
PADDING = -1

#: Columns of the files that travel as they are, by the names of `Undecoded`; null in other rows.
FILE = {"data": pa.large_binary(), "width": pa.int32(), "height": pa.int32()}

#: Figures of how many images a device has decoded, and how many Pillow.
ON_DEVICE, ON_CPUS = "decoded_on_device", "decoded_on_cpus"


class DecodeShard:
    """Maps a block of index rows to the same rows with a reason and a column for every view.

    With `leave` files that a device can decode are in the columns `FILE`, and those of their views that it
    makes, the plain ones, are empty. Views that are `deciding` may refuse an image too, and have no column.
    """

    def __init__(
        self,
        views: Mapping[str, View],
        leave: bool = False,
        deciding: Mapping[str, View] | None = None,
    ) -> None:
        self.views = dict(views)
        self.deciding = dict(deciding or {})
        self.leave = leave and any(v.plain for v in (self.views or self.deciding).values())
        self.__name__ = "decode"

    def __call__(self, block: pa.Table) -> pa.Table:
        """Fetch and decode each image once; one that cannot be used gets a reason and no pixels."""
        keep_freed_memory()
        rows = block.to_pylist()
        real = [row for row in rows if row["shard"] != PADDING]
        if self.leave:
            return self._left(block, rows, real)
        with closing(ParquetRows()) as opened:
            decoded = iter(self._decoder(opened)(real))
        arrays = {
            key: np.zeros((len(rows), *view.shape), np.float32 if view.whole else np.uint8)
            for key, view in self.views.items()
        }
        reasons: list[str | None] = []
        for position, row in enumerate(rows):
            reason, pixels = ("padding", {}) if row["shard"] == PADDING else next(decoded)
            reasons.append(reason)
            for key, array in pixels.items():
                arrays[key][position] = array
        return _with(block, reasons, [binary_column(array) for array in arrays.values()])

    def _decoder(self, opened: ParquetRows) -> Decoder:
        return Decoder(self.views, partial(fetch, rows=opened), self.deciding)

    def _left(
        self, block: pa.Table, rows: list[dict[str, Any]], real: list[dict[str, Any]]
    ) -> pa.Table:
        """The same with files where a device decodes them, and arrays where it does not."""
        with closing(ParquetRows()) as opened:
            given = iter(self._decoder(opened).or_left(real))
        reasons: list[str | None] = []
        files: list[Undecoded | None] = []
        there: dict[str, list[int]] = {key: [] for key in self.views}
        arrays: dict[str, list[np.ndarray]] = {key: [] for key in self.views}
        for position, row in enumerate(rows):
            skipped = row["shard"] == PADDING
            reason, (file, made) = ("padding", (None, {})) if skipped else next(given)
            reasons.append(reason)
            files.append(file)
            for key, array in made.items():
                there[key].append(position)
                arrays[key].append(array)
        views = [sparse_column(arrays[key], there[key], len(rows)) for key in self.views]
        block = _with(block, reasons, views)
        for name, kind in FILE.items():
            values = [None if file is None else getattr(file, name) for file in files]
            block = block.append_column(name, pa.array(values, kind))
        return block


def _with(block: pa.Table, reasons: list[str | None], views: list[pa.Array]) -> pa.Table:
    """What actors need of the rows of the index, with what has become of each."""
    block = block.select(["shard", "parts", "image_id", "path", "split"])
    block = block.append_column("reason", pa.array(reasons, pa.string()))
    for number, column in enumerate(views):
        block = block.append_column(f"view{number}", column)
    return block
