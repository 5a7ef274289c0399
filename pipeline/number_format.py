"""The number format that models run in: as asked for, or the fastest whose activations are those of float32.

`auto` asks two things. Which short format the processor multiplies itself is a fact of the machine. Whether
the target's activations survive it is measured, on some of the run's own images: where the median neuron of
any layer agrees less than `ENOUGH`, the run is in float32. A run keeps what was chosen, so that it goes on
in the same format when images are added; other layers, which are recorded anew, are asked anew.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import ray
from jaxtyping import Float16

from actors.decode import Decoder
from actors.recorder import AUTO_BATCH, Recorder, resolve_dtype
from pipeline.columns import activation_column
from pipeline.engine import Workers, remote_task
from pipeline.fetching import fetch
from pipeline.fingerprints import fingerprint
from pipeline.loading import target_part
from pipeline.log import say
from pipeline.plan import Plan, TargetPlan
from pipeline.rundir import Run
from pipeline.sources_parquet import ParquetRows
from pipeline.stream import own_error

#: Median agreement below which `auto` is float32, and plans advise it.
ENOUGH = 0.99

#: Images that a format is tried on, and how many of them a CPU takes at a time.
TRIED, CPU_BATCH = 32, 16

FILE = "number_format.json"


@dataclass(frozen=True)
class FormatTrial:
    """A number format beside float32, on the same images."""

    dtype: str
    times_as_fast: float
    images: int
    layer: str
    """Column of activations that agrees least."""
    median: float
    """Correlation with float32 of its median neuron."""
    least: float
    """The same of its neuron that agrees least."""


def number_format(run: Run, plan: Plan, workers: Workers) -> str:
    """The format that a run records in; what `auto` chose for it, chosen now if it has not been yet.

    Raises:
        ConfigError: A format that such workers do not compute in.
    """
    asked = plan.config.target.dtype
    if asked != "auto":
        return _name(workers.device, asked)
    layers = list(plan.target.layers)
    made = fingerprint("number format", plan.target.fingerprint, layers, workers.device)
    kept = run.folder.read_json(FILE)
    if kept and kept["made"] == made:
        return str(kept["dtype"])
    # A driver on a cluster has other processors than those that record; a GPU is for workers alone.
    if workers.gpus or plan.config.ray.address is not None:
        task = remote_task(choose_format, workers.gpus, num_cpus=1)
        try:
            chosen = ray.get(task.remote(*_trial_of(plan, workers.device)))
        except ray.exceptions.RayTaskError as error:
            raise own_error(error) from None
    else:
        chosen = choose_format(*_trial_of(plan, workers.device))
    dtype: str = chosen[0]
    trial: FormatTrial | None = chosen[1]
    if trial is None:
        return dtype
    agreement = asdict(trial)
    del agreement["times_as_fast"]  # a measurement of the moment
    run.folder.write_json(FILE, {"made": made, "dtype": dtype, "agreement": agreement})
    text = f"number format: {dtype}; {format_note(trial)}"
    say(text, "number_format", dtype=dtype, median=trial.median, least=trial.least)
    return dtype


def tried_format(plan: Plan, device: str) -> tuple[str, FormatTrial | None]:
    """What `number_format` would say on this machine, and how the format that was tried did."""
    if plan.config.target.dtype == "auto":
        return choose_format(*_trial_of(plan, device))
    dtype = _name(device, plan.config.target.dtype)
    return dtype, None if dtype == "float32" else try_format(*_trial_of(plan, device), dtype)


def choose_format(
    target: TargetPlan, rows: Sequence[dict[str, Any]], device: str, batch_size: int
) -> tuple[str, FormatTrial | None]:
    """What `auto` stands for here, and the trial that says so; none where float32 is all there is.

    Args:
        target: The network.
        rows: Rows of the index, of the images to try.
        device: Where models record, `cpu` or `cuda`.
        batch_size: Images in one pass.
    """
    native = _name(device, "auto")
    if native == "float32":
        return native, None
    trial = try_format(target, rows, device, batch_size, native)
    return native if trial is None or trial.median >= ENOUGH else "float32", trial


def try_format(
    target: TargetPlan, rows: Sequence[dict[str, Any]], device: str, batch_size: int, dtype: str
) -> FormatTrial | None:
    """A format beside float32 on images; None where no image can be used or no neuron varies."""
    view = target.preprocess.view
    with closing(ParquetRows()) as opened:
        decoded = Decoder({view.key: view}, partial(fetch, rows=opened))(rows)
    pixels = [views[view.key] for reason, views in decoded if reason is None]
    if not pixels:
        return None
    images = np.stack(pixels)
    found, seconds = {}, {}
    for name in (dtype, "float32"):
        recorder = Recorder([target_part(target)], device=device, dtype=name, batch_size=batch_size)
        pieces = [images[at : at + batch_size] for at in range(0, len(images), batch_size)]
        if len(pieces) == 1:  # once more, since the first lays out memory and chooses kernels
            recorder.record({view.key: pieces[0]})
        parts = []
        for some in pieces:
            begun = time.perf_counter()
            parts.append(recorder.record({view.key: some}).activations)
        seconds[name] = time.perf_counter() - begun  # of the last
        found[name] = {
            activation_column(*key): np.concatenate([part[key] for part in parts])
            for key in parts[0]
        }
        del recorder
    return compare_formats(
        dtype, seconds["float32"] / seconds[dtype], found[dtype], found["float32"]
    )


def compare_formats(
    dtype: str,
    times_as_fast: float,
    short: Mapping[str, Float16[np.ndarray, "images neurons"]],
    full: Mapping[str, Float16[np.ndarray, "images neurons"]],
) -> FormatTrial | None:
    """How well activations agree with those in float32.

    Args:
        dtype: The shorter format.
        times_as_fast: Its rate by that of float32.
        short: Activations in it, by column.
        full: The same in float32.

    Returns:
        The column of which the median neuron agrees least; None where no neuron varies.
    """
    found = []
    for name in short:
        agreed = _correlations(short[name], full[name])
        if agreed.size:
            median, least = float(np.median(agreed)), float(agreed.min())
            found.append(FormatTrial(dtype, times_as_fast, len(short[name]), name, median, least))
    return min(found, key=lambda trial: trial.median, default=None)


def format_note(trial: FormatTrial) -> str:
    """The comparison in words."""
    said = (
        f"the target in {trial.dtype} is {trial.times_as_fast:.1f} times as fast as in float32 here; on "
        f"{trial.images} images its activations agree with float32 at {trial.median:.3f} (the median "
        f"neuron of {trial.layer}, where they agree least; its least neuron: {trial.least:.3f})"
    )
    if trial.median >= ENOUGH:
        return said
    return f"{said}, less than {ENOUGH}: float32 is the safer choice, and what `dtype: auto` takes"


def _trial_of(plan: Plan, device: str) -> tuple[TargetPlan, list[dict[str, Any]], str, int]:
    """The network, images that are evenly spread, the device and the size of a batch."""
    largest = CPU_BATCH if device == "cpu" else AUTO_BATCH[device]
    wanted = plan.config.target.batch_size
    size = largest if wanted == "auto" else min(wanted, largest)
    return plan.target, plan.index.spread(TRIED), device, size


def _name(device: str, dtype: str) -> str:
    return str(resolve_dtype(device, dtype)).removeprefix("torch.")


def _correlations(
    short: Float16[np.ndarray, "images neurons"], full: Float16[np.ndarray, "images neurons"]
) -> np.ndarray:
    """Pearson correlation of each neuron that varies in float32; 0 where it does not in the other."""
    x, y = (v.astype(np.float64) - v.mean(0, dtype=np.float64) for v in (short, full))
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (x * y).sum(0) / np.sqrt((x * x).sum(0) * (y * y).sum(0))
    varies = np.isfinite(full).all(0) & (full != full[:1]).any(0)
    out: np.ndarray = np.nan_to_num(r[varies])
    return out
