"""The sharpen stage on planted truth, and all that is computed with a shift against NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml
from planted_cells import TESTS, finished_run, stored
from scipy.special import expit

from core.errors import ConfigError
from core.sharpness import GRID, NATIVE, NEARLY, Sharpness, choose_sharpness
from pipeline.config import parse_config
from pipeline.fit_config import FitConfig
from pipeline.plan import Plan
from pipeline.planning import prepare
from pipeline.rundir import Run
from pipeline.scores import model_source, read_sharpness
from pipeline.sharpen import _given, _try

CONCEPTS, NEURONS = 20, 12
GIVEN = Sharpness(0.5, 1.0)
"""What the shared run is configured with."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished_run(tmp_path_factory)


@pytest.fixture(scope="module")
def plan(run: Run) -> Plan:
    return prepare(parse_config(yaml.safe_load(run.folder.read("run.yaml")), base=TESTS))


def tried(truth: Sharpness, centre: float) -> dict[Sharpness, float]:
    """Mean validation correlation with each sharpness, where neurons are sums of two scores and noise.

    Logits are normal about a centre; every neuron sums scores at the true sharpness.
    """
    rng = np.random.default_rng(5)
    logits = rng.normal(centre, 2.0, (900, CONCEPTS)).astype(np.float32)
    terms = rng.integers(0, CONCEPTS, (NEURONS, 2))
    scores = expit(truth.factor * logits.astype(np.float64) + truth.shift)
    neurons = scores[:, terms].sum(axis=2)
    neurons += 0.2 * neurons.std(axis=0) * rng.normal(size=neurons.shape)
    cut = 600
    samples = (logits[:cut], logits[cut:], neurons[:cut], neurons[cut:])
    return {one: _try(one, [NEURONS], *samples)[0][0] for one in GRID}


@pytest.mark.parametrize(
    ("truth", "centre"),
    [(Sharpness(2.0, 3.0), -1.5), (Sharpness(2.0), 0.0), (Sharpness(0.5), -6.0)],
)
def test_the_sharpness_that_neurons_were_made_with_is_found_or_one_that_is_nearly_as_good(
    truth: Sharpness, centre: float
) -> None:
    found = tried(truth, centre)
    assert found[truth] == max(found.values()), "the truth explains the neurons best"
    chosen = choose_sharpness(GRID, np.array(list(found.values())))
    assert found[chosen] >= NEARLY * found[truth]
    assert (chosen.shift > 0) == (truth.shift > 0)
    assert truth.factor / 2 < chosen.factor < truth.factor * 2


def test_a_shift_that_a_factor_can_stand_in_for_is_not_chosen() -> None:
    """Far below 0 the sigmoid is an exponential, and a shift is a factor that weights undo."""
    truth = Sharpness(0.5, 1.5)
    found = tried(truth, -12.0)
    assert found[Sharpness(0.5)] == pytest.approx(found[truth], rel=0.01)
    assert choose_sharpness(GRID, np.array(list(found.values()))).shift == 0


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("auto", None),
        ("native", NATIVE),
        (2, Sharpness(2.0)),
        ({"factor": 0.5, "shift": 1}, Sharpness(0.5, 1.0)),
        ({"factor": 0.5}, Sharpness(0.5)),
    ],
)
def test_what_the_configuration_says_is_what_is_used(
    setting: Any, expected: Sharpness | None
) -> None:
    assert _given(FitConfig(sharpness=setting)) == expected


@pytest.mark.parametrize(
    "setting",
    [{"shift": 1}, {"factor": 0}, {"factor": 1, "shift": "up"}, {"factor": 1, "slope": 2}],
)
def test_a_pair_that_is_not_one_is_refused(setting: Any, plan: Plan) -> None:
    data = plan.config.model_dump(mode="json") | {"fit": {"sharpness": setting}}
    with pytest.raises(ConfigError, match=r"fit\.sharpness"):
        parse_config(data, Path())


def logits_of(run: Run, plan: Plan, model: str, split: str) -> np.ndarray:
    """Logits of the concepts of `clip` by a model, from its embeddings, in float64."""
    clip, texts = plan.clips[model], plan.explainers[1].concepts
    embedded = model_source(run, clip, texts).texts
    assert embedded is not None
    rows = run.folder.read_arrays(embedded)["embedding"].astype(np.float64)
    images = stored(run, f"embeddings/{model}", "embedding", split)
    lengths = np.linalg.norm(images, axis=1)[:, None] * np.linalg.norm(rows, axis=1)
    return np.asarray(clip.slope * (images @ rows.T / lengths + clip.shift))


def explained(run: Run) -> list[dict[str, Any]]:
    table = run.read("explanations")
    mine = pc.and_(pc.equal(table["explainer"], "clip"), table["chosen"])
    return [row for row in table.filter(mine).to_pylist() if row["concepts"]]


def test_the_table_says_what_was_configured_for_models_alone(run: Run) -> None:
    assert set(read_sharpness(run, "clip").values()) == {GIVEN}
    assert set(read_sharpness(run, "cells").values()) == {NATIVE}


def test_weights_are_least_squares_of_shifted_scores(run: Run, plan: Plan) -> None:
    texts = plan.explainers[1].concepts
    scores, actual = (
        np.concatenate([of(split) for split in ("train", "val")])
        for of in (
            lambda split: expit(0.5 * logits_of(run, plan, "clip", split) + 1.0),
            lambda split: stored(run, "activations", "act.neurons.avg", split),
        )
    )
    rows = explained(run)
    assert len(rows) > 10
    for row in rows:
        terms = scores[:, [texts.index(text) for text in row["concepts"]]]
        design = np.column_stack([terms, np.ones(len(terms))])
        expected = np.linalg.lstsq(design, actual[:, row["neuron"]], rcond=None)[0]
        assert [*row["weights"], row["bias"]] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_simulators_shift_their_own_logits_alike(run: Run, plan: Plan) -> None:
    texts = plan.explainers[1].concepts
    actual = stored(run, "activations", "act.neurons.avg", "test")
    scores = run.read("scores")
    mine = scores.filter(pc.and_(scores["chosen"], pc.equal(scores["explainer"], "clip")))
    for simulator, model in (("explainer", "clip"), ("other", "other")):
        logits = logits_of(run, plan, model, "test")
        found = {
            row["neuron"]: row["correlation"]
            for row in mine.to_pylist()
            if row["simulator"] == simulator
        }
        differs = 0.0
        for row in explained(run):
            terms = logits[:, [texts.index(text) for text in row["concepts"]]]
            expected, without = (
                np.corrcoef(expit(0.5 * terms + shift) @ row["weights"], actual[:, row["neuron"]])
                for shift in (1.0, 0.0)
            )
            assert found[row["neuron"]] == pytest.approx(expected[0, 1], abs=1e-5)
            differs = max(differs, abs(expected[0, 1] - without[0, 1]))
        assert differs > 1e-3, "the test sees the shift"


def test_concepts_are_active_by_the_models_own_calibration(run: Run, plan: Plan) -> None:
    table = run.read("concepts").filter(pc.field("explainer") == "clip")
    own = expit(logits_of(run, plan, "clip", "train"))
    assert table["train_mean"].to_pylist() == pytest.approx(own.mean(axis=0), abs=5e-4)


def test_a_table_from_before_there_were_shifts_has_none(run: Run, tmp_path: Path) -> None:
    older = Run(tmp_path)
    table: pa.Table = run.read("sharpness").drop_columns("shift")
    older.write("sharpness", "sharpness.parquet", table, "made")
    assert set(read_sharpness(older, "clip").values()) == {Sharpness(0.5)}
