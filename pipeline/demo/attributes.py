"""What is true of a scene, in words: the exact concepts of a demo picture.

A concept is true of a picture if and only if the scene says so; nothing is estimated from pixels.
An object counts when at least `VISIBLE` of its area can be seen: inside the picture and under no
other object. How a picture was taken (dark, blurred …) changes no other concept: a red circle in a
dark picture is a red circle.

`FAMILIES` says what each concept means, by family; `CONCEPTS` is the order of every table.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from pipeline.demo import colours
from pipeline.demo.compose import FAMILIAR, NATURAL
from pipeline.demo.world import SHAPES, SIZE, Fill, Item, Scene

VISIBLE = 0.6
"""Share of an object's area that must be seen for the object to count."""

_STRIPES = ("horizontal stripes", "vertical stripes", "diagonal stripes")
_PATTERN_WORDS = {
    "plain": "plain",
    "gradient": "shaded",
    "dots": "dotted",
    "checks": "checkered",
    "grain": "grainy",
    "clouds": "cloudy",
    "waves": "wavy",
    "grid": "grid",
    "bricks": "brick",
}
_STRIPED_SHAPES = ("circle", "square", "heart", "star", "flower")
_TWO_COLOURS = ("black and white", "red and white", "blue and white", "black and yellow")

FAMILIES: dict[str, tuple[str, ...]] = {
    # Some object has this shape.
    "shape": (*SHAPES, "round object", "object with corners", "hollow object"),
    # Some object is painted with this colour, in its main colour or in its pattern.
    "colour": (*colours.NAMES, "warm object", "cool object", "colourless object"),
    # Some object has this shape and this main colour.
    "coloured shape": tuple(f"{colour} {shape}" for colour, shape in FAMILIAR),
    # Some object has this pattern.
    "texture": (
        "shaded object",
        "striped object",
        "dotted object",
        "checkered object",
        "object with rings",
        "patterned object",
        *(f"striped {shape}" for shape in _STRIPED_SHAPES),
    ),
    # The main colour of the background, which covers half of it or more.
    "background colour": (
        *(f"{name} background" for name in colours.NAMES),
        "light background",
        "dark background",
        "warm background",
        "cool background",
    ),
    # The pattern of the background, and the natural ones together with their colour.
    "background texture": (
        *(f"{word} background" for word in _PATTERN_WORDS.values()),
        "striped background",
        "patterned background",
        *(f"{colour} {_PATTERN_WORDS[pattern]} background" for colour, pattern in NATURAL),
    ),
    # The pattern of anything, background or object.
    "pattern": (
        *_STRIPES,
        "stripes",
        "dots",
        "checks",
        "fine pattern",
        "coarse pattern",
        *(f"{pair} stripes" for pair in _TWO_COLOURS),
        "black and white pattern",
    ),
    # How many objects, and a radius of at most 10 % or at least 25 % of the picture's width.
    "number and size": (
        "no object",
        "one object",
        "two objects",
        "three objects",
        "many objects",
        "small object",
        "large object",
    ),
    # Where the largest object is, or how many small ones are arranged.
    "place": (
        "on the left",
        "on the right",
        "at the top",
        "at the bottom",
        "in the centre",
        "in a corner",
        "objects in a row",
        "objects in a lattice",
        "scattered objects",
        "overlapping objects",
        "object cut off by the edge",
    ),
    # How an object is turned, within 12 degrees.
    "direction": (
        "upright bar",
        "lying bar",
        "leaning bar",
        "triangle pointing up",
        "triangle pointing down",
        "tilted square",
        "diagonal cross",
    ),
    # Lines, light and the way the picture was taken.
    "look": (
        "outlined object",
        "shadow",
        "light object on dark background",
        "dark object on light background",
        "colourful",
        "black and white picture",
        "dark picture",
        "bright picture",
        "low contrast",
        "blurred",
        "noisy",
    ),
}
"""Every concept under the family that says what it means."""

CONCEPTS: tuple[str, ...] = tuple(name for family in FAMILIES.values() for name in family)
"""Every concept, in the order of tables and concept lists."""


def attributes(scene: Scene) -> frozenset[str]:
    """The concepts that are true of a scene, a subset of `CONCEPTS`."""
    items = [item for item in scene.items if item.visible >= VISIBLE]
    true = {name for item in items for name in _of_item(item)}
    true.update(_of_background(scene.background))
    true.update(_of_patterns([scene.background, *(item.fill for item in items)]))
    true.update(_of_places(scene, items))
    true.update(_of_look(scene, items))
    return frozenset(true).intersection(CONCEPTS)


def _of_item(item: Item) -> Iterator[str]:
    fill = item.fill
    names = {fill.main.name, fill.second.name}
    yield item.shape
    yield from names
    yield f"{fill.main.name} {item.shape}"
    if item.shape in ("circle", "oval", "ring"):
        yield "round object"
    if item.shape in ("square", "bar", "triangle", "hexagon", "star", "cross"):
        yield "object with corners"
    if item.hollow or item.shape == "ring":
        yield "hollow object"
    if fill.main.name in colours.WARM:
        yield "warm object"
    if fill.main.name in colours.COOL:
        yield "cool object"
    if names <= set(colours.ACHROMATIC):
        yield "colourless object"
    if fill.pattern in _STRIPES:
        yield "striped object"
        yield f"striped {item.shape}"
    elif fill.pattern == "rings":
        yield "object with rings"
    else:
        yield f"{_PATTERN_WORDS[fill.pattern]} object"
    if fill.pattern not in ("plain", "gradient"):
        yield "patterned object"
    if item.radius <= 0.1 * SIZE:
        yield "small object"
    if item.radius >= 0.25 * SIZE:
        yield "large object"
    if item.outline is not None:
        yield "outlined object"
    if item.inside < 0.95:
        yield "object cut off by the edge"
    yield from _of_direction(item)


def _of_direction(item: Item) -> Iterator[str]:
    if item.shape == "bar":
        if _near(item.angle, 0, math.pi):
            yield "lying bar"
        elif _near(item.angle, math.pi / 2, math.pi):
            yield "upright bar"
        else:
            yield "leaning bar"
    elif item.shape == "triangle":
        if _near(item.angle, 0, 2 * math.pi / 3):
            yield "triangle pointing up"
        elif _near(item.angle, math.pi / 3, 2 * math.pi / 3):
            yield "triangle pointing down"
    elif _near(item.angle, math.pi / 4, math.pi / 2):
        if item.shape == "square":
            yield "tilted square"
        elif item.shape == "cross":
            yield "diagonal cross"


def _near(angle: float, wanted: float, period: float) -> bool:
    """Whether an angle is within 12 degrees of a wanted one, up to the symmetry of the shape."""
    off = (angle - wanted) % period
    return min(off, period - off) <= math.radians(12)


def _of_background(fill: Fill) -> Iterator[str]:
    name = fill.main.name
    yield f"{name} background"
    light = colours.lightness(fill.main)
    if light >= 0.65:
        yield "light background"
    if light <= 0.35:
        yield "dark background"
    if name in colours.WARM:
        yield "warm background"
    if name in colours.COOL:
        yield "cool background"
    if fill.pattern in _STRIPES:
        yield "striped background"
    else:
        word = _PATTERN_WORDS[fill.pattern]
        yield f"{word} background"
        yield f"{name} {word} background"
    if fill.pattern not in ("plain", "gradient", "grain", "clouds"):
        yield "patterned background"


def _of_patterns(fills: list[Fill]) -> Iterator[str]:
    for fill in fills:
        if fill.pattern in ("plain", "gradient", "clouds", "grain"):
            continue
        yield fill.pattern
        yield "fine pattern" if fill.period < 14 else "coarse pattern"
        names = {fill.main.name, fill.second.name}
        if names == {"black", "white"}:
            yield "black and white pattern"
        if fill.pattern in _STRIPES:
            yield "stripes"
            for pair in _TWO_COLOURS:
                if names == set(pair.split(" and ")):
                    yield f"{pair} stripes"


def _of_places(scene: Scene, items: list[Item]) -> Iterator[str]:
    words = ("no object", "one object", "two objects", "three objects")
    if len(items) < len(words):
        yield words[len(items)]
    elif len(items) >= 5:
        yield "many objects"
    if any(item.inside - item.visible > 0.03 for item in items):
        yield "overlapping objects"
    if scene.layout != "free":
        names = {"row": "objects in a row", "lattice": "objects in a lattice"}
        yield names.get(scene.layout, "scattered objects")
        return
    if not items:
        return
    largest = max(items, key=lambda item: item.radius)
    x, y = largest.x / SIZE, largest.y / SIZE
    across = "on the left" if x < 0.38 else "on the right" if x > 0.62 else ""
    down = "at the top" if y < 0.38 else "at the bottom" if y > 0.62 else ""
    if across:
        yield across
    if down:
        yield down
    if across and down:
        yield "in a corner"
    if not across and not down:
        yield "in the centre"


def _of_look(scene: Scene, items: list[Item]) -> Iterator[str]:
    ground = colours.lightness(scene.background.main)
    for item in items:
        light = colours.lightness(item.fill.main)
        if light >= 0.6 and ground <= 0.35:
            yield "light object on dark background"
        if light <= 0.4 and ground >= 0.65:
            yield "dark object on light background"
    if scene.shadow and items:
        yield "shadow"
    painted = Counter(
        colour.name
        for fill in (scene.background, *(item.fill for item in items))
        for colour in {fill.main, fill.second}
    )
    chromatic = set(painted) - set(colours.ACHROMATIC)
    if len(chromatic) >= 4:
        yield "colourful"
    if not chromatic:
        yield "black and white picture"
    if scene.exposure < 1:
        yield "dark picture"
    if scene.exposure > 1:
        yield "bright picture"
    if scene.contrast < 1:
        yield "low contrast"
    if scene.blur:
        yield "blurred"
    if scene.noise:
        yield "noisy"
