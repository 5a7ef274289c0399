"""The plan of a run: what it counts, what it foretells, and that it touches nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_cells import finished_run

from core.concept_scores import ConceptActivity
from core.errors import ConfigError
from pipeline import pace as pace_module
from pipeline.cli import main
from pipeline.config import Config, load_config, parse_config
from pipeline.estimate import Estimate, estimate
from pipeline.estimate_page import estimate_lines
from pipeline.pace import Pace, likely_active
from pipeline.price import PRICES, Machine, Prices, costs, read_prices
from pipeline.settings import with_settings

PRICE = Prices(
    date="today",
    source="a test",
    machines=[
        Machine(name="small", usd_per_hour=1.0, cores=2),
        Machine(name="large", usd_per_hour=4.0, cores=8),
        Machine(name="gpu", usd_per_hour=10.0, cores=8, models_as_cores=200),
    ],
)


def test_hours_and_price_follow_from_cores() -> None:
    small, large, gpu = costs(PRICE, models=7200.0, other=0.0, fixed=0.0)
    assert (small.hours, small.usd) == (1.0, 1.0)
    assert (large.hours, large.usd) == (0.25, 1.0)
    assert gpu.hours == pytest.approx(7200 / 200 / 3600)
    longer = costs(PRICE, models=7200.0, other=0.0, fixed=360.0)
    assert [a.hours - b.hours for a, b in zip(longer, (small, large, gpu), strict=True)] == (
        pytest.approx([0.1] * 3)
    )


def test_seconds_of_a_gpu_are_not_priced_on_machines_without_one() -> None:
    (gpu,) = costs(PRICE, models=3600.0, other=0.0, fixed=0.0, on_gpu=True)
    assert (gpu.machine, gpu.hours, gpu.usd) == ("gpu", 1.0, 10.0)


def test_the_prices_of_the_package_have_a_date_and_a_source() -> None:
    prices = read_prices()
    assert prices.date[:2] == "20"
    assert "from memory" in prices.source
    assert all(machine.usd_per_hour > 0 for machine in prices.machines)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("date: x\nsource: y\nmachines: []\n", "machines"),
        ("date: x\nsource: y\nmachines: [{name: a, cores: 2}]\n", "usd_per_hour"),
        (f"{PRICES.read_text()}\nmachnes: []\n", "machnes"),
        ("[", "cannot be read"),
    ],
)
def test_a_wrong_table_of_prices_is_refused(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "prices.yaml").write_text(text)
    with pytest.raises(ConfigError, match=word):
        read_prices(tmp_path / "prices.yaml")


def test_how_many_concepts_will_be_active_is_foretold_from_few_images() -> None:
    rng = np.random.default_rng(0)
    means, spreads = rng.normal(-6, 3, 400), rng.uniform(0.5, 2, 400)
    logits = rng.normal(means, spreads, (20_000, 400))
    known = ConceptActivity.of(1 / (1 + np.exp(-logits))).active().mean()
    assert likely_active(logits[:96], 20_000) == pytest.approx(known, rel=0.15)
    assert (logits[:96].max(0) > 0).mean() < 0.8 * known  # the sample alone would say too few


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> tuple[Config, Path]:
    """A finished run, and its configuration."""
    there = finished_run(tmp_path_factory)
    return load_config(there.folder.path("run.yaml")), Path(there.folder.url)


def changed(config: Config, *settings: str) -> Config:
    data = with_settings(config.model_dump(mode="json"), settings)
    return parse_config(data, config.base)


def by_stage(found: Estimate) -> dict[str, int]:
    return {stage.stage: stage.rows for stage in found.stages}


def test_a_new_run_is_counted_whole(run: Any) -> None:
    config, _ = run
    found = estimate(config, PRICE)
    rows = by_stage(found)
    assert rows["record"] == found.images
    assert rows["concepts"] == 2 * found.images  # two explainers
    assert rows["fit"] == 2 * found.neurons
    assert rows["simulate"] == config.fit.max_length * 2 * found.neurons
    assert rows["sharpen"] == 0  # it is given
    assert "ablate" not in rows  # not asked for
    assert found.seconds == found.preparing + sum(stage.seconds for stage in found.stages)
    assert all(stage.memory > 0 for stage in found.stages if stage.rows)


def test_what_is_fresh_costs_nothing_and_what_is_new_is_counted_alone(run: Any) -> None:
    config, out = run
    again = estimate(config, PRICE, str(out))
    assert set(by_stage(again).values()) == {0}
    assert again.written == 0
    refit = by_stage(estimate(changed(config, "fit.max_length=2"), PRICE, str(out)))
    assert (refit["record"], refit["moments"]) == (0, 0)
    assert refit["fit"] > 0 < refit["report"]


def test_a_plan_touches_nothing_and_says_the_same_in_json(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = run
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    command = ["plan", str(out / "run.yaml"), "--out", str(out), "--set", "fit.max_length=2"]
    assert main([*command, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    busy = {stage["stage"] for stage in facts["stages"] if stage["rows"]}
    assert busy == {"fit", "simulate", "report"}
    assert facts["costs"][0]["usd"] >= 0
    assert "memory" in facts["prices"]


def test_screened_concepts_are_said_to_be(run: Any) -> None:
    found = estimate(changed(run[0], "fit.max_concepts=10"), PRICE)
    note = next(note for note in found.notes if note.startswith("cells:"))
    assert "screened" in note
    assert "40 of 40" in note
    assert note in "\n".join(estimate_lines(found))


def test_a_slower_model_makes_the_plan_longer_by_what_it_takes(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    paces: list[Pace] = []
    real = pace_module.measure

    def kept(*args: Any) -> Pace:
        if not paces:
            paces.append(real(*args))
        return paces[0]

    monkeypatch.setattr("pipeline.estimate.measure", kept)
    first = estimate(run[0], PRICE)
    slower = {table: seconds + 1.0 for table, seconds in paces[0].models.items()}
    paces[0] = replace(paces[0], models=slower)
    second = estimate(run[0], PRICE)
    record = [next(s for s in one.stages if s.stage == "record") for one in (first, second)]
    expected = len(slower) * first.images
    assert record[1].seconds - record[0].seconds == pytest.approx(expected)
