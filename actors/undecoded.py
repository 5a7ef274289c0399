"""Image files that go to a device undecoded: those that its decoder surely reads as Pillow does.

Whether a file is one of them is read off its header, so that it depends on the file and on the views
alone, never on the machine or on other files. What is here does without PyTorch.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image

from actors.views import MAX_RATIO, View

MAX_BYTES = 1 << 20
"""Size of a file beyond which it is decoded before it is sent: the pixels are fewer bytes then."""

_SAMPLINGS = frozenset({(1, 1), (2, 1), (2, 2)})
"""How often colour may be thinned out, across and down: 4:4:4, 4:2:2 and 4:2:0."""


@dataclass(frozen=True, slots=True)
class Undecoded:
    """A JPEG file, and the size that its header gives."""

    data: bytes
    width: int
    height: int


def undecoded(data: bytes, views: Collection[View], max_pixels: int) -> Undecoded | None:
    """A file as a device may decode it; None for one that must be left to Pillow.

    It may be decoded there where it is a JPEG that ends with its last marker (zeros after it are taken
    off), is grey or in the usual colours, is upright, is neither larger nor more elongated than allowed, and
    has a size that every view takes; and where every view only resizes and crops (`View.plain`).

    Args:
        data: The whole file.
        views: What will be made of the image.
        max_pixels: Pixels beyond which an image is refused.
    """
    data = data.rstrip(b"\0")
    if len(data) > MAX_BYTES or not data.endswith(b"\xff\xd9"):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image: Any = Image.open(io.BytesIO(data), formats=["JPEG"])
            upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        except MemoryError:
            raise
        except Exception:  # what Pillow says of it is said where it is decoded
            return None
    width, height = image.size
    if not upright or not _usual(image) or not 0 < width * height <= max_pixels:
        return None
    if max(image.size) > MAX_RATIO * min(image.size):
        return None
    if not all(view.plain and view.takes((width, height)) for view in views):
        return None
    return Undecoded(data, width, height)


def _usual(image: Any) -> bool:
    """Whether it is one picture, grey or with colours in the usual way, so that all decoders agree on it."""
    if image.format != "JPEG":  # MPO: several pictures in a file
        return False
    parts = [(part[0], part[1:3]) for part in image.layer]
    if image.mode == "L":
        return len(parts) == 1 and parts[0][1] == (1, 1)
    # Red, green and blue kept as they are have other numbers, or Adobe's mark.
    return (
        image.mode == "RGB"
        and [number for number, _ in parts] == [1, 2, 3]
        and image.info.get("adobe_transform", 1) == 1
        and parts[0][1] in _SAMPLINGS
        and parts[1][1] == parts[2][1] == (1, 1)
    )
