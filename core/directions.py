"""Directions of a layer's activation space: what a sparse autoencoder, a probe or a rotation reads there.

A direction's activation is f(w · (x − c) + b), where x is what the layer gives for an image or for one
token of it. With the rows of an autoencoder's encoder for w, f a rectifier or the largest k of them, these
are its latents; with principal axes and no f, principal components.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from core.errors import LayerError
from core.pooling import pool, poolings_for

NONLINEARITIES: Final = ("none", "relu", "topk")

#: Bytes that the activations of all directions on all tokens of some images may take at once.
_AT_ONCE = 1 << 28


@dataclass(frozen=True, slots=True)
class Directions:
    """Some directions of one layer."""

    weight: Float[Tensor, "directions neurons"]
    bias: Float[Tensor, " directions"] | None = None
    """Added to the products; None for zeros."""
    centre: Float[Tensor, " neurons"] | None = None
    """Subtracted from the layer's activations first; None for zeros."""
    nonlinearity: Literal["none", "relu", "topk"] = "none"
    """`relu` keeps positive values, `topk` the k largest positive ones of a token; others are 0."""
    k: int = 0
    """With `topk`: how many directions are active at most."""

    def __post_init__(self) -> None:
        count, neurons = self.weight.shape
        for name, values, size in (("bias", self.bias, count), ("centre", self.centre, neurons)):
            if values is not None and tuple(values.shape) != (size,):
                raise LayerError(
                    f"the {name} of {count:,} directions over {neurons:,} neurons has shape "
                    f"{tuple(values.shape)}, expected ({size},)"
                )
        if self.nonlinearity == "topk" and not 1 <= self.k <= count:
            raise LayerError(f"k is {self.k}, expected 1 to {count}, the number of directions")

    def to(self, device: torch.device) -> Directions:
        """The same directions on a device, in single precision."""

        def there(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.to(device, torch.float32)

        weight = self.weight.to(device, torch.float32)
        return Directions(weight, there(self.bias), there(self.centre), self.nonlinearity, self.k)

    def of(self, activations: Float[Tensor, "... neurons"]) -> Float[Tensor, "... directions"]:
        """Activations of the directions, in float32 whatever the type of the layer's."""
        values = activations.float()
        if self.centre is not None:
            values = values - self.centre
        values = torch.nn.functional.linear(values, self.weight, self.bias)
        if self.nonlinearity == "none":
            return values
        values = values.relu()
        if self.nonlinearity == "relu":
            return values
        highest = values.topk(self.k, dim=-1)
        return torch.zeros_like(values).scatter(-1, highest.indices, highest.values)

    def pooled(
        self, output: Tensor, pooling: str, *, by_token: bool
    ) -> Float[Tensor, "batch directions"]:
        """One activation per image and direction.

        Args:
            output: Of the layer: ``(batch, neurons, height, width)``, ``(batch, tokens, neurons)`` or
                ``(batch, neurons)``.
            pooling: As for neurons, see `core.pooling.pool`.
            by_token: Whether directions are applied to every token or place and then pooled, or to what
                the layer's pooled neurons are.

        Raises:
            LayerError: A pooling that does not fit the shape of the output.
        """
        if not by_token or output.ndim == 2 or pooling == "first":
            return self.of(pool(output, pooling))
        if pooling not in poolings_for(tuple(output.shape)):
            pool(output, pooling)  # says what does not fit
        if output.ndim == 4:
            output = output.flatten(2).transpose(1, 2)
        # Rows by the size of the numbers alone, so that nothing depends on what else is recorded.
        images = max(1, _AT_ONCE // (4 * output.shape[1] * len(self.weight)))
        starts = range(0, len(output), images)
        return torch.cat([pool(self.of(output[n : n + images]), pooling) for n in starts])
