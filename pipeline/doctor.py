"""What this machine and storage can do: everything that a run needs, looked at one by one.

Nothing is changed, and nothing is fetched unless the configuration or the run directory names a URL.
Each look imports what it needs itself, as in `pipeline.machine`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import ConfigError, ModelError, NeuroscribeError
from pipeline.machine import (
    Check,
    credentials,
    gpus,
    memory,
    packages,
    processor,
    ray_disk,
    ray_starts,
    run_directory,
    shared_memory,
)
from pipeline.signals import raise_if_stopped

if TYPE_CHECKING:
    from pipeline.concepts_config import ConceptsConfig
    from pipeline.config import Config
    from pipeline.sources import ImageIndex
    from pipeline.target_config import TargetConfig


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
            checks += [Check("configuration", "ok", str(config)), *of_config(loaded, str(out))]
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


def of_config(config: Config, out: str) -> list[Check]:
    """Images, credentials, target, concept lists and vision-language models of a configuration."""
    from pipeline.sources import read_index

    @cache
    def listed() -> ImageIndex:
        return read_index(config.images)

    checks = _checked("images", images, listed)
    checks += _checked("credentials", credentials, [config.images.path, out], config.ray.address)
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
    from pipeline.fetching import fetch

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
    from pipeline.planning import plan_target

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
    from pipeline.concept_lists import read_concepts, read_hierarchy
    from pipeline.explainers import plan_explainer

    hierarchy = read_hierarchy(wanted.hierarchy) if wanted.hierarchy else None
    concepts = read_concepts(wanted.concepts) if wanted.concepts else []
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
