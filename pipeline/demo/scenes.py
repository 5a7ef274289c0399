"""Pictures from seeds, and whole data sets of them.

A seed is a picture: `render(seed)` is the same on every call. A data set has a seed of its own, its
*stream*; different streams share no picture, so that what a model was trained on is never what it
is tested on.
"""

from __future__ import annotations

from PIL import Image

from pipeline.demo.attributes import CONCEPTS, attributes
from pipeline.demo.compose import compose
from pipeline.demo.paint import paint
from pipeline.demo.world import Scene

__all__ = ["CONCEPTS", "attributes", "render", "scene_seed"]


def render(seed: int) -> tuple[Image.Image, Scene]:
    """The picture that belongs to a seed, and everything about it.

    Args:
        seed: Any non-negative integer.

    Returns:
        An RGB picture of `world.SIZE` pixels square, and the scene that it shows.

    Raises:
        ValueError: The seed is negative.
    """
    scene = compose(seed)
    return paint(scene), scene


def scene_seed(stream: int, index: int) -> int:
    """The seed of one picture of a data set; no two pairs have the same.

    Args:
        stream: Seed of the data set, not negative.
        index: Number of the picture in it, from 0 to 2³² − 1.
    """
    return (stream << 32) + index
