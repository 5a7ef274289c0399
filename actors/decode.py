"""From the bytes of an image file to what every model of a run takes, each image decoded once.

An image that cannot be used is never dropped in silence: it comes back with a reason, short and
always in the same words, so that reasons can be counted.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Shaped
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from actors.undecoded import Undecoded, undecoded
from actors.views import MAX_RATIO, View, lacks_memory
from core.errors import UnreadableImage

MAX_PIXELS = 178_956_970
"""Pixels beyond which an image is taken for a decompression bomb: 512 MiB in RGB."""

Views = dict[str, Shaped[np.ndarray, "a b c"]]
"""One image as each view lays it out, by `View.key`."""

_Made = TypeVar("_Made")

_DIRECT = frozenset({"1", "L", "RGB", "CMYK", "YCbCr", "HSV", "RGBX", "P"})
"""Modes that Pillow converts to RGB without losing their range."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientations other than upright."""


def decode(data: bytes) -> Image.Image:
    """Decode an image file to 8-bit RGB as a person would see it.

    The orientation in the EXIF data is applied. Transparent images are laid on white, the ground
    that they are usually shown on. 16-bit images keep the high byte. Of an animation or a
    multi-page file the first frame counts. Colour profiles are not applied, as in the loaders that
    vision models are trained with.

    Args:
        data: The whole file, in any format that Pillow reads.

    Returns:
        An image in mode RGB.

    Raises:
        UnreadableImage: "empty file", "not an image", "truncated", "damaged", "too many pixels", "too
            elongated" or "unsupported pixel format MODE".
    """
    if not data:
        raise UnreadableImage("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage("too many pixels")
            if max(image.size) > MAX_RATIO * min(image.size):
                raise UnreadableImage("too elongated")
            _load(image)
            turn = _turn(image)
            upright = _to_rgb(image)
            return upright if turn is None else upright.transpose(turn)
        except UnreadableImage:
            raise
        except Image.DecompressionBombError:
            raise UnreadableImage("too many pixels") from None
        except UnidentifiedImageError:
            raise UnreadableImage("not an image") from None
        except MemoryError:
            raise
        except Exception as error:  # what decoders raise on damaged data is not documented
            cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
            raise UnreadableImage("truncated" if cut else "damaged") from None


class Decoder:
    """Fetches and decodes images, and lays each out once for every view."""

    def __init__(
        self,
        views: Mapping[str, View],
        fetch: Callable[[dict[str, Any]], bytes],
        deciding: Mapping[str, View] | None = None,
    ) -> None:
        """Prepare.

        Args:
            views: What models see of an image, by `View.key`.
            fetch: Gives the bytes of the image that a row stands for; an OSError means that they
                cannot be had.
            deciding: Views that nobody asks for now and that may refuse an image as well, by key.
        """
        self.views = dict(views)
        self.fetch = fetch
        self.deciding = [v for key, v in (deciding or {}).items() if key not in self.views]
        self._plain = [v for v in (*self.views.values(), *self.deciding) if v.plain]
        #: What is made of an image by Pillow even where a device decodes it too.
        self._others = {key: view for key, view in self.views.items() if not view.plain}
        self._decides = [view for view in self.deciding if not view.plain]

    def __call__(self, rows: Sequence[dict[str, Any]]) -> list[tuple[str | None, Views]]:
        """Decode the images of some rows.

        Returns:
            For each row, in order, a reason and no arrays, or None and an array for every view.
        """
        return [self._one(row, self._decoded, {}) for row in rows]

    def or_left(
        self, rows: Sequence[dict[str, Any]]
    ) -> list[tuple[str | None, tuple[Undecoded | None, Views]]]:
        """The same, but files that a device decodes as Pillow would are left as they are.

        Which views a device makes depends on each view alone: those that are plain. What is made of an
        image for one model is therefore the same whatever others look at it.

        Returns:
            For each row, in order, a reason, no file and no arrays; or None, the file if it is left, and
            an array for every view that is not plain, where the file is not left for all views.
        """
        return [self._one(row, self._left_or_decoded, (None, {})) for row in rows]

    def _decoded(self, data: bytes) -> Views:
        return self._laid_out(data, self.views, self.deciding)

    def _left_or_decoded(self, data: bytes) -> tuple[Undecoded | None, Views]:
        left = undecoded(data, self._plain, MAX_PIXELS)
        if left is None:
            return None, self._decoded(data)
        if not self._others and not self._decides:
            return left, {}
        return left, self._laid_out(data, self._others, self._decides)

    @staticmethod
    def _laid_out(data: bytes, views: Mapping[str, View], deciding: Sequence[View]) -> Views:
        image = decode(data)
        for view in deciding:
            view.check(image)
        return {key: view.apply(image) for key, view in views.items()}

    def _one(
        self, row: dict[str, Any], make: Callable[[bytes], _Made], nothing: _Made
    ) -> tuple[str | None, _Made]:
        try:
            data = self.fetch(row)
        except OSError as error:
            if lacks_memory(error):
                raise MemoryError(str(error)) from error
            return f"cannot be read: {_why(error)}", nothing
        try:
            return None, make(data)
        except UnreadableImage as error:
            return error.reason, nothing


def _why(error: OSError) -> str:
    """The kind of a fault in reading; what the system calls it where its class does not say."""
    if type(error) is OSError and error.errno:
        return os.strerror(error.errno).lower()
    return type(error).__name__


def _load(image: Image.Image) -> None:
    """Decode the pixels, whole or not at all, whatever other packages have set."""
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        image.load()
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to turn the image upright, from its EXIF data."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF data says nothing about the pixels
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        high_byte = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return Image.fromarray(high_byte).convert("RGB")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        ground = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, layered).convert("RGB")
    if image.mode not in _DIRECT:
        raise UnreadableImage(f"unsupported pixel format {image.mode}")
    return image if image.mode == "RGB" else image.convert("RGB")
