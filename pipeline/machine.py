"""What a machine and a storage have: looks at one thing each, which `neuroscribe doctor` reports.

Each look imports what it needs itself, so that a library that is missing or broken is one of the findings.
"""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from core.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.config import Config

#: Named with their versions; all others only where something is wrong with them.
NAMED = ("torch", "torchvision", "ray", "open_clip_torch", "timm", "pyarrow")

GIB = 1024**3

#: Below these a warning is given: memory that is free, and disk space where runs go.
MEMORY, DISK = 4 * GIB, 10 * GIB

#: Share of Ray's disk above which Ray does not move objects to it any more.
RAY_DISK_SHARE = 0.95

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Check:
    """One thing that a run needs."""

    name: str
    state: State
    found: str
    advice: str = ""
    """What to do; empty where all is well, or where `found` says it."""


def packages() -> Iterator[Check]:
    """Versions of what neuroscribe is built on, against what it asks for."""
    from packaging.requirements import Requirement

    try:
        needed = [Requirement(text) for text in metadata.requires("neuroscribe") or []]
    except metadata.PackageNotFoundError:
        needed = [Requirement(name) for name in NAMED]
    versions = {}
    for one in needed:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            versions[one.name] = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            yield Check("packages", "problem", f"{one.name} is missing", f"pip install '{one}'")
            continue
        if not one.specifier.contains(versions[one.name], prereleases=True):
            found = f"{one.name} is {versions[one.name]}, expected {one.specifier}"
            yield Check("packages", "problem", found, f"pip install '{one}'")
    listed = ", ".join(f"{name} {versions[name]}" for name in NAMED if name in versions)
    yield Check("packages", "ok", f"Python {platform.python_version()}, {listed}")


def gpus() -> Iterator[Check]:
    """Each GPU that PyTorch sees, and whether it computes."""
    import torch

    from actors.recorder import resolve_dtype

    if not torch.cuda.is_available():
        if Path("/proc/driver/nvidia/version").exists():
            yield Check(
                "GPUs",
                "warning",
                f"this machine has an NVIDIA driver, and PyTorch {torch.__version__} sees no GPU",
                "install a PyTorch built for CUDA and for this driver; otherwise CPUs do all",
            )
        else:
            yield Check("GPUs", "ok", "none; CPUs do all")
        return
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        ones = torch.ones(64, 64, device=f"cuda:{number}")
        right = bool((ones @ ones == 64).all())
        dtype = str(resolve_dtype(f"cuda:{number}")).removeprefix("torch.")
        found = f"{facts.name}, {facts.total_memory / GIB:.0f} GiB, models run in {dtype}"
        if right:
            yield Check("GPUs", "ok", found)
        else:
            yield Check("GPUs", "problem", found, "it multiplies matrices wrongly; do not use it")


def processor() -> Iterator[Check]:
    """Cores that this process may use, and the number format of models on them."""
    from actors.recorder import resolve_dtype

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    dtype = str(resolve_dtype("cpu")).removeprefix("torch.")
    why = "computes" if dtype == "bfloat16" else "does not compute"
    yield Check(
        "processor", "ok", f"{cores} cores, {why} in bfloat16: models on CPUs run in {dtype}"
    )


def memory() -> Iterator[Check]:
    """Memory that is free, within the limit of the container."""
    from pipeline.engine import LOCAL_OBJECT_STORE_BYTES

    free = _free_memory()
    if free is None:
        yield Check("memory", "ok", "not known on this system")
    elif free < MEMORY:
        advice = (
            f"give it at least {MEMORY / GIB:.0f} GiB: Ray's objects take "
            f"{LOCAL_OBJECT_STORE_BYTES / GIB:.0f} of it, models and moments the rest"
        )
        yield Check("memory", "warning", f"{free / GIB:.1f} GiB free", advice)
    else:
        yield Check("memory", "ok", f"{free / GIB:.1f} GiB free")


def _free_memory() -> int | None:
    free = []
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        free.append(int(line.split()[1]) * 1024)
    for folder, limit, used, idle in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        (
            "/sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        # No such group, or "max" where there is no limit.
        with suppress(OSError, ValueError, KeyError):
            most = int((Path(folder) / limit).read_text())
            taken = int((Path(folder) / used).read_text())
            lines = (Path(folder) / "memory.stat").read_text().splitlines()
            # Files that are kept in memory for speed alone give way.
            free.append(most - taken + int(dict(line.split() for line in lines)[idle]))
    return min(free, default=None)


def shared_memory() -> Iterator[Check]:
    """Whether the objects of a local Ray fit where it wants them."""
    from pipeline.engine import LOCAL_OBJECT_STORE_BYTES

    place = Path("/dev/shm")
    if not place.is_dir():
        yield Check("shared memory", "ok", "not used on this system")
        return
    free = shutil.disk_usage(place).free
    if free < LOCAL_OBJECT_STORE_BYTES:
        yield Check(
            "shared memory",
            "warning",
            f"{free / GIB:.1f} GiB free in {place}, a local Ray takes "
            f"{LOCAL_OBJECT_STORE_BYTES / GIB:.0f}",
            "Ray will use a disk instead, which is slow; give more (docker run --shm-size=3g)",
        )
    else:
        yield Check("shared memory", "ok", f"{free / GIB:.1f} GiB free in {place}")


def ray_disk() -> Iterator[Check]:
    """Whether Ray may move objects to its disk."""
    place = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")
    usage = shutil.disk_usage(place)
    share = 1.0 - usage.free / usage.total
    found = f"{usage.free / GIB:.1f} GiB free in {place}, {share:.0%} used"
    if share > RAY_DISK_SHARE:
        advice = "Ray keeps off disks that are 95 % full; make room, or set RAY_TMPDIR to another"
        yield Check("Ray's disk", "warning", found, advice)
    else:
        yield Check("Ray's disk", "ok", found)


def ray_starts(config: Config | None) -> Iterator[Check]:
    """Start Ray, or connect to the cluster, and run a task on it."""
    import ray

    from pipeline.config import RayConfig
    from pipeline.engine import engine

    begun = time.monotonic()
    wanted = config.ray if config else RayConfig()
    with engine(wanted):
        if ray.get(ray.remote(_product).remote(6, 7)) != 42:
            raise ConfigError("a task on Ray came back wrong; look at Ray's logs")
        has = ray.cluster_resources()
    yield Check(
        "Ray",
        "ok",
        f"{wanted.address or 'a local one'} answered in {time.monotonic() - begun:.1f} s: "
        f"{has.get('CPU', 0):g} CPUs, {has.get('GPU', 0):g} GPUs",
    )


def _product(one: int, other: int) -> int:
    return one * other


def credentials(urls: Sequence[str], address: str | None) -> Iterator[Check]:
    """Whether there is something to show to S3 and to a Ray cluster; what it is stays unsaid."""
    if any(url.startswith("s3://") for url in urls):
        from botocore.session import get_session

        found = get_session().get_credentials()
        if found is None:
            advice = "give the machine a role, set AWS_PROFILE, or run 'aws configure'"
            yield Check("credentials", "warning", "none found for S3", advice)
        else:
            yield Check("credentials", "ok", f"for S3, by way of {found.method}")
    if address is not None:
        default = Path.home() / ".ray" / "auth_token"
        place = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or default)
        if os.environ.get("RAY_AUTH_TOKEN") or place.is_file():
            yield Check("credentials", "ok", f"a token for the Ray cluster at {address}")
        else:
            advice = "if the cluster asks for one, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
            yield Check("credentials", "warning", "no token for the Ray cluster", advice)


def run_directory(out: str | Path) -> Iterator[Check]:
    """Write a small file where the run would go, read it, and delete it again."""
    from fsspec.implementations.local import LocalFileSystem

    from pipeline.storage import Folder, filesystem

    folder = Folder(out)
    here = isinstance(filesystem(folder.url)[0], LocalFileSystem)
    if here:
        # The folder itself is left to the run that needs it.
        path = Path(filesystem(folder.url)[1])
        path = next(parent for parent in (path, *path.parents) if parent.exists())
        folder = Folder(path)
    name, content = f".neuroscribe-doctor-{secrets.token_hex(8)}", secrets.token_bytes(64)
    try:
        folder.write(name, content)
        same = folder.read(name) == content
        folder.delete(name)
    except Exception as error:  # what a storage raises is its own affair
        raise ConfigError(
            f"{folder.url!r} cannot be written ({type(error).__name__}: {error}); check the path or "
            "bucket, and the right to write there"
        ) from error
    if not same:
        raise ConfigError(
            f"{folder.url!r} gave back other bytes than were written there; do not use this storage"
        )
    free = shutil.disk_usage(folder.url).free if here else None
    found = f"{folder.url} can be written, read and deleted from"
    found += f", {free / GIB:.1f} GiB free" if free is not None else ""
    if free is not None and free < DISK:
        advice = "recordings may need more: two bytes for each image, neuron and pooling"
        yield Check("run directory", "warning", found, advice)
    else:
        yield Check("run directory", "ok", found)
