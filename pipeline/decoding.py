"""Decoding a shard: what tasks on CPUs do in the record stage, in processes without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from functools import partial

import numpy as np
import pyarrow as pa

from actors.allocator import keep_freed_memory
from actors.decode import Decoder
from actors.views import View
from pipeline.columns import binary_column
from pipeline.sources import fetch
from pipeline.sources_parquet import ParquetRows

#: Shard number of the rows that fill the last block up to the size of the others.
PADDING = -1


class DecodeShard:
    """Maps a block of index rows to the same rows with a reason and a column for every view."""

    def __init__(self, views: Mapping[str, View]) -> None:
        self.views = dict(views)
        self.__name__ = "decode"

    def __call__(self, block: pa.Table) -> pa.Table:
        """Fetch and decode each image once; one that cannot be used gets a reason and no pixels."""
        keep_freed_memory()
        rows = block.to_pylist()
        real = [row for row in rows if row["shard"] != PADDING]
        with closing(ParquetRows()) as opened:
            decoded = iter(Decoder(self.views, partial(fetch, rows=opened))(real))
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
        block = block.select(["shard", "parts", "image_id", "path", "split"])
        block = block.append_column("reason", pa.array(reasons, pa.string()))
        for number, array in enumerate(arrays.values()):
            block = block.append_column(f"view{number}", binary_column(array))
        return block
