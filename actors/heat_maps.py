"""Where in an image the neurons of convolutional layers are active: their maps before pooling.

Maps are averaged down to a few cells a side and stored with 8 bits, each between its own lowest and
highest value, which are kept beside it: enough to see a place by, and comparable between images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int, Shaped, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from actors.kernels import repeatable, whole_products
from actors.layer_info import LayerInfo
from actors.preprocessing import split_transform
from actors.taps import LayerTap, channels_first
from actors.targets import Target
from actors.views import View

SIDE = 14
"""Cells of a map along each side, at most."""

BATCH = 64
"""Images in one pass, always: the last batch is filled up, so that no image depends on its neighbours."""


@dataclass(frozen=True, slots=True)
class Maps:
    """Maps of some pairs of an image and a neuron."""

    cells: UInt8[np.ndarray, "pairs height width"]
    """0 is the map's lowest value and 255 its highest."""
    low: Float32[np.ndarray, " pairs"]
    high: Float32[np.ndarray, " pairs"]
    """In the units of the layer; NaN where there is no map."""


def has_map(info: LayerInfo) -> bool:
    """Whether the neurons of a layer have a place in the image: more than one, in rows and columns."""
    return len(info.shape) == 3 and prod(info.shape) > info.neurons


def map_shape(info: LayerInfo) -> tuple[int, int]:
    """Height and width of the stored maps of a layer that has some."""
    sizes = list(info.shape)
    # Channels last, or first: the axis that is not of the image has as many entries as neurons.
    sizes.pop(2 if sizes[0] != info.neurons else 0)
    return min(SIDE, sizes[0]), min(SIDE, sizes[1])


def seen_share(view: View) -> float:
    """Share of the shorter side of an image that a view shows: what a centre crop leaves of it.

    1 where preprocessing is kept whole and cannot be asked.
    """
    if view.whole:
        return 1.0
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8), (256, 256))
    across = view.apply(Image.fromarray(np.stack([ramp] * 3, axis=-1)))[:, :, 0]
    return min(1.0, (float(across.max()) - float(across.min()) + 1.0) / 256.0)


class HeatMapper:
    """Runs a target over images and keeps the maps of chosen neurons."""

    def __init__(
        self,
        target: Target,
        layers: Sequence[str],
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Take over the network: it is moved and converted in place.

        Args:
            target: The network.
            layers: Layers whose output has rows and columns; see `has_map`.
            device: ``cpu``, ``cuda`` or ``cuda:N``.
            dtype: The number format that activations were recorded in.

        Raises:
            LayerError: The network has no such layer.
        """
        self.device, self.dtype = torch.device(device), dtype
        self._preprocess = split_transform(target.transform)
        module: Any = target.module.eval().requires_grad_(False)
        whole_products(module)
        module.to(device=self.device, dtype=dtype, memory_format=torch.channels_last)
        self._tap = _MapTap(module, dict.fromkeys(layers, ("map",)))

    @property
    def view(self) -> View:
        """What the images must be laid out for."""
        return self._preprocess.view

    def maps(
        self,
        images: Shaped[np.ndarray, "images a b c"],
        wanted: Mapping[str, tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]],
    ) -> dict[str, Maps]:
        """Maps of pairs of an image and a neuron.

        Args:
            images: As `view` lays them out, stacked; at most `BATCH`.
            wanted: For each layer the images, by position, and the neurons of the pairs.

        Returns:
            By layer, in the order of the pairs.
        """
        missing = BATCH - len(images)
        filled = np.concatenate([images, np.repeat(images[:1], missing, axis=0)])
        with repeatable(), self._tap:
            batch = self._preprocess.normalise(torch.from_numpy(filled).to(self.device))
            batch = batch.to(self.dtype).contiguous(memory_format=torch.channels_last)
            found = self._tap.run(batch, stop_early=True)
            return {
                layer: _quantised(found[layer, "map"][_index(rows), _index(neurons)])
                for layer, (rows, neurons) in wanted.items()
            }


class _MapTap(LayerTap):
    """Keeps the maps of layers, averaged down, where `LayerTap` keeps pooled activations."""

    def _kept(self, name: str, part: nn.Module, output: Tensor) -> dict[tuple[str, str], Tensor]:
        output = channels_first(part, output)
        height, width = output.shape[2:]
        small = adaptive_avg_pool2d(output.float(), (min(SIDE, height), min(SIDE, width)))
        return {(name, "map"): small}


def _index(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))


def _quantised(maps: Tensor) -> Maps:
    low, high = maps.amin(dim=(1, 2)), maps.amax(dim=(1, 2))
    span = (high - low).clamp(min=torch.finfo(torch.float32).tiny)
    share = (maps - low[:, None, None]) / span[:, None, None]
    cells = share.nan_to_num(0.0).mul(255).round().clamp(0, 255).to(torch.uint8)
    known = low.isfinite() & high.isfinite()
    nothing = torch.tensor(torch.nan, device=maps.device)
    low, high = (torch.where(known, end, nothing) for end in (low, high))
    return Maps(cells.cpu().numpy(), low.cpu().numpy(), high.cpu().numpy())
