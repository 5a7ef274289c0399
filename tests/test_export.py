"""Exported explanations, as `score` reads them, against the tables; the questions of docs/results.md."""

from __future__ import annotations

import csv
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from atlas_planted import Layer, planted

from core.errors import ConfigError
from pipeline.cli import main
from pipeline.expected import ABLATIONS, EXPLANATIONS, SCORES, SHARPNESS
from pipeline.export import PLACES, export_csv
from pipeline.external import read_explanations
from pipeline.rundir import Run
from pipeline.storage import Folder
from pipeline.targets import Column

DOCS = Path(__file__).resolve().parents[1] / "docs" / "results.md"
LAYERS = (Layer("conv1", 9), Layer("fc.1", 30, "avg"), Layer("fc.1", 30, "max"))
SIMULATORS = ("clip-b", "explainer")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Planted explanations with difficult texts, two poolings of a layer, and ablations of one layer."""
    data = planted(layers=LAYERS, hostile=True, longest=12, simulators=SIMULATORS)
    run = Run(tmp_path_factory.mktemp("export") / "run")
    run.write(EXPLANATIONS, "explanations.parquet", data.explanations, "made")
    run.write(SCORES, "scores.parquet", data.scores, "made")
    run.write(SHARPNESS, "sharpness.parquet", data.sharpness, "made")
    ablated = [
        {"layer": "conv1", "pooling": "avg", "neuron": row["neuron"], "explainer": "clip"}
        | {"simulator": simulator, "kind": kind, "score": score + row["neuron"] / 8}
        for row in chosen(run)
        if (row["layer"], row["explainer"], row["status"]) == ("conv1", "clip", "ok")
        for simulator, score in (("clip-b", 0.0), ("explainer", 9.0))
        for kind in ("norm", "optim")
    ]
    run.write(ABLATIONS, "ablations.parquet", pa.Table.from_pylist(ablated), "made")
    return run


@pytest.fixture(scope="module")
def files(run: Run) -> list[str]:
    return export_csv(run, Folder(run.folder.path("export")))


def chosen(run: Run) -> list[dict[str, Any]]:
    table = run.read(EXPLANATIONS)
    rows: list[dict[str, Any]] = table.filter(table["chosen"]).to_pylist()
    return rows


def columns(run: Run) -> list[Column]:
    table = run.read(EXPLANATIONS).group_by(["layer", "pooling"]).aggregate([("neuron", "max")])
    return [Column(r["layer"], r["pooling"], r["neuron_max"] + 1) for r in table.to_pylist()]


def records(path: str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def of_file(run: Run, path: str) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Lines of a file with the rows of the table that they are about."""
    lines = records(path)
    explainer = Path(path).name.partition(".")[0]
    rows = [
        row
        for row in chosen(run)
        if (row["layer"], row["pooling"], row["explainer"])
        == (lines[0]["layer"], lines[0]["pooling"], explainer)
    ]
    return zip(lines, rows, strict=True)


def test_there_is_a_file_for_every_layer_pooling_and_explainer(run: Run, files: list[str]) -> None:
    groups = {(r["explainer"], r["layer"], r["pooling"]) for r in chosen(run)}
    assert len(files) == len(set(files)) == len(groups) == 8
    assert {Path(path).parent for path in files} == {Path(run.folder.path("export"))}
    named = {Path(path).name for path in files}
    assert {"clip.conv1.avg.csv", "clip.fc.1.max.csv", "attributes.fc.1.avg.csv"} <= named
    seen = {
        (Path(p).name.partition(".")[0], *map(records(p)[0].get, ("layer", "pooling")))
        for p in files
    }
    assert seen == groups


def test_score_reads_back_the_same_concepts_weights_bias_and_sharpness(
    run: Run, files: list[str]
) -> None:
    chosen_here = {
        (row["explainer"], row["layer"], row["pooling"]): (row["factor"], row["shift"])
        for row in run.read(SHARPNESS).to_pylist()
        if row["chosen"]
    }
    assert len({*chosen_here.values()}) > 1
    assert any(shift for _, shift in chosen_here.values())
    read = 0
    for path in files:
        table, without = read_explanations(path, columns(run))
        rows = [row for _, row in of_file(run, path)]
        ok = [row for row in rows if row["status"] == "ok"]
        assert without == len(rows) - len(ok) > 0
        for name in ("layer", "pooling", "neuron", "concepts", "weights", "bias"):
            assert table[name].to_pylist() == [row[name] for row in ok]
        about = (ok[0]["explainer"], ok[0]["layer"], ok[0]["pooling"])
        told = zip(table["sharpness"].to_pylist(), table["shift"].to_pylist(), strict=True)
        assert set(told) == {chosen_here[about]}
        read += table.num_rows
    assert read == sum(row["status"] == "ok" for row in chosen(run))


def test_places_that_are_not_needed_hold_zero_as_in_the_authors_files(
    run: Run, files: list[str]
) -> None:
    lengths = []
    for path in files:
        for line, row in of_file(run, path):
            places = [int(name[7:]) for name in line if re.fullmatch(r"concept\d+", name)]
            length = len(row["concepts"])
            lengths.append(length)
            assert places == list(range(len(places)))
            assert len(places) >= max(PLACES, length)
            for place in places[length:]:
                assert (line[f"weight{place}"], line[f"concept{place}"]) == ("0.0", "0")
    assert min(lengths) == 0


def test_correlations_are_those_of_the_table_of_scores_by_every_simulator(
    run: Run, files: list[str]
) -> None:
    names = ("layer", "pooling", "neuron", "explainer", "simulator")
    scores = {
        tuple(row[name] for name in names): row
        for row in run.read(SCORES).to_pylist()
        if row["chosen"]
    }
    compared = 0
    for path in files:
        for line, row in of_file(run, path):
            val = row["val_correlation"]
            assert line["val correlation"] == ("" if val is None else repr(val))
            for simulator in SIMULATORS:
                score = scores.get((*(row[name] for name in names[:4]), simulator), {})
                for what in ("correlation", "ci_low", "ci_high"):
                    value = score.get(what)
                    assert line[f"{what} {simulator}"] == ("" if value is None else repr(value))
                    compared += value is not None
            assert line["sim correlation"] == line["correlation clip-b"]
    assert compared > 100


def test_ablation_scores_are_those_by_the_first_simulator(run: Run, files: list[str]) -> None:
    found = 0
    for path in files:
        for line, row in of_file(run, path):
            known = (row["layer"], row["explainer"], row["status"]) == ("conv1", "clip", "ok")
            for kind in ("optim", "norm"):
                expected = repr(row["neuron"] / 8) if known else ""
                assert line[f"sim ablation({kind})"] == expected
            found += known
    assert found > 0


def test_a_bias_that_is_not_finite_is_left_empty_and_does_not_spoil_the_file(
    tmp_path: Path, run: Run
) -> None:
    table = run.read(EXPLANATIONS)
    table = table.filter(pc.equal(table["layer"], "conv1"))
    failed = pc.equal(table["status"], "failed")
    assert pc.any(failed).as_py()
    bias = pc.if_else(failed, float("nan"), table["bias"])
    other = Run(tmp_path)
    place = table.column_names.index("bias")
    other.write(EXPLANATIONS, "explanations.parquet", table.set_column(place, "bias", bias), "made")
    other.write(SHARPNESS, "sharpness.parquet", run.read(SHARPNESS), "made")
    for path in export_csv(other, Folder(tmp_path / "out")):
        assert "sim correlation" not in records(path)[0], "this run has no scores yet"
        assert read_explanations(path, columns(other))[1] == 4


def test_the_command_writes_beside_the_tables_and_prints_the_files(
    tmp_path: Path, run: Run, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", run.folder.url, "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines() == files
    assert main(["export", run.folder.url, "--out", f"file://{tmp_path}/there"]) == 0
    for there, here in zip(capsys.readouterr().out.splitlines(), files, strict=True):
        assert Path(there.removeprefix("file://")).read_bytes() == Path(here).read_bytes()


def test_what_cannot_be_exported_ends_with_code_2(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err
    empty = Run(tmp_path / "empty")
    empty.write(SCORES, "scores.parquet", run.read(SCORES), "made")
    with pytest.raises(ConfigError, match="has no explanations yet"):
        export_csv(empty, Folder(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="expected a folder"):
        export_csv(run, Folder(tmp_path / "file"))


# docs/results.md --------------------------------------------------------------------------------

BLOCKS = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("package", ["duckdb", "pandas", "polars"])
def test_every_way_to_ask_the_question_of_the_documents_gives_its_answer(
    run: Run, package: str
) -> None:
    code = next(block for block in BLOCKS if block.startswith(f"import {package}\n"))
    assert len(code.splitlines()) <= 3
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    totals: dict[str, list[float]] = {}
    for row in chosen(run):
        if (row["layer"], row["explainer"]) == ("conv1", "clip"):
            for concept, share in zip(row["concepts"], row["shares"], strict=True):
                totals.setdefault(concept, []).append(share)
    expected = sorted(((c, len(s), sum(s)) for c, s in totals.items()), key=lambda e: -e[2])[:20]
    names = {"RUN": run.folder.url, "LAYER": "conv1", "EXPLAINER": "clip"}
    exec(code, names)
    found: Any = names["found"]
    if package == "pandas":
        found = list(found.itertuples(index=False, name=None))
    elif package == "polars":
        found = found.rows()
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    assert [row[2] for row in found] == pytest.approx([row[2] for row in expected])
