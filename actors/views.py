"""What a model sees of an image: the geometric part of its own preprocessing.

Preprocessing as timm, open_clip and torchvision make it resizes and crops a PIL image, turns it
into numbers and normalises those. The first part is a *view*. Models whose views have equal keys
share one 8-bit array an image, decoded once and four times smaller than floats; the rest is done
on the model's device. Preprocessing of any other kind is kept whole. `actors.preprocessing` finds the two
parts; what is here does without PyTorch, so that the processes that decode start quickly and stay small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image

from core.errors import UnreadableImage

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Step = Callable[[Any], Any]

PLAIN_FILTERS = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
"""Filters that PyTorch has too, by their names there."""

_MAX_RESIZED = 1 << 26
"""Pixels that an intermediate image may have: keeps a very long strip from filling the memory."""


@dataclass(frozen=True, slots=True)
class Resize:
    """Resizes an image as torchvision does: one number is the shorter side, two are (height, width)."""

    size: int | tuple[int, int]
    resample: Image.Resampling

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height that an image of some width and height is resized to.

        Raises:
            UnreadableImage: It is so elongated that the result would fill the memory.
        """
        if not isinstance(self.size, int):
            return self.size[1], self.size[0]
        short, long = min(size), max(size)
        if self.size * self.size * long / short > _MAX_RESIZED:
            raise UnreadableImage("too elongated")
        longer = int(self.size * long / short)
        return (self.size, longer) if size[0] <= size[1] else (longer, self.size)

    def __call__(self, image: Image.Image) -> Image.Image:
        """The resized image; the same one where it has that size."""
        wanted = self.output_size(image.size)
        return image if image.size == wanted else image.resize(wanted, self.resample)


@dataclass(frozen=True, slots=True)
class CenterCrop:
    """Crops the middle of an image as torchvision does, with black where the image is too small."""

    height: int
    width: int

    def box(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the crop; beyond the edges where the image is too small."""
        left, top = _before(size[0], self.width), _before(size[1], self.height)
        return left, top, left + self.width, top + self.height

    def output_size(self, _size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of the crop, whatever the image's."""
        return self.width, self.height

    def __call__(self, image: Image.Image) -> Image.Image:
        """An image of just that size."""
        return image.crop(self.box(image.size))


@dataclass(frozen=True, slots=True)
class View:
    """Takes an RGB image to the array that a model, or several, will be given."""

    key: str
    """Equal for equal geometry, whichever library describes it."""
    shape: tuple[int, int, int]
    """(height, width, 3), or (3, height, width) where preprocessing is kept whole."""
    steps: tuple[Step, ...] = field(compare=False, repr=False)
    """What is done to the image, in order."""

    @property
    def whole(self) -> bool:
        """Whether this is a model's entire preprocessing, which gives floats."""
        return self.key.startswith("whole:")

    @property
    def plain(self) -> bool:
        """Whether it only resizes, bilinearly or bicubically, and crops: what a device does too."""
        return not self.whole and all(
            isinstance(step, CenterCrop)
            or (isinstance(step, Resize) and step.resample in PLAIN_FILTERS)
            for step in self.steps
        )

    def takes(self, size: tuple[int, int]) -> bool:
        """Whether a plain view takes images of this width and height; others are refused by `apply`."""
        try:
            for step in self.steps:
                assert isinstance(step, Resize | CenterCrop)
                size = step.output_size(size)
        except UnreadableImage:
            return False
        return (size[1], size[0], 3) == self.shape

    def apply(self, image: Image.Image) -> Shaped[np.ndarray, "a b c"]:
        """Lay out one image.

        Args:
            image: In mode RGB.

        Returns:
            uint8 (height, width, 3), or float32 (3, height, width) where preprocessing is whole.

        Raises:
            UnreadableImage: The image is so elongated that resizing it would fill the memory, or
                the model's own preprocessing fails on it.
        """
        result: Any = image
        step: Any
        for step in self.steps:
            try:
                result = step(result)
            except UnreadableImage:
                raise
            except Exception as error:
                raise UnreadableImage(f"preprocessing failed: {type(error).__name__}") from error
        array = np.asarray(result, dtype=np.float32 if self.whole else np.uint8)
        if array.shape != self.shape:
            raise UnreadableImage(f"preprocessing gave {array.shape}, expected {self.shape}")
        return array


@dataclass(frozen=True, slots=True)
class Preprocess:
    """A model's preprocessing in two parts: the view, and what is done on the device."""

    view: View
    mean: tuple[float, ...] | None
    """Per channel, in units of the full 8-bit range; None where nothing is subtracted."""
    std: tuple[float, ...] | None
    """Per channel, in the same units."""

    @property
    def key(self) -> str:
        """Equal for equal preprocessing."""
        return f"{self.view.key}|mean={self.mean}|std={self.std}"

    def normalise(self, batch: Shaped[Tensor, "batch a b c"]) -> Float[Tensor, "batch 3 h w"]:
        """Finish the preprocessing of a batch of views, on the device where the batch is.

        Args:
            batch: uint8 (batch, height, width, 3); or floats, which are passed through.

        Returns:
            float32 (batch, 3, height, width), in channels-last memory layout for uint8 batches.
        """
        import torch

        if batch.dtype != torch.uint8:
            return batch
        images = batch.permute(0, 3, 1, 2).to(torch.float32).div_(255)
        if self.mean is None or self.std is None:
            return images
        images.sub_(_channels(self.mean, batch.device))
        return images.div_(_channels(self.std, batch.device))


def _before(there: int, wanted: int) -> int:
    """Where a crop begins: negative where the image is smaller than the crop."""
    return -((wanted - there) // 2) if wanted > there else round((there - wanted) / 2)


@lru_cache(maxsize=64)
def _channels(values: tuple[float, ...], device: torch.device) -> Float[Tensor, "1 3 1 1"]:
    """A number a channel on a device, sent there once: sending makes the program wait for a GPU."""
    import torch

    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(1, 3, 1, 1)
