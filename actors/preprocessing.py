"""Finding the two parts of a model's own preprocessing: see `actors.views`.

The split is tried on two images and kept only where it gives what the whole gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from actors.fingerprint import callable_fingerprint
from actors.views import CenterCrop, Preprocess, Resize, Step, View
from core.errors import ModelError, UnreadableImage

_TO_RGB = frozenset({"_convert_to_rgb", "MaybeConvertMode"})
"""Steps of open_clip that change nothing about an image in RGB."""

_GEOMETRIC = frozenset({"ResizeKeepRatio", "CenterCropOrPad", "TrimBorder"})
"""Steps of timm and open_clip that take a PIL image to a PIL image."""

_TO_TENSOR = frozenset({"ToTensor", "MaybeToTensor"})


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
    from torchvision.transforms.functional import InterpolationMode

    name = type(step).__name__
    if name == "Resize" and getattr(step, "max_size", None) is None:
        size, mode = _side(step.size), InterpolationMode(step.interpolation)
        wanted = size if isinstance(size, int) else f"{size[0]}x{size[1]}"
        return f"resize({wanted},{mode.value})", Resize(size, _resampling(mode))
    if name == "CenterCrop":
        size = _side(step.size)
        height, width = (size, size) if isinstance(size, int) else size
        return f"crop({height}x{width})", CenterCrop(height, width)
    if name in _GEOMETRIC:
        return f"{name}({callable_fingerprint(step)})", step
    return None


def _resampling(mode: Any) -> Image.Resampling:
    """Pillow's filter of torchvision's mode."""
    from torchvision.transforms.functional import pil_modes_mapping

    return Image.Resampling(pil_modes_mapping[mode])


def _side(size: int | Sequence[int]) -> int | tuple[int, int]:
    """A size as torchvision means it: one number is the shorter side, two are (height, width)."""
    if isinstance(size, int):
        return size
    return int(size[0]) if len(size) == 1 else (int(size[0]), int(size[1]))


def _channels(values: Any) -> tuple[float, ...]:
    """Three channel values, rounded to float32 as the libraries themselves use them."""
    numbers = np.asarray(values, dtype=np.float32).reshape(-1).tolist()
    return tuple(numbers * 3 if len(numbers) == 1 else numbers)


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
