"""A bounded random sequence of faults, and whether the tables end with the bits of an undisturbed run.

    python benchmarks/faults.py [--faults 60] [--nodes 2] [--seed 0] [--seconds 1500] [--results FILE.json]

A small real run (drawn images, an ablated network that takes its time, PNG files) is carried out again and
again on a Ray cluster of processes on this machine: by turns into a run directory on a disk of 64 MB, and
with images and run on an S3 endpoint. In each stage that is drawn one thing goes wrong: a worker process
is killed, a node is killed, the driver is killed or told to stop, the disk fills up, the storage does not
answer for ten seconds. The driver must finish or end with 75 (if it was not killed), and is started again
until it has finished. What is counted as lost: a table that differs, another exit code, a run that hangs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from threading import Timer
from typing import Any

import yaml
from machine import machine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from trouble import S3, Nodes, cluster, environment, fill, s3_endpoint, small_disk, start

from pipeline import planted
from pipeline.rundir import Run

STAGES = ("record", "moments", "fit", "simulate", "ablate", "report")
ANYWHERE = ("worker", "node", "driver", "stop")
IMAGES, SHARD = 400, 10

#: Seconds of an outage, and those that one start may take.
OUTAGE, LIMIT = 10.0, 240.0


def write_config(folder: Path, images: str, address: str | None) -> Path:
    """The run that comes to harm: two explainers' worth of stages, seconds each."""
    sections: dict[str, Any] = planted.config(folder, images={"path": images})
    sections["target"] |= {"model": "python:trouble:network", "layers": ["early", "late"]}
    sections["recordings"] = {"shard_size": SHARD}
    sections["fit"] = {"folds": 2, "max_length": 4}
    # 14 neurons behind no head that can be recognised: the rest of the network runs again.
    sections["ablation"] = {"layers": ["late"], "neurons": 2, "images": 10, "temperature": 1.0}
    sections["ray"] = {"address": address}
    path = folder / f"{'local' if address is None else images[:2].strip('/')}.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def digests(run: Run) -> dict[str, str]:
    """What each table holds, but for names of parts, which say where images came from."""
    found = {}
    for table in sorted(run.tables()):
        if table.startswith(("atlas", "moments")):
            continue
        digest = hashlib.sha256()
        for part in run.parts(table):
            digest.update(run.folder.read(part))
        found[table] = digest.hexdigest()
    return found


@dataclass
class Harm:
    """Does harm to a run, and keeps the tally."""

    nodes: Nodes
    s3: S3
    rng: random.Random
    done: list[dict[str, Any]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    starts: int = 0
    _driver: subprocess.Popen[bytes] | None = None

    def draw(self, faults: int, last: str) -> list[tuple[str, str]]:
        """Stages and kinds of some faults, in the order of the stages; `last` is one of the kinds."""
        ahead = sorted(self.rng.choices(range(len(STAGES)), k=faults))
        return [(STAGES[stage], self.rng.choice((*ANYWHERE, last))) for stage in ahead]

    def to_run(
        self,
        config: Path,
        out: str,
        faults: list[tuple[str, str]],
        disk: Path | None = None,
        done: int = 0,
    ) -> str:
        """Carry a run out while these faults happen in its stages.

        Args:
            config: Of the run.
            out: The run directory.
            faults: Stage and kind of each; a stage that is over too soon leaves them to the next.
            disk: What is filled up.
            done: The exit code of a run that has finished.

        Returns:
            What the last start said; empty where the run was lost.
        """
        drawn = list(faults)
        log = Path(tempfile.gettempdir()) / f"faults-{os.getpid()}.log"
        while True:
            self.starts += 1
            log.unlink(missing_ok=True)
            stages = Run(out).ledger()["stages"]
            before = {name: facts.get("started") for name, facts in stages.items()}
            driver = self._driver = start(config, out, environment(), log)
            struck = ""
            while drawn and self._reaches(driver, Run(out), drawn[0][0], before):
                stage, kind = drawn.pop(0)
                time.sleep(self.rng.uniform(0, 0.7))
                if driver.poll() is not None:
                    break
                struck = kind
                begun = time.monotonic()
                self._strike(kind, driver, disk)
                seen = {"stage": stage, "kind": kind, "place": "disk" if disk else "s3"}
                self.done.append(seen | {"at": round(begun, 1)})
                print(f"{len(self.done)}: {kind} in {stage}", file=sys.stderr, flush=True)
                if kind in ("driver", "stop", "disk"):
                    break
            code = self._end(driver)
            if self.done and struck:
                self.done[-1]["exit_code"] = code
            said = log.read_text(errors="replace")
            log.unlink()
            if code == done:
                return said or "nothing"
            if not struck or code != (-signal.SIGKILL if struck == "driver" else 75):
                self.lost.append(f"exit code {code} after {struck!r}: {said[-3000:]}")
                return ""

    def _reaches(
        self, driver: subprocess.Popen[bytes], run: Run, stage: str, before: dict[str, Any]
    ) -> bool:
        """Wait until this start is in a stage, or in a later one; whether it is still at work."""
        deadline = time.monotonic() + LIMIT
        while driver.poll() is None and time.monotonic() < deadline:
            for name, facts in run.ledger()["stages"].items():
                late = name in STAGES and STAGES.index(name) >= STAGES.index(stage)
                if late and facts["state"] == "running" and facts["started"] != before.get(name):
                    return True
            time.sleep(0.02)
        return driver.poll() is None

    def _strike(self, kind: str, driver: subprocess.Popen[bytes], disk: Path | None) -> None:
        if kind == "worker":
            workers = self.nodes.workers()
            if workers:
                with suppress(ProcessLookupError):
                    os.kill(self.rng.choice(workers), signal.SIGKILL)
        elif kind == "node":
            self.nodes.kill_node(self.rng.randrange(self.nodes.count))
            time.sleep(1.0)
            self.nodes.add_node()
        elif kind == "driver":
            os.killpg(driver.pid, signal.SIGKILL)
        elif kind == "stop":
            driver.send_signal(signal.SIGTERM)
        elif kind == "cut":
            self.s3.wire.cut()
            time.sleep(OUTAGE)
            self.s3.wire.mend()
        else:
            assert disk is not None
            ballast = fill(disk)
            # What is there already may be enough for a stage to end; then nothing is left to stop it.
            Timer(20.0, ballast.unlink, kwargs={"missing_ok": True}).start()
            self._end(driver)
            ballast.unlink(missing_ok=True)

    def end(self) -> None:
        """Leave no driver behind."""
        if self._driver is not None and self._driver.poll() is None:
            os.killpg(self._driver.pid, signal.SIGKILL)
            self._driver.wait()

    def _end(self, driver: subprocess.Popen[bytes]) -> int | str:
        try:
            return driver.wait(LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
            return "hangs"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--each", type=int, default=8, help="faults in one run; default: 8")
    parser.add_argument("--nodes", type=int, default=2, help="of the cluster, with two CPUs each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1500.0, help="begin no run after these")
    parser.add_argument("--results", type=Path)
    chosen = parser.parse_args()
    begun = time.monotonic()
    rng = random.Random(chosen.seed)
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        planted.write_images(folder, IMAGES)
        s3 = stack.enter_context(s3_endpoint())
        s3.upload(folder / "images", "s3://neurons/images")
        try:
            disk: Path | None = stack.enter_context(small_disk(folder / "disk", 64))
        except PermissionError as error:
            print(f"no full disks: {error}", file=sys.stderr)
            disk = None
        local = write_config(folder, str(folder / "images"), None)
        whole = start(local, str(folder / "whole"), environment(), folder / "whole.txt")
        assert whole.wait(LIMIT) == 0, (folder / "whole.txt").read_text()
        expected = digests(Run.open(folder / "whole"))

        nodes = stack.enter_context(cluster(chosen.nodes))
        harm = Harm(nodes, s3, rng)
        stack.callback(harm.end)
        here = write_config(folder, str(folder / "images"), nodes.address)
        there = write_config(folder, "s3://neurons/images", nodes.address)
        runs = 0
        while len(harm.done) < chosen.faults and time.monotonic() - begun < chosen.seconds:
            each = min(chosen.each, chosen.faults - len(harm.done))
            if disk is not None and runs % 2 == 0:
                place = str(disk / f"run{runs}")
                said = harm.to_run(here, place, harm.draw(each, "disk"), disk)
            else:
                place = f"s3://neurons/runs/{runs}"
                said = harm.to_run(there, place, harm.draw(each, "cut"))
            runs += 1
            found = digests(Run.open(place)) if said else expected
            if found != expected:
                other = [t for t in expected if expected[t] != found.get(t)]
                harm.lost.append(f"run {runs}: other bits in {', '.join(other)}")
            if "://" not in place:
                shutil.rmtree(place, ignore_errors=True)
            if harm.lost:
                print(harm.lost[-1], file=sys.stderr, flush=True)
    tally = {
        "command": " ".join(["python", "benchmarks/faults.py", *sys.argv[1:]]),
        "machine": machine(),
        "ray": metadata.version("ray"),
        "nodes": chosen.nodes,
        "faults": len(harm.done),
        "runs": runs,
        "starts": harm.starts,
        "lost": harm.lost,
        "by_kind": dict(sorted(Counter(f["kind"] for f in harm.done).items())),
        "by_stage": dict(Counter(f["stage"] for f in harm.done)),
        "by_stage_and_kind": dict(
            sorted(Counter(f"{f['stage']}: {f['kind']}" for f in harm.done).items())
        ),
        "tables_compared": len(expected),
        "seconds": round(time.monotonic() - begun, 1),
    }
    text = json.dumps(tally, indent=2) + "\n"
    print(text, end="")
    if chosen.results:
        chosen.results.write_text(text)
    return 1 if harm.lost else 0


if __name__ == "__main__":
    raise SystemExit(main())
