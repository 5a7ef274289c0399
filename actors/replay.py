"""Running a network with activations of one layer replaced: what the rest of it makes of them.

A neuron takes another value in an image by a shift of its whole map: all positions of a channel, all
tokens under ``avg`` and ``max``, the class token alone under ``first``, the number itself where the
output has no positions. A shift by v − q takes a pooled activation of q to v exactly, and a shift by
zero changes nothing.

What comes before the layer is the same for all replacements in an image. It runs once for several of
them, and the layer's output is repeated; where the network also passes the layer by (a layer inside of
a residual branch) that cannot be, and the images are repeated instead. Which of the two is right is
found by trying. Everything is computed in float32: a change of the loss is a small difference of large
numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from actors.kernels import repeatable, whole_products
from actors.preprocessing import split_transform
from actors.taps import LayerTap, channel_axis, first_tensor
from actors.targets import Target
from actors.views import View
from core.errors import ConfigError, LayerError, ModelError, ShapeError

POOLINGS = ("avg", "max", "first")
"""Poolings under which a shift of the map is a shift of the pooled activation."""

_CPU_BATCH, _CUDA_BATCH = 32, 256
"""Replacements in one pass."""

_FRONT = 8
"""Replacements for each image that runs through the layers before: those batches have a fixed size."""

_TOLERANCE = 1e-5
"""Difference of logits, relative to the largest, that rounding may make."""

Kept = TypeVar("Kept")

Reduce = Callable[[Tensor, Tensor], Tensor]
"""Takes logits (variants, classes) and the rows of their images to what is kept of them."""


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """Logits that are ``weight @ pooled + bias`` of a layer's pooled activations."""

    weight: Float[np.ndarray, "classes neurons"]
    bias: Float[np.ndarray, " classes"]


class Replay:
    """A network, one of its layers with a pooling, and replacements of that layer's activations."""

    def __init__(
        self,
        target: Target,
        layer: str,
        pooling: str,
        device: str | torch.device = "cpu",
        batch_size: int | Literal["auto"] = "auto",
        expand: bool | None = None,
    ) -> None:
        """Take over the network: it is moved and converted in place.

        Args:
            target: The network; its output must be logits (images, classes).
            layer: A layer that runs once in a pass.
            pooling: ``avg``, ``max`` or ``first``.
            device: ``cpu``, ``cuda`` or ``cuda:N``.
            batch_size: Replacements in one pass; ``auto`` is 32 on a CPU and 256 on a GPU, halved
                for as long as the GPU's memory does not suffice.
            expand: Whether the layer's output may be repeated in place of the images; found out on
                the first images where it is not given.

        Raises:
            ConfigError: A pooling that no shift belongs to.
            LayerError: The network has no such layer.
        """
        refuse_pooling(layer, pooling)
        self.device = torch.device(device)
        self.expand = expand
        self._halving = batch_size == "auto"
        if batch_size == "auto":
            batch_size = _CUDA_BATCH if self.device.type == "cuda" else _CPU_BATCH
        self.batch_size = batch_size
        self._name = target.name
        self._preprocess = split_transform(target.transform)
        self._module: nn.Module = target.module.eval().requires_grad_(False)
        whole_products(self._module)
        move: Any = self._module.to
        move(device=self.device, dtype=torch.float32, memory_format=torch.channels_last)
        self._tap = LayerTap(self._module, {layer: (pooling,)})
        self._layer = dict(self._module.named_modules())[layer]
        self.layer, self.pooling = layer, pooling

    @property
    def view(self) -> View:
        """What the images must be laid out for."""
        return self._preprocess.view

    def logits(self, images: Shaped[np.ndarray, "images a b c"]) -> Float[Tensor, "images classes"]:
        """Logits with nothing replaced, on the device.

        Args:
            images: As `view` lays them out, stacked.

        Raises:
            ModelError: The network does not give logits (images, classes).
        """
        return self._all(lambda: self._plain(images))

    def shifted(
        self,
        images: Shaped[np.ndarray, "images a b c"],
        rows: Int[np.ndarray, " variants"],
        neurons: Int[np.ndarray, " variants"],
        shifts: Float[np.ndarray, " variants"],
        reduce: Reduce | None = None,
    ) -> Tensor:
        """Logits when one neuron's activation in an image is shifted.

        Args:
            images: As `view` lays them out, stacked.
            rows: Image of each variant.
            neurons: Neuron of each variant.
            shifts: What is added, in units of the layer: the new value less the pooled activation.
            reduce: What to keep of the logits; by default all of them.

        Returns:
            One row a variant, on the device: logits, or what `reduce` makes of them.

        Raises:
            ShapeError: Rows, neurons and shifts of different number, or beyond the images.
        """
        _check_lengths(len(images), rows, neurons, shifts)

        def edit(maps: Tensor, chosen: Tensor, spread: tuple[int, ...]) -> None:
            where = (torch.arange(len(maps), device=maps.device), which[chosen])
            maps[where] += amounts[chosen].view(-1, *spread)

        which, amounts = self._place(neurons), self._place(shifts).float()
        return self._all(lambda: self._replace(images, rows, edit, reduce))

    def zeroed(
        self,
        images: Shaped[np.ndarray, "images a b c"],
        rows: Int[np.ndarray, " variants"],
        neurons: Int[np.ndarray, " variants"],
        reduce: Reduce | None = None,
    ) -> Tensor:
        """Logits when one neuron's whole map in an image is zero; otherwise as `shifted`."""
        _check_lengths(len(images), rows, neurons)

        def edit(maps: Tensor, chosen: Tensor, _spread: tuple[int, ...]) -> None:
            maps[torch.arange(len(maps), device=maps.device), which[chosen]] = 0.0

        which = self._place(neurons)
        return self._all(lambda: self._replace(images, rows, edit, reduce))

    def shifted_together(
        self,
        images: Shaped[np.ndarray, "images a b c"],
        rows: Int[np.ndarray, " variants"],
        shifts: Float[np.ndarray, "variants neurons"],
        reduce: Reduce | None = None,
    ) -> Tensor:
        """Logits when all neurons of the layer are shifted at once; otherwise as `shifted`."""
        _check_lengths(len(images), rows, shifts)

        def edit(maps: Tensor, chosen: Tensor, spread: tuple[int, ...]) -> None:
            maps += amounts[chosen].view(*maps.shape[:2], *spread)

        amounts = self._place(shifts).float()
        return self._all(lambda: self._replace(images, rows, edit, reduce))

    def examine(self, images: Shaped[np.ndarray, "images a b c"]) -> Head | None:
        """Find out how replacements are computed: what `expand` is, and whether algebra will do.

        Algebra will do where the last linear layer takes the pooled activations themselves: then a
        shift of a neuron adds a multiple of its column of weights to the logits. This is checked on
        the images, with replacements.

        Args:
            images: A few images, at least one, as `view` lays them out.

        Returns:
            The linear head, or None where there is none behind this layer.

        Raises:
            ModelError: The network does not give logits (images, classes).
        """
        few = np.concatenate([images, np.flip(images, axis=1)])[: self.batch_size]
        pooled, logits, head = self._all(lambda: self._last_linear(few))
        rows = np.arange(max(1, self.batch_size)) * 7 % len(few)
        neurons = np.arange(len(rows)) * 3 % pooled.shape[1]
        sizes = pooled.abs().amax(dim=0).cpu().numpy() + 0.1
        shifts = sizes[neurons] * np.where(np.arange(len(rows)) % 2, 1.0, -1.0)
        self.expand = False
        plain = self.shifted(few, rows, neurons, shifts)
        self.expand = True
        try:
            self.expand = _agree(self.shifted(few, rows, neurons, shifts), plain)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception:  # what a network raises where two batches meet is its own affair
            self.expand = False
        if head is None:
            return None
        column = head.weight[:, neurons] * torch.from_numpy(shifts).to(logits)
        if not _agree(logits[rows] + column.T, plain):
            return None
        bias = torch.zeros(len(head.weight)) if head.bias is None else head.bias
        return Head(head.weight.detach().cpu().numpy(), bias.detach().cpu().numpy())

    def _last_linear(
        self, images: Shaped[np.ndarray, "images a b c"]
    ) -> tuple[Tensor, Tensor, nn.Linear | None]:
        """Pooled activations, logits, and the linear layer from the one to the other, if any."""
        seen: list[tuple[nn.Linear, Tensor, Any]] = []

        def hook(part: Any, inputs: Any, output: Any) -> None:
            seen.append((part, inputs[0].clone(), output))

        linear = [part for part in self._module.modules() if isinstance(part, nn.Linear)]
        with ExitStack() as stack:
            tap = stack.enter_context(self._tap)
            for part in linear:
                stack.callback(part.register_forward_hook(hook).remove)
            logits = self._forward(self._finish(images))
            (pooled,) = tap.collect().values()
        if not seen:
            return pooled, logits, None
        part, given, output = seen[-1]
        fits = given.shape == pooled.shape and torch.equal(output, logits)
        return pooled, logits, part if fits and _agree(given, pooled) else None

    def _plain(self, images: Shaped[np.ndarray, "images a b c"]) -> Tensor:
        if len(images) == 0:  # the number of classes is known only from a pass
            return self._plain(np.zeros((1, *self.view.shape), images.dtype))[:0]
        kept = []
        for start in range(0, len(images), self.batch_size):
            chunk = images[start : start + self.batch_size]
            filled = _filled(np.arange(len(chunk)), self.batch_size)
            kept.append(self._forward(self._finish(chunk[filled]))[: len(chunk)])
        return torch.cat(kept)

    def _replace(
        self,
        images: Shaped[np.ndarray, "images a b c"],
        rows: Int[np.ndarray, " variants"],
        edit: Callable[[Tensor, Tensor, tuple[int, ...]], None],
        reduce: Reduce | None,
    ) -> Tensor:
        """All variants, in passes of one fixed size, so that neighbours change no result."""
        if self.expand is None:
            self.examine(images[: self.batch_size])
        front = max(1, self.batch_size // _FRONT)
        order = np.argsort(rows, kind="stable")
        kept: list[Tensor] = []
        for start, stop in _passes(rows[order], self.batch_size, front):
            chosen = _filled(order[start:stop], self.batch_size)
            distinct, local = np.unique(rows[chosen], return_inverse=True)
            batch = self._finish(images[_filled(distinct, front)])
            places, members = self._place(local), self._place(chosen)
            if not self.expand:
                batch = batch[places].contiguous(memory_format=torch.channels_last)
            hook = self._hook(edit, members, places)
            handle = self._layer.register_forward_hook(hook)
            try:
                logits = self._forward(batch, len(chosen))[: stop - start]
            finally:
                handle.remove()
            if reduce is not None:
                logits = reduce(logits, self._place(rows[order[start:stop]]))
            kept.append(logits)
        if not kept:
            raise ShapeError("no replacements were given, expected at least one")
        inverse = np.empty_like(order)
        inverse[order] = np.arange(len(order))
        return torch.cat(kept)[self._place(inverse)]

    def _hook(
        self,
        edit: Callable[[Tensor, Tensor, tuple[int, ...]], None],
        members: Tensor,
        places: Tensor,
    ) -> Any:
        def hook(part: nn.Module, _inputs: Any, output: Any) -> Any:
            tensor = first_tensor(output)
            if tensor is None:
                raise LayerError(
                    f"layer {self.layer!r} gives {type(output).__name__}, expected a tensor"
                )
            tensor = tensor[places] if self.expand else tensor.clone()
            maps = tensor.movedim(channel_axis(part, tensor.shape), 1)
            if self.pooling == "first":
                maps = maps[:, :, 0]
            edit(maps, members, (1,) * (maps.ndim - 2))
            if tensor.ndim == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            if isinstance(output, tuple | list):
                return type(output)([tensor, *output[1:]])
            return tensor

        return hook

    def _finish(self, images: Shaped[np.ndarray, "images a b c"]) -> Tensor:
        batch = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        batch = self._preprocess.normalise(batch)
        return batch.float().contiguous(memory_format=torch.channels_last)

    def _forward(self, batch: Tensor, count: int | None = None) -> Tensor:
        logits = self._module(batch)
        expected = len(batch) if count is None else count
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            found = type(logits).__name__
            if isinstance(logits, Tensor):
                found = f"a tensor of shape {tuple(logits.shape)}"
            raise ModelError(
                f"{self._name} gives {found}, expected logits (images, classes); ablation measures "
                "the loss of a classifier: leave 'ablation' out for other networks"
            )
        if len(logits) != expected:
            raise ShapeError(f"the network gives {len(logits)} rows, expected {expected}")
        return logits

    def _place(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def _all(self, compute: Callable[[], Kept]) -> Kept:
        """Compute, again with half the batch for as long as the GPU's memory does not suffice."""
        with repeatable():
            while True:
                try:
                    return compute()
                except torch.cuda.OutOfMemoryError:
                    if not self._halving or self.batch_size == 1:
                        raise
                    self.batch_size //= 2
                torch.cuda.empty_cache()


def refuse_pooling(layer: str, pooling: str) -> None:
    """Refuse a pooling under which no shift of the map takes a neuron to a given value.

    Raises:
        ConfigError: Such a pooling.
    """
    if pooling not in POOLINGS:
        raise ConfigError(
            f"activations of layer {layer!r} under pooling {pooling!r} cannot be replaced: no shift of "
            f"a map takes its value of largest magnitude to another one; use {', '.join(POOLINGS)}"
        )


def _passes(
    rows: Int[np.ndarray, " variants"], most: int, images: int
) -> Iterator[tuple[int, int]]:
    """Cut ascending rows into pieces of at most so many variants, of at most so many images."""
    firsts = np.flatnonzero(np.diff(rows, prepend=-1))
    start = 0
    while start < len(rows):
        after = np.searchsorted(firsts, start, side="right") + images - 1
        stop = min(start + most, int(firsts[after]) if after < len(firsts) else len(rows))
        yield start, stop
        start = stop


def _filled(places: Int[np.ndarray, " places"], size: int) -> Int[np.ndarray, " size"]:
    """Places filled up to a size with the first one."""
    return np.concatenate([places, np.repeat(places[:1], size - len(places))])


def _check_lengths(images: int, rows: np.ndarray, *others: np.ndarray) -> None:
    if any(len(other) != len(rows) for other in others):
        raise ShapeError(
            f"{len(rows)} rows came with {', '.join(str(len(other)) for other in others)} neurons or "
            "shifts; expected one for each"
        )
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < images:
        raise ShapeError(f"rows from {rows.min()} to {rows.max()} do not fit {images} images")


def _agree(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    difference = (found - expected).abs().max()
    return bool(difference <= _TOLERANCE * expected.abs().max().clamp(min=1.0))
