"""What a model sees of an image: the geometric part of its own preprocessing.

Preprocessing as timm, open_clip and torchvision make it resizes and crops a PIL image, turns it
into numbers and normalises those. The first part is a *view*. Models whose views have equal keys
share one 8-bit array an image, decoded once and four times smaller than floats; the rest is done
on the model's device. Preprocessing of any other kind is kept whole. torchvision, which takes seconds to
import, is imported where a model is loaded: tasks that only read tables do without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from actors.fingerprint import callable_fingerprint
from core.errors import ModelError, UnreadableImage

Step = Callable[[Any], Any]

_MAX_RESIZED = 1 << 26
"""Pixels that an intermediate image may have: keeps a very long strip from filling the memory."""

_TO_RGB = frozenset({"_convert_to_rgb", "MaybeConvertMode"})
"""Steps of open_clip that change nothing about an image in RGB."""

_GEOMETRIC = frozenset({"ResizeKeepRatio", "CenterCropOrPad", "TrimBorder"})
"""Steps of timm and open_clip that take a PIL image to a PIL image."""

_TO_TENSOR = frozenset({"ToTensor", "MaybeToTensor"})


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
            if type(step).__name__ == "Resize" and isinstance(step.size, int):
                _refuse_strips(result, step.size)
            try:
                result = step(result)
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
        if batch.dtype != torch.uint8:
            return batch
        images = batch.permute(0, 3, 1, 2).to(torch.float32).div_(255)
        if self.mean is None or self.std is None:
            return images
        column = [1, 3, 1, 1]
        images.sub_(torch.tensor(self.mean, device=batch.device).view(column))
        return images.div_(torch.tensor(self.std, device=batch.device).view(column))


def split_transform(transform: Step) -> Preprocess:
    """Split a model's own preprocessing into a view and what can be done on the device.

    The split is tried on two images and kept only where it gives what the whole gives.

    Args:
        transform: Takes a PIL image to a float tensor (3, height, width).

    Returns:
        The two parts; where the preprocessing cannot be split, all of it is in the view.

    Raises:
        ModelError: It fails, is random, or gives no float tensor (3, height, width) of one size.
    """
    probes = [_probe(320, 200), _probe(190, 333)]
    expected = [_run(transform, probe) for probe in probes]
    again = _run(transform, probes[0])
    if {tuple(result.shape) for result in expected} != {tuple(expected[0].shape)}:
        raise ModelError(
            f"the preprocessing gives images of different sizes, {tuple(expected[0].shape)} and "
            f"{tuple(expected[1].shape)}; add a centre crop"
        )
    if not torch.equal(expected[0], again):
        raise ModelError(
            "the preprocessing is random: one image gave two results; use the one for evaluation"
        )
    _, height, width = expected[0].shape
    split = _split(transform, (height, width, 3))
    if split is not None and all(
        _agree(split, probe, whole) for probe, whole in zip(probes, expected, strict=True)
    ):
        return split
    key = "whole:" + callable_fingerprint(transform)
    return Preprocess(View(key, (3, height, width), (transform,)), None, None)


def _split(transform: Any, shape: tuple[int, int, int]) -> Preprocess | None:
    from torchvision import transforms as tv

    if type(transform).__name__ == "ImageClassification":  # torchvision's preset for its weights
        steps = [
            tv.Resize(_side(transform.resize_size), transform.interpolation),
            tv.CenterCrop(_side(transform.crop_size)),
            tv.ToTensor(),
            tv.Normalize(transform.mean, transform.std),
        ]
    elif isinstance(transform, tv.Compose):
        steps = list(transform.transforms)
    else:
        return None
    geometry: list[Step] = []
    words: list[str] = []
    while steps and type(steps[0]).__name__ not in _TO_TENSOR:
        step = steps.pop(0)
        if getattr(step, "__name__", type(step).__name__) in _TO_RGB:
            continue
        canonical = _canonical(step)
        if canonical is None:
            return None
        words.append(canonical[0])
        geometry.append(canonical[1])
    rest = [type(step).__name__ for step in steps[1:]]
    if not steps or rest not in ([], ["Normalize"]):
        return None
    view = View("+".join(words) or "as-it-is", shape, tuple(geometry))
    if not rest:
        return Preprocess(view, None, None)
    return Preprocess(view, _channels(steps[1].mean), _channels(steps[1].std))


def _canonical(step: Any) -> tuple[str, Step] | None:
    """A geometric step in words, and rebuilt from just those words; None for other steps."""
    from torchvision import transforms as tv
    from torchvision.transforms.functional import InterpolationMode

    name = type(step).__name__
    if name == "Resize" and getattr(step, "max_size", None) is None:
        size, mode = _side(step.size), InterpolationMode(step.interpolation)
        wanted = size if isinstance(size, int) else f"{size[0]}x{size[1]}"
        return f"resize({wanted},{mode.value})", tv.Resize(size, mode)
    if name == "CenterCrop":
        size = _side(step.size)
        height, width = (size, size) if isinstance(size, int) else size
        return f"crop({height}x{width})", tv.CenterCrop((height, width))
    if name in _GEOMETRIC:
        return f"{name}({callable_fingerprint(step)})", step
    return None


def _side(size: int | Sequence[int]) -> int | tuple[int, int]:
    """A size as torchvision means it: one number is the shorter side, two are (height, width)."""
    if isinstance(size, int):
        return size
    return int(size[0]) if len(size) == 1 else (int(size[0]), int(size[1]))


def _channels(values: Any) -> tuple[float, ...]:
    """Three channel values, rounded to float32 as the libraries themselves use them."""
    numbers = np.asarray(values, dtype=np.float32).reshape(-1).tolist()
    return tuple(numbers * 3 if len(numbers) == 1 else numbers)


def _refuse_strips(image: Image.Image, shorter: int) -> None:
    long, short = max(image.size), min(image.size)
    if shorter * shorter * long / short > _MAX_RESIZED:
        raise UnreadableImage("too elongated")


def _probe(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def _run(transform: Step, image: Image.Image) -> Tensor:
    try:
        result = transform(image)
    except Exception as error:
        raise ModelError(
            f"the preprocessing fails on an RGB image: {type(error).__name__}: {error}; expected a "
            "function from a PIL image to a float tensor (3, height, width)"
        ) from error
    is_image = isinstance(result, Tensor) and result.ndim == 3 and result.shape[0] == 3
    if not is_image or result.dtype != torch.float32:
        found = type(result).__name__
        if isinstance(result, Tensor):
            found = f"{result.dtype} {tuple(result.shape)}"
        raise ModelError(
            f"the preprocessing gives {found}, expected a float32 tensor (3, height, width)"
        )
    return cast(Tensor, result)


def _agree(split: Preprocess, image: Image.Image, whole: Tensor) -> bool:
    try:
        parts = split.normalise(torch.from_numpy(split.view.apply(image).copy())[None])[0]
    except UnreadableImage:
        return False
    return parts.shape == whole.shape and torch.allclose(parts, whole, rtol=0, atol=1e-6)
