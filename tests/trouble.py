"""Where a run can come to harm: an S3 endpoint that is cut off, a small disk, nodes that die.

For tests and for `benchmarks/faults.py`. Everything runs on this machine, in processes of its own that end
with the `with` block that started them.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import s3fs
import torch
from ablation_network import Ablated, _preprocessing
from torchvision import transforms

TESTS = Path(__file__).parent
KEY, SECRET = "planted-key-0123456789", "planted-secret-9876543210"


class Slow(Ablated):
    """A network that takes its time, so that there is some in which to come to harm."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.08)
        return super().forward(images)


def network() -> tuple[torch.nn.Module, transforms.Compose]:
    """Factory for ``python:trouble:network``."""
    return Slow(plain=False), _preprocessing()


def environment(**more: str) -> dict[str, str]:
    """For programs of this tree and of the tests, that ask Ray for clusters on loopback."""
    paths = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        **more,
    }


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(condition: Callable[[], Any], seconds: float, what: str, pause: float = 0.02) -> Any:
    """What a condition comes to say, once it says something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(pause)
    raise AssertionError(f"{what}: not within {seconds:g} s")


def start(config: Path, out: str, env: dict[str, str], err: Path) -> subprocess.Popen[bytes]:
    """Start `neuroscribe run` in a session of its own."""
    command = [sys.executable, "-m", "pipeline", "run", str(config), "--out", out]
    with err.open("ab") as file:
        return subprocess.Popen(command, env=env, start_new_session=True, stdout=file, stderr=file)


# S3 -------------------------------------------------------------------------------------------


class Wire:
    """Carries connections to a server, until it is cut."""

    def __init__(self, port: int) -> None:
        self._server, self.port = port, free_port()
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.mend()

    def mend(self) -> None:
        """Carry connections from now on."""
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        """Break every connection and refuse new ones."""
        assert self._listener is not None
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in list(self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                ours, _ = listener.accept()
                theirs = socket.create_connection(("127.0.0.1", self._server))
                for one, other in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        self._open.add(one)
        with suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.discard(one)
        one.close()


class S3:
    """A real endpoint over HTTP on loopback, with one bucket."""

    def __init__(self, port: int) -> None:
        self.wire = Wire(port)
        self.credentials = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.wire.port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def upload(self, folder: Path, url: str) -> None:
        """Copy the files of a folder."""
        import s3fs

        files = s3fs.S3FileSystem(
            key=KEY,
            secret=SECRET,
            endpoint_url=self.credentials["AWS_ENDPOINT_URL"],
            skip_instance_cache=True,
        )
        paths = [path for path in folder.rglob("*") if path.is_file()]
        there = [f"{url.removeprefix('s3://')}/{path.relative_to(folder)}" for path in paths]
        files.put([str(path) for path in paths], there)


@contextmanager
def s3_endpoint() -> Iterator[S3]:
    """An S3 endpoint with a bucket `neurons`; the environment gets what is needed to talk to it."""
    pytest.importorskip("moto.server", reason="the S3 endpoint is moto[server], which is missing")
    # It chooses its port itself: one that was free a moment ago may be taken.
    command = [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    said = tempfile.TemporaryFile()  # noqa: SIM115
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
    )
    patch = pytest.MonkeyPatch()
    try:

        def port_of() -> int | None:
            text = os.pread(said.fileno(), 1 << 20, 0).decode()
            if server.poll() is not None:
                raise AssertionError(f"the S3 endpoint ended with {server.returncode}: {text!r}")
            found = re.search(r"http://127\.0\.0\.1:(\d+)", text)
            return int(found[1]) if found else None

        port = wait_for(port_of, 60, "the S3 endpoint")
        endpoint = S3(port)
        for name, value in endpoint.credentials.items():
            patch.setenv(name, value)
        # Clients that this process has are of other endpoints.
        s3fs.S3FileSystem.clear_instance_cache()
        import botocore.session

        client = botocore.session.get_session().create_client("s3")
        client.create_bucket(Bucket="neurons")
        yield endpoint
    finally:
        patch.undo()
        s3fs.S3FileSystem.clear_instance_cache()
        server.kill()
        server.wait()
        said.close()


# A small disk ---------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A disk of its own at a folder.

    Raises:
        PermissionError: This user may not mount one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        raise PermissionError("a disk cannot be mounted here, which takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def fill(folder: Path) -> Path:
    """Fill the disk of a folder up to the last byte; returns the file that does."""
    ballast = folder / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(b"\0" * size)
            except OSError:
                size //= 2
    return ballast


# A cluster ------------------------------------------------------------------------------------


class Nodes:
    """A Ray cluster of nodes on this machine, kept by another process."""

    def __init__(self, env: dict[str, str], nodes: int, cpus: int) -> None:
        command = [sys.executable, __file__, str(nodes), str(cpus)]
        self._keeper = subprocess.Popen(
            command,
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.count = nodes
        self.address = self._answer(300)

    def kill_node(self, number: int) -> None:
        """Kill a node without notice."""
        self._ask(f"kill {number}")

    def add_node(self) -> None:
        """Add a node like the others."""
        self._ask("add")

    def workers(self) -> list[int]:
        """Processes that carry out tasks and actors of a run at this moment, not those of Ray itself."""
        found = []
        for raylet in _children(self._keeper.pid):
            for pid in _children(raylet):
                what = _title(pid).partition("ray::")[2]
                if what and not re.match("IDLE|_|Dashboard|RuntimeEnv|ActorLocation", what):
                    found.append(pid)
        return found

    def stop(self) -> None:
        assert self._keeper.stdin is not None
        with suppress(OSError):
            self._keeper.stdin.close()
        try:
            self._keeper.wait(60)
        except subprocess.TimeoutExpired:
            for child in _children(self._keeper.pid):
                os.kill(child, signal.SIGKILL)
            self._keeper.kill()

    def _ask(self, what: str) -> None:
        assert self._keeper.stdin is not None
        self._keeper.stdin.write(what + "\n")
        self._keeper.stdin.flush()
        self._answer(120)

    def _answer(self, seconds: float) -> str:
        assert self._keeper.stdout is not None
        ready, _, _ = select.select([self._keeper.stdout], [], [], seconds)
        line = self._keeper.stdout.readline() if ready else ""
        if not line:
            raise AssertionError(f"the cluster does not answer ({self._keeper.poll()})")
        return str(json.loads(line))


@contextmanager
def cluster(nodes: int, cpus: int = 2, **env: str) -> Iterator[Nodes]:
    """A Ray cluster on loopback: a head without CPUs and some nodes; the environment gets its token."""
    patch = pytest.MonkeyPatch()
    with ExitStack() as stack:
        stack.callback(patch.undo)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        made = Nodes(environment(**env), nodes, cpus)
        stack.callback(made.stop)
        yield made


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
    return found


def _title(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().strip("\0")
    return ""


def _keep(nodes: int, cpus: int) -> None:
    """Keep a cluster until stdin ends; carry out what is written there, a command a line."""
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 100 * 1024**2, "include_dashboard": False}
    kept = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    workers = [kept.add_node(num_cpus=cpus, wait=False, **small) for _ in range(nodes)]
    kept.wait_for_nodes(timeout=120)
    out = os.fdopen(os.dup(1), "w")

    def say(what: str) -> None:
        print(json.dumps(what), file=out, flush=True)

    say(str(kept.address))
    for line in sys.stdin:
        command, _, number = line.strip().partition(" ")
        if command == "kill":
            kept.remove_node(workers.pop(int(number) % len(workers)), allow_graceful=False)
        else:
            workers.append(kept.add_node(num_cpus=cpus, **small))
        say(line.strip())
    kept.shutdown()


if __name__ == "__main__":
    _keep(int(sys.argv[1]), int(sys.argv[2]))
