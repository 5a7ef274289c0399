"""The columns of the activations table: one for each layer and pooling that is explained."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.columns import activation_column
from pipeline.plan import Plan


@dataclass(frozen=True)
class Column:
    """One layer with one pooling."""

    layer: str
    pooling: str
    neurons: int

    @property
    def name(self) -> str:
        """Name of the column in the activations table."""
        return activation_column(self.layer, self.pooling)


def columns_of(plan: Plan) -> list[Column]:
    """The columns of the activations table, in the order of the network."""
    target = plan.target
    return [
        Column(layer, pooling, target.infos[layer].neurons)
        for layer, poolings in target.layers.items()
        for pooling in poolings
    ]
