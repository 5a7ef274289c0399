"""What a demo picture is made of: colours, fills, objects and the way it was taken.

A `Scene` is the whole truth about a picture. `compose` makes one from a seed, `paint` draws it and
`attributes` names what is true of it, so that the three can be checked against each other. Lengths
are pixels of the finished picture, x grows to the right and y downwards, angles are in radians.
"""

from __future__ import annotations

from dataclasses import dataclass

SIZE = 160
"""Width and height of a picture, pixels."""

PATTERNS = (
    "plain",
    "gradient",
    "horizontal stripes",
    "vertical stripes",
    "diagonal stripes",
    "dots",
    "checks",
    "rings",
    "waves",
    "grid",
    "bricks",
    "clouds",
    "grain",
)
"""Every pattern that a fill can have."""

SHAPES = (
    "circle",
    "oval",
    "square",
    "bar",
    "triangle",
    "hexagon",
    "star",
    "ring",
    "cross",
    "crescent",
    "heart",
    "flower",
)
"""Every shape that an object can have."""


@dataclass(frozen=True)
class Colour:
    """A colour with the name that people give it.

    Attributes:
        name: One of `colours.NAMES`.
        rgb: Red, green and blue in [0, 1].
    """

    name: str
    rgb: tuple[float, float, float]


@dataclass(frozen=True)
class Fill:
    """How an area is painted: a main colour and a pattern of a second one on top.

    Attributes:
        pattern: One of `PATTERNS`.
        main: The colour that covers at least half of the area.
        second: The colour of stripes, dots, lines …; equal to `main` where the pattern is plain. A
            lighter or darker shade of the main colour keeps its name.
        period: Distance between two stripes, dots …, pixels.
        phase: Where the pattern starts, in periods.
    """

    pattern: str
    main: Colour
    second: Colour
    period: float
    phase: float


@dataclass(frozen=True)
class Item:
    """One object.

    Attributes:
        shape: One of `SHAPES`.
        x: Centre, pixels from the left edge.
        y: Centre, pixels from the top edge.
        radius: Distance from the centre to the farthest point, pixels, about.
        angle: Rotation, radians.
        fill: How it is painted. Patterns are not rotated with the object.
        outline: Colour of the line around it; None for no line.
        hollow: Whether it is a line drawing: only a line in the fill's main colour.
        inside: Share of its area that lies inside the picture.
        visible: Share of its area that lies inside the picture and under no other object.
    """

    shape: str
    x: float
    y: float
    radius: float
    angle: float
    fill: Fill
    outline: Colour | None = None
    hollow: bool = False
    inside: float = 1.0
    visible: float = 1.0


@dataclass(frozen=True)
class Scene:
    """Everything about one picture.

    Attributes:
        background: How the background is painted.
        items: The objects, from the farthest to the nearest.
        layout: `free`, or `row`, `lattice` or `scatter` for many small objects.
        shadow: Whether objects cast a soft shadow.
        exposure: Factor of all light; 1 as painted, below 1 darker, above 1 brighter.
        contrast: Factor of the distance from mid-grey; 1 as painted.
        blur: Standard deviation of the blur, pixels; 0 for none.
        noise: Standard deviation of the sensor noise, in units of the full range; 0 for none.
        seed: Where clouds, grain and noise come from.
    """

    background: Fill
    items: tuple[Item, ...]
    layout: str
    shadow: bool
    exposure: float
    contrast: float
    blur: float
    noise: float
    seed: int
