"""The `ablation` section of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from pipeline.fit_config import Strict

#: The classes that the network itself puts first.
PREDICTED = "predicted"

Kind = Literal["norm", "optim"]


class AblationConfig(Strict):
    """How much of the network's loss is kept when neurons take their simulated activations; by default
    nothing is ablated."""

    layers: Annotated[list[str], Field(min_length=1)]
    """Names or patterns among the layers that `target.layers` chooses."""
    classes: str = PREDICTED
    """What the loss is measured against: `predicted`, the class that the network itself puts first,
    or a file that takes the images' labels to its outputs: one label a line, in the order of the
    outputs, or JSON with `classes: [{index, wnid, label}]`."""
    temperature: Literal["auto"] | Annotated[float, Field(gt=0)] = 1.1
    """Logits are divided by it; `auto` calibrates it on validation images."""
    images: Annotated[int, Field(ge=10)] = 500
    """Where the rest of the network must be run again: test images drawn for each neuron, and as many
    of validation."""
    neurons: Annotated[int, Field(gt=0)] | None = None
    """Where the rest must be run again: a sample of so many neurons of a layer; by default all."""
    scores: list[Kind] = Field(default_factory=lambda: list(get_args(Kind)), min_length=1)
    """How simulated activations are scaled: `norm` by validation statistics, `optim` by the line that
    keeps the loss of validation images best."""
    joint: bool = True
    """Also replace all neurons of a layer at once."""
    importance: bool = True
    """Also measure what share of a neuron's effect its highest activations carry."""

    @model_validator(mode="after")
    def _keys_fit_together(self) -> AblationConfig:
        if len(set(self.scores)) < len(self.scores):
            raise ValueError("scores names one twice; name each once")
        if self.temperature == "auto" and self.classes == PREDICTED:
            raise ValueError(
                "temperature 'auto' is fitted to the images' labels, and classes is 'predicted'; give "
                "a number, or name a file in classes"
            )
        return self
