"""Decoding JPEG files on a device, and laying them out there as views.

On a GPU that is nvJPEG, on a CPU libjpeg: the same code but for the decoder, so that all else can be
tested without a GPU. Pixels differ from Pillow's by what decoders differ by, and by rounding where images
are resized.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from actors.decode import decode
from actors.undecoded import Undecoded
from actors.views import PLAIN_FILTERS, CenterCrop, Resize, View
from core.errors import ConfigError, UnreadableImage

BATCH = 128
"""Files that are decoded at once, at most."""

BATCH_PIXELS = 1 << 26
"""Pixels that are decoded at once, at most, where it is more than one file: 192 MiB."""

DeviceViews = dict[str, UInt8[Tensor, "height width 3"]]
"""One image as each view lays it out, by `View.key`, on the device."""


class DeviceDecoder:
    """Decodes files that came undecoded, and lays each out for every view."""

    def __init__(self, views: Mapping[str, View], device: str | torch.device) -> None:
        """Prepare.

        Args:
            views: What the models see of an image, by `View.key`; all of them plain.
            device: Where to decode: ``cpu``, ``cuda`` or ``cuda:N``.
        """
        self.views = dict(views)
        self.device = torch.device(device)
        self.decoded = 0
        """Files that the device's decoder has decoded so far, and not Pillow."""

    def __call__(self, files: Sequence[Undecoded]) -> list[tuple[str | None, DeviceViews]]:
        """Decode some files; one that the device's decoder refuses is decoded by Pillow, as is what a
        device cannot lay out.

        Returns:
            For each file, in order, a reason and no views, or None and a tensor on the device for
            every view.
        """
        answers = []
        with torch.inference_mode():
            for batch in _batches(files):
                images = decode_jpegs([file.data for file in batch], self.device)
                answers += [self._one(*pair) for pair in zip(batch, images, strict=True)]
        return answers

    def _one(
        self, file: Undecoded, image: UInt8[Tensor, "3 height width"] | None
    ) -> tuple[str | None, DeviceViews]:
        made: DeviceViews = {}
        if image is not None and image.shape == (3, file.height, file.width):
            self.decoded += 1
            for key, view in self.views.items():
                try:
                    made[key] = lay_out(image, view)
                except torch.cuda.OutOfMemoryError:
                    raise
                except RuntimeError:  # a GPU cannot shrink a side to less than about a hundredth
                    continue
            if len(made) == len(self.views):
                return None, made
        # Each view by itself: what one model sees must not depend on what others look at.
        try:
            pixels = decode(file.data)
            for key in self.views.keys() - made.keys():
                made[key] = torch.tensor(self.views[key].apply(pixels), device=self.device)
        except UnreadableImage as error:
            return error.reason, {}
        return None, made


def decode_jpegs(
    files: Sequence[bytes], device: str | torch.device
) -> list[UInt8[Tensor, "3 height width"] | None]:
    """Decode JPEG files to RGB on a device.

    Args:
        files: Whole files, grey or in colour.
        device: Where to decode them, and where the pixels are.

    Returns:
        An image for each file, in order; None where the decoder fails on it, whatever the others are.
    """
    try:
        return list(_decode_all(files, torch.device(device)))
    except RuntimeError:  # of one file at least; the decoder gives all of them or none
        pass
    if len(files) == 1:
        return [_again(files[0], torch.device(device))]
    half = len(files) // 2
    return decode_jpegs(files[:half], device) + decode_jpegs(files[half:], device)


def _again(file: bytes, device: torch.device) -> UInt8[Tensor, "3 height width"] | None:
    """A file that was refused, once more with all the memory there is; None where it is refused again.

    A decoder that refuses a good file too lacks memory or is broken: then nothing says of this file that
    Pillow must decode it, and who falls back would make pixels depend on what else the device does.

    Raises:
        RuntimeError: The device does not decode a good file either.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    try:
        return _decode_all([file], device)[0]
    except RuntimeError as error:
        if "out of memory" in str(error).lower():
            raise
        _decode_all([_good_file((200, 90, 40))], device)
        return None


def lay_out(
    image: UInt8[Tensor, "3 height width"], view: View
) -> UInt8[Tensor, "view_height view_width 3"]:
    """Lay out one image as a plain view does, on the device where it is.

    Args:
        image: RGB.
        view: Of which `View.takes` the image's size.
    """
    for step in view.steps:
        height, width = image.shape[1:]
        if isinstance(step, Resize):
            image = _resized(image, step.output_size((width, height)), step.resample)
        else:
            assert isinstance(step, CenterCrop)
            left, top, right, bottom = step.box((width, height))
            image = F.pad(image, (-left, right - width, -top, bottom - height))
    return image.permute(1, 2, 0).contiguous()


def _resized(
    image: UInt8[Tensor, "3 height width"], size: tuple[int, int], resample: Image.Resampling
) -> UInt8[Tensor, "3 new_height new_width"]:
    """Resized to a width and height as Pillow does it: across, then down, each rounded to 8 bits."""
    width, height = size
    for wanted in ((image.shape[1], width), (height, width)):
        if image.shape[1:] != wanted:
            finer = F.interpolate(
                image[None].to(torch.float32),
                size=wanted,
                mode=PLAIN_FILTERS[resample],
                antialias=True,
            )
            image = finer[0].add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)
    return image


def check_decoder(device: str | torch.device) -> None:
    """Decode a small file on a device, to know that it can.

    Raises:
        ConfigError: The library is missing, or cannot decode on this device.
    """
    colour = (200, 90, 40)
    why = "it gives other colours than were put in"
    try:
        (image,) = _decode_all([_good_file(colour)], torch.device(device))
        expected = torch.tensor(colour, device=image.device).view(3, 1, 1)
        if image.shape == (3, 32, 48) and int((image.int() - expected).abs().max()) <= 8:
            return
    except (ImportError, RuntimeError, AttributeError) as error:
        why = next(iter(str(error).splitlines()), "") or type(error).__name__
    raise ConfigError(
        f"recordings.decode is 'gpu', and JPEG files cannot be decoded on {str(device)!r} ({why}); install "
        "torchvision as it is built for your CUDA (or torchcodec 0.16 and later where torchvision has no "
        "decoder any more), or set recordings.decode to 'cpu'"
    )


def _good_file(colour: tuple[int, int, int]) -> bytes:
    """A small JPEG file of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), colour).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _decode_all(files: Sequence[bytes], device: torch.device) -> Sequence[Tensor]:
    """The library's own decoder: all files, or a RuntimeError."""
    tensors = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
    if device.type == "cuda":
        # The decoder writes in a stream of its own, and waits for nobody: what is queued may still read
        # memory that it is given.
        current: Any = torch.cuda.current_stream(device)
        current.synchronize()
    with warnings.catch_warnings():
        # torchvision has announced that its decoders will go.
        warnings.simplefilter("ignore", DeprecationWarning)
        return _library()(tensors, mode="RGB", device=device)


def _library() -> Callable[..., Sequence[Tensor]]:
    """torchvision's decoder of lists of files, or torchcodec's where torchvision has none."""
    try:
        found = import_module("torchvision.io").decode_jpeg
    except (ImportError, AttributeError):
        found = import_module("torchcodec.decoders").decode_jpeg
    decoder: Callable[..., Sequence[Tensor]] = found
    return decoder


def _batches(files: Sequence[Undecoded]) -> Iterator[Sequence[Undecoded]]:
    """Files in batches that are neither too many nor too large."""
    batch: list[Undecoded] = []
    pixels = 0
    for file in files:
        size = file.width * file.height
        if batch and (len(batch) == BATCH or pixels + size > BATCH_PIXELS):
            yield batch
            batch, pixels = [], 0
        batch.append(file)
        pixels += size
    if batch:
        yield batch
