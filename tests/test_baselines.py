"""Baselines from a run's own recordings: they name planted neurons, and are compared in pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import planted_cells
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml
from planted_cells import NEURONS, OWNER, WORDS, stored
from scipy.special import log_softmax, softmax

from actors.clip import load_clip
from core.dissect import TOP
from core.errors import ConfigError
from pipeline import baselines, dissect
from pipeline.baselines import BASELINES, check_baselines, compare, make_baselines
from pipeline.compare import COMPARISON_SCHEMA, comparison_lines
from pipeline.config import parse_config
from pipeline.plan import Plan
from pipeline.planning import prepare
from pipeline.planted import NAMES
from pipeline.rundir import Run
from pipeline.scores import ScoreSource
from pipeline.storage import Folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Run:
    return planted_cells.finished_run(tmp_path_factory)


@pytest.fixture(scope="module")
def plan(run: Run) -> Plan:
    data = yaml.safe_load(run.folder.read("run.yaml"))
    return prepare(parse_config(data, base=planted_cells.TESTS))


@pytest.fixture(scope="module")
def made(run: Run, plan: Plan) -> pa.Table:
    return pa.concat_tables([make_baselines(run, plan, e, BASELINES) for e in plan.explainers])


@pytest.fixture(scope="module")
def compared(run: Run, plan: Plan, made: pa.Table) -> tuple[pa.Table, pa.Table]:
    return compare(run, plan, run.read("scores"), made)


def of(table: pa.Table, **wanted: str) -> pa.Table:
    for name, value in wanted.items():
        table = table.filter(pc.equal(table[name], value))
    return table


@pytest.mark.parametrize("method", BASELINES)
def test_a_baseline_names_every_planted_neuron(made: pa.Table, method: str) -> None:
    found = of(made, explainer="cells", method=method)
    assert found["concepts"].to_pylist() == [[NAMES[concept]] for concept in OWNER]


def test_every_neuron_that_can_be_explained_has_one_row_of_each_method(made: pa.Table) -> None:
    for explainer in ("cells", "clip"):
        for method in BASELINES:
            found = of(made, explainer=explainer, method=method)
            assert found["neuron"].to_pylist() == list(range(NEURONS)), "the constant one has none"
            assert set(found["status"].to_pylist()) == {"ok"}


def test_the_single_concept_is_that_of_largest_correlation_on_training_images(
    run: Run, made: pa.Table
) -> None:
    scores = stored(run, "concept_scores/cells", "score", "train")
    actual = stored(run, "activations", "act.neurons.avg", "train")
    for row in of(made, explainer="cells", method="single").to_pylist():
        both = np.corrcoef(np.column_stack([actual[:, row["neuron"]], scores]).T)[0, 1:]
        assert row["concepts"] == [NAMES[int(both.argmax())]]
        assert row["train_correlation"] == pytest.approx(both.max(), abs=1e-10)
        slope, bias = np.polyfit(scores[:, both.argmax()], actual[:, row["neuron"]], 1)
        assert (row["weights"][0], row["bias"]) == (pytest.approx(slope), pytest.approx(bias))


def test_clip_dissect_is_the_published_formula_on_training_images(
    run: Run, plan: Plan, made: pa.Table
) -> None:
    clip = load_clip(plan.clips["clip"].model, base=plan.clips["clip"].base)
    images = stored(run, "embeddings/clip", "embedding", "train")
    texts = clip.encode_texts(WORDS).astype(np.float64)
    unit = [e / np.linalg.norm(e, axis=1, keepdims=True) for e in (images, texts)]
    given_image = softmax(10 * unit[0] @ unit[1].T, axis=1)
    actual = stored(run, "activations", "act.neurons.avg", "train")[:, :NEURONS]
    top = np.argsort(-actual, axis=0, kind="stable")[:TOP]
    m = np.linspace(0.998, 0.97, TOP)[:, None, None]
    likelihood = np.log(1 + m * (given_image[top] - 1)).sum(axis=0)
    # The mean over neurons of the likelihood, as a mean of probabilities.
    value = likelihood - np.log(np.exp(likelihood - likelihood.max()).mean(axis=0))
    assert np.isfinite(log_softmax(value, axis=1)).all()
    expected = [[WORDS[place]] for place in value.argmax(axis=1)]
    assert of(made, explainer="clip", method="clip-dissect")["concepts"].to_pylist() == expected
    assert len({text for texts in expected for text in texts}) > 2, "the test sees a choice"


def test_baselines_are_scored_at_the_sharpness_of_the_layers_own_explanations(
    run: Run, made: pa.Table
) -> None:
    chosen = run.read("sharpness").filter(pc.field("chosen")).to_pylist()
    own = {row["explainer"]: (row["factor"], row["shift"]) for row in chosen}
    assert own == {"cells": (1.0, 0.0), "clip": (0.5, 1.0)}
    for explainer, (factor, shift) in own.items():
        mine = of(made, explainer=explainer)
        assert set(mine["sharpness"].to_pylist()) == {factor}
        assert set(mine["shift"].to_pylist()) == {shift}


def test_own_scores_of_a_baseline_are_correlations_on_test_images(
    run: Run, compared: tuple[pa.Table, pa.Table], made: pa.Table
) -> None:
    scores = stored(run, "concept_scores/cells", "score", "test")
    actual = stored(run, "activations", "act.neurons.avg", "test")
    rows = of(compared[0], explainer="cells", simulator="explainer", method="clip-dissect")
    assert rows.num_rows == NEURONS
    for row in rows.to_pylist():
        predicted = scores[:, OWNER[row["neuron"]]]
        expected = np.corrcoef(predicted, actual[:, row["neuron"]])[0, 1]
        assert row["correlation"] == pytest.approx(expected, abs=1e-10)
        assert row["ci_low"] < row["correlation"] < row["ci_high"]


def test_the_comparison_holds_means_and_paired_differences_of_the_scores(
    run: Run, compared: tuple[pa.Table, pa.Table]
) -> None:
    scores, table = compared
    assert table.schema == COMPARISON_SCHEMA
    groups = {(r["explainer"], r["simulator"]) for r in table.to_pylist()}
    assert groups == {(e, s) for e in ("cells", "clip") for s in ("explainer", "other")}
    ours = run.read("scores").filter(pc.field("chosen"))
    for row in table.to_pylist():
        about = {name: row[name] for name in ("explainer", "simulator")}
        mine = dict(
            zip(*(of(ours, **about)[n].to_pylist() for n in ("neuron", "correlation")), strict=True)
        )
        if row["method"] == "linear":
            assert row["difference"] is None
            known = [value for value in mine.values() if value is not None]
            assert (row["neurons"], row["mean"]) == (len(known), pytest.approx(np.mean(known)))
            continue
        theirs = of(scores, method=row["method"], **about).to_pylist()
        pairs = np.array(
            [
                (mine[t["neuron"]], t["correlation"])
                for t in theirs
                if None not in (t["correlation"], mine[t["neuron"]])
            ]
        )
        assert row["neurons"] == len(pairs)
        assert row["mean"] == pytest.approx(pairs[:, 1].mean())
        assert row["difference"] == pytest.approx(np.mean(pairs[:, 0] - pairs[:, 1]))
        wins = np.mean((pairs[:, 0] > pairs[:, 1]) + 0.5 * (pairs[:, 0] == pairs[:, 1]))
        assert row["better_share"] == pytest.approx(wins)


def test_the_best_method_of_every_group_is_marked(compared: tuple[pa.Table, pa.Table]) -> None:
    table = compared[1]
    lines = comparison_lines(table, 0.95)[2:]
    assert len(lines) == table.num_rows
    assert len({line.index("(") for line in lines}) == 1, "columns are aligned"
    groups: dict[tuple[str, str], list[tuple[float, bool]]] = {}
    for row, line in zip(table.to_pylist(), lines, strict=True):
        groups.setdefault((row["explainer"], row["simulator"]), []).append(
            (row["mean"], "*" in line)
        )
    for marks in groups.values():
        best = max(mean for mean, _ in marks)
        assert [marked for _, marked in marks] == [mean == best for mean, _ in marks]


def test_clip_dissect_is_refused_where_training_images_are_not_kept() -> None:
    with pytest.raises(ConfigError, match=r"recordings\.keep"):
        check_baselines(BASELINES, "test")
    check_baselines(["single"], "test")
    check_baselines(BASELINES, "all")
    assert set(BASELINES) == {baselines.CLIP_DISSECT, baselines.SINGLE}


def test_a_neurons_likelihoods_are_the_same_bits_whatever_neurons_are_beside_it(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    folder = Folder(tmp_path)
    folder.write_arrays("texts.npz", embedding=rng.normal(size=(30, 16)).astype(np.float32))
    source = ScoreSource([], "texts.npz", 1.0, 0.0)
    values = rng.normal(size=(1500, 16)).astype(np.float16)
    rows = np.stack([rng.permutation(1500)[:40] for _ in range(9)], axis=1)
    whole = dissect._compare(folder, source, values, rows)
    apart = [dissect._compare(folder, source, values, rows[:, [n]]) for n in range(9)]
    np.testing.assert_array_equal(whole, np.concatenate(apart))


def test_an_image_without_embedding_is_passed_over(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    folder = Folder(tmp_path)
    folder.write_arrays("texts.npz", embedding=rng.normal(size=(5, 8)).astype(np.float32))
    source = ScoreSource([], "texts.npz", 1.0, 0.0)
    values = rng.normal(size=(4, 8)).astype(np.float16)
    values[2] = np.nan
    found = dissect._compare(folder, source, values, np.array([[0, 2], [1, 2]]))
    assert np.isfinite(found).all()
    assert (found[0] < 0).all()
    assert (found[1] == 0).all(), "nothing is known of this neuron"
