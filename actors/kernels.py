"""Kernels that give the same bits in every process: chosen by rule, in the number format asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from actors.taps import plain_attention


@contextmanager
def repeatable() -> Iterator[None]:
    """No stopwatch chooses a kernel, and float32 is all of float32, whatever else is set.

    A network's own code, or the environment of an image for GPUs, may have asked for TensorFloat-32 or
    bfloat16 inside matrix products of float32.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.inference_mode(),
            plain_attention(),
            torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=False
            ),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
