"""How long a start takes with very many images: listing, splits, shards, labels; time and memory.

    python benchmarks/listing.py --files 100000 --rows 1000000

Files are real and empty, in a folder of their own, and are deleted afterwards. The rows of the manifest
name the same files again and again, each time with one more `./` before the name, so that ids differ.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.concepts_config import ConceptsConfig
from pipeline.explainers import image_scores, plan_explainer
from pipeline.images_config import ImagesConfig
from pipeline.plan import cut_shards
from pipeline.sources import read_index

CLASSES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000, help="empty files to make and list")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the manifest")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for number in range(CLASSES):
            (folder / f"images/n{number:08d}").mkdir(parents=True)
        names = [f"n{n % CLASSES:08d}/photograph_{n:09d}.jpg" for n in range(chosen.files)]
        for name in names:
            (folder / "images" / name).touch()
        measure("folder", ImagesConfig(path=str(folder / "images")))
        paths = [
            f"images/{'./' * (n // chosen.files)}{names[n % chosen.files]}"
            for n in range(chosen.rows)
        ]
        labels = [f"n{n % CLASSES:08d}" for n in range(chosen.rows)]
        table = pa.table({"path": paths, "label": labels})
        pq.write_table(table, folder / "manifest.parquet")
        del paths, labels, table
        measure("manifest", ImagesConfig(path=str(folder / "manifest.parquet"), label="label"))


def measure(name: str, images: ImagesConfig) -> None:
    """Print one line of figures for a source."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        seconds[step] = round(time.perf_counter() - begun, 2)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with timed("list"):
        index = read_index(images)
    with timed("shards"):
        shards = cut_shards(index, 256)
    with timed("labels"):
        explainer = plan_explainer(ConceptsConfig(name="label", kind="labels"), index, None, [])
    with timed("scores"):
        scores = image_scores(index, explainer)
        for shard in shards[:100]:
            scores.of(index.rows["image_id"].slice(shard.start, 256).to_pylist())
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts: dict[str, Any] = {
        "source": name,
        "images": index.rows.num_rows,
        "seconds": seconds,
        "index_mib": round(index.rows.nbytes / 2**20),
        "peak_added_mib": round((after - before) / 1024),
    }
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
