"""Named colours: what may be called red, and which colours can be told apart."""

from __future__ import annotations

import colorsys
import math

import numpy as np

from pipeline.demo.world import Colour

# Ranges of hue (degrees), saturation and value, with gaps, so that no name is a matter of taste.
_RANGES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-6, 6), (0.85, 1.0), (0.75, 0.95)),
    "orange": ((24, 34), (0.85, 1.0), (0.92, 1.0)),
    "yellow": ((50, 58), (0.80, 1.0), (0.92, 1.0)),
    "green": ((105, 140), (0.65, 0.95), (0.45, 0.75)),
    "turquoise": ((172, 184), (0.60, 0.90), (0.70, 0.90)),
    "blue": ((216, 236), (0.75, 1.0), (0.65, 0.95)),
    "purple": ((268, 284), (0.60, 0.90), (0.50, 0.75)),
    "pink": ((325, 342), (0.35, 0.55), (0.94, 1.0)),
    "brown": ((20, 28), (0.60, 0.80), (0.36, 0.50)),
    "black": ((0, 360), (0.0, 0.0), (0.02, 0.10)),
    "grey": ((0, 360), (0.0, 0.0), (0.42, 0.60)),
    "white": ((0, 360), (0.0, 0.0), (0.94, 1.0)),
}

NAMES = tuple(_RANGES)
"""Every colour name, in a fixed order."""

ACHROMATIC = ("black", "grey", "white")
WARM = ("red", "orange", "yellow", "pink", "brown")
COOL = ("green", "turquoise", "blue", "purple")


def pick(name: str, rng: np.random.Generator) -> Colour:
    """One of the colours that go by a name.

    Raises:
        KeyError: The name is not one of `NAMES`.
    """
    hue, saturation, value = (float(rng.uniform(*bounds)) for bounds in _RANGES[name])
    return Colour(name, colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value))


def shade(colour: Colour, rng: np.random.Generator) -> Colour:
    """The same colour, clearly lighter or darker, under the same name.

    Black and grey only get lighter and white only darker, so that the three never meet. Orange and
    pink only get lighter: dark orange is brown to most people.
    """
    red, green, blue = colour.rgb
    if colour.name == "white":
        return Colour(colour.name, (red * 0.80, green * 0.80, blue * 0.80))
    if colour.name == "black":
        return Colour(colour.name, (red + 0.16, green + 0.16, blue + 0.16))
    if colour.name == "grey":
        return Colour(colour.name, (red + 0.11, green + 0.11, blue + 0.11))
    lighter = colour.name in ("orange", "pink")
    if lighter or (lightness(colour) < 0.5 and rng.random() < 0.6):
        mixed = (red + (1 - red) * 0.42, green + (1 - green) * 0.42, blue + (1 - blue) * 0.42)
        return Colour(colour.name, mixed)
    return Colour(colour.name, (red * 0.62, green * 0.62, blue * 0.62))


def lightness(colour: Colour) -> float:
    """How light a colour looks, 0 for black and 1 for white (luma with Rec. 601 weights)."""
    red, green, blue = colour.rgb
    return 0.299 * red + 0.587 * green + 0.114 * blue


def distance(one: Colour, other: Colour) -> float:
    """Euclidean distance in RGB, 0 to √3."""
    return math.dist(one.rgb, other.rgb)
