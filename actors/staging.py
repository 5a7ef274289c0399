"""Images on their way to a GPU, and results on their way back, beside what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float16, Shaped
from torch import Tensor

Key = TypeVar("Key")


class Staging:
    """Two page-locked buffers that batches pass through on their way to a GPU, in turn.

    Copies run beside the computation: the next batch is laid out and copied while the GPU works.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self._device = device
        self._buffers = [torch.empty(shape, dtype=dtype, pin_memory=True) for _ in range(2)]
        self._copied: list[Any] = [None, None]
        self._stream = _stream(device)
        self._turn = 0

    def to_device(self, chunk: Shaped[np.ndarray, "images a b c"]) -> Tensor:
        """Begin to copy the images; rows beyond them repeat the first one."""
        turn, self._turn = self._turn, 1 - self._turn
        if self._copied[turn] is not None:
            self._copied[turn].synchronize()
        buffer = self._buffers[turn]
        images = torch.from_numpy(chunk)
        buffer[: len(chunk)].copy_(images)  # PyTorch copies with several threads
        buffer[len(chunk) :].copy_(images[:1].expand(len(buffer) - len(chunk), *chunk.shape[1:]))
        with torch.cuda.stream(self._stream):
            batch = buffer.to(self._device, non_blocking=True)
            self._copied[turn] = self._stream.record_event()
        return batch

    def wait_for(self, batch: Tensor) -> None:
        """Let what is computed from now on wait for the copy, and keep its memory until then."""
        current: Any = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        batch.record_stream(current)


class Ahead:
    """Whole shards that are copied to a GPU while it computes another one.

    On a CPU there is nothing to copy.
    """

    def __init__(self, device: str | torch.device) -> None:
        self._device = torch.device(device)
        self._stream = _stream(self._device) if self._device.type == "cuda" else None

    def begin(self, views: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        """Begin to copy arrays; tensors are there already.

        Args:
            views: Images by view, arrays or tensors on the device.

        Returns:
            The same on the device, and what `wait` must be given before it is read.
        """
        if self._stream is None:
            return dict(views), None
        there: dict[str, Any] = {}
        with torch.cuda.stream(self._stream):
            for key, images in views.items():
                if isinstance(images, np.ndarray):
                    # Page-locked memory is let go by PyTorch once the copy is done.
                    images = torch.from_numpy(images).pin_memory()
                    images = images.to(self._device, non_blocking=True)
                there[key] = images
            copied = self._stream.record_event()
        return there, copied

    def wait(self, there: Mapping[str, Any], copied: Any) -> None:
        """Let what is computed from now on wait for the copies, and keep their memory until then."""
        if copied is None:
            return
        current: Any = torch.cuda.current_stream(self._device)
        current.wait_event(copied)
        for images in there.values():
            images.record_stream(current)


def arrays_of(
    results: Mapping[Key, Shaped[Tensor, "images width"]],
) -> dict[Key, Float16[np.ndarray, "images width"]]:
    """Results of a device in main memory: from a GPU all layers by one copy."""
    if all(values.device.type == "cpu" for values in results.values()):
        return {key: values.numpy() for key, values in results.items()}
    together = torch.cat([values.flatten() for values in results.values()])
    here = torch.empty(together.shape, dtype=together.dtype, pin_memory=True)
    here.copy_(together, non_blocking=True)
    current: Any = torch.cuda.current_stream(together.device)
    current.synchronize()
    flat, found, start = here.numpy(), {}, 0
    for key, values in results.items():
        found[key] = flat[start : start + values.numel()].reshape(values.shape)
        start += values.numel()
    return found


def _stream(device: torch.device) -> Any:
    new_stream: Any = torch.cuda.Stream
    return new_stream(device)
