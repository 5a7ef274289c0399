"""What the machinery of a run costs beside its work: a start that finds everything fresh, and its parts.

A tiny run is made once. Then the same command is started again and again: whatever it takes is imports,
planning, locks, Ray, ledger and account. What grows with images is timed on made-up indices.

    python benchmarks/overhead.py --results benchmarks/results/overhead.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from machine import machine

from pipeline import planted
from pipeline.config import RayConfig, parse_config
from pipeline.engine import engine
from pipeline.expected import expect
from pipeline.plan import Plan, cut_shards
from pipeline.planning import prepare
from pipeline.sources import INDEX_SCHEMA, ImageIndex

IMAGES, STARTS = 600, 4


def start(config: Path, out: Path) -> dict[str, float]:
    """Seconds of a start on the clock, and of processors."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    command = [sys.executable, "-m", "pipeline", "run", str(config), "--out", str(out)]
    subprocess.run(command, check=False, capture_output=True)
    seconds = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"clock": round(seconds, 2), "processor": round(used, 2)}


def seconds_of(work: Any) -> tuple[float, Any]:
    begun = time.perf_counter()
    found = work()
    return round(time.perf_counter() - begun, 2), found


def with_images(plan: Plan, count: int) -> Plan:
    """The same plan for so many made-up images, shards left out."""
    columns: dict[str, Any] = {
        "image_id": [f"class{n % 1000}/{n:09d}.jpg" for n in range(count)],
        "split": ["train" if n % 10 < 7 else "val" if n % 10 < 8 else "test" for n in range(count)],
    }
    arrays = [
        pa.array(columns[f.name] if f.name in columns else columns["image_id"], f.type)
        if pa.types.is_string(f.type)
        else pa.nulls(count, f.type)
        for f in INDEX_SCHEMA
    ]
    index = ImageIndex(pa.Table.from_arrays(arrays, schema=INDEX_SCHEMA), pa.table({}))
    return Plan(plan.config, index, [], plan.target, plan.clips, plan.explainers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        planted.write_images(folder, IMAGES)
        sections = planted.config(folder)
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(sections))
        first = start(config, folder / "run")
        again = [start(config, folder / "run") for _ in range(STARTS)]
        summary = json.loads((folder / "run/summary.json").read_text())
        imports, _ = seconds_of(
            lambda: subprocess.run([sys.executable, "-c", "import pipeline.run"], check=True)
        )
        planning, plan = seconds_of(lambda: prepare(parse_config(sections, folder)))
        whole, _ = seconds_of(lambda: ray_up_and_down())
    grown = {}
    for count in (10_000, 100_000, 1_000_000):
        many = with_images(plan, count)
        cut, shards = seconds_of(lambda many=many: cut_shards(many.index, 256))
        whole_plan = Plan(plan.config, many.index, shards, plan.target, plan.clips, plan.explainers)
        named, _ = seconds_of(lambda whole_plan=whole_plan: expect(whole_plan, "float32"))
        grown[f"{count:,}"] = {"shards cut": cut, "tables named": named}
    facts = {
        "command": "python benchmarks/overhead.py",
        "machine": machine(),
        "load of the machine just after": round(os.getloadavg()[0], 1),
        "versions": {name: metadata.version(name) for name in ("ray", "torch")},
        "images": IMAGES,
        "first start, seconds": first,
        "starts that find everything fresh, seconds": sorted(again, key=lambda s: s["clock"]),
        "of the last, by its account": {
            "from lock to summary": summary["seconds"],
            "in stages": round(sum(stage["seconds"] for stage in summary["stages"]), 2),
        },
        "imports, seconds": imports,
        "planning, seconds": planning,
        "Ray up and down, seconds": whole,
        "by number of images, seconds": grown,
    }
    text = json.dumps(facts, indent=1)
    print(text)
    if chosen.results:
        chosen.results.write_text(text + "\n")


def ray_up_and_down() -> None:
    with engine(RayConfig()):
        pass


if __name__ == "__main__":
    main()
