"""How recording scales with nodes, and how fast a start finds what is left of a million images.

    python benchmarks/scaling.py [--workers 1 2 4 8] [--results FILE.json]

Weak scaling: a network that does nothing but wait LATENCY seconds a shard, on clusters of nodes with two
CPUs each that all share this machine; every worker gets the same number of shards. A worker's images a second
cannot exceed SHARD / LATENCY. `rate` is taken between the first and the last WORKERS shards, when all
actors are at work; `whole` is from the first shard's end to the last's. Starting actors is left out: on
this machine they share two cores to import PyTorch.

Planning: an index of a million made-up images and a run directory that holds the parts of 90 % of their
shards; seconds to name what is expected, to list what is there, and to read what was quarantined.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import yaml
from machine import machine
from torch import nn
from torchvision import transforms

from pipeline import planted

SHARD, EACH, LATENCY = 50, 10, 3.0
MILLION, DONE = 1_000_000, 0.9
LIMIT = 400.0


class Waits(nn.Module):
    """Gives the mean of each image, after a known time."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.AdaptiveAvgPool2d(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 2:  # not while layers are looked at
            time.sleep(LATENCY * len(images) / SHARD)
        out: torch.Tensor = self.mean(images).flatten(1)
        return out


def network() -> tuple[nn.Module, transforms.Compose]:
    """Factory for ``python:scaling:network``."""
    _, transform = planted.network()
    return Waits(), transform


def scaled(folder: Path, workers: int) -> dict[str, Any]:
    """Record as many shards for each of some workers; images a second."""
    from trouble import cluster, environment, start

    images = folder / f"images{workers}"
    planted.write_images(images, workers * EACH * SHARD)
    with cluster(workers) as nodes:
        sections = planted.config(images, recordings={"shard_size": SHARD})
        sections["target"] = {
            "model": "python:scaling:network",
            "layers": ["mean"],
            "dtype": "float32",
            "batch_size": SHARD,
        }
        sections["ray"] = {"address": nodes.address}
        config, said = images / "config.yaml", folder / "said.txt"
        config.write_text(yaml.safe_dump(sections))
        out = folder / f"run{workers}"
        driver: subprocess.Popen[bytes] = start(config, str(out), environment(), said)
        code = driver.wait(LIMIT)
        assert code in (0, 3, 4), said.read_text()[-3000:]
    ends = sorted(p.stat().st_mtime for p in (out / "recordings/activations").glob("part-*"))
    assert len(ends) == workers * EACH
    inner = ends[workers - 1 : len(ends) - workers]
    rate = SHARD * (len(inner) - 1) / (inner[-1] - inner[0])
    return {
        "workers": workers,
        "images": SHARD * len(ends),
        "rate": round(rate, 2),
        "of_possible": round(rate * LATENCY / SHARD / workers, 3),
        "whole": round(SHARD * (len(ends) - 1) / (ends[-1] - ends[0]), 2),
    }


def planned(folder: Path) -> dict[str, float]:
    """Seconds to find out what is left of a million images."""
    from pipeline.config import parse_config
    from pipeline.expected import QUARANTINE, expect, table_path
    from pipeline.plan import cut_shards
    from pipeline.planning import prepare
    from pipeline.rundir import Run
    from pipeline.stream import decoded_tables, pending_shards, read_quarantine

    images = folder / "few"
    planted.write_images(images, 60)
    few = prepare(parse_config(planted.config(images), base=folder))
    ids = [f"{n % 1000:03d}/{n:07d}.jpg" for n in range(MILLION)]
    rows = pa.table(
        {
            "image_id": ids,
            "path": ids,
            "label": [name[:3] for name in ids],
            "split": ["train"] * MILLION,
            "url": [f"s3://bucket/{name}" for name in ids],
            "offset": pa.array([0] * MILLION, pa.int64()),
            "length": pa.array([-1] * MILLION, pa.int64()),
            "stamp": [f"{n}:etag" for n in range(MILLION)],
        }
    )
    index = replace(few.index, rows=rows)
    begun = time.perf_counter()
    plan = replace(few, index=index, shards=cut_shards(index, 256))
    cut = time.perf_counter() - begun
    begun = time.perf_counter()
    expected = expect(plan, "float32")
    named = time.perf_counter() - begun
    run = Run(folder / "million")
    done = int(DONE * len(plan.shards))
    none = pa.schema([(name, pa.string()) for name in ("image_id", "path", "reason")])
    run.folder.write_table("empty.parquet", none.empty_table())
    empty = run.folder.read("empty.parquet")
    for table in decoded_tables(plan):
        for name in expected.parts[table][:done]:
            run.folder.write(name, empty if table == QUARANTINE else b"", durable=False)
    begun = time.perf_counter()
    pending = pending_shards(run, plan, expected)
    listed = time.perf_counter() - begun
    assert len(pending) == len(plan.shards) - done
    begun = time.perf_counter()
    assert read_quarantine(run, expected).num_rows == 0
    read = time.perf_counter() - begun
    assert (run.folder.path(table_path(QUARANTINE))) in run.folder.path(
        expected.parts[QUARANTINE][0]
    )
    parts = {"cut": cut, "named": named, "listed": listed, "quarantine": read}
    return {"images": MILLION, "shards": len(plan.shards), "done": done} | {
        f"{name}_seconds": round(seconds, 2)
        for name, seconds in (parts | {"all": sum(parts.values())}).items()
    }


def main() -> None:
    here = Path(__file__).parent
    sys.path.insert(0, str(here.parent / "tests"))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--results", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scaling-") as name:
        planning = planned(Path(name))
        print(json.dumps(planning), flush=True)
        weak = []
        for workers in chosen.workers:
            weak.append(scaled(Path(name), workers))
            weak[-1]["efficiency"] = round(weak[-1]["of_possible"] / weak[0]["of_possible"], 3)
            print(json.dumps(weak[-1]), flush=True)
    results = {
        "command": "python benchmarks/scaling.py",
        "machine": machine(),
        "ray": metadata.version("ray"),
        "latency_seconds": LATENCY,
        "shard": SHARD,
        "weak_scaling": weak,
        "planning": planning,
    }
    if chosen.results:
        chosen.results.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
