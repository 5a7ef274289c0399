"""Directions of a run, checked before it starts: their files are there and fit the layers that they read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actors.directions import DirectionSet, directions_fingerprint, load_directions
from actors.layer_info import LayerInfo
from actors.layers import check_layers
from core.directions import Directions
from core.errors import LayerError, RecordingError, close_names
from pipeline.target_config import DirectionsConfig


@dataclass(frozen=True)
class DirectionsPlan:
    """Directions of a layer, checked: their file is there and fits the layer."""

    settings: DirectionsConfig
    neurons: int
    """Width of the layer that they read."""
    fingerprint: str

    def load(self) -> DirectionSet:
        """Read them again, on whatever machine.

        Raises:
            LayerError: The file is missing or does not fit the layer.
            RecordingError: The file is another one than when the run was planned.
        """
        wanted = self.settings
        directions = _read(wanted, self.neurons)
        by_token = wanted.apply == "token"
        found = directions_fingerprint(directions, by_token)
        if found != self.fingerprint:
            raise RecordingError(
                f"{wanted.path} holds other directions on this worker than where the run was planned; "
                "give every node the same files"
            )
        poolings = tuple(dict.fromkeys(wanted.pooling))
        return DirectionSet(wanted.name, wanted.layer, poolings, by_token, directions, found)


def plan_directions(
    wanted: DirectionsConfig, infos: Sequence[LayerInfo]
) -> tuple[DirectionsPlan, LayerInfo]:
    """Directions whose file fits their layer, and what they are as a layer.

    Args:
        wanted: Their section of the configuration.
        infos: Every layer of the network.

    Raises:
        LayerError: A name that is a layer's, a layer or pooling that does not fit, or a faulty file.
    """
    known = {info.name: info for info in infos}
    if wanted.name in known:
        raise LayerError(
            f"directions are called {wanted.name!r}, as a layer of the network is; give them another name"
        )
    if wanted.layer not in known:
        raise LayerError(
            f"directions {wanted.name!r}: the network has no layer {wanted.layer!r}"
            f"{close_names(wanted.layer, known)}; 'neuroscribe layers MODEL' lists them"
        )
    check_layers([known[wanted.layer]], {wanted.layer: wanted.pooling})
    layer = known[wanted.layer]
    directions = _read(wanted, layer.neurons)
    count = len(directions.weight)
    made = directions_fingerprint(directions, wanted.apply == "token")
    info = LayerInfo(wanted.name, f"directions of {wanted.layer}", (count,), count, 1)
    return DirectionsPlan(wanted, layer.neurons, made), info


def _read(wanted: DirectionsConfig, neurons: int) -> Directions:
    return load_directions(
        wanted.path,
        neurons,
        weight=wanted.weight,
        bias=wanted.bias,
        centre=wanted.centre,
        nonlinearity=wanted.nonlinearity,
        k=wanted.k or 0,
    )
