"""Patterns of a second colour on a first: stripes, dots, checks, clouds …, with clean edges."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from PIL import Image

Grid = Float[np.ndarray, "height width"]

_STRIPE = 0.42
"""Share of the second colour in stripes: below half, so that the main colour is the main one."""


def second_share(
    pattern: str, x: Grid, y: Grid, period: float, phase: float, rng: np.random.Generator
) -> Grid:
    """How much of the second colour each pixel gets.

    Args:
        pattern: One of `world.PATTERNS`.
        x: Horizontal positions, pixels from the centre of what is painted.
        y: Vertical positions, likewise.
        period: Distance between repeats, pixels.
        phase: Shift of the pattern, in periods.
        rng: Used by `clouds` and `grain` only.

    Returns:
        Shares in [0, 1], on average at most one half.

    Raises:
        ValueError: There is no such pattern.
    """
    shift = phase * period
    share: Grid
    match pattern:
        case "plain":
            share = np.zeros_like(x)
        case "gradient":
            turn = 2 * math.pi * phase
            ramp = x * math.cos(turn) + y * math.sin(turn)
            low, high = float(ramp.min()), float(ramp.max())
            share = ((ramp - low) / max(high - low, 1e-6)) ** 1.2
        case "horizontal stripes":
            share = _lines(y + shift, period, _STRIPE)
        case "vertical stripes":
            share = _lines(x + shift, period, _STRIPE)
        case "diagonal stripes":
            lean = 1 if phase < 0.5 else -1
            share = _lines((x + lean * y) * math.sqrt(0.5) + shift, period, _STRIPE)
        case "waves":
            bend = 0.45 * period * np.sin(x * (2 * math.pi / (2.2 * period)))
            share = _lines(y + bend + shift, period, _STRIPE)
        case "rings":
            share = _lines(np.hypot(x, y), period, _STRIPE)
        case "grid":
            share = np.maximum(_lines(x + shift, period, 0.16), _lines(y + shift, period, 0.16))
        case "dots":
            share = _dots(x + shift, y, period)
        case "checks":
            columns = np.clip(_triangle_wave(x + shift, 2 * period), -0.5, 0.5)
            rows = np.clip(_triangle_wave(y + shift, 2 * period), -0.5, 0.5)
            share = 0.5 + 2 * columns * rows
        case "bricks":
            row = np.floor((y + shift) / period)
            joints = _lines(x + shift + row * period, 2 * period, 0.09)
            share = np.maximum(joints, _lines(y + shift, period, 0.18, offset=0.09 * period))
        case "clouds":
            share = np.clip(_smooth_noise(x.shape, period, rng) * 0.7 + 0.42, 0, 1)
        case "grain":
            share = np.float32(0.9) * rng.random(x.shape, dtype=np.float32)
        case _:
            raise ValueError(f"no pattern is called {pattern!r}; see pipeline.demo.world.PATTERNS")
    return share


def _triangle_wave(position: Grid, period: float) -> Grid:
    """Distance to the nearest half-period boundary, pixels, positive in the first half."""
    place = position % period
    return np.minimum(place, period - place) - period / 4


def _lines(position: Grid, period: float, share: float, offset: float = 0.0) -> Grid:
    """Parallel lines that cover a share of the period."""
    place = (position - offset) % period
    from_middle = np.minimum(place, period - place)
    return np.clip(share * period / 2 - from_middle + 0.5, 0, 1)


def _dots(x: Grid, y: Grid, period: float) -> Grid:
    """Round dots, every other row shifted by half a period."""
    row = np.floor(y / period)
    across = (x + row * period / 2) % period - period / 2
    down = y - (row + 0.5) * period
    return np.clip(0.33 * period - np.hypot(across, down) + 0.5, 0, 1)


def _smooth_noise(shape: tuple[int, int], period: float, rng: np.random.Generator) -> Grid:
    """Blobs of about a period across, zero on average, mostly within [-1, 1]."""
    height, width = shape
    total = np.zeros(shape, np.float32)
    for scale, weight in ((1.0, 0.75), (0.4, 0.35)):
        rows = max(2, round(height / (period * scale)) + 2)
        columns = max(2, round(width / (period * scale)) + 2)
        coarse = rng.standard_normal((rows, columns), dtype=np.float32)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        total += weight * np.asarray(smooth)
    return total
