"""What a shorter number format costs and gains: activations beside those in float32, on some images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16

#: Median agreement below which plans advise float32.
ENOUGH = 0.99


@dataclass(frozen=True)
class FormatTrial:
    """A number format beside float32, on the same images."""

    dtype: str
    times_as_fast: float
    images: int
    layer: str
    """Column of activations that agrees least."""
    median: float
    """Correlation with float32 of its median neuron."""
    least: float
    """The same of its neuron that agrees least."""


def compare_formats(
    dtype: str,
    times_as_fast: float,
    short: Mapping[str, Float16[np.ndarray, "images neurons"]],
    full: Mapping[str, Float16[np.ndarray, "images neurons"]],
) -> FormatTrial | None:
    """How well activations agree with those in float32.

    Args:
        dtype: The shorter format.
        times_as_fast: Its rate by that of float32.
        short: Activations in it, by column.
        full: The same in float32; rows beyond those of the fewer images are left out.

    Returns:
        The column of which the median neuron agrees least; None where no neuron varies.
    """
    found = []
    for name in short:
        images = min(len(short[name]), len(full[name]))
        agreed = _correlations(short[name][:images], full[name][:images])
        if agreed.size:
            found.append(
                FormatTrial(
                    dtype, times_as_fast, images, name, float(np.median(agreed)), agreed.min()
                )
            )
    return min(found, key=lambda trial: trial.median, default=None)


def format_note(trial: FormatTrial | None) -> list[str]:
    """The comparison in words."""
    if trial is None:
        return []
    said = (
        f"the target in {trial.dtype} is {trial.times_as_fast:.1f} times as fast as in float32 here; on "
        f"{trial.images} images its activations agree with float32 at {trial.median:.3f} (the median "
        f"neuron of {trial.layer}, where they agree least; its least neuron: {trial.least:.3f})"
    )
    advice = "; target: {dtype: float32} is the safer choice" if trial.median < ENOUGH else ""
    return [said + advice]


def _correlations(
    a: Float16[np.ndarray, "images neurons"], b: Float16[np.ndarray, "images neurons"]
) -> np.ndarray:
    """Pearson correlation of each neuron that varies in both."""
    x, y = (values.astype(np.float64) - values.mean(0, dtype=np.float64) for values in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (x * y).sum(0) / np.sqrt((x * x).sum(0) * (y * y).sum(0))
    out: np.ndarray = r[np.isfinite(r)]
    return out
