"""`examples/explore.ipynb`: executed from its first cell to its last on a small run."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
from planted_cells import finished_run

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "examples" / "explore.ipynb"

for needed in ("nbformat", "nbclient", "ipykernel"):
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed: pip install -e '.[dev]'", allow_module_level=True)


def read() -> Any:
    import nbformat

    return nbformat.read(NOTEBOOK, as_version=4)


def test_cells_are_short_and_kept_without_what_they_printed() -> None:
    for cell in read().cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 5
            assert cell.outputs == []
            assert cell.execution_count is None


def test_every_cell_runs_and_shows_what_the_tables_hold(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed: pip install -e '.[bench]'")
    from nbclient import NotebookClient

    run = finished_run(tmp_path_factory)
    notebook = read()
    parameters = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    assert len(parameters) == 1
    parameters[0].source = f"RUN, OTHER = {run.folder.url!r}, {str(tmp_path / 'other')!r}"
    # The network of the run is defined beside this test.
    paths = [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()

    shown = {
        cell.source: "".join(
            output.get("text", "") or output.get("data", {}).get("text/plain", "")
            for output in cell.outputs
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
    }

    def of(code: str) -> str:
        return next(text for source, text in shown.items() if code in source)

    assert "'explanations'" in of("run.tables")
    best = max(
        (row for row in run.read("scores").to_pylist() if row["chosen"]),
        key=lambda row: row["correlation"] or -1,
    )
    assert f"{best['layer']}:{best['neuron']} by {best['explainer']} = " in of("idxmax")
    assert "·concept" in of("run.search")
    assert "ci_low" in of("run.score")
    assert "changed" in of("run.diff") or "same" in of("run.diff")
    pictures = sum(
        "image/png" in output.get("data", {})
        for cell in notebook.cells
        for output in cell.get("outputs", ())
    )
    assert pictures == 2
