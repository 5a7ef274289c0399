"""One number per image and neuron from the output of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from jaxtyping import Float

from core.errors import LayerError

if TYPE_CHECKING:  # configurations know poolings by name, and PyTorch takes seconds to import
    from torch import Tensor

POOLINGS: Final = ("avg", "max", "first", "absmax")

_FITTING: Final = {4: ("avg", "max", "absmax"), 3: POOLINGS, 2: ("avg",)}


def poolings_for(shape: Sequence[int]) -> tuple[str, ...]:
    """The poolings that fit an output of this shape, the batch dimension included.

    Returns:
        A subset of ``POOLINGS``; empty where the output has no dimension of neurons that is known.
    """
    return _FITTING.get(len(shape), ())


def pool(output: Tensor, pooling: str) -> Float[Tensor, "batch neurons"]:
    """Reduce the output of a layer to one activation per image and neuron.

    Args:
        output: ``(batch, neurons, height, width)`` is pooled over space, ``(batch, tokens,
            neurons)`` over tokens, ``(batch, neurons)`` is taken as it is by ``"avg"``.
        pooling: ``"avg"`` mean; ``"max"`` largest value; ``"first"`` the first token;
            ``"absmax"`` the value of largest magnitude, with its sign; of two, the positive one.

    Returns:
        Activations in float32, whatever the type of the output. Means are accumulated in float32.

    Raises:
        LayerError: An unknown pooling, or one that does not fit the shape of the output.
    """
    shape = tuple(output.shape)
    if pooling not in POOLINGS:
        raise LayerError(f"unknown pooling {pooling!r}; expected one of {', '.join(POOLINGS)}")
    if pooling not in poolings_for(shape):
        raise LayerError(_refusal(shape, pooling))
    if len(shape) == 2:
        return output.float()
    if pooling == "first":
        return output[:, 0].float()
    if len(shape) == 3:
        output = output.transpose(1, 2)
    space = tuple(range(2, output.ndim))
    if pooling == "max":
        return output.amax(dim=space).float()
    if pooling == "absmax":
        highest, lowest = output.amax(dim=space), output.amin(dim=space)
        return lowest.where(lowest.neg() > highest, highest).float()
    if output.is_cuda:
        import torch

        return output.mean(dim=space, dtype=torch.float32)
    # On a CPU one layout makes the order of summation independent of memory format and batch size;
    # channels come last, as the networks that compute fastest have them: nothing is transposed.
    return output.flatten(2).transpose(1, 2).float().contiguous().mean(dim=1)


def _refusal(shape: tuple[int, ...], pooling: str) -> str:
    if len(shape) == 2:
        return (
            f"pooling {pooling!r} does not fit an output of shape {shape}: a 2-D output has "
            "nothing to pool; 'avg' takes it as it is"
        )
    if len(shape) == 4:
        return (
            f"pooling {pooling!r} does not fit an output of shape {shape}: it takes the first "
            "token, and a 4-D output has none; use 'avg', 'max' or 'absmax'"
        )
    return (
        f"an output of shape {shape} cannot be pooled; expected (batch, neurons, height, width), "
        "(batch, tokens, neurons) or (batch, neurons); choose another layer"
    )
