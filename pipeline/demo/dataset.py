"""Data sets of demo pictures: arrays to train on, and folders for the pipeline.

A folder holds `images/00000.jpg` … and `manifest.parquet`: the path of each picture and one column
of true and false for every concept.
"""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, UInt8
from PIL import Image

from core.errors import SourceError
from pipeline.demo.attributes import CONCEPTS, attributes
from pipeline.demo.scenes import render, scene_seed

VERSION = 1
"""Raised whenever the same seed gives other pictures or other concepts."""

_KEY = b"neuroscribe.demo"
"""Where the manifest's metadata says which data set it is."""
_QUALITY = 92
_CHUNK = 500


def draw(
    stream: int, count: int, size: int, workers: int = 1
) -> tuple[UInt8[np.ndarray, "images size size 3"], Bool[np.ndarray, "images concepts"]]:
    """Pictures of a stream as arrays, and which concepts are true of them.

    Args:
        stream: Seed of the data set; different streams share no picture.
        count: Number of pictures.
        size: Side to which they are resized (bicubic), pixels.
        workers: Processes that draw; the result is the same for any number.
    """
    parts = [(stream, start, min(_CHUNK, count - start), size) for start in range(0, count, _CHUNK)]
    if workers == 1:
        drawn = [_draw_part(part) for part in parts]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            drawn = list(pool.map(_draw_part, parts))
    return np.concatenate([images for images, _ in drawn]), np.concatenate([t for _, t in drawn])


def _draw_part(
    part: tuple[int, int, int, int],
) -> tuple[UInt8[np.ndarray, "images size size 3"], Bool[np.ndarray, "images concepts"]]:
    stream, start, count, size = part
    images = np.empty((count, size, size, 3), np.uint8)
    truth = np.empty((count, len(CONCEPTS)), bool)
    for row in range(count):
        picture, scene = render(scene_seed(stream, start + row))
        images[row] = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
        true = attributes(scene)
        truth[row] = [concept in true for concept in CONCEPTS]
    return images, truth


def write_dataset(folder: Path, count: int, seed: int) -> None:
    """Write pictures and their manifest into a folder, all or nothing.

    The pictures are drawn beside the folder and moved into place at the end, so that an interrupted
    call leaves nothing that looks finished. A folder that already holds this very data set is left
    alone; an older one of ours is replaced.

    Args:
        folder: Where `images/` and `manifest.parquet` go. It may exist if it is empty or ours.
        count: Number of pictures, 1 to 100,000.
        seed: Seed of the data set. The same seed gives the same files, and a larger count only adds
            pictures at the end.

    Raises:
        ValueError: The count or the seed is out of range.
        SourceError: The folder holds something that was not written here.
    """
    if not 1 <= count <= 100_000 or seed < 0:
        raise ValueError(f"count is {count} and seed {seed}; expected 1 to 100000, and 0 or more")
    wanted = {"version": VERSION, "count": count, "seed": seed}
    found = _description(folder)
    if found == wanted:
        return
    if found is None and folder.exists() and any(folder.iterdir()):
        raise SourceError(
            f"{folder} is not empty and not of the demo's making; name another folder, or empty it"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        _write(made, wanted)
        if folder.exists():
            # Moved away whole and deleted with the scratch folder: nobody sees half of each.
            folder.rename(Path(scratch) / "old")
        made.rename(folder)


def _description(folder: Path) -> dict[str, int] | None:
    """What a folder of ours holds; None for any other."""
    manifest = folder / "manifest.parquet"
    if not manifest.is_file():
        return None
    try:
        metadata = pq.read_schema(manifest).metadata or {}
        described = json.loads(metadata[_KEY])
    except (KeyError, ValueError, pa.ArrowException):
        return None
    return described if isinstance(described, dict) else None


def _write(folder: Path, wanted: dict[str, int]) -> None:
    (folder / "images").mkdir(parents=True)
    paths: list[str] = []
    truth = np.empty((wanted["count"], len(CONCEPTS)), bool)
    for row in range(wanted["count"]):
        picture, scene = render(scene_seed(wanted["seed"], row))
        paths.append(f"images/{row:05d}.jpg")
        picture.save(folder / paths[-1], quality=_QUALITY)
        true = attributes(scene)
        truth[row] = [concept in true for concept in CONCEPTS]
    columns = {name: pa.array(truth[:, column]) for column, name in enumerate(CONCEPTS)}
    table = pa.table({"path": paths, **columns})
    table = table.replace_schema_metadata({_KEY: json.dumps(wanted).encode()})
    pq.write_table(table, folder / "manifest.parquet", compression="zstd")
