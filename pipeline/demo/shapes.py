"""The outlines of objects as signed distances: negative inside, positive outside, smooth edges.

A signed distance gives coverage with clean edges at any size and rotation, and lines and shadows
for nothing. The farthest point of a shape is about one unit from its centre; the top of a shape is
at negative y.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Grid = Float[np.ndarray, "height width"]


def _length(x: Grid, y: Grid) -> Grid:
    lengths: Grid = np.hypot(x, y)
    return lengths


def _union(*distances: Grid) -> Grid:
    least: Grid = np.minimum.reduce(distances)
    return least


def _overlap(*distances: Grid) -> Grid:
    greatest: Grid = np.maximum.reduce(distances)
    return greatest


def _circle(x: Grid, y: Grid) -> Grid:
    return _length(x, y) - 1


def _oval(x: Grid, y: Grid) -> Grid:
    # Dividing by the gradient's length turns the implicit equation into a distance near the edge.
    flat = 0.52
    scaled = _length(x, y / flat)
    gradient = _length(x, y / flat**2) / np.maximum(scaled, 1e-6)
    distance: Grid = (scaled - 1) / np.maximum(gradient, 1e-6)
    return distance


def _box(x: Grid, y: Grid, half_width: float, half_height: float) -> Grid:
    return _overlap(np.abs(x) - half_width, np.abs(y) - half_height)


def _square(x: Grid, y: Grid) -> Grid:
    return _box(x, y, 0.78, 0.78)


def _bar(x: Grid, y: Grid) -> Grid:
    return _box(x, y, 1.0, 0.24)


def _polygon(x: Grid, y: Grid, sides: int, apothem: float) -> Grid:
    turns = [math.pi + 2 * math.pi * k / sides for k in range(sides)]
    return _overlap(*(x * math.sin(turn) - y * math.cos(turn) for turn in turns)) - apothem


def _triangle(x: Grid, y: Grid) -> Grid:
    return _polygon(x, y, 3, 0.5)


def _hexagon(x: Grid, y: Grid) -> Grid:
    return _polygon(x, y, 6, 0.87)


def _star(x: Grid, y: Grid) -> Grid:
    # One tenth of the plane is folded onto the others; its edge is the line from a tip to a notch.
    sector = math.pi / 5
    turn = np.abs((np.arctan2(x, -y) + sector) % (2 * sector) - sector)
    r = _length(x, y)
    across, along = r * np.sin(turn), r * np.cos(turn)
    notch = 0.42
    edge_x, edge_y = notch * math.sin(sector), notch * math.cos(sector) - 1
    distance: Grid = (across * -edge_y + (along - 1) * edge_x) / math.hypot(edge_x, edge_y)
    return distance


def _ring(x: Grid, y: Grid) -> Grid:
    return np.abs(_length(x, y) - 0.78) - 0.22


def _cross(x: Grid, y: Grid) -> Grid:
    return _union(_box(x, y, 0.98, 0.29), _box(x, y, 0.29, 0.98))


def _crescent(x: Grid, y: Grid) -> Grid:
    return _overlap(_length(x, y) - 1, 0.80 - _length(x - 0.46, y))


def _heart(x: Grid, y: Grid) -> Grid:
    # A square that stands on its corner, with a half circle on each of its upper sides.
    half = 0.56
    lower = y - 0.08
    diagonal = math.sqrt(0.5)
    square = _overlap(np.abs(x + lower), np.abs(x - lower)) * diagonal - half
    lobes = _length(np.abs(x) - half * diagonal, lower + half * diagonal) - half
    return _union(square, lobes)


def _flower(x: Grid, y: Grid) -> Grid:
    turn = 2 * math.pi / 6
    petals = (
        _length(x - 0.6 * math.sin(turn * k), y + 0.6 * math.cos(turn * k)) - 0.38 for k in range(6)
    )
    return _union(_length(x, y) - 0.45, *petals)


_DISTANCES: dict[str, Callable[[Grid, Grid], Grid]] = {
    "circle": _circle,
    "oval": _oval,
    "square": _square,
    "bar": _bar,
    "triangle": _triangle,
    "hexagon": _hexagon,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "crescent": _crescent,
    "heart": _heart,
    "flower": _flower,
}


def signed_distance(shape: str, x: Grid, y: Grid, angle: float) -> Grid:
    """Distance to the edge of a shape of unit size about the origin.

    Args:
        shape: One of `world.SHAPES`.
        x: Horizontal positions in units of the radius, to the right.
        y: Vertical positions in units of the radius, downwards.
        angle: Rotation of the shape, radians, clockwise as seen.

    Returns:
        Distances in units of the radius: negative inside, exact near the edge.

    Raises:
        KeyError: The shape has no outline here.
    """
    if angle:
        cosine, sine = math.cos(angle), math.sin(angle)
        x, y = x * cosine + y * sine, y * cosine - x * sine
    return _DISTANCES[shape](x, y)
