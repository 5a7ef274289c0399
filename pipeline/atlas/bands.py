"""Which images stand for a neuron: bands of activation from the highest to the lowest.

The highest activations alone mislead, so a neuron is shown over its whole range. Images are
ranked by activation, highest first; images with equal activation keep the order of their rows,
so the same recording always gives the same pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, Int, UInt16

FRACTIONS = (0.0001, 0.001, 0.01, 0.1, 0.5, 1.0)
"""Upper ends of the bands, as shares of all images. The first needs about 50,000 images."""

SMALLEST_BAND = 5
"""A band with fewer images than this is merged into the next one."""

PICTURES = 6
"""At most so many images are shown for each band."""


@dataclass(frozen=True, slots=True)
class Band:
    """Ranks ``start`` to ``stop`` (exclusive); rank 0 is the highest activation."""

    start: int
    stop: int
    low: float
    """Share of images above the band, nominal (0.001 is 0.1 %)."""
    high: float
    """Share of images above the band's lower end, nominal."""

    def picks(self, pictures: int = PICTURES) -> Int[np.ndarray, " picks"]:
        """Ranks of the images to show: evenly spaced, first and last of the band included."""
        count = min(pictures, self.stop - self.start)
        return np.round(np.linspace(self.start, self.stop - 1, count)).astype(np.int64)


def bands_for(images: int, smallest: int = SMALLEST_BAND) -> tuple[Band, ...]:
    """Bands that partition the ranks 0 to ``images`` - 1.

    Args:
        images: Number of images.
        smallest: A band that would hold fewer is merged into the next; a last band that would
            hold fewer is merged into the one before.

    Returns:
        From the highest activations to the lowest; empty for no images.
    """
    bands: list[Band] = []
    start, low = 0, 0.0
    for high in FRACTIONS:
        stop = images if high == 1.0 else int(high * images + 0.5)
        if stop - start >= smallest:
            bands.append(Band(start, stop, low, high))
            start, low = stop, high
    if images > start:
        first = bands.pop() if bands else Band(0, 0, 0.0, 0.0)
        bands.append(Band(first.start, images, first.low, 1.0))
    return tuple(bands)


def descending_keys(
    activations: Float16[np.ndarray, "images neurons"],
) -> UInt16[np.ndarray, "neurons images"]:
    """Integers whose ascending order is the descending order of the activations.

    Sixteen-bit integers are sorted by radix, several times faster than floating-point numbers.
    Both zeros get one key; NaN gets the last.
    """
    values = np.ascontiguousarray(activations.T) + np.float16(0.0)  # -0.0 becomes 0.0
    bits = values.view(np.uint16)
    negative = bits >= 0x8000
    keys = np.where(negative, bits, 0x7FFF - bits).astype(np.uint16)
    keys[np.isnan(values)] = 0xFFFF
    return keys


def rankings(
    activations: Float16[np.ndarray, "images neurons"],
) -> Iterator[Int[np.ndarray, " images"]]:
    """For each neuron in turn, the rows of all images from highest to lowest activation.

    Ties keep the order of the rows; NaN comes last.
    """
    for keys in descending_keys(activations):
        yield np.argsort(keys, kind="stable")
