"""`ray job submit` on a real cluster: head and worker as processes of their own, a dashboard, and a token."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import yaml
from trouble import TESTS, environment, free_port, wait_for

from pipeline import planted
from pipeline.cli import main
from pipeline.rundir import Run

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
IMAGES = 200

pytestmark = pytest.mark.skipif(
    "NEUROSCRIBE_FAULTS" not in os.environ,
    reason="a cluster of its own, minutes on a small machine: make test-faults",
)


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """The dashboard of a cluster, and the environment that opens it."""
    # Short, for the sake of Ray's sockets; apart, so that nobody else's `auto` finds this cluster.
    place = Path(tempfile.mkdtemp(prefix="job-"))
    env = environment(
        RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_TMPDIR=str(place)
    )
    # What travels with the job is what runs: nothing of this tree is found by another way. The last of these
    # keeps fake clusters on loopback, and real ones with nodes of their own from starting.
    for name in ("PYTHONPATH", "RAY_ADDRESS", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        env.pop(name, None)
    port, dashboard = free_port(), free_port()
    same = ["--block", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
    same += [f"--object-store-memory={100 * 1024**2}"]
    head = [*RAY, "start", "--head", f"--port={port}", f"--dashboard-port={dashboard}", *same]
    head += ["--num-cpus=1", "--include-dashboard=true", f"--ray-client-server-port={free_port()}"]
    head += [f"--dashboard-agent-listen-port={free_port()}"]
    worker = [*RAY, "start", f"--address=127.0.0.1:{port}", "--num-cpus=3", *same]
    worker += [f"--dashboard-agent-listen-port={free_port()}"]
    url = f"http://127.0.0.1:{dashboard}"

    def answers() -> bool:
        try:
            return bool(urlopen(f"{url}/api/version", timeout=2).status)
        except HTTPError as error:
            return error.code in (401, 403)
        except OSError:
            return False

    processes = []

    def begin(command: list[str], name: str) -> None:
        log = place / name
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, env=env, start_new_session=True, stdout=file, stderr=file
            )
        processes.append(process)
        wait_for(lambda: process.poll() or "Ray runtime started" in log.read_text(), 120, name)
        assert process.poll() is None, log.read_text()[-2000:]

    try:
        begin(head, "head")
        wait_for(answers, 120, "the dashboard", 0.2)
        begin(worker, "worker")
        yield url, env
    finally:
        for process in processes[::-1]:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(place, ignore_errors=True)


def submit(head: tuple[str, dict[str, str]], folder: Path, *command: str, token: str = "") -> str:
    url, env = head
    env = env | ({"RAY_AUTH_TOKEN": token} if token else {})
    submitted = subprocess.run(
        [*RAY, "job", "submit", f"--address={url}", f"--working-dir={folder}", "--", *command],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return f"{submitted.stdout}{submitted.stderr}\ncode {submitted.returncode}"


def test_a_submitted_job_has_the_tables_of_a_run_on_this_machine(
    head: tuple[str, dict[str, str]], tmp_path: Path, local_ray: None
) -> None:
    planted.write_images(tmp_path, IMAGES)
    travels = tmp_path / "clone"
    for package in ("core", "actors", "pipeline"):
        shutil.copytree(
            TESTS.parent / package, travels / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    # A network of one's own travels along.
    shutil.copy(TESTS / "ablation_network.py", travels / "own_network.py")
    sections = planted.config(tmp_path, fit={"folds": 2, "max_length": 3})
    sections["target"] |= {"model": "python:own_network:network", "layers": ["late"]}  # type: ignore[operator]
    (travels / "alone.yaml").write_text(yaml.safe_dump(sections))
    (travels / "config.yaml").write_text(yaml.safe_dump(sections | {"ray": {"address": "auto"}}))

    out = tmp_path / "job"
    command = [sys.executable, "-m", "pipeline", "run", "config.yaml", "--out", str(out)]
    refused = submit(head, travels, *command, token=secrets.token_hex(32))
    assert "code 0" not in refused
    assert not out.exists()

    said = submit(head, travels, *command)
    assert "code 0" in said, said[-3000:]
    assert f"{IMAGES} images, 0 quarantined" in said
    alone = tmp_path / "alone"
    assert main(["run", str(travels / "alone.yaml"), "--out", str(alone)]) == 0
    for table in ("activations", "explanations", "scores"):
        runs = [Run.open(place) for place in (out, alone)]
        assert runs[0].read(table).equals(runs[1].read(table))
    workers = Run.open(out).ledger()["stages"]["record"]["workers"]
    assert workers == 2, "an actor for each node"
