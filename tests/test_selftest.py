"""The self-test: it passes here, and it can fail."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.cli import main
from pipeline.rundir import Run
from pipeline.selftest import checks


def test_the_selftest_passes_and_notices_tables_that_are_wrong(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["selftest", "--out", str(tmp_path)]) == 0
    assert "finds the truth" in capsys.readouterr().out
    run = Run.open(tmp_path / "run")
    table = run.read("explanations")
    rotated = table["concepts"].take(pa.array([*range(20, len(table)), *range(20)]))
    place = table.column_names.index("concepts")
    wrong = table.set_column(place, "concepts", rotated)
    run.write("explanations", "explanations.parquet", wrong, "0" * 24)
    assert not all(check.passed for check in checks(run))
