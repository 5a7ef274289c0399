"""The record stage over 10^4, 10^5 and 10^6 small images: whether memory stays what it was.

    python benchmarks/million.py [--sizes 10000 100000 1000000] [--results FILE.json]

Images of 32 × 32 pixels as bytes in Parquet files, a network of one convolution, labels as concepts: the
work of an image is small, so that what grows with their number shows. Every second the private memory of
the driver and of the largest Ray process is read (of files mapped into memory and of the object store,
which has a bound of its own, nothing is counted).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from machine import machine
from PIL import Image

from pipeline import planted

DISTINCT, ROWS = 256, 100_000


def write_images(folder: Path, count: int) -> None:
    """Parquet files of at most ROWS images, of which DISTINCT differ."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(DISTINCT):
        data = BytesIO()
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 32)).save(data, "png")
        files.append(data.getvalue())
    folder.mkdir(parents=True)
    for start in range(0, count, ROWS):
        numbers = np.arange(start, min(start + ROWS, count))
        table = pa.table(
            {
                "image": pa.array([files[n % DISTINCT] for n in numbers], pa.binary()),
                "label": [f"class {n % 10}" for n in numbers],
            }
        )
        pq.write_table(table, folder / f"part-{start:08d}.parquet", row_group_size=1000)


def private(process: psutil.Process) -> int:
    """Bytes of memory that no file and no other process shares."""
    try:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return 1024 * int(line.split()[1])
    except (OSError, psutil.Error):
        pass
    return 0


def recorded(folder: Path, count: int) -> dict[str, Any]:
    """Record so many images; seconds, rate and memory."""
    write_images(folder / "images", count)
    sections = planted.config(folder, recordings={"shard_size": 1024})
    sections["concepts"] = [{"name": "label", "kind": "labels"}]
    sections["images"] = {
        "path": str(folder / "images"),
        "format": "parquet",
        "label": "label",
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(sections))
    command = [sys.executable, "-m", "pipeline", "run", str(folder / "run.yaml")]
    begun = time.perf_counter()
    with (folder / "said.txt").open("w") as said:
        driver = psutil.Popen(
            [*command, "--out", str(folder / "run"), "--stage", "record"],
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        held, worker = [], 0
        while driver.poll() is None:
            held.append(private(driver))
            try:
                others = [p for p in driver.children(recursive=True) if "ray::" in p.name()]
            except psutil.Error:
                others = []
            worker = max([worker, *map(private, others)])
            time.sleep(1)
    if driver.returncode:
        raise SystemExit((folder / "said.txt").read_text()[-3000:])
    facts = json.loads((folder / "run/ledger.json").read_text())["stages"]["record"]
    return {
        "images": facts["rows"],
        "seconds, start to end": round(time.perf_counter() - begun, 1),
        "stage: images per second": facts["rows_per_second"],
        "driver, MB, median": round(statistics.median(held) / 1e6),
        "driver, MB, at most": round(max(held) / 1e6),
        "largest worker, MB": round(worker / 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--results", type=Path)
    chosen = parser.parse_args()
    rows = []
    for count in chosen.sizes:
        with tempfile.TemporaryDirectory() as temporary:
            rows.append(recorded(Path(temporary), count))
        print(json.dumps(rows[-1]), flush=True)
    facts = {
        "command": f"python benchmarks/million.py --sizes {' '.join(map(str, chosen.sizes))}",
        "machine": machine(),
        "versions": {name: metadata.version(name) for name in ("ray", "pyarrow", "torch")},
        "rows": rows,
    }
    if chosen.results:
        chosen.results.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
