"""The recorder against the raw forward pass of the same models, in the same run, on one device.

    python benchmarks/recording.py [--device cuda] [--images 8192] [--rounds 5] [--results FILE.json]

ResNet-50 (every block, average pooling) and CLIP ViT-B/16 with random weights, 224 px, images already
decoded in memory. `raw` is what a user would write: the model in the same number format and layout and by
the same rules for kernels over batches that lie on the device already, nothing hooked, nothing copied.
`recorder` begins with 8-bit images in main memory and ends with float16 arrays there. Rounds of both
alternate. The agreement of activations between number formats and with the CPU is measured on some of the
images.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch

from actors.allocator import keep_freed_memory
from actors.clip import Clip
from actors.kernels import repeatable
from actors.recorder import ClipPart, Part, Recorder, TargetPart, resolve_dtype
from actors.targets import load_target

LAYERS = {"layer1.*": ("avg",), "layer2.*": ("avg",), "layer3.*": ("avg",), "layer4.*": ("avg",)}


def resnet() -> TargetPart:
    target = load_target("torchvision:resnet50", "random:0")
    names = [
        name
        for name, _ in target.module.named_modules()
        if name.count(".") == 1 and "layer" in name
    ]
    return TargetPart(target, dict.fromkeys(names, ("avg",)))


def vit() -> ClipPart:
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms("ViT-B-16", pretrained=None)
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    return ClipPart(Clip(model, transform, tokenizer, None, None, "ViT-B-16, random"), "vit")


def module_of(part: Part) -> Any:
    """The network of a part, as it was loaded."""
    whole: Any = part.target.module if isinstance(part, TargetPart) else part.clip.model.visual
    return whole.eval()


def raw_seconds(
    module: torch.nn.Module, recorder: Recorder, batches: torch.Tensor, count: int
) -> float:
    """The model alone over `count` images in batches that lie on the device."""
    begun = time.perf_counter()
    with repeatable(fused=True):  # the recorder's own rules, and attention as PyTorch comes
        done = 0
        while done < count:
            for batch in batches:
                module(batch)
                done += len(batch)
                if done >= count:
                    break
    _finish(recorder.device)
    return (time.perf_counter() - begun) * count / done


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def agreement(
    make: Callable[[], Part], views: dict[str, np.ndarray], device: str
) -> dict[str, float]:
    """Least and median correlation per dimension with float32 on the CPU."""
    found = []
    for where, dtype in (("cpu", "float32"), (device, "float32"), (device, "bfloat16")):
        recorded = Recorder([make()], device=where, dtype=dtype).record(views)
        arrays = [*recorded.activations.values(), *recorded.embeddings.values()]
        found.append(np.concatenate([a.astype(np.float64) for a in arrays], axis=1))
    out = {}
    for name, values in (("float32", found[1]), ("bfloat16", found[2])):
        a, b = found[0] - found[0].mean(0), values - values.mean(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            r = (a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0))
        r = r[np.isfinite(r)]
        out[f"{name} median"], out[f"{name} least"] = float(np.median(r)), float(r.min())
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--results", type=Path)
    chosen = parser.parse_args()
    keep_freed_memory()  # for both
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (512, 14, 14, 3), dtype=np.uint8)
    smooth = torch.nn.functional.interpolate(
        torch.from_numpy(coarse).permute(0, 3, 1, 2).float(), size=224, mode="bicubic"
    )
    some = smooth.clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    images = np.concatenate([some] * -(-chosen.images // len(some)))[: chosen.images]
    rows = {}
    for name, make in {"ResNet-50, 16 blocks": resnet, "CLIP ViT-B/16": vit}.items():
        for dtype in ("float32", "bfloat16"):
            part = make()
            plain = module_of(make())
            recorder = Recorder(
                [part], device=chosen.device, dtype=dtype, batch_size=chosen.batch or "auto"
            )
            runner = recorder._runners[0]
            plain.to(
                chosen.device,
                resolve_dtype(chosen.device, dtype),
                memory_format=torch.channels_last,
            )
            key = runner.view.key
            with torch.inference_mode():
                size = runner.batch_size
                batches = torch.stack(
                    [
                        runner._finish(runner._stage(images[k * size : (k + 1) * size]))
                        for k in range(2)
                    ]
                )
            batches = [b.contiguous(memory_format=torch.channels_last) for b in batches]
            recorder.record({key: images[: 2 * size]})
            raw_seconds(plain, recorder, batches, 2 * size)
            rates: dict[str, list[float]] = {"raw": [], "recorder": []}
            for _ in range(chosen.rounds):
                rates["raw"].append(
                    len(images) / raw_seconds(plain, recorder, batches, len(images))
                )
                begun = time.perf_counter()
                recorder.record({key: images})
                rates["recorder"].append(len(images) / (time.perf_counter() - begun))
            medians = {k: statistics.median(v) for k, v in rates.items()}
            rows[f"{name}, {dtype}"] = {
                "batch": size,
                "images per second, sorted": {
                    k: [round(x, 1) for x in sorted(v)] for k, v in rates.items()
                },
                "recorder / raw": round(medians["recorder"] / medians["raw"], 3),
            }
            print(name, dtype, rows[f"{name}, {dtype}"], flush=True)
        rows[f"{name}, agreement with float32 on the CPU"] = agreement(
            make, {key: images[:256]}, chosen.device
        )
        print(rows[f"{name}, agreement with float32 on the CPU"], flush=True)
    facts = {
        "command": f"python benchmarks/recording.py --device {chosen.device} --images {chosen.images}",
        "machine": machine(chosen.device),
        "versions": {name: metadata.version(name) for name in ("torch", "torchvision", "timm")},
        "rows": rows,
    }
    if chosen.results:
        chosen.results.write_text(json.dumps(facts, indent=1) + "\n")


def machine(device: str) -> str:
    """Processor, cores and GPU."""
    gpu = f", {torch.cuda.get_device_name()}" if device.startswith("cuda") else ""
    return f"{platform.machine()}, {os.cpu_count()} cores{gpu}"


if __name__ == "__main__":
    main()
