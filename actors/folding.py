"""Batch normalisation folded into the convolutions before it, as is usual for networks that only predict.

A folded network computes the same function in fewer passes over memory. Which convolutions feed a batch
normalisation and nothing else is read from a symbolic trace of the forward pass.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

_CONVOLUTIONS = frozenset({"Conv2d", "Conv2dSame"})
"""By the names of PyTorch and timm: classes that apply their weights as they are."""

_NORMS = frozenset({"BatchNorm2d", "BatchNormAct2d"})
"""Classes that normalise, and then call their children in order, if they have any."""


def fold_batch_norms(module: nn.Module, kept: Collection[str] = ()) -> int:
    """Fold every batch normalisation that can be folded, in place.

    Args:
        module: A network in evaluation mode.
        kept: Names of modules that are to give what they give now: a convolution that is folded
            gives what its batch normalisation gave. All other modules keep their names and outputs.

    Returns:
        How many were folded; 0 for a network whose forward pass cannot be traced.
    """
    parts = dict(module.named_modules())
    if not any(type(part).__name__ in _NORMS for part in parts.values()):
        return 0
    pairs = _pairs(module, parts)
    folded = 0
    for conv, norm in pairs:
        if conv in kept or not _fold(parts[conv], parts[norm]):
            continue
        owner, _, name = norm.rpartition(".")
        setattr(module.get_submodule(owner), name, _Folded(parts[norm]))
        folded += 1
    return folded


def foldable(module: nn.Module, names: Collection[str]) -> list[str]:
    """Those of some modules that are convolutions which `fold_batch_norms` would fold.

    Args:
        module: A network in evaluation mode. It is traced only where one of them is a convolution.
        names: Names of modules of it.

    Returns:
        Their names, ascending.
    """
    parts = dict(module.named_modules())
    if not any(type(parts[name]).__name__ in _CONVOLUTIONS for name in names):
        return []
    return sorted({conv for conv, _ in _pairs(module, parts)} & set(names))


class _Folded(nn.Module):
    """What is left of a batch normalisation: the modules inside it."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        for name, child in norm.named_children():
            self.add_module(name, child)
        self.eval()

    def forward(self, values: Tensor) -> Tensor:
        for child in self.children():
            values = child(values)
        return values


class _Tracer(fx.Tracer):
    """Takes convolutions and batch normalisations for single steps, whoever wrote them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, nn.Conv2d | nn.BatchNorm2d)
        return whole or super().is_leaf_module(m, module_qualified_name)


def _pairs(module: nn.Module, parts: dict[str, nn.Module]) -> list[tuple[str, str]]:
    """Names of convolutions that a batch normalisation alone reads, with its name."""
    try:
        graph = _Tracer().trace(module)
    except Exception:  # what a network's own code raises when it is given symbols
        return []
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    read: set[str] = {str(n.target).rpartition(".")[0] for n in graph.nodes if n.op == "get_attr"}
    tied = Counter(id(parameter) for part in parts.values() for parameter in _own(part))
    found = []
    for node in graph.nodes:
        if node.op != "call_module" or not node.args:
            continue
        before: Any = node.args[0]
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        pair = str(before.target), str(node.target)
        once = all(calls[name] == 1 and name not in read for name in pair)
        if once and _foldable(parts[pair[0]], parts[pair[1]], tied):
            found.append(pair)
    return found


def _own(part: nn.Module) -> list[nn.Parameter]:
    return list(part.parameters(recurse=False))


def _foldable(conv: Any, norm: Any, tied: Counter[int]) -> bool:
    hooked = any(p._forward_hooks or p._forward_pre_hooks for p in (conv, norm))
    return (
        type(conv).__name__ in _CONVOLUTIONS
        and type(norm).__name__ in _NORMS
        and not hooked
        and not parametrize.is_parametrized(conv)
        and all(tied[id(parameter)] == 1 for parameter in _own(conv))
        and norm.running_mean is not None
        and not norm.training
    )


@torch.no_grad()
def _fold(conv: Any, norm: Any) -> bool:
    """Give a convolution the weights with which it does both, in float64; False where they are not finite."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    before = 0.0 if conv.bias is None else conv.bias.double()
    bias = (before - norm.running_mean.double()) * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    weight = conv.weight.double() * scale.view(-1, 1, 1, 1)
    if not math.isfinite(float(weight.abs().sum() + bias.abs().sum())):
        return False
    dtype = conv.weight.dtype
    conv.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return True
