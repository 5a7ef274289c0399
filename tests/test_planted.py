"""Planted truth through the whole pipeline: images on disk, Ray, Parquet, explanations, scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import average_precision_score, f1_score, jaccard_score

import neuroscribe
from pipeline import planted as planted_network
from pipeline.config import parse_config
from pipeline.outcome import Summary
from pipeline.planted import CONSTANT, DEAD, FAILED, NAMES, NEURONS
from pipeline.run import execute
from pipeline.rundir import Run
from pipeline.show import equation

TESTS = Path(__file__).parent
IMAGES = 2300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted")
    planted_network.write_images(path, IMAGES)
    return path


@pytest.fixture(scope="module")
def summary(folder: Path, local_ray: None) -> Summary:
    return execute(parse_config(planted_network.config(folder), base=TESTS), folder / "run")


@pytest.fixture(scope="module")
def run(summary: Summary) -> Run:
    return Run.open(summary.url)


def explanations(run: Run) -> dict[tuple[int, int], dict[str, object]]:
    rows = run.read("explanations").to_pylist()
    return {(row["neuron"], row["length"]): row for row in rows}


def table_bytes(run: Run, table: str) -> list[tuple[str, bytes]]:
    return [(part, run.folder.read(part)) for part in run.parts(table)]


def test_planted_concepts_and_weights_are_recovered_through_the_whole_pipeline(run: Run) -> None:
    concepts, weights, _ = planted_network.planted()
    found = explanations(run)
    right = within = 0
    for neuron in range(NEURONS):
        row = found[neuron, 3]
        expected = {NAMES[c]: w for c, w in zip(concepts[neuron], weights[neuron], strict=True)}
        if set(row["concepts"]) != set(expected):
            continue
        right += 1
        for name, weight in zip(row["concepts"], row["weights"], strict=True):
            within += abs(weight - expected[name]) <= 0.05 * abs(expected[name])
    assert right >= 0.95 * NEURONS
    assert within >= 0.95 * 3 * right


def test_the_chosen_length_of_planted_neurons_is_the_number_of_their_concepts(run: Run) -> None:
    chosen = [
        row["length"] for row in explanations(run).values() if row["chosen"] and row["length"]
    ]
    assert np.mean(np.array(chosen) == 3) >= 0.9


def test_recorded_activations_equal_the_planted_sums(run: Run, folder: Path) -> None:
    concepts, weights, bias = planted_network.planted()
    cells = planted_network.levels(IMAGES, seed=3) / 255.0
    noise = 0.3 * cells[:, 40 + np.arange(NEURONS) % planted_network.NOISE]
    truth = np.einsum("int,nt->in", cells[:, concepts], weights) + noise + bias
    table = run.read("activations")
    rows = [int(image_id[-9:-4]) for image_id in table["image_id"].to_pylist()]
    recorded = np.stack(table["act.neurons.avg"].to_numpy())[:, :NEURONS]
    assert sorted(rows) == list(range(IMAGES))
    np.testing.assert_allclose(recorded, truth[rows], atol=4e-3)


def test_scores_equal_numpy_correlation_of_predictions_made_from_the_tables(run: Run) -> None:
    images = run.read("images")
    test = np.array(images["split"].to_pylist()) == "test"
    scores = np.stack(run.read("concept_scores/cells")["score"].to_numpy()).astype(float)[test]
    actual = np.stack(run.read("activations")["act.neurons.avg"].to_numpy()).astype(float)[test]
    places = {name: n for n, name in enumerate(NAMES)}
    found = explanations(run)
    checked = 0
    for row in run.read("scores").to_pylist():
        if row["correlation"] is None:
            continue
        explanation = found[row["neuron"], row["length"]]
        columns = [places[name] for name in explanation["concepts"]]
        predicted = scores[:, columns] @ np.array(explanation["weights"]) + explanation["bias"]
        expected = np.corrcoef(predicted, actual[:, row["neuron"]])[0, 1]
        assert row["correlation"] == pytest.approx(expected, abs=1e-10)
        assert row["ci_low"] <= row["correlation"] <= row["ci_high"]
        checked += 1
    assert checked >= NEURONS * 3


def test_measures_of_chosen_explanations_equal_scikit_learns_on_the_tables(run: Run) -> None:
    test = np.array(run.read("images")["split"].to_pylist()) == "test"
    scores = np.stack(run.read("concept_scores/cells")["score"].to_numpy()).astype(float)[test]
    recorded = np.stack(run.read("activations")["act.neurons.avg"].to_numpy()).astype(float)[test]
    found = explanations(run)
    count = int(np.ceil(0.05 * test.sum()))
    checked = 0
    for row in run.read("scores").to_pylist():
        if not row["chosen"] or row["length"] == 0:
            assert row["cosine"] is row["auprc"] is row["f1"] is row["iou"] is None
            continue
        explanation = found[row["neuron"], row["length"]]
        columns = [NAMES.index(name) for name in explanation["concepts"]]
        predicted = scores[:, columns] @ np.array(explanation["weights"]) + explanation["bias"]
        actual = recorded[:, row["neuron"]]
        on, called = (v >= np.sort(v)[-count] for v in (actual, predicted))
        assert row["auprc"] == pytest.approx(average_precision_score(on, predicted), abs=1e-12)
        assert row["f1"] == pytest.approx(f1_score(on, called), abs=1e-12)
        assert row["iou"] == pytest.approx(jaccard_score(on, called), abs=1e-12)
        cosine = actual @ predicted / np.linalg.norm(actual) / np.linalg.norm(predicted)
        assert row["cosine"] == pytest.approx(cosine, abs=1e-10)
        assert row["agreement"] is None  # there is no other model
        checked += 1
    assert checked == NEURONS


def test_correlation_is_a_measure_that_notices_wrong_labels(run: Run) -> None:
    rows = {row["metric"]: row for row in run.read("sanity").to_pylist()}
    assert list(rows) == ["auprc", "correlation", "cosine", "f1", "iou"]
    assert all(row["neurons"] >= 15 for row in rows.values())
    assert rows["correlation"]["passes"]
    for row in rows.values():
        shares = (row["missing_share"], row["extra_share"])
        assert row["passes"] == all(share >= 0.9 for share in shares)


def test_the_python_interface_reads_a_neuron_in_five_lines(run: Run) -> None:
    found = neuroscribe.open_run(run.folder.url)
    neuron = found.neuron("neurons", 7)["cells"]
    rows = {(row["neuron"], row["length"]): row for row in found.table("explanations").to_pylist()}
    row = rows[7, len(neuron.concepts)]
    assert row["chosen"]
    assert str(neuron) == equation(row)
    scores = [r for r in found.table("scores").to_pylist() if r["chosen"] and r["neuron"] == 7]
    assert neuron.correlation == {"explainer": scores[0]["correlation"]}
    users = {one.neuron for one in found.search(neuron.concepts[0])}
    truth = [r for r in rows.values() if r["chosen"] and neuron.concepts[0] in r["concepts"]]
    assert 7 in users >= {r["neuron"] for r in truth}
    assert str(found.neuron("neurons", DEAD)["cells"]) == "dead"
    for wrong, message in (
        (lambda: found.neuron("neuron", 7), "closest|did you mean|neurons"),
        (lambda: found.neuron("neurons", 999), "there is no 999"),
        (lambda: found.table("score"), "scores"),
    ):
        with pytest.raises(neuroscribe.NeuroscribeError, match=message):
            wrong()


def test_neurons_that_cannot_be_explained_have_a_row_and_a_status(
    run: Run, summary: Summary
) -> None:
    found = explanations(run)
    assert found[CONSTANT, 0]["status"] == "constant"
    assert found[CONSTANT, 0]["bias"] == 2.5
    assert found[DEAD, 0]["status"] == "dead"
    assert found[FAILED, 0]["status"] == "failed"
    assert summary.neurons == {"ok": NEURONS, "constant": 1, "dead": 1, "failed": 1}
    assert summary.exit_code == 3


def test_images_are_split_alike_in_every_table_and_order(run: Run) -> None:
    ids = run.read("images")["image_id"].to_pylist()
    for table in ("activations", "concept_scores/cells"):
        assert run.read(table)["image_id"].to_pylist() == ids


def test_a_second_start_does_no_work_and_changes_no_byte(run: Run, folder: Path) -> None:
    def snapshot() -> dict[str, tuple[int, bytes]]:
        root = Path(run.folder.url)
        # The ledger and the account are of the last start.
        of_start = ("ledger.json", "summary.json", "summary.html", "metrics.prom")
        files = [f for f in root.rglob("*") if f.is_file() and f.name not in of_start]
        return {
            str(f.relative_to(root)): (f.stat().st_mtime_ns, f.read_bytes())
            for f in files
            if f.name != "run.yaml"
        }

    before = snapshot()
    execute(parse_config(planted_network.config(folder), base=TESTS), folder / "run")
    assert snapshot() == before


def test_tables_do_not_depend_on_the_number_of_actors(run: Run, folder: Path) -> None:
    two = planted_network.config(folder, ray={"actors": 2})
    other = Run(execute(parse_config(two, base=TESTS), folder / "two").url)
    for table in ("images", "activations", "concept_scores/cells", "explanations", "scores"):
        assert table_bytes(other, table) == table_bytes(run, table), table


def test_explanations_do_not_depend_on_the_shard_size_beyond_rounding(
    run: Run, folder: Path
) -> None:
    sections = planted_network.config(folder, recordings={"shard_size": 333})
    other = Run(execute(parse_config(sections, base=TESTS), folder / "shards").url)
    assert _without_weights(other.read("explanations")) == _without_weights(
        run.read("explanations")
    )
    for column in ("train_correlation", "val_correlation", "bias"):
        ours, theirs = (r.read("explanations")[column].to_numpy() for r in (run, other))
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def _without_weights(table: pa.Table) -> list[dict[str, object]]:
    keep = ["neuron", "explainer", "status", "length", "chosen", "concepts"]
    return [dict(row) for row in table.select(keep).to_pylist()]


def test_planted_explanations_are_told_from_those_of_other_neurons(run: Run) -> None:
    rows = [row for row in run.read("scores").to_pylist() if row["chosen"]]
    planted = [row for row in rows if row["neuron"] < NEURONS]
    assert all(0 < row["p_value"] < 0.01 for row in planted)
    assert all(row["p_value"] <= row["q_value"] < 0.01 for row in planted)
    # A neuron without terms has no explanation that could be given to another.
    assert all(row["p_value"] is None for row in rows if row["neuron"] >= NEURONS)
    assert all(
        row["p_value"] is None for row in run.read("scores").to_pylist() if not row["chosen"]
    )
