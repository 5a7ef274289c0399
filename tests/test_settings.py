"""Keys that are set on the command line: typed as YAML, checked as the file is."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from core.errors import ConfigError
from pipeline.config import load_config
from pipeline.settings import with_settings

DATA = {
    "images": {"path": "pictures"},
    "target": {"model": "timm:resnet18", "layers": ["layer3", "layer4"]},
    "concepts": [
        {"name": "label", "kind": "labels"},
        {"name": "clip", "kind": "open_clip", "model": "local-dir:clip", "concepts": "c.txt"},
    ],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(DATA))
    return path


def test_values_are_typed_as_yaml_types_them(file: Path) -> None:
    settings = [
        "images.limit=200",
        "images.split={train: 0.5, val: 0.25, test: 0.25}",
        "target.layers=[layer1]",
        "fit.folds=0",
        "atlas.images=false",
        "simulate.confidence=9e-1",
        "ray.address=auto",
    ]
    config = load_config(file, settings)
    assert config.images.limit == 200
    assert config.images.split.val == 0.25
    assert config.target.layers == ["layer1"]
    assert config.fit.folds == 0
    assert config.atlas.images is False
    assert config.simulate.confidence == 0.9
    assert config.ray.address == "auto"


def test_a_setting_equals_the_same_key_in_the_file(file: Path) -> None:
    changed = load_config(file, ["concepts.1.concepts=words.txt", "target.layers.0=layer2"])
    data = yaml.safe_load(file.read_text())
    data["concepts"][1]["concepts"] = "words.txt"
    data["target"]["layers"][0] = "layer2"
    file.write_text(yaml.safe_dump(data))
    assert changed == load_config(file)


def test_the_last_of_two_settings_of_a_key_counts(file: Path) -> None:
    assert load_config(file, ["images.limit=5", "images.limit=null"]).images.limit is None


def test_a_value_may_hold_equals_signs(file: Path) -> None:
    config = load_config(file, ["images.path=s3://bucket/day=1/"])
    assert config.images.path == "s3://bucket/day=1/"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("fit.tolerence=0.1", ["fit.tolerence", "unknown key", "'tolerance'"]),
        ("imags.limit=1", ["imags", "'images'"]),
        ("images.limit=many", ["images.limit", "'many'"]),
        ("concepts.2.name=x", ["concepts is a list of 2", "'2'", "0 to 1"]),
        ("concepts.first.name=x", ["concepts is a list of 2", "'first'"]),
        ("images.path.deep=x", ["images.path is 'pictures'", "no keys"]),
        ("images.limit", ["KEY.PATH=VALUE"]),
        ("=3", ["KEY.PATH=VALUE"]),
        ("images..limit=3", ["KEY.PATH=VALUE"]),
        ("target.layers=[layer1", ["target.layers", "not YAML"]),
    ],
)
def test_a_wrong_setting_is_refused_with_its_key_and_what_to_do(
    file: Path, setting: str, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(file, [setting])
    for word in words:
        assert word in str(caught.value)


def test_a_section_that_is_null_in_the_file_is_made() -> None:
    assert with_settings({"fit": None}, ["fit.folds=3"]) == {"fit": {"folds": 3}}


def test_stages_are_named_in_one_go_or_one_by_one() -> None:
    from pipeline.cli import _parser

    run = ["run", "config.yaml", "--out", "run", "--stage", "record"]
    for more in (["concepts"], ["--stage", "concepts"]):
        assert _parser().parse_args([*run, *more]).stage == ["record", "concepts"]
