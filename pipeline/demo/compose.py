"""From a seed to a scene: which pictures there are, and how often.

Everything that a person would call independent is drawn independently, so that an explanation can
tell causes apart; what nature ties together (grass is green and grainy) is tied together some of
the time, so that there are combinations worth a name of their own.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from pipeline.demo import colours
from pipeline.demo.paint import area, coverage
from pipeline.demo.world import SHAPES, SIZE, Colour, Fill, Item, Scene

FAMILIAR = (
    ("red", "circle"),
    ("red", "heart"),
    ("red", "cross"),
    ("orange", "circle"),
    ("orange", "flower"),
    ("yellow", "star"),
    ("yellow", "crescent"),
    ("yellow", "circle"),
    ("green", "triangle"),
    ("green", "oval"),
    ("turquoise", "ring"),
    ("blue", "square"),
    ("blue", "circle"),
    ("purple", "flower"),
    ("pink", "heart"),
    ("brown", "bar"),
    ("brown", "oval"),
    ("black", "ring"),
    ("black", "circle"),
    ("grey", "hexagon"),
    ("white", "star"),
    ("white", "circle"),
)
"""Colour and shape of objects that are drawn more often than chance."""

NATURAL = (
    ("green", "grain"),
    ("blue", "clouds"),
    ("turquoise", "waves"),
    ("yellow", "grain"),
    ("brown", "bricks"),
    ("red", "bricks"),
    ("black", "checks"),
    ("white", "grid"),
    ("grey", "grain"),
    ("green", "clouds"),
)
"""Main colour and pattern of backgrounds that are drawn more often than chance."""

_PARTNERS = {
    "black": ("white", "yellow"),
    "white": ("black", "red", "blue"),
    "red": ("white",),
    "blue": ("white",),
    "yellow": ("black",),
}
"""Second colours that are chosen more often than chance."""

_BACKGROUNDS = {
    "plain": 0.40,
    "gradient": 0.14,
    "horizontal stripes": 0.06,
    "vertical stripes": 0.06,
    "diagonal stripes": 0.06,
    "dots": 0.05,
    "checks": 0.04,
    "waves": 0.05,
    "grid": 0.04,
    "bricks": 0.03,
    "clouds": 0.04,
    "grain": 0.03,
}
_OBJECTS = {
    "plain": 0.36,
    "gradient": 0.12,
    "horizontal stripes": 0.08,
    "vertical stripes": 0.08,
    "diagonal stripes": 0.07,
    "dots": 0.09,
    "checks": 0.08,
    "rings": 0.08,
}
_RADII = {"small": (11.0, 16.0), "medium": (20.0, 32.0), "large": (40.0, 60.0)}
_LOOKS = {
    "as painted": 0.66,
    "dark": 0.07,
    "bright": 0.05,
    "flat": 0.07,
    "blurred": 0.08,
    "noisy": 0.07,
}
_LEAST_VISIBLE = 0.6
"""Objects that would leave less of any object to be seen are not placed."""
_TOLD_APART = 0.45
"""Least distance in RGB of an object from its background, and of two colours of a pattern."""


def compose(seed: int) -> Scene:
    """Draw the scene that belongs to a seed.

    Args:
        seed: Any non-negative integer. Equal seeds give equal scenes.

    Raises:
        ValueError: The seed is negative.
    """
    rng = np.random.default_rng(seed)
    names = colours.ACHROMATIC if rng.random() < 0.05 else colours.NAMES
    background = _background(names, rng)
    kind = _choice({"none": 0.05, "free": 0.75, "row": 0.05, "lattice": 0.07, "scatter": 0.08}, rng)
    if kind == "none":
        items: list[Item] = []
    elif kind == "free":
        items = _free_items(names, background, rng)
    else:
        items = _repeats(kind, names, background, rng)
    look = _choice(_LOOKS, rng)
    amount = float(rng.random())
    exposure = 1.0
    if look == "dark":
        exposure = 0.28 + 0.14 * amount
    elif look == "bright":
        exposure = 1.4 + 0.4 * amount
    return Scene(
        background=background,
        items=tuple(_seen(items)),
        layout=kind if kind not in ("none", "free") and items else "free",
        shadow=bool(rng.random() < 0.2),
        exposure=exposure,
        contrast=0.25 + 0.15 * amount if look == "flat" else 1.0,
        blur=2.2 + 1.8 * amount if look == "blurred" else 0.0,
        noise=0.07 + 0.06 * amount if look == "noisy" else 0.0,
        seed=seed,
    )


def _choice(weights: dict[str, float], rng: np.random.Generator) -> str:
    edges = np.cumsum(list(weights.values()))
    return list(weights)[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))]


def _one_of(names: tuple[str, ...], rng: np.random.Generator) -> str:
    return names[int(rng.integers(len(names)))]


def _background(names: tuple[str, ...], rng: np.random.Generator) -> Fill:
    natural = [pair for pair in NATURAL if pair[0] in names]
    if rng.random() < 0.26:
        name, pattern = natural[int(rng.integers(len(natural)))]
    else:
        name, pattern = _one_of(names, rng), _choice(_BACKGROUNDS, rng)
    low, high = (8, 13) if rng.random() < 0.5 else (18, 34)
    if pattern == "grain":
        low, high = 2, 3
    if pattern == "clouds":
        low, high = 30, 60
    return _fill(pattern, colours.pick(name, rng), float(rng.uniform(low, high)), names, rng)


def _fill(
    pattern: str, main: Colour, period: float, names: tuple[str, ...], rng: np.random.Generator
) -> Fill:
    """Choose the second colour: a shade, white or black, or any other that stands out."""
    second = main
    if pattern != "plain":
        fate = rng.random()
        if pattern == "grain" or fate < 0.35:
            second = colours.shade(main, rng)
        elif pattern == "clouds" and main.name != "white":
            second = colours.pick("white", rng)
        else:
            partners = [name for name in _PARTNERS.get(main.name, ()) if name in names]
            if partners and fate < 0.65:
                wanted = partners[int(rng.integers(len(partners)))]
            else:
                wanted = "white" if fate < 0.75 else "black" if fate < 0.85 else _one_of(names, rng)
            second = colours.pick(wanted, rng)
            while second.name == main.name or colours.distance(second, main) < _TOLD_APART:
                second = colours.pick(_one_of(names, rng), rng)
    return Fill(pattern, main, second, period, float(rng.random()))


def _object_look(
    names: tuple[str, ...], background: Fill, rng: np.random.Generator
) -> tuple[str, Colour]:
    """Shape and colour of an object that stands out from its background."""
    ground = [background.main, background.second]
    for _ in range(50):
        if rng.random() < 0.42:
            name, shape = FAMILIAR[int(rng.integers(len(FAMILIAR)))]
            if name not in names:
                continue
        else:
            name, shape = _one_of(names, rng), _one_of(SHAPES, rng)
        colour = colours.pick(name, rng)
        apart = min(colours.distance(colour, other) for other in ground)
        if apart >= _TOLD_APART and name != background.main.name:
            return shape, colour
    # Black or white stands out from anything: no colour is near both.
    far = max(("black", "white"), key=lambda n: colours.distance(colours.pick(n, rng), ground[0]))
    return _one_of(SHAPES, rng), colours.pick(far, rng)


def _angle(shape: str, rng: np.random.Generator) -> float:
    """A rotation as such objects are met: hearts stand upright, bars lie, stand or lean."""
    if shape in ("circle", "ring"):
        return 0.0
    fate, wobble = rng.random(), float(rng.uniform(-0.12, 0.12))
    if shape in ("bar", "oval"):
        quarter = 0.0 if fate < 0.35 else math.pi / 2 if fate < 0.7 else math.pi / 4
        return (quarter if fate < 0.85 else -quarter) + wobble
    if shape == "triangle":
        return (0.0 if fate < 0.45 else math.pi if fate < 0.75 else math.pi / 2) + wobble
    if shape == "crescent":
        return (0.0 if fate < 0.5 else math.pi) + 4 * wobble
    if shape in ("square", "cross"):
        return (0.0 if fate < 0.6 else math.pi / 4) + wobble
    return wobble * 3


def _item(
    names: tuple[str, ...],
    background: Fill,
    place: tuple[float, float],
    radius: float,
    rng: np.random.Generator,
) -> Item:
    shape, main = _object_look(names, background, rng)
    pattern = _choice(_OBJECTS, rng) if radius >= 17 else "plain"
    low, high = (6.5, 9.5) if rng.random() < 0.5 or radius < 26 else (11, 17)
    fill = _fill(pattern, main, float(rng.uniform(low, high)), names, rng)
    hollow = pattern == "plain" and shape not in ("circle", "oval", "ring") and rng.random() < 0.14
    outline = None
    if not hollow and radius >= 15 and rng.random() < 0.18:
        wanted = "black" if rng.random() < 0.5 else "white"
        outline = colours.pick(wanted, rng)
        if colours.distance(outline, main) < _TOLD_APART:
            outline = None
    return Item(shape, *place, radius, _angle(shape, rng), fill, outline, hollow)


def _free_items(names: tuple[str, ...], background: Fill, rng: np.random.Generator) -> list[Item]:
    """One to four objects of any kind, each of them well visible."""
    wanted = int(_choice({"1": 0.42, "2": 0.27, "3": 0.19, "4": 0.12}, rng))
    cropped = rng.random() < 0.2
    central = rng.random() < 0.4
    items: list[Item] = []
    for _ in range(12):
        size = _choice({"small": 0.2, "medium": 0.36, "large": 0.44}, rng)
        radius = float(rng.uniform(*_RADII[size]))
        near, far = (0.4, 0.6) if not items and central else (0.08, 0.92)
        place = (float(rng.uniform(near, far)) * SIZE, float(rng.uniform(near, far)) * SIZE)
        added = _seen([*items, _item(names, background, place, radius, rng)])
        whole = cropped or added[-1].inside > 0.97
        if whole and all(item.visible >= _LEAST_VISIBLE for item in added):
            items = added
        if len(items) == wanted:
            break
    if not items:
        radius = float(rng.uniform(24, 50))
        items = [_item(names, background, (SIZE / 2, SIZE / 2), radius, rng)]
    return items


def _repeats(
    layout: str, names: tuple[str, ...], background: Fill, rng: np.random.Generator
) -> list[Item]:
    """Many small objects, most often of one kind: in a row, in a lattice or scattered."""
    if layout == "row":
        count = int(rng.integers(5, 8))
        steps = (np.arange(count) + 0.5) * SIZE / count
        level = float(rng.uniform(0.25, 0.75)) * SIZE
        upright = rng.random() < 0.5
        places = [(level, float(s)) if upright else (float(s), level) for s in steps]
        radius = 0.42 * SIZE / count
    elif layout == "lattice":
        count = int(rng.integers(3, 6))
        steps = (np.arange(count) + 0.5) * SIZE / count
        places = [(float(x), float(y)) for y in steps for x in steps]
        radius = float(rng.uniform(0.3, 0.42)) * SIZE / count
    else:
        radius = float(rng.uniform(8, 14))
        places = []
        for _ in range(80):
            x, y = (float(v) for v in rng.uniform(radius, SIZE - radius, 2))
            if all(math.hypot(x - a, y - b) > 2.25 * radius for a, b in places):
                places.append((x, y))
            if len(places) == 18:
                break
    first = _item(names, background, places[0], radius, rng)
    if rng.random() < 0.65:
        return [dataclasses.replace(first, x=x, y=y) for x, y in places]
    return [_item(names, background, place, radius, rng) for place in places]


def _seen(items: list[Item]) -> list[Item]:
    """The same objects with the shares of them that are inside the picture and to be seen."""
    seen: list[Item] = []
    free = np.ones((SIZE, SIZE), np.float32)
    for item in reversed(items):
        patch, share = coverage(item)
        whole = area(item)
        seen.append(
            dataclasses.replace(
                item,
                inside=min(1.0, float(share.sum()) / whole),
                visible=min(1.0, float((share * free[patch]).sum()) / whole),
            )
        )
        free[patch] *= 1 - share
    return seen[::-1]
