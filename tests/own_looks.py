"""The planted network with a preprocessing of the user's own: one fails on some images, one is mended."""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import nn

from pipeline import planted

#: Grey level of the first cell beyond which the one fails.
BRIGHT = 150


def picky_look(image: Image.Image) -> Any:
    """Fails on images of the planted data whose first cell is bright."""
    level: Any = image.getpixel((0, 0))
    if image.size == (64, 48) and level[0] > BRIGHT:
        raise ValueError("too bright")
    return planted.network()[1](image)


def mended_look(image: Image.Image) -> Any:
    """Fails on none."""
    return planted.network()[1](image)


def picky() -> tuple[nn.Module, Any]:
    """Factory for ``python:own_looks:picky``."""
    return planted.network()[0], picky_look


def mended() -> tuple[nn.Module, Any]:
    """Factory for ``python:own_looks:mended``."""
    return planted.network()[0], mended_look
