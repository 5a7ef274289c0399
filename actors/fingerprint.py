"""Names for the content of networks and of preprocessing.

Everything that is recorded is filed under what it was made from. A fingerprint is that name: it
changes when a weight, the wiring of a network or a step of preprocessing changes, and it stays the
same between processes and machines.
"""

from __future__ import annotations

import argparse
import dataclasses
import dis
import enum
import functools
import hashlib
import inspect
import re
import types
from collections.abc import Collection, Iterator, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from actors.own_code import is_library, own_sources

_NO_SETTINGS = frozenset({"training", "pretrained_cfg", "default_cfg"})
"""Attributes that say nothing of what is computed; timm's tell where weights were downloaded from."""

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_PLACE = re.compile(r"[/~].*|[A-Za-z]:[\\/].*|(cpu|cuda|mps|xpu|meta)(:\d+)?", re.DOTALL)
"""Where a file lies, or on what device a network runs, differs between machines."""


def state_fingerprint(module: nn.Module, made_in: str | None = None) -> str:
    """Fingerprint of a network: weights, printed structure, settings of its parts, and its own code.

    Settings are the public attributes of every part that are plain values, functions, classes or
    tensors. What a part assigns while it runs is none, nor are names of files and devices.

    Args:
        module: Any network, on any device. Nothing of it is changed.
        made_in: Name of the module of a user's factory that made it.

    Returns:
        32 hexadecimal digits. Two networks with equal fingerprints have the same tensors under the
        same names, print alike, have parts with the same settings, and what is not of PyTorch,
        torchvision, timm or open_clip comes from source files with the same text: their classes,
        the factory, and the modules that these import.
    """
    return _fingerprint(module, made_in, {})


def _fingerprint(module: nn.Module, made_in: str | None, known: dict[int, str]) -> str:
    """The same; `known` are names of the networks and parts that were met before."""
    known |= {id(part): name for name, part in module.named_modules()}
    digest = hashlib.blake2b(digest_size=16)
    digest.update(_ADDRESS.sub("", repr(module)).encode())
    state = module.state_dict()
    for name, tensor in sorted(state.items()):
        if not isinstance(tensor, torch.Tensor):  # what get_extra_state() returned
            digest.update(f"\0{name}\0{describe(tensor)}\0".encode())
            continue
        digest.update(f"\0{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode())
        digest.update(_tensor_bytes(tensor))
    for setting in _settings(module, state.keys(), known):
        digest.update(f"\0setting\0{setting}".encode())
    for text in own_sources({type(part) for part in module.modules()}, made_in):
        digest.update(b"\0source\0" + text)
    return digest.hexdigest()


def _settings(module: nn.Module, state: Collection[str], known: dict[int, str]) -> Iterator[str]:
    """What the parts of a network are set to, beside their tensors, in a fixed order."""
    noted: dict[type, set[str]] = {}
    for path, part in module.named_modules():
        kind = type(part)
        if kind not in noted:
            noted[kind] = _noted(kind)
        values = {name: value for name, value in vars(part).items() if not name.startswith("_")}
        if not is_library(kind.__module__):  # libraries compute such buffers from settings
            own = part.named_buffers(recurse=False)
            values |= {name: b for name, b in own if f"{path}.{name}".lstrip(".") not in state}
        for name in sorted(values.keys() - noted[kind] - _NO_SETTINGS):
            yield f"{path}.{name}={_setting(values[name], known)}"
        if isinstance(part, fx.GraphModule | torch.jit.ScriptModule):
            yield f"{path}={getattr(part, 'code', '')}"


def _noted(kind: type) -> set[str]:
    """Attributes that a class assigns while it runs: by its forward method and methods that this calls."""
    owners = [base for base in kind.__mro__ if base not in (object, nn.Module)]
    noted: set[str] = set()
    seen: set[str] = set()
    todo = {"forward", "__call__"}
    while todo:
        name = todo.pop()
        seen.add(name)
        for owner in owners:
            method = inspect.unwrap(owner.__dict__.get(name))  # type: ignore[arg-type]
            codes = [method.__code__] if isinstance(method, types.FunctionType) else []
            for code in codes:
                noted |= {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_ATTR"}
                todo |= set(code.co_names) - seen
                codes += [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return noted


def _setting(value: Any, known: dict[int, str], around: tuple[int, ...] = ()) -> str:
    """A text of a plain value, free of addresses, files and devices; of other things their class alone."""
    if id(value) in around:
        return "<above>"
    deeper = functools.partial(_setting, known=known, around=(*around, id(value)))
    match value:
        case str() if _PLACE.fullmatch(value):
            return "<place>"
        case (
            None | bool() | int() | float() | complex() | str() | bytes() | enum.Enum()
            | torch.dtype() | np.dtype() | np.ndarray() | np.generic() | torch.Tensor()
        ):  # fmt: skip
            return describe(value.item() if isinstance(value, np.generic) else value)
        case nn.Module() if id(value) in known:
            return f"<{known[id(value)]}>"
        case nn.Module():  # one that is not registered as a part
            return _fingerprint(value, None, known)
        case functools.partial():
            return f"partial({deeper([value.func, value.args, value.keywords])})"
        case type() | types.FunctionType() | types.BuiltinFunctionType() | types.MethodType():
            return _qualified(value)
        case Mapping():  # tensors in one are mostly what a first pass keeps for the next
            items = [(k, v) for k, v in value.items() if not isinstance(v, torch.Tensor)]
            return "{" + ", ".join(sorted(f"{deeper(k)}: {deeper(v)}" for k, v in items)) + "}"
        case Set():
            return "{" + ", ".join(sorted(deeper(item) for item in value)) + "}"
        case list() | tuple():
            return f"{type(value).__name__}[" + ", ".join(deeper(item) for item in value) + "]"
        case argparse.Namespace() | types.SimpleNamespace():
            return f"{_qualified(type(value))}{deeper(vars(value))}"
    if dataclasses.is_dataclass(value):
        named = [field.name for field in dataclasses.fields(value)]
        return f"{_qualified(type(value))}{deeper({n: getattr(value, n, None) for n in named})}"
    return _qualified(type(value))


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
