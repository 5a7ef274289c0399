"""Finding and checking the layers of a network; `actors.taps` reads their activations.

A layer is any module of the network, under the name that ``named_modules()`` gives it; names are
looked up, never evaluated. Its neurons are the channels of its output. Whatever would record
nothing, or the wrong thing, is refused before the first image is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from actors.layer_info import LayerInfo
from actors.taps import LayerTap, channel_axis, first_tensor, plain_attention
from core.errors import LayerError, close_names
from core.pooling import POOLINGS, poolings_for

__all__ = [
    "LayerInfo",
    "LayerTap",
    "assign_poolings",
    "check_layers",
    "describe_layers",
    "match_layers",
]

_PROBE_IMAGES = 2
"""Images in the pass that describes a network: more than one, to recognise the batch axis."""


def match_layers(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Layers that any pattern matches, in the order of the network.

    In a pattern ``*`` stands for any text without a dot, so that ``blocks.*`` are the direct
    children of ``blocks``; ``**`` crosses dots; ``?`` is one character and ``[…]`` a choice. A
    pattern that begins with ``!`` takes layers out again.

    Args:
        names: All layers of the network, in its order.
        patterns: Names or patterns; the order among them does not matter.

    Returns:
        The matching names, each once.

    Raises:
        LayerError: A pattern matches no layer, or nothing is left.
    """
    known = [name for name in names if name]
    chosen: set[str] = set()
    dropped: set[str] = set()
    for pattern in patterns:
        bare = pattern.removeprefix("!")
        matched = _matching(known, bare)
        if not matched:
            raise LayerError(
                f"no layer matches {bare!r}{close_names(bare, known)}; the network has "
                f"{len(known)} layers, and 'neuroscribe layers MODEL' lists them"
            )
        (dropped if pattern.startswith("!") else chosen).update(matched)
    left = [name for name in known if name in chosen and name not in dropped]
    if not left:
        raise LayerError(
            f"the patterns {list(patterns)} leave no layer; name at least one to record"
        )
    return left


def assign_poolings(
    layers: Sequence[str], pooling: Sequence[str] | Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """The poolings of each layer.

    Args:
        layers: Names of the chosen layers.
        pooling: Poolings for all layers, or poolings by pattern, where the last matching pattern
            counts.

    Raises:
        LayerError: An unknown pooling, a layer without any, or a pattern that matches no layer.
    """
    by_pattern = pooling if isinstance(pooling, Mapping) else {"**": pooling}
    assigned: dict[str, tuple[str, ...]] = {}
    for pattern, wanted in by_pattern.items():
        for unknown in (one for one in wanted if one not in POOLINGS):
            raise LayerError(
                f"unknown pooling {unknown!r}{close_names(unknown, POOLINGS)}; "
                f"expected one of {', '.join(POOLINGS)}"
            )
        for layer in match_layers(layers, [pattern]):
            assigned[layer] = tuple(dict.fromkeys(wanted))
    for layer in layers:
        if not assigned.get(layer):
            raise LayerError(
                f"layer {layer!r} has no pooling; add a pattern for it, or '**': [avg]"
            )
    return {layer: assigned[layer] for layer in layers}


def describe_layers(
    module: nn.Module, image: int | tuple[int, int] | Tensor = 224
) -> list[LayerInfo]:
    """Every layer of a network, from one forward pass of blank images.

    Args:
        module: The network in evaluation mode, on any device, ``meta`` included.
        image: Side of a square image, (height, width), or a batch to run (images, …).

    Returns:
        One entry a layer, in the order of ``named_modules()``, the network itself left out.

    Raises:
        LayerError: The network does not run on such a batch.
    """
    batch = image if isinstance(image, Tensor) else _blank_images(module, image)
    seen: dict[str, list[Any]] = {name: [] for name, _ in module.named_modules() if name}

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = first_tensor(output)
            shape = None if tensor is None else tuple(tensor.shape)
            seen[name].append((shape, type(output).__name__))

        return hook

    handles = [part.register_forward_hook(watch(n)) for n, part in module.named_modules() if n]
    try:
        with torch.inference_mode(), plain_attention():
            module(batch)
    except Exception as error:
        raise LayerError(
            f"{type(module).__name__} does not run on a batch of shape {tuple(batch.shape)}: "
            f"{type(error).__name__}: {error}; check the image size of its preprocessing"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return [
        _layer_info(name, part, seen[name], len(batch))
        for name, part in module.named_modules()
        if name
    ]


def check_layers(
    infos: Sequence[LayerInfo], wanted: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """Refuse layers and poolings that would record nothing or the wrong thing.

    Args:
        infos: All layers, from `describe_layers`.
        wanted: Poolings by layer name or pattern; a layer under several patterns gets them all.

    Returns:
        Poolings by layer name, in the order of the network.

    Raises:
        LayerError: A layer that is unknown, never runs, runs several times in a pass, or gives no
            2-, 3- or 4-D output; or a pooling that does not fit. All faults are named at once.
    """
    by_name = {info.name: info for info in infos}
    resolved: dict[str, tuple[str, ...]] = {}
    for pattern, poolings in wanted.items():
        for name in match_layers(by_name, [pattern]):
            resolved[name] = tuple(dict.fromkeys((*resolved.get(name, ()), *poolings)))
    faults = [fault for name in resolved for fault in _faults(by_name[name], resolved[name])]
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise LayerError("; ".join(faults[:5]) + more)
    return {name: resolved[name] for name in by_name if name in resolved}


def _matching(names: Sequence[str], pattern: str) -> list[str]:
    if pattern in names:
        return [pattern]
    text = ""
    for piece in re.findall(r"\*\*|\*|\?|\[[^\]]+\]|.", pattern):
        if piece == "**":
            text += ".*"
        elif piece == "*":
            text += "[^.]*"
        elif piece == "?":
            text += "[^.]"
        elif len(piece) > 1:
            text += "[" + piece[1:-1].replace("\\", "\\\\").replace("!", "^", piece[1] == "!") + "]"
        else:
            text += re.escape(piece)
    return [name for name in names if re.fullmatch(text, name)]


def _blank_images(module: nn.Module, image: int | tuple[int, int]) -> Tensor:
    height, width = (image, image) if isinstance(image, int) else image
    first = next(module.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    dtype = torch.float32 if first is None else first.dtype
    return torch.zeros((_PROBE_IMAGES, 3, height, width), device=device, dtype=dtype)


def _layer_info(name: str, module: nn.Module, calls: list[Any], images: int) -> LayerInfo:
    kind = type(module).__name__
    if not calls:
        return LayerInfo(name, kind, (), 0, 0, "it never runs in a forward pass")
    shape, output = calls[0]
    if shape is None:
        return LayerInfo(name, kind, (), 0, len(calls), f"it gives {output}, not a tensor")
    reason = ""
    if len(calls) > 1:
        reason = f"it runs {len(calls)} times in a forward pass"
    elif len(shape) not in (2, 3, 4):
        reason = f"its output has {len(shape)} axes, expected 2, 3 or 4"
    elif shape[0] != images:
        reason = f"its output begins with {shape[0]} rows for {images} images"
    neurons = 0 if reason else shape[channel_axis(module, shape)]
    return LayerInfo(name, kind, shape[1:], neurons, len(calls), reason)


def _faults(info: LayerInfo, poolings: Sequence[str]) -> Iterator[str]:
    if info.reason:
        yield f"layer {info.name!r} ({info.kind}) cannot be recorded: {info.reason}"
        return
    fitting = poolings_for((_PROBE_IMAGES, *info.shape))
    for pooling in poolings:
        if pooling not in fitting:
            yield (
                f"pooling {pooling!r} does not fit layer {info.name!r}, whose output is "
                f"{info.shape} per image; use {' or '.join(fitting)}"
            )
