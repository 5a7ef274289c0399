"""Reading directions from files: safetensors or npz, arrays alone, never code."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import fsspec
import numpy as np
import torch
from torch import Tensor

from core.directions import Directions
from core.errors import LayerError, close_names

SUFFIXES = (".safetensors", ".npz")


@dataclass(frozen=True, slots=True)
class DirectionSet:
    """Directions that are recorded as if they were a layer."""

    name: str
    """What the layer is called in tables and on pages."""
    layer: str
    """The layer of the network that they read."""
    poolings: tuple[str, ...]
    by_token: bool
    """Whether they are applied to every token or place and then pooled, or to the pooled layer."""
    directions: Directions
    fingerprint: str
    """Of everything that their activations depend on beside the layer's."""


def load_directions(
    path: str,
    neurons: int,
    *,
    weight: str = "weight",
    bias: str | None = None,
    centre: str | None = None,
    nonlinearity: Literal["none", "relu", "topk"] = "none",
    k: int = 0,
) -> Directions:
    """Read directions of a layer.

    Args:
        path: A .safetensors or .npz file, local or any fsspec URL.
        neurons: Width of the layer.
        weight: Key of the matrix: (directions, neurons) or its transpose, which is known by the width
            of the layer; a square one has a direction in each row.
        bias: Key of the bias; by default `bias` where the file has it.
        centre: Key of what is subtracted from the layer's activations; by default nothing.
        nonlinearity: See `core.directions.Directions`.
        k: Likewise.

    Raises:
        LayerError: The file is missing, of another kind, lacks a key, or does not fit the layer.
    """
    arrays = _arrays(path)
    if bias is None and "bias" in arrays:
        bias = "bias"
    found = [None if key is None else _taken(arrays, key, path) for key in (weight, bias, centre)]
    matrix = found[0]
    assert matrix is not None
    if matrix.ndim != 2 or neurons not in matrix.shape:
        raise LayerError(
            f"{path}: {weight!r} has shape {tuple(matrix.shape)}, expected (directions, {neurons:,}) or "
            f"({neurons:,}, directions), as the layer has {neurons:,} neurons"
        )
    if matrix.shape[1] != neurons:
        matrix = matrix.T.contiguous()
    for key, values in zip((weight, bias, centre), (matrix, *found[1:]), strict=True):
        if values is not None and not bool(values.isfinite().all()):
            raise LayerError(f"{path}: {key!r} holds values that are not finite; mend the file")
    return Directions(matrix, found[1], found[2], nonlinearity, k)


def directions_fingerprint(directions: Directions, by_token: bool) -> str:
    """What activations of directions depend on beside the layer's."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((directions.nonlinearity, directions.k, by_token)).encode())
    for values in (directions.weight, directions.bias, directions.centre):
        digest.update(b"none" if values is None else repr(tuple(values.shape)).encode())
        if values is not None:
            digest.update(np.ascontiguousarray(values.numpy()).tobytes())
    return digest.hexdigest()


def _arrays(path: str) -> dict[str, Tensor]:
    if not path.endswith(SUFFIXES):
        raise LayerError(f"{path} holds no directions; expected a file {' or '.join(SUFFIXES)}")
    try:
        if "://" in path:
            with fsspec.open(path, "rb") as file:
                data: bytes = file.read()
        else:
            data = Path(path).read_bytes()
        if path.endswith(".npz"):
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}
        from safetensors.torch import load

        return dict(load(data))
    except FileNotFoundError:
        raise LayerError(f"there is no file of directions at {path}; check its 'path'") from None
    except (OSError, ValueError, TypeError, BadZipFile) as error:
        raise LayerError(f"{path} cannot be read as plain arrays: {error}") from error
    except Exception as error:
        # safetensors has an error class of its own, which derives from Exception alone.
        raise LayerError(f"{path} is no {path.rpartition('.')[2]} file: {error}") from error


def _taken(arrays: dict[str, Tensor], key: str, path: str) -> Tensor:
    if key not in arrays:
        keys: Sequence[str] = sorted(arrays)
        raise LayerError(f"{path} has no {key!r}{close_names(key, keys)}; it has {', '.join(keys)}")
    if not arrays[key].is_floating_point():
        raise LayerError(f"{path}: {key!r} holds {arrays[key].dtype}, expected floating point")
    return arrays[key].to(torch.float32)
