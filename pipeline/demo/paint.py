"""From a scene to a picture.

Objects are painted from the farthest to the nearest onto the background; then come contrast,
exposure, blur and noise, in this order. The same scene gives the same pixels.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageFilter

from pipeline.demo.patterns import second_share
from pipeline.demo.shapes import signed_distance
from pipeline.demo.world import SIZE, Colour, Fill, Item, Scene

_LINE = 0.09
"""Width of the line of a hollow object, in radii."""
_OUTLINE = 2.2
"""Width of an outline, pixels."""
_SHADOW = (5.0, 7.0, 5.0, 0.5)
"""Of a soft shadow: shift to the right and downwards, reach beyond the edge (pixels), depth."""

Patch = tuple[slice, slice]


def paint(scene: Scene) -> Image.Image:
    """Draw a scene.

    Returns:
        An RGB picture of `world.SIZE` pixels square.
    """
    rng = np.random.default_rng((scene.seed, 1))
    whole = (slice(0, SIZE), slice(0, SIZE))
    picture = _filled(scene.background, whole, SIZE / 2, SIZE / 2, rng)
    for item in scene.items:
        _paint_item(picture, item, scene.shadow, rng)
    if scene.contrast != 1:
        picture = 0.5 + (picture - 0.5) * np.float32(scene.contrast)
    if scene.exposure != 1:
        picture = picture * np.float32(scene.exposure)
    if scene.blur:
        image = _quantised(picture).filter(ImageFilter.GaussianBlur(scene.blur))
        if not scene.noise:
            return image
        picture = np.asarray(image, np.float32) / 255
    if scene.noise:
        grey = rng.standard_normal((SIZE, SIZE, 1), dtype=np.float32)
        picture = picture + np.float32(scene.noise) * grey
    return _quantised(picture)


def coverage(item: Item, margin: float = 2.0) -> tuple[Patch, Float[np.ndarray, "height width"]]:
    """Which pixels an object covers.

    Args:
        item: The object.
        margin: Width of the rim around it that is returned too, pixels.

    Returns:
        The part of the picture that the object touches, and how much of each pixel there it covers,
        in [0, 1]. Empty where the object lies outside the picture.
    """
    patch, distance = _distance(item, margin)
    return patch, _share(item, distance)


def area(item: Item) -> float:
    """Area of an object in pixels, whether or not it fits into the picture."""
    if not item.hollow:
        return _unit_area(item.shape) * item.radius**2
    x, y = _unit_grid(math.ceil(item.radius * 1.25) + 2, item.radius)
    return float(_share(item, signed_distance(item.shape, x, y, 0.0) * item.radius).sum())


@functools.cache
def _unit_area(shape: str) -> float:
    """Area of a filled shape of radius 1."""
    radius = 200.0
    x, y = _unit_grid(250, radius)
    distance = signed_distance(shape, x, y, 0.0) * radius
    return float(np.clip(0.5 - distance, 0, 1).sum(dtype=np.float64)) / radius**2


def _unit_grid(
    half: int, radius: float
) -> tuple[Float[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
    steps = np.arange(-half, half + 1, dtype=np.float32) / np.float32(radius)
    grid = np.meshgrid(steps, steps)
    return grid[0], grid[1]


def covered(item: Item) -> Bool[np.ndarray, "height width"]:
    """The pixels of the picture that are more than half covered by an object."""
    mask = np.zeros((SIZE, SIZE), bool)
    patch, share = coverage(item)
    mask[patch] = share > 0.5
    return mask


def _distance(item: Item, margin: float) -> tuple[Patch, Float[np.ndarray, "height width"]]:
    reach = item.radius * 1.25 + margin
    top, bottom = max(0, int(item.y - reach)), min(SIZE, math.ceil(item.y + reach) + 1)
    left, right = max(0, int(item.x - reach)), min(SIZE, math.ceil(item.x + reach) + 1)
    patch = (slice(top, max(top, bottom)), slice(left, max(left, right)))
    x, y = _positions(patch, item.x, item.y)
    scale = np.float32(1 / item.radius)
    return patch, signed_distance(item.shape, x * scale, y * scale, item.angle) * item.radius


def _share(
    item: Item, distance: Float[np.ndarray, "height width"]
) -> Float[np.ndarray, "height width"]:
    if item.hollow:
        half_line = max(1.2, _LINE * item.radius / 2 + 0.6)
        distance = np.abs(distance + half_line) - half_line
    return np.clip(0.5 - distance, 0, 1)


def _positions(
    patch: Patch, x: float, y: float
) -> tuple[Float[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
    """Pixel centres of a patch, relative to a point."""
    rows, columns = patch
    across = np.arange(columns.start, columns.stop, dtype=np.float32) + np.float32(0.5 - x)
    down = np.arange(rows.start, rows.stop, dtype=np.float32) + np.float32(0.5 - y)
    grid = np.meshgrid(across, down)
    return grid[0], grid[1]


def _filled(
    fill: Fill, patch: Patch, x: float, y: float, rng: np.random.Generator
) -> Float[np.ndarray, "height width 3"]:
    """A patch painted with a fill whose pattern starts from a point."""
    across, down = _positions(patch, x, y)
    main = np.asarray(fill.main.rgb, np.float32)
    if fill.pattern == "plain":
        return np.broadcast_to(main, (*across.shape, 3)).copy()
    share = second_share(fill.pattern, across, down, fill.period, fill.phase, rng)
    second = np.asarray(fill.second.rgb, np.float32)
    return main + share.astype(np.float32)[..., None] * (second - main)


def _paint_item(
    picture: Float[np.ndarray, "height width 3"],
    item: Item,
    shadow: bool,
    rng: np.random.Generator,
) -> None:
    if shadow:
        _paint_shadow(picture, item)
    patch, distance = _distance(item, margin=3.0)
    if not distance.size:
        return
    share = _share(item, distance).astype(np.float32)[..., None]
    painted = _filled(item.fill, patch, item.x, item.y, rng)
    picture[patch] += share * (painted - picture[patch])
    if item.outline is not None:
        _paint_line(picture, patch, distance, item.outline)


def _paint_line(
    picture: Float[np.ndarray, "height width 3"],
    patch: Patch,
    distance: Float[np.ndarray, "height width"],
    colour: Colour,
) -> None:
    half = _OUTLINE / 2
    share = np.clip(0.5 - (np.abs(distance + half) - half), 0, 1).astype(np.float32)[..., None]
    picture[patch] += share * (np.asarray(colour.rgb, np.float32) - picture[patch])


def _paint_shadow(picture: Float[np.ndarray, "height width 3"], item: Item) -> None:
    right, down, reach, depth = _SHADOW
    away = min(1.0, item.radius / 20)
    thrown = Item(
        item.shape, item.x + right * away, item.y + down * away, item.radius, item.angle, item.fill
    )
    patch, distance = _distance(thrown, margin=reach)
    if item.hollow:
        distance = np.abs(distance)
    dark = depth * np.clip(0.5 - distance / (2 * reach), 0, 1)
    picture[patch] *= 1 - dark.astype(np.float32)[..., None]


def _quantised(picture: Float[np.ndarray, "height width 3"]) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8))
