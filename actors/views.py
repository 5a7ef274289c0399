"""What a model sees of an image: the geometric part of its own preprocessing.

Preprocessing as timm, open_clip and torchvision make it resizes and crops a PIL image, turns it
into numbers and normalises those. The first part is a *view*. Models whose views have equal keys
share one 8-bit array an image, decoded once and four times smaller than floats; the rest is done
on the model's device. Preprocessing of any other kind is kept whole. `actors.preprocessing` finds the two
parts; what is here does without PyTorch, so that the processes that decode start quickly and stay small.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
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

MAX_RATIO = 256
"""Longer over shorter side beyond which an image is refused, whatever the models: resizing so long a strip
would fill the memory."""

_MAX_RESIZED = 1 << 27
"""Pixels that an intermediate image may have: more than any image that is not refused gives where its shorter
side becomes 724 or less."""


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
    def sized(self) -> bool:
        """Whether it only resizes and crops, so that an image's size alone says whether it is refused."""
        return not self.whole and all(isinstance(step, Resize | CenterCrop) for step in self.steps)

    @property
    def plain(self) -> bool:
        """Whether it only resizes, bilinearly or bicubically, and crops: what a device does too."""
        return self.sized and all(
            step.resample in PLAIN_FILTERS for step in self.steps if isinstance(step, Resize)
        )

    def takes(self, size: tuple[int, int]) -> bool:
        """Whether a plain view takes images of this width and height; others are refused by `apply`."""
        try:
            return self._laid_out(size) == self.shape
        except UnreadableImage:
            return False

    def _laid_out(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Shape that a sized view gives images of some width and height."""
        for step in self.steps:
            assert isinstance(step, Resize | CenterCrop)
            size = step.output_size(size)
        return size[1], size[0], 3

    def check(self, image: Image.Image) -> None:
        """Refuse an image that `apply` refuses, without pixels where its size says so.

        Raises:
            UnreadableImage: As `apply` does.
        """
        if not self.sized:
            self.apply(image)
        elif (shape := self._laid_out(image.size)) != self.shape:
            raise UnreadableImage(f"preprocessing gave {shape}, expected {self.shape}")

    def apply(self, image: Image.Image) -> Shaped[np.ndarray, "a b c"]:
        """Lay out one image.

        Args:
            image: In mode RGB.

        Returns:
            uint8 (height, width, 3), or float32 (3, height, width) where preprocessing is whole.

        Raises:
            UnreadableImage: The image is so elongated that resizing it would fill the memory, or
                the model's own preprocessing fails on it.
            MemoryError: There was too little memory, which says nothing of the image.
        """
        result: Any = image
        step: Any
        for step in self.steps:
            try:
                result = step(result)
            except UnreadableImage:
                raise
            except Exception as error:
                if lacks_memory(error):
                    raise MemoryError(str(error)) from error
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


def refusals(views: Iterable[View]) -> list[str]:
    """What of some views can refuse an image that others would take, in words, sorted.

    Where these words are equal, the same images can be used. Of models as libraries describe them there
    are usually none: all take every image that is no more elongated than `MAX_RATIO`.
    """
    views = list(views)
    found = {view.key for view in views if not view.sized}
    sides = [
        step.size
        for view in views
        for step in view.steps
        if view.sized and isinstance(step, Resize) and isinstance(step.size, int)
    ]
    largest = max(sides, default=0)
    if largest * largest * MAX_RATIO > _MAX_RESIZED:
        found.add(f"resize({largest})")
    return sorted(found)


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that there was too little memory, in any library's words."""
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    )


def _before(there: int, wanted: int) -> int:
    """Where a crop begins: negative where the image is smaller than the crop."""
    return -((wanted - there) // 2) if wanted > there else round((there - wanted) / 2)


@lru_cache(maxsize=64)
def _channels(values: tuple[float, ...], device: torch.device) -> Float[Tensor, "1 3 1 1"]:
    """A number a channel on a device, sent there once: sending makes the program wait for a GPU."""
    import torch

    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(1, 3, 1, 1)
