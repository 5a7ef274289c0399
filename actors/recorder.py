"""Running every model of a run over the same images: activations of a target, embeddings of CLIPs.

A recorder holds the models, moved to one device and number format, and maps a shard of views to
what is kept of it. Each image's result depends on that image and model alone: models run in
batches of one fixed size, the last one filled up, so that neither the size of a shard nor the
images beside it nor the other models can change it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float16, Shaped
from torch import Tensor, nn

from actors.clip import Clip
from actors.directions import DirectionSet
from actors.folding import fold_batch_norms
from actors.kernels import repeatable, whole_products
from actors.preprocessing import split_transform
from actors.staging import Staging, arrays_of
from actors.taps import LayerTap
from actors.targets import Target
from actors.views import Preprocess, View
from core.errors import ConfigError, NeuroscribeError, ShapeError

FLOAT16_MAX = 65504.0
"""Largest finite value that activations are stored with."""

AUTO_BATCH = {"cpu": 32, "cuda": 256}
"""Images in one pass. On a CPU more gain nothing, and the last batch is filled up to this size."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_Key = tuple[str, str]

Images = Shaped[np.ndarray, "images a b c"] | Shaped[Tensor, "images a b c"]
"""Images of one view, in main memory or on the recorder's device."""


@dataclass(frozen=True, slots=True)
class TargetPart:
    """The target, and the poolings of each layer to record."""

    target: Target
    layers: Mapping[str, Sequence[str]]
    directions: Sequence[DirectionSet] = ()
    """Directions to record as layers of their own."""


@dataclass(frozen=True, slots=True)
class ClipPart:
    """A vision-language model whose image embeddings are recorded under a name."""

    clip: Clip
    name: str


Part = TargetPart | ClipPart


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is kept of some images; rows are images in the order given."""

    activations: dict[_Key, Float16[np.ndarray, "images neurons"]]
    """By (layer, pooling), in the units of the layer."""
    embeddings: dict[str, Float16[np.ndarray, "images d"]]
    """By name of the model; rows have length 1 up to rounding."""
    overflowed: int
    """Finite activations beyond ±65504, which were stored as ±65504."""


def resolve_dtype(device: str | torch.device, dtype: str = "auto") -> torch.dtype:
    """The number format that a model runs in.

    Args:
        device: Where it runs.
        dtype: ``auto``, ``float32``, ``bfloat16`` or, on a GPU, ``float16``. ``auto`` is bfloat16
            where the processor multiplies such numbers itself, and float32 elsewhere.

    Raises:
        ConfigError: Another name, or float16 on a CPU, which computes in it slowly if at all.
    """
    on_gpu = torch.device(device).type == "cuda"
    if dtype == "float16" and not on_gpu:
        raise ConfigError("dtype 'float16' is for GPUs; use 'auto', 'float32' or 'bfloat16' here")
    if dtype in _DTYPES:
        return _DTYPES[dtype]
    if dtype != "auto":
        raise ConfigError(f"unknown dtype {dtype!r}; expected auto, {' or '.join(_DTYPES)}")
    if on_gpu:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = _cpu_has_bfloat16()
    return torch.bfloat16 if native else torch.float32


class Recorder:
    """Maps the views of images to activations and embeddings."""

    def __init__(
        self,
        parts: Sequence[Part],
        device: str | torch.device = "cpu",
        dtype: str = "auto",
        batch_size: int | Literal["auto"] = "auto",
        compiled: bool = False,
    ) -> None:
        """Take over the models: they are moved and converted in place.

        Args:
            parts: At most one target, and CLIPs of different names.
            device: ``cpu``, ``cuda`` or ``cuda:N``.
            dtype: See `resolve_dtype`.
            batch_size: Images in one pass; ``auto`` is 32 on a CPU and 256 on a GPU, halved for as
                long as the GPU's memory does not suffice.
            compiled: Compile the passes: a minute or more for each model before its first batch, and
                faster ever after. Activations are those of fused kernels, which round less often.

        Raises:
            ConfigError: Two targets, two CLIPs of one name, or an impossible device or batch size.
            LayerError: The target has no such layer.
        """
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                f"device {str(device)!r} is not there: PyTorch sees no GPU; use 'cpu'"
            )
        if batch_size != "auto" and batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}, expected 'auto' or at least 1")
        _check_names(parts)
        self.dtype = resolve_dtype(self.device, dtype)
        self._halving = batch_size == "auto"
        if batch_size == "auto":
            batch_size = AUTO_BATCH[self.device.type]
        self._runners = [
            _Runner(part, self.device, self.dtype, batch_size, compiled) for part in parts
        ]

    @property
    def views(self) -> dict[str, View]:
        """What the images must be laid out for, by key."""
        return {runner.view.key: runner.view for runner in self._runners}

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of all models, in the number format that they run in."""
        states = (runner.module.state_dict() for runner in self._runners)
        return sum(v.numel() * v.element_size() for state in states for v in state.values())

    @property
    def batch_size(self) -> int:
        """Images in one pass: of all models the fewest, halved where memory ran out."""
        return min(runner.batch_size for runner in self._runners)

    def record(self, views: Mapping[str, Images]) -> Recorded:
        """Run all models over some images.

        Args:
            views: For every key of `views`, the images as `View.apply` lays them out, stacked: arrays,
                or tensors on the recorder's device, which then stay there.

        Returns:
            Activations and embeddings in the order of the images.

        Raises:
            ShapeError: A view is missing, has another shape, or has another number of images.
        """
        self._check(views)
        activations: dict[_Key, Float16[np.ndarray, "images neurons"]] = {}
        embeddings: dict[str, Float16[np.ndarray, "images d"]] = {}
        overflowed = 0
        for runner in self._runners:
            with repeatable(runner.fused):
                results, beyond = self._run(runner, views[runner.view.key])
            overflowed += beyond
            for key, values in results.items():
                if isinstance(runner.part, ClipPart):
                    embeddings[runner.part.name] = values
                else:
                    activations[key] = values
        return Recorded(activations, embeddings, overflowed)

    def _run(
        self, runner: _Runner, images: Images
    ) -> tuple[dict[_Key, Float16[np.ndarray, "images width"]], int]:
        while True:
            try:
                return runner.run(images)
            except torch.cuda.OutOfMemoryError:
                # The shard starts again, so that all of its batches have one size.
                if not self._halving or runner.batch_size == 1:
                    raise
                runner.batch_size //= 2
            torch.cuda.empty_cache()

    def _check(self, views: Mapping[str, Images]) -> None:
        counts = set()
        for key, view in self.views.items():
            if key not in views:
                raise ShapeError(f"the view {key!r} is missing; given are {sorted(views)}")
            counts.add(len(views[key]))
            if (shape := tuple(views[key].shape[1:])) != view.shape:
                raise ShapeError(
                    f"images of the view {key!r} have shape {shape}, expected {view.shape}"
                )
        if len(counts) > 1:
            raise ShapeError(f"the views have different numbers of images: {sorted(counts)}")


class _Runner:
    """One model with its preprocessing, on its device."""

    def __init__(
        self,
        part: Part,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int,
        compiled: bool,
    ) -> None:
        self.part = part
        self.device = device
        self.dtype = dtype
        self.batch_size = batch_size
        #: Of a target layers are hooked, and what one records must not depend on which.
        self.fused = isinstance(part, ClipPart) and not compiled
        self._checked = False
        self._staging: Staging | None = None
        transform = part.target.transform if isinstance(part, TargetPart) else part.clip.transform
        self.preprocess: Preprocess = split_transform(transform)
        module: Any = part.target.module if isinstance(part, TargetPart) else part.clip.model.visual
        module.eval().requires_grad_(False)
        whole_products(module)
        fold_batch_norms(module, _layers_of(part))
        module.to(device=device, dtype=dtype, memory_format=torch.channels_last)
        self.module: nn.Module = module
        if isinstance(part, TargetPart):
            there = [replace(d, directions=d.directions.to(device)) for d in part.directions]
            self._tap = LayerTap(module, part.layers, there)
        self._compiled = self._compile() if compiled else None

    @property
    def view(self) -> View:
        return self.preprocess.view

    def run(self, images: Images) -> tuple[dict[_Key, Float16[np.ndarray, "images width"]], int]:
        """Results of all images by key, and how many values did not fit."""
        count = len(images)
        if count == 0:  # the widths of the results are known only from a pass
            kind = np.float32 if self.view.whole else np.uint8
            results, _ = self.run(np.zeros((1, *self.view.shape), kind))
            return {key: values[:0] for key, values in results.items()}, 0
        kept: dict[_Key, list[Tensor]] = {}
        beyond = torch.zeros((), dtype=torch.int64, device=self.device)
        forward = self._embed if isinstance(self.part, ClipPart) else self._activations
        starts = range(0, count, self.batch_size)
        upcoming = self._stage(images[: self.batch_size])
        for start in starts:
            chunk = images[start : start + self.batch_size]
            outputs = forward(self._finish(upcoming))
            if start != starts[-1]:  # laid out and copied while the device computes
                following = start + self.batch_size
                upcoming = self._stage(images[following : following + self.batch_size])
            for key, values in outputs.items():
                if len(values) != self.batch_size:
                    raise ShapeError(
                        f"{key[0]!r} gives {len(values)} rows for {self.batch_size} images, "
                        "expected one an image; choose another layer"
                    )
                stored, lost = to_float16(values[: len(chunk)])
                kept.setdefault(key, []).append(stored)
                beyond += lost
        return arrays_of({key: torch.cat(rows) for key, rows in kept.items()}), int(beyond)

    def _stage(self, chunk: Images) -> Tensor:
        """A batch of the full size on the device; rows beyond the images repeat the first one."""
        missing = self.batch_size - len(chunk)
        if isinstance(chunk, Tensor):
            chunk = chunk.to(self.device)
            return torch.cat([chunk, chunk[:1].expand(missing, *chunk.shape[1:])])
        if self.device.type != "cuda":
            return torch.from_numpy(np.concatenate([chunk, np.repeat(chunk[:1], missing, axis=0)]))
        shape = (self.batch_size, *chunk.shape[1:])
        if self._staging is None or self._staging.shape != shape:
            self._staging = Staging(shape, torch.from_numpy(chunk[:1]).dtype, self.device)
        return self._staging.to_device(chunk)

    def _finish(self, batch: Tensor) -> Tensor:
        """A staged batch as the model takes it."""
        if self._staging is not None:
            self._staging.wait_for(batch)
        batch = self.preprocess.normalise(batch)
        return batch.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def _activations(self, batch: Tensor) -> dict[_Key, Tensor]:
        with self._tap:
            if self._compiled is None or not self._checked:
                # The first pass runs to its end, so that a layer which runs twice is noticed.
                pooled = self._tap.run(batch, stop_early=self._checked)
                self._checked = True
            if self._compiled is not None:
                pooled = self._through_compiled(batch)
        return pooled

    def _embed(self, batch: Tensor) -> dict[_Key, Tensor]:
        return self._embedded(batch) if self._compiled is None else self._through_compiled(batch)

    def _embedded(self, batch: Tensor) -> dict[_Key, Tensor]:
        assert isinstance(self.part, ClipPart)
        return {("", ""): self.part.clip.encode_images(batch)}

    def _compile(self) -> Callable[[Tensor], dict[_Key, Tensor]]:
        """The pass as one function of a batch, compiled when it is first called."""
        # Of a target nothing after the last layer is computed, since nothing depends on it.
        of_target = isinstance(self.part, TargetPart)
        run: Any = self._tap.run if of_target else self._embedded
        # Kernels of sums by rule: a stopwatch would choose another order in another process.
        known = hasattr(import_module("torch._inductor.config"), "deterministic")
        options: Any = {"deterministic": True} if known else {}
        compiled: Any = torch.compile(run, dynamic=False, options=options)
        through: Callable[[Tensor], dict[_Key, Tensor]] = compiled
        return through

    def _through_compiled(self, batch: Tensor) -> dict[_Key, Tensor]:
        assert self._compiled is not None
        try:
            return self._compiled(batch)
        except (torch.cuda.OutOfMemoryError, NeuroscribeError):
            raise
        except Exception as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), "")
            raise ConfigError(
                f"the pass of {self._name!r} cannot be compiled here ({type(error).__name__}: {reason}); "
                "a C++ compiler is needed on CPUs and Triton on GPUs; set recordings.compile to false"
            ) from error

    @property
    def _name(self) -> str:
        part = self.part
        return part.target.name if isinstance(part, TargetPart) else part.clip.name


def _layers_of(part: Part) -> set[str]:
    """Layers whose own outputs are recorded."""
    if isinstance(part, ClipPart):
        return set()
    return {*part.layers, *(some.layer for some in part.directions)}


def to_float16(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values as they are stored, and how many finite ones had to be clipped to ±65504.

    Infinite values and NaN stay what they are.
    """
    beyond = values.isfinite() & (values.abs() > FLOAT16_MAX)
    clipped = torch.where(beyond, values.clamp(-FLOAT16_MAX, FLOAT16_MAX), values)
    return clipped.to(torch.float16), beyond.sum()


def _check_names(parts: Sequence[Part]) -> None:
    names = [part.name for part in parts if isinstance(part, ClipPart)]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ConfigError(f"two models are called {repeated[0]!r}; give each a name of its own")
    targets = len(parts) - len(names)
    if targets > 1:
        raise ConfigError(f"{targets} targets were given, expected one; make a run for each")


def _cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 numbers itself (AVX-512 BF16 or AMX)."""
    probes: list[Callable[[], bool]] = [
        getattr(torch.cpu, name)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        if hasattr(torch.cpu, name)
    ]
    return any(probe() for probe in probes)
