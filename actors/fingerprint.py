"""Names for the content of networks and of preprocessing.

Everything that is recorded is filed under what it was made from. A fingerprint is that name: it
changes when a weight, the wiring of a network or a step of preprocessing changes, and it stays the
same between processes and machines.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import types
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

_LIBRARIES = frozenset({"torch", "torchvision", "timm", "open_clip", "builtins"})
"""Packages whose source is not read: their classes are told apart by name and by the weights."""


def state_fingerprint(module: nn.Module) -> str:
    """Fingerprint of a network: its weights, its printed structure and the code of its own classes.

    Args:
        module: Any network, on any device. Nothing of it is changed.

    Returns:
        32 hexadecimal digits. Two networks with equal fingerprints have the same tensors under the
        same names, print alike, and their classes (other than PyTorch's, torchvision's, timm's and
        open_clip's) come from source files with the same text.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(module).encode())
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):  # what get_extra_state() returned
            digest.update(f"\0{name}\0{describe(tensor)}\0".encode())
            continue
        digest.update(f"\0{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode())
        digest.update(_tensor_bytes(tensor))
    for text in _own_sources(module):
        digest.update(b"\0source\0" + text)
    return digest.hexdigest()


def callable_fingerprint(function: object) -> str:
    """Fingerprint of a transform: its class, settings and, for plain functions, their code.

    Returns:
        32 hexadecimal digits, equal for equal settings in any process.
    """
    return hashlib.blake2b(describe(function).encode(), digest_size=16).hexdigest()


def describe(value: object, around: tuple[int, ...] = ()) -> str:
    """A text that says all that an object is made of, free of memory addresses.

    Args:
        value: Anything.
        around: Identities of the objects that hold it; one that holds itself is named there once.
    """
    if id(value) in around:
        return f"<{_qualified(type(value))} above>"
    deeper = functools.partial(describe, around=(*around, id(value)))
    match value:
        case None | bool() | int() | float() | complex() | str() | bytes():
            return repr(value)
        case enum.Enum():
            return f"{_qualified(type(value))}.{value.name}"
        case torch.Tensor():
            content = hashlib.blake2b(_tensor_bytes(value), digest_size=16).hexdigest()
            return f"tensor({tuple(value.shape)}, {value.dtype}, {content})"
        case np.ndarray():
            content = hashlib.blake2b(value.tobytes(), digest_size=16).hexdigest()
            return f"array({value.shape}, {value.dtype}, {content})"
        case torch.dtype() | torch.device() | np.dtype():
            return str(value)
        case type() | types.BuiltinFunctionType() | types.ModuleType():
            return _qualified(value)
        case types.CodeType():
            return f"code({value.co_code.hex()}, {deeper(value.co_consts)}, {value.co_names})"
        case types.FunctionType():
            closure = [cell.cell_contents for cell in value.__closure__ or ()]
            inside = deeper([value.__code__, value.__defaults__, value.__kwdefaults__, closure])
            return f"{_qualified(value)}{inside}"
        case types.MethodType():
            return f"{deeper(value.__self__)}.{value.__name__}"
        case functools.partial():
            return f"partial({deeper([value.func, value.args, value.keywords])})"
        case Mapping():
            return (
                "{" + ", ".join(sorted(f"{deeper(k)}: {deeper(v)}" for k, v in value.items())) + "}"
            )
        case Set():
            return "{" + ", ".join(sorted(deeper(item) for item in value)) + "}"
        case list() | tuple():
            return f"{type(value).__name__}[" + ", ".join(deeper(item) for item in value) + "]"
        case nn.Module():
            settings = {k: v for k, v in vars(value).items() if not k.startswith("_")}
            return (
                f"{_qualified(type(value))}{deeper([settings, dict(value.named_children())])}"
                + (state_fingerprint(value) if any(True for _ in value.state_dict()) else "")
            )
    state = getattr(value, "__dict__", None) or {
        name: getattr(value, name, None) for name in getattr(type(value), "__slots__", ())
    }
    return f"{_qualified(type(value))}{deeper(dict(state))}"


def _qualified(thing: Any) -> str:
    module = getattr(thing, "__module__", None)
    name = getattr(thing, "__qualname__", None) or getattr(thing, "__name__", repr(type(thing)))
    return f"{module}.{name}"


def _tensor_bytes(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes()


def _own_sources(module: nn.Module) -> list[bytes]:
    """Source files of the network's classes that belong to no known library, in a fixed order."""
    found: dict[str, bytes] = {}
    for kind in {type(part) for part in module.modules()}:
        if kind.__module__.partition(".")[0] in _LIBRARIES:
            continue
        try:
            path = Path(inspect.getfile(kind))
            found[f"{kind.__module__}:{path.name}"] = path.read_bytes()
        except (TypeError, OSError):  # defined in a notebook or an interactive session
            continue
    return [found[name] for name in sorted(found)]
