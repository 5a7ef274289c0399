"""The README's ways to ask a question of the tables, executed on a small run."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from atlas_planted import Layer, planted

from pipeline.expected import EXPLANATIONS, SCORES
from pipeline.rundir import Run

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("package", ["duckdb", "pandas", "polars"])
def test_every_way_to_ask_for_the_best_predicted_neurons_gives_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    code = next(block for block in BLOCKS if block.startswith(f"import {package}\n"))
    assert len(code.splitlines()) == 3
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install -e '.[dev]'")
    data = planted(layers=(Layer("blocks.1", 24), Layer("conv_head", 40)))
    run = Run(tmp_path / "runs" / "demo")
    run.write(EXPLANATIONS, "explanations.parquet", data.explanations, "made")
    run.write(SCORES, "scores.parquet", data.scores, "made")

    keys = ("layer", "neuron", "explainer")
    concepts = {
        tuple(row[key] for key in keys): row["concepts"]
        for row in data.explanations.to_pylist()
        if row["chosen"]
    }
    scored = [r for r in data.scores.to_pylist() if r["chosen"] and r["simulator"] == "clip-b"]
    scored.sort(key=lambda row: -row["correlation"])
    expected = [
        (r["layer"], r["neuron"], concepts[tuple(r[key] for key in keys)], r["correlation"])
        for r in scored[:10]
    ]
    assert len({row[3] for row in expected}) == 10

    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    found: Any = names["best"]
    if package == "duckdb":
        rows = found.fetchall()
    elif package == "pandas":
        rows = found[["layer", "neuron", "concepts", "correlation"]].itertuples(index=False)
    else:
        rows = found.select("layer", "neuron", "concepts", "correlation").rows()
    assert [(layer, n, list(c), r) for layer, n, c, r in rows] == expected
