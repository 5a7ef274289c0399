"""What this machine and storage can do: everything that a run needs, looked at one by one.

Nothing is changed, and nothing is fetched unless the configuration or the run directory names a URL.
Each look imports what it needs itself, so that a library that is missing or broken is one of the findings.
"""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.errors import ConfigError, ModelError, NeuroscribeError
from pipeline.signals import raise_if_stopped

if TYPE_CHECKING:
    from pipeline.config import ConceptsConfig, Config, TargetConfig
    from pipeline.sources import ImageIndex

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


def examine(
    config: str | Path | None = None, out: str | Path = "runs", with_ray: bool = False
) -> list[Check]:
    """Look at the machine, the place of a run, and what a configuration names.

    Args:
        config: Configuration file.
        out: Where a run would go, local or any fsspec URL.
        with_ray: Whether to start Ray, or connect to the cluster of the configuration.
    """
    checks = [
        *_checked("packages", packages),
        *_checked("GPUs", gpus),
        *_checked("processor", processor),
        *_checked("memory", memory),
        *_checked("shared memory", shared_memory),
        *_checked("Ray's disk", ray_disk),
        *_checked("run directory", run_directory, out),
    ]
    loaded = None
    if config is not None:
        try:
            from pipeline.config import load_config

            loaded = load_config(config)
            checks += [Check("configuration", "ok", str(config)), *of_config(loaded)]
        except (ConfigError, ImportError) as error:
            checks.append(Check("configuration", "problem", str(error)))
    if with_ray:
        checks += _checked("Ray", ray_starts, loaded)
    return checks


def doctor_lines(checks: list[Check]) -> list[str]:
    """The same for a person."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        text = check.found + (f": {check.advice}" if check.advice else "")
        lines.append(f"{check.state:8} {check.name:{width}}  {text}")
    count = {s: sum(check.state == s for check in checks) for s in ("problem", "warning")}
    parts = [f"{n} {state}{'s' if n > 1 else ''}" for state, n in count.items() if n]
    return [*lines, f"Doctor: {', '.join(parts) or 'all is well'}."]


def _checked(name: str, look: Callable[..., Iterator[Check]], *args: Any) -> list[Check]:
    """What a look finds; an error of it is a problem."""
    found: list[Check] = []
    try:
        found.extend(look(*args))
    except NeuroscribeError as error:
        found.append(Check(name, "problem", str(error)))
    except Exception as error:  # what drivers and storages raise is their own affair
        text = (str(error).strip().splitlines() or [""])[0]
        found.append(Check(name, "problem", f"{type(error).__name__}: {text}"))
    raise_if_stopped()
    return found


# The machine ----------------------------------------------------------------------------------


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


# The storage ----------------------------------------------------------------------------------


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


# What a configuration names -------------------------------------------------------------------


def of_config(config: Config) -> list[Check]:
    """Images, target, concept lists and vision-language models of a configuration."""
    from pipeline.sources import read_index

    @cache
    def listed() -> ImageIndex:
        return read_index(config.images)

    checks = _checked("images", images, listed)
    checks += _checked("target", target, config)
    for one in config.concepts:
        checks += _checked(f"explainer {one.name}", explainer, one, listed)
    named = [(f"explainer {c.name}", c.model) for c in config.concepts if c.model is not None]
    named += [(f"simulator {s.name}", s.model) for s in config.simulators]
    for name, model in named:
        checks += _checked(name, clip, name, model, config.base)
    return checks


def images(listed: Callable[[], ImageIndex]) -> Iterator[Check]:
    """List the images and decode the first."""
    from actors.decode import decode
    from pipeline.sources import fetch

    rows = listed().rows
    first = rows.slice(0, 1).to_pylist()[0]
    found = f"{rows.num_rows:,} images"
    try:
        width, height = decode(fetch(first)).size
    except (NeuroscribeError, OSError) as error:
        advice = "if others are as well, mend the source; single ones are quarantined"
        yield Check(
            "images", "warning", f"{found}; {first['path']} cannot be used ({error})", advice
        )
    else:
        yield Check("images", "ok", f"{found}; {first['path']} is {width} × {height}")


def target(config: Config) -> Iterator[Check]:
    """Build the target with its weights, where they are here, and match its layers."""
    from pipeline.plan import plan_target

    wanted = config.target
    away = _away(wanted)
    if wanted.model.startswith(("timm:hf-hub:", "timm:hf_hub:")):
        yield Check("target", "warning", f"network and weights of {wanted.model} {_FETCHED}")
        return
    if away is not None:
        # Layers can be matched without the weights.
        wanted = wanted.model_copy(update={"weights": "random:0"})
    plan = plan_target(config.model_copy(update={"target": wanted}))
    found = f"{plan.model}: {len(plan.layers)} layers, {plan.neurons:,} neurons"
    if away is None:
        yield Check("target", "ok", f"{found}, weights {plan.weights}")
    else:
        yield Check("target", "warning", f"{found}; its weights {away}")


def _away(wanted: TargetConfig) -> str | None:
    """What is to be said of a target whose weights are elsewhere; None where they are here."""
    if wanted.weights.startswith(("http://", "https://")):
        if not _exists(wanted.weights):
            raise ModelError(f"there is nothing at {wanted.weights}; check target.weights")
        return f"are fetched from {wanted.weights} at the first start"
    if wanted.weights == "default" and not wanted.model.startswith("python:"):
        return _FETCHED
    return None


_FETCHED = (
    "are fetched over the network when a run starts, unless this machine has them from an earlier "
    "one; a local path needs no network"
)


def _exists(url: str) -> bool:
    from pipeline.storage import filesystem

    file_system, path = filesystem(url)
    return bool(file_system.exists(path))


def explainer(wanted: ConceptsConfig, listed: Callable[[], ImageIndex]) -> Iterator[Check]:
    """Read what an explainer needs beside its model: lists, labels, columns or a table."""
    from pipeline.explainers import plan_explainer, read_concept_list, read_hierarchy

    hierarchy = read_hierarchy(wanted.hierarchy) if wanted.hierarchy else None
    concepts = read_concept_list(wanted.concepts) if wanted.concepts else None
    plan = plan_explainer(wanted, listed(), hierarchy, concepts)
    yield Check(f"explainer {wanted.name}", "ok", f"{len(plan.concepts):,} concepts")


def clip(name: str, model: str, base: Path) -> Iterator[Check]:
    """Look for a vision-language model, as far as can be told without reading its weights."""
    from actors.clip import check_clip

    check_clip(model, base=base)
    if model.startswith("local-dir:"):
        yield Check(name, "ok", f"{model} is complete")
    else:
        yield Check(name, "warning", f"the weights of {model} {_FETCHED}")
