"""Explanations from elsewhere: every layout that is read, every fault that is named, and their scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import planted_cells
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from planted_cells import MODELS, NEURONS, OWNER, WORDS, stored
from scipy.special import expit

from actors.clip import load_clip
from core.errors import ConfigError, UsageError
from pipeline.cli import main
from pipeline.config import parse_config
from pipeline.expected import expect
from pipeline.external import EXTERNAL_SCHEMA, read_explanations
from pipeline.planning import prepare
from pipeline.planted import NAMES
from pipeline.rundir import Run
from pipeline.score import (
    METHOD_SCORE_SCHEMA,
    Scored,
    external_scores,
    score_file,
    scored_lines,
)
from pipeline.targets import Column

COLUMNS = [
    Column("layer1", "avg", 8),
    Column("features.43", "avg", 4),
    Column("layer4", "avg", 16),
    Column("layer4", "max", 16),
]

LISTS = """layer,neuron,concepts,weights,bias
layer1,0,"[""dog, wild"", ""cat""]","[1.5, -0.25]",0.5
layer1,3,"['grass']",[2],
"""
AUTHORS = """layer,unit,val correlation,weight0,concept0,weight1,concept1,weight2,concept2,bias
layer1,0,0.44,1.5,"dog, wild",-0.25,cat,0.0,0,0.5
layer1,3,0.31,2,grass,0.0,0,0,0,0
"""


def written(folder: Path, text: str, name: str = "theirs.csv") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def faults(folder: Path, text: str, layer: str | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        read_explanations(written(folder, text), COLUMNS, layer)
    return str(caught.value)


def terms(table: pa.Table) -> list[tuple[object, ...]]:
    names = ("layer", "neuron", "concepts", "weights", "bias")
    return [tuple(row[name] for name in names) for row in table.to_pylist()]


# Layouts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [LISTS, AUTHORS], ids=["lists", "numbered columns"])
def test_weighted_sums_are_read_alike_from_lists_and_from_numbered_columns(
    tmp_path: Path, text: str
) -> None:
    table, without = read_explanations(written(tmp_path, text), COLUMNS)
    assert table.schema == EXTERNAL_SCHEMA
    assert without == 0
    assert terms(table) == [
        ("layer1", 0, ["dog, wild", "cat"], [1.5, -0.25], 0.5),
        ("layer1", 3, ["grass"], [2.0], 0.0),
    ]


def test_parquet_lists_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "theirs.parquet"
    content = {"layer": ["layer1"], "neuron": [2], "concepts": [["a", "b"]], "weights": [[1, 2.5]]}
    pq.write_table(pa.table(content), path)
    table, _ = read_explanations(str(path), COLUMNS)
    assert terms(table) == [("layer1", 2, ["a", "b"], [1.0, 2.5], 0.0)]


@pytest.mark.parametrize(
    "text",
    [
        "layer,unit,description\nlayer1,7,striped objects\n",  # MILAN
        "layer,unit,description,similarity\nlayer1,7,striped objects,0.2\n",  # CLIP-Dissect
        "unit,category,label,score,layer\n7,part,striped objects,0.01,layer1\n",  # Network Dissection
        "\ufeffLayer, Neuron ,Explanation\n\nlayer1,7.0, striped objects \n",
        "layer,neuron,concept\r\nlayer1,7,striped objects\r\n",
    ],
)
def test_one_description_a_neuron_is_read_under_the_names_that_are_in_use(
    tmp_path: Path, text: str
) -> None:
    table, _ = read_explanations(written(tmp_path, text, "MILAN base.csv"), COLUMNS)
    assert terms(table) == [("layer1", 7, ["striped objects"], [1.0], 0.0)]
    assert table["method"].to_pylist() == ["MILAN-base"]


def test_an_index_in_brackets_is_the_name_of_the_module(tmp_path: Path) -> None:
    text = "layer,unit,description\nfeatures[43],1,sea\n"
    assert (
        read_explanations(written(tmp_path, text), COLUMNS)[0]["layer"][0].as_py() == "features.43"
    )


def test_a_layer_can_be_picked_from_a_file_or_given_for_one_that_names_none(tmp_path: Path) -> None:
    many = "layer,unit,description\nconv1,0,lines\nlayer1,2,dots\nlayer1,99,far\n".replace(
        "99", "3"
    )
    picked, _ = read_explanations(written(tmp_path, many), COLUMNS, "layer1")
    assert picked["neuron"].to_pylist() == [2, 3]
    bare, _ = read_explanations(written(tmp_path, "unit,description\n2,dots\n"), COLUMNS, "layer1")
    assert terms(bare) == [("layer1", 2, ["dots"], [1.0], 0.0)]
    only, _ = read_explanations(written(tmp_path, "unit,description\n2,dots\n"), COLUMNS[:1])
    assert only["layer"].to_pylist() == ["layer1"]


def test_methods_and_poolings_tell_several_explanations_of_a_neuron_apart(tmp_path: Path) -> None:
    text = "layer,pooling,neuron,description,method\n"
    text += "layer4,avg,1,a,one\nlayer4,max,1,a,one\nlayer4,max,1,b,two\n"
    table, _ = read_explanations(written(tmp_path, text), COLUMNS)
    assert list(zip(*(table[n].to_pylist() for n in ("pooling", "method")), strict=True)) == [
        ("avg", "one"),
        ("max", "one"),
        ("max", "two"),
    ]


def test_rows_without_any_concept_are_left_out_and_counted(tmp_path: Path) -> None:
    text = LISTS + "layer1,5,[],[],\n" + "layer1,6,,,\n"
    table, without = read_explanations(written(tmp_path, text), COLUMNS)
    assert (table.num_rows, without) == (2, 2)


# Faults -----------------------------------------------------------------------------------------


def test_all_faults_are_listed_at_once_with_their_lines(tmp_path: Path) -> None:
    text = "layer,neuron,concepts,weights,pooling\n"
    rows = [
        ("layer11", 0, ["a"], [1], ""),
        ("layer1", 8, ["a"], [1], ""),
        ("layer1", -1, ["a"], [1], ""),
        ("layer1", "x", ["a"], [1], ""),
        ("layer1", 1, ["a", "b"], [1], ""),
        ("layer1", 2, ["a"], [float("nan")], ""),
        ("layer1", 3, ["a"], [float("inf")], ""),
        ("layer1", 4, [" "], [1], ""),
        ("layer4", 1, ["a"], [1], ""),
        ("layer4", 1, ["a"], [1], "first"),
        ("layer1", 5, ["a"], [1], ""),
        ("layer1", 5, ["b"], [1], ""),
        ("layer11", 3, ["a"], [1], ""),
    ]
    for layer, neuron, concepts, weights, pooling in rows:
        cells = [json.dumps(v).replace('"', '""') for v in (concepts, weights)]
        text += f'{layer},{neuron},"{cells[0]}","{cells[1]}",{pooling}\n'
    text += "layer1,6,dogs and cats,1.0,\n"
    said = faults(tmp_path, text)
    for fault in (
        "line 2 and 1 more: the run has no layer 'layer11'; close names: 'layer1'",
        "line 3: layer 'layer1' has neurons 0 to 7; there is no 8; are they counted from 1 there?",
        "line 4: layer 'layer1' has neurons 0 to 7; there is no -1",
        "line 5: neuron 'x' is not a number",
        "line 6: 2 concepts and 1 weights",
        "line 7: weight is nan",
        "line 8: weight is inf",
        "line 9: the concept is empty",
        "line 10: layer 'layer4' has poolings avg, max; a column `pooling` says which",
        "line 11: layer 'layer4' has no pooling 'first'; it has avg, max",
        "line 13: layer1:5 has an explanation on line 12 already",
        "line 15: concepts 'dogs and cats' is no list",
    ):
        assert fault in said
    assert "nothing was started" in said


def test_a_quoted_line_break_does_not_shift_the_line_numbers(tmp_path: Path) -> None:
    said = faults(tmp_path, 'layer,neuron,description\nlayer1,0,"two\nlines"\nlayer1,1,\n')
    assert "line 4: the description is empty" in said


def test_a_long_list_of_faults_is_cut_and_counted(tmp_path: Path) -> None:
    text = "layer,neuron,description\n" + "".join(f"layer1,{n},x\n" for n in range(100, 145))
    said = faults(tmp_path, text)
    assert said.count("there is no") == 20
    assert said.endswith("… and 25 more faults")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("layer,neuron,description\n", "has no explanation to score"),
        ("layer,description\nlayer1,x\n", "neuron or unit"),
        ("neuron,description\n1,x\n", "--layer NAME"),
        ("layer,neuron,text\nlayer1,1,x\n", "description, explanation, label or concept"),
        ("layer,neuron,concepts\nlayer1,1,[]\n", "concepts and weights, which belong together"),
        ("layer,unit,concept0,weight0,concept1\nlayer1,1,a,1,b\n", "both concept1 and weight1"),
        ("layer,neuron,description\nlayer1,1,dog, wild\n", "texts with commas need quotes"),
        ("layer,neuron,description,method\nlayer1,1,x,linear\n", "'linear' is what the run's own"),
        ("layer,neuron,description\nlayer1,1,x\nlayer1,1,y\n", "a column `method` tells several"),
        ("layer,neuron,description,sharpness\nlayer1,1,x,0\n", "expected a factor above 0"),
        ("layer,neuron,description,shift\nlayer1,1,x,up\n", "shift 'up' is not a number"),
        ("layer,unit,weight0,concept0\nlayer1,1,,dog\n", "weight0 '' is not a number"),
    ],
)
def test_what_cannot_be_an_explanation_is_refused_with_what_was_expected(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert expected in faults(tmp_path, text)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_explanations(str(tmp_path / "missing.csv"), COLUMNS)
    (tmp_path / "latin.csv").write_bytes(
        "layer,neuron,description\nlayer1,1,café".encode("latin-1")
    )
    with pytest.raises(UsageError, match="UTF-8"):
        read_explanations(str(tmp_path / "latin.csv"), COLUMNS)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(UsageError, match="cannot be read"):
        read_explanations(str(tmp_path / "broken.parquet"), COLUMNS)


def test_an_unknown_layer_to_pick_is_refused_with_the_nearest(tmp_path: Path) -> None:
    text = "unit,description\n1,x\n"
    assert "close names: 'layer4'" in faults(tmp_path, text, layer="layer5")


# Scores -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Run:
    return planted_cells.finished_run(tmp_path_factory)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two methods: descriptions that no explainer knows, and sums that the table of cells knows."""
    folder = tmp_path_factory.mktemp("theirs")
    rows = ["layer,neuron,method,concepts,weights"]
    for neuron in range(NEURONS):
        rows.append(f"neurons,{neuron},words,\"['a {WORDS[neuron % 8]} thing']\",[1]")
        names = [NAMES[OWNER[neuron]], NAMES[(OWNER[neuron] + 1) % len(NAMES)]]
        rows.append(f'neurons,{neuron},sums,"{names}","[2.0, -0.5]"')
    return written(folder, "\n".join(rows) + "\n", "two methods.csv")


@pytest.fixture(scope="module")
def scored(run: Run, theirs: str) -> Scored:
    return score_file(run.folder.url, theirs)


def of(table: pa.Table, **wanted: str) -> pa.Table:
    for name, value in wanted.items():
        table = table.filter(pc.equal(table[name], value))
    return table


def test_a_simulator_scores_texts_by_their_own_concept_scores_on_test_images(
    run: Run, scored: Scored
) -> None:
    clip = load_clip(f"local-dir:{MODELS / 'simulator'}", base=Path.cwd())
    images = stored(run, "embeddings/other", "embedding", "test")
    actual = stored(run, "activations", "act.neurons.avg", "test")
    rows = of(scored.scores, simulator="other", method="words").to_pylist()
    assert [row["neuron"] for row in rows] == list(range(NEURONS))
    for row in rows:
        text = clip.encode_texts([f"a {WORDS[row['neuron'] % 8]} thing"])[0].astype(np.float64)
        cosine = images @ text / np.linalg.norm(images, axis=1) / np.linalg.norm(text)
        predicted = expit(clip.slope * (cosine + clip.shift))
        expected = np.corrcoef(predicted, actual[:, row["neuron"]])[0, 1]
        assert row["correlation"] == pytest.approx(expected, abs=1e-4)
        assert row["ci_low"] < row["correlation"] < row["ci_high"]
        assert row["explainer"] is None


def test_an_explainer_scores_sums_of_its_concepts_and_nothing_else(
    run: Run, scored: Scored
) -> None:
    scores = stored(run, "concept_scores/cells", "score", "test")
    actual = stored(run, "activations", "act.neurons.avg", "test")
    own = of(scored.scores, simulator="explainer")
    assert set(own["method"].to_pylist()) == {"sums"}, "no explainer knows the descriptions"
    assert set(own["explainer"].to_pylist()) == {"cells"}
    assert own.num_rows == NEURONS
    for row in own.to_pylist():
        concept = OWNER[row["neuron"]]
        predicted = 2.0 * scores[:, concept] - 0.5 * scores[:, (concept + 1) % len(NAMES)]
        expected = np.corrcoef(predicted, actual[:, row["neuron"]])[0, 1]
        assert row["correlation"] == pytest.approx(expected, abs=1e-10)


def test_the_scores_are_a_table_of_the_run_with_the_columns_of_scores_and_the_method(
    run: Run, scored: Scored
) -> None:
    assert scored.scores.schema == METHOD_SCORE_SCHEMA
    entry = run.tables()["external/two-methods"]
    assert entry.path == f"external/two-methods-{entry.fingerprint[:12]}.parquet"
    assert scored.path == run.folder.path(entry.path)
    assert pq.read_table(scored.path).equals(scored.scores)


def test_the_scores_keep_what_was_scored_and_are_beside_the_runs_present_scores(
    run: Run, scored: Scored, theirs: str
) -> None:
    table, _ = read_explanations(theirs, [Column("neurons", "avg", NEURONS)])
    given = {
        (row["layer"], row["neuron"], row["method"]): (row["concepts"], row["weights"])
        for row in table.to_pylist()
    }
    for row in scored.scores.to_pylist():
        assert (row["concepts"], row["weights"]) == given[
            row["layer"], row["neuron"], row["method"]
        ]
    assert external_scores(run)["external/two-methods"] == run.tables()["external/two-methods"]
    entry = run.tables()["scores"]
    try:
        run.commit("scores", entry.path, "made from something else", entry.rows)
        assert external_scores(run) == {}
    finally:
        run.commit("scores", entry.path, entry.fingerprint, entry.rows)


def test_a_second_start_writes_nothing_and_a_changed_file_a_table_of_its_own(
    run: Run, scored: Scored, theirs: str, tmp_path: Path
) -> None:
    before = Path(scored.path).stat().st_mtime_ns
    again = score_file(run.folder.url, theirs)
    assert (again.path, Path(again.path).stat().st_mtime_ns) == (scored.path, before)
    text = Path(theirs).read_text().replace("2.0", "3.0")
    other = score_file(run.folder.url, written(tmp_path, text, "two methods.csv"))
    assert other.path != scored.path
    assert not other.scores.equals(scored.scores)


def test_a_score_is_the_same_bits_whatever_else_is_in_the_file(
    run: Run, scored: Scored, theirs: str, tmp_path: Path
) -> None:
    lines = Path(theirs).read_text().splitlines()
    some = [lines[0], *lines[:0:-1][::5]]
    alone = score_file(run.folder.url, written(tmp_path, "\n".join(some), "some.csv"))
    keys = ("neuron", "method", "simulator", "explainer")
    whole = {tuple(r[k] for k in keys): r for r in scored.scores.to_pylist()}
    assert 5 <= alone.scores.num_rows < scored.scores.num_rows
    for row in alone.scores.to_pylist():
        assert row == whole[tuple(row[k] for k in keys)]


@pytest.mark.parametrize("explainer", ["cells", "clip"])
def test_the_runs_own_explanations_from_a_file_are_no_better_and_no_worse_than_they_are(
    run: Run, tmp_path: Path, explainer: str
) -> None:
    chosen = run.read("explanations").filter(pc.field("chosen") & (pc.field("length") > 0))
    mine = of(chosen, explainer=explainer).select(["layer", "neuron", "concepts", "weights"])
    told = of(run.read("sharpness"), explainer=explainer)
    own = [told[name].unique().to_pylist() for name in ("factor", "shift")]
    assert own == ([[0.5], [1.0]] if explainer == "clip" else [[1.0], [0.0]])
    path = tmp_path / f"ours-{explainer}.parquet"
    for name, value in zip(("sharpness", "shift"), own, strict=True):
        mine = mine.append_column(name, pa.array(value * mine.num_rows))
    pq.write_table(mine, path)
    scored = score_file(run.folder.url, str(path))
    compared = of(scored.comparison, explainer=explainer).to_pylist()
    own = [row for row in compared if row["simulator"] == "explainer"]
    assert [row["method"] for row in own] == ["linear", f"ours-{explainer}"]
    assert own[0]["mean"] == pytest.approx(own[1]["mean"], abs=1e-12)
    assert (own[1]["neurons"], own[1]["better_share"]) == (mine.num_rows, 0.5)
    assert own[1]["difference"] == 0.0


def test_the_summary_compares_every_method_with_the_explanations_of_every_explainer(
    scored: Scored,
) -> None:
    rows = {(r["explainer"], r["simulator"], r["method"]) for r in scored.comparison.to_pylist()}
    assert rows == {
        ("cells", "explainer", "linear"),
        ("cells", "explainer", "sums"),
        *(("cells", "other", method) for method in ("linear", "sums", "words")),
        *(("clip", "other", method) for method in ("linear", "sums", "words")),
    }
    text = "\n".join(scored_lines(scored))
    assert "linear by cells" in text
    assert scored.path in text
    assert "own calibration" in text, "clip's explanations are softened in this run"


def test_the_command_prints_the_comparison(
    run: Run, theirs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", run.folder.url, "--explanations", theirs]) == 0
    assert "linear by cells" in capsys.readouterr().out


def test_a_file_that_does_not_fit_ends_with_code_2_and_leaves_the_run_alone(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run.folder.names("external"), run.tables()
    text = "layer,neuron,description\nneuron,0,x\nneurons,25,y\n"
    assert main(["score", run.folder.url, "--explanations", written(tmp_path, text)]) == 2
    said = capsys.readouterr().err
    assert "close names: 'neurons'" in said
    assert "neurons 0 to 24" in said
    assert (run.folder.names("external"), run.tables()) == before


def test_a_run_that_is_not_finished_or_has_changed_is_refused(
    run: Run, theirs: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="is not a run directory"):
        score_file(tmp_path, theirs)
    data = yaml.safe_load(run.folder.read("run.yaml"))
    data["fit"]["max_length"] = 2
    changed = Run(tmp_path / "changed")
    changed.folder.write("run.yaml", yaml.safe_dump(data).encode())
    changed.folder.write("manifest.json", run.folder.read("manifest.json"))
    with pytest.raises(ConfigError, match="have changed since"):
        score_file(changed.folder.url, theirs)


def test_explanations_that_nobody_can_score_are_refused(
    run: Run, theirs: str, tmp_path: Path
) -> None:
    data = yaml.safe_load(run.folder.read("run.yaml")) | {"simulators": []}
    plan = prepare(parse_config(data, base=planted_cells.TESTS))
    alone = Run(tmp_path / "alone")
    alone.folder.write("run.yaml", yaml.safe_dump(data).encode())
    alone.commit("scores", "scores.parquet", expect(plan, "float32").tables["scores"], 1)
    text = "".join(
        line + "\n" for line in Path(theirs).read_text().splitlines() if "sums" not in line
    )
    with pytest.raises(ConfigError, match="nobody can score"):
        score_file(alone.folder.url, written(tmp_path, text))
