"""Kernels that give the same bits in every process: chosen by rule, in the number format asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from actors.taps import plain_attention


@contextmanager
def repeatable(fused: bool = False) -> Iterator[None]:
    """No stopwatch chooses a kernel, and float32 is all of float32, whatever else is set.

    A network's own code, or the environment of an image for GPUs, may have asked for TensorFloat-32 or
    bfloat16 inside matrix products of float32.

    Args:
        fused: Let PyTorch's fused attention in: for networks that nothing is ever hooked into.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.inference_mode(),
            nullcontext() if fused else plain_attention(),
            torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=False
            ),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def whole_products(module: nn.Module) -> None:
    """Let linear layers and attention multiply all tokens of a batch by their weights at once.

    Attention hands tokens on transposed, and such are multiplied image by image, each with a copy of the
    weights, unless the weights may need gradients: two to three times as slow on CPUs. No gradient is ever
    taken, since passes run in inference mode.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.MultiheadAttention):
            part.requires_grad_(True)
