"""Reading the activations of layers while the network runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from actors.directions import DirectionSet
from core.errors import LayerError, close_names
from core.pooling import pool

_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding)
"""Modules that act on the last axis whatever the number of axes before it."""


class LayerTap:
    """Pooled activations of some layers, taken while the network runs.

    Outputs are pooled inside the forward pass, on the device and before a later layer can change
    them in place, so that only one number per image and neuron outlives the pass::

        with LayerTap(network, {"layer4": ("avg", "max")}) as tap:
            network(batch)
            activations = tap.collect()["layer4", "avg"]  # (images, neurons)
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Mapping[str, Sequence[str]],
        directions: Sequence[DirectionSet] = (),
    ) -> None:
        """Prepare, without touching the network yet.

        Args:
            module: The network.
            layers: Poolings by layer name.
            directions: Directions to record as layers of their own, on the network's device.

        Raises:
            LayerError: The network has no such layer.
        """
        known = dict(module.named_modules())
        self.directions = tuple(directions)
        needed = dict.fromkeys([*layers, *(some.layer for some in directions)])
        for name in needed:
            if name not in known:
                raise LayerError(
                    f"{type(module).__name__} has no layer {name!r}{close_names(name, known)}; "
                    "'neuroscribe layers MODEL' lists them all"
                )
        self.module = module
        self.layers = {name: tuple(poolings) for name, poolings in layers.items()}
        self._taps = {name: known[name] for name in needed}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._pooled: dict[str, dict[tuple[str, str], Tensor]] = {}
        self._stop_after_all = False

    def __enter__(self) -> Self:
        for name, part in self._taps.items():
            self._handles.append(part.register_forward_hook(self._hook(name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._pooled.clear()

    def collect(self) -> dict[tuple[str, str], Float[Tensor, "batch neurons"]]:
        """The pooled activations of the pass just made, by (layer, pooling); then forget them.

        Raises:
            LayerError: A layer did not run in that pass.
        """
        pooled, self._pooled = self._pooled, {}
        missing = [name for name in self._taps if name not in pooled]
        if missing:
            raise LayerError(
                f"layer {missing[0]!r} did not run in the forward pass; choose one that does "
                "('neuroscribe layers MODEL' shows how often each one runs)"
            )
        found = {key: values for part in pooled.values() for key, values in part.items()}
        columns = [*self.layers.items(), *((d.name, d.poolings) for d in self.directions)]
        return {
            (name, pooling): found[name, pooling]
            for name, poolings in columns
            for pooling in poolings
        }

    def run(
        self, batch: Tensor, *, stop_early: bool = False
    ) -> dict[tuple[str, str], Float[Tensor, "batch neurons"]]:
        """Run the network on a batch and collect.

        Args:
            batch: Images as the network takes them.
            stop_early: Leave the pass once every layer has been seen. Only for layers that are
                known to run once in a pass, since a second call would go unnoticed.
        """
        if torch.compiler.is_compiling():
            self.module(batch)
            return self.collect()
        self._stop_after_all = stop_early
        try:
            self.module(batch)
        except _AllSeen:
            pass
        finally:
            self._stop_after_all = False
        return self.collect()

    def _hook(self, name: str) -> Any:
        def hook(part: nn.Module, _inputs: Any, output: Any) -> None:
            if name in self._pooled:
                raise LayerError(
                    f"layer {name!r} runs more than once in a forward pass, so that it has no "
                    "single activation; choose the layer around it or one inside"
                )
            tensor = first_tensor(output)
            if tensor is None:
                raise LayerError(f"layer {name!r} gives {type(output).__name__}, expected a tensor")
            self._pooled[name] = self._kept(name, part, tensor)
            if self._stop_after_all and len(self._pooled) == len(self._taps):
                raise _AllSeen

        return hook

    def _kept(self, name: str, part: nn.Module, output: Tensor) -> dict[tuple[str, str], Tensor]:
        """What is kept of a layer's output, by layer or directions and pooling; it shares no memory
        with the output."""
        output = channels_first(part, output)
        return {
            (name, pooling): _pool_apart(output, pooling) for pooling in self.layers.get(name, ())
        } | {
            (some.name, pooling): some.directions.pooled(output, pooling, by_token=some.by_token)
            for some in self.directions
            if some.layer == name
            for pooling in some.poolings
        }


class _AllSeen(Exception):
    """Every tapped layer has run: the rest of the forward pass is not needed."""


@contextmanager
def plain_attention() -> Iterator[None]:
    """Keep PyTorch's fused transformer path out.

    It is taken only where no hook is attached, so that what one layer records would depend on
    which others are recorded with it.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def channel_axis(module: nn.Module, shape: Sequence[int]) -> int:
    """Axis of the channels in a layer's output, the batch axis being 0.

    4-D outputs are (batch, channels, height, width), except after modules that act on the last axis
    and in networks that keep channels last throughout (Swin, parts of ConvNeXt). Those are told
    apart by their two equal middle axes, as square images have; for other images (batch, channels,
    height, width) is assumed.
    """
    if len(shape) != 4:
        return len(shape) - 1
    if isinstance(module, _CHANNELS_LAST):
        return 3
    return 3 if shape[1] == shape[2] != shape[3] else 1


def first_tensor(output: Any) -> Tensor | None:
    """The tensor that a layer gives, or the first one of several; None where it gives none."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def channels_first(module: nn.Module, tensor: Tensor) -> Tensor:
    """A layer's output with its channels in axis 1 where it has a height and a width."""
    if tensor.ndim == 4 and channel_axis(module, tensor.shape) == 3:
        return tensor.movedim(3, 1)
    return tensor


def _pool_apart(tensor: Tensor, pooling: str) -> Tensor:
    """Pool, and make sure that the result shares no memory with the layer's output."""
    pooled = pool(tensor, pooling)
    if torch.compiler.is_compiling():  # storage is not known before the network runs
        return pooled.clone()
    shared = pooled.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    return pooled.clone() if shared else pooled
