"""The examples: each is refused or accepted as it stands, and carried out small with what is here."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import planted
from pipeline.cli import main
from pipeline.config import load_config
from pipeline.planning import prepare
from pipeline.rundir import Run

EXAMPLES = Path(__file__).parents[1] / "examples"


def settings(name: str, shared: Path, folder: Path) -> list[str]:
    """Keys that put random weights, real photographs and small CLIPs in the place of what is not here."""
    words = (shared / "data/concepts-imagenet.txt").read_text().splitlines()[::30]
    (folder / "concepts.txt").write_text("\n".join(words))
    config = load_config(EXAMPLES / f"{name}.yaml")
    given = [f"images.path={shared / 'data/tiny-imagenet'}", "images.format=webdataset"]
    given += ["images.label=wnid", "images.limit=90", "target.weights=random:0"]
    models = [n for n, explainer in enumerate(config.concepts) if explainer.kind == "open_clip"]
    for number in models:
        given += [f"concepts.{number}.model=local-dir:{shared / 'models/tinyclip-a'}"]
        given += [f"concepts.{number}.concepts={folder / 'concepts.txt'}"]
    if models:
        # Labels are active where five images have them; ninety photographs have too many classes.
        given += [f"concepts=[{{name: clip, kind: open_clip, model: 'local-dir:{shared}"]
        given[-1] += f"/models/tinyclip-a', concepts: '{folder / 'concepts.txt'}'}}]"
    if config.simulators:
        given += [f"simulators.0.model=local-dir:{shared / 'models/tinyclip-b'}"]
    return [*given, "target.dtype=auto", "ray={}", "recordings.shard_size=30"]


NAMES = ["resnet50-siglip", "vit-b16", "cifar100-vgg", "s3-cluster"]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_can_be_carried_out_with_other_weights_and_images(
    name: str, shared: Path, tmp_path: Path
) -> None:
    config = load_config(EXAMPLES / f"{name}.yaml", settings(name, shared, tmp_path))
    plan = prepare(config)
    assert plan.index.rows.num_rows == 90
    assert plan.target.neurons > 1000
    assert len(plan.target.layers) >= 2


def test_the_network_for_cifar_is_explained(shared: Path, tmp_path: Path, local_ray: None) -> None:
    given = settings("cifar100-vgg", shared, tmp_path)
    given += ["simulators=[]", "fit.sharpness=native", "fit.folds=0", "atlas.images=false"]
    command = ["run", str(EXAMPLES / "cifar100-vgg.yaml"), "--out", str(tmp_path / "run")]
    assert main([*command, *(word for one in given for word in ("--set", one))]) == 0
    layers = Run.open(tmp_path / "run").read("explanations", ["layer"])["layer"].unique()
    assert len(layers) == 5


def test_the_network_of_ones_own_is_explained(tmp_path: Path, local_ray: None) -> None:
    planted.write_images(tmp_path, 60)
    given = ["--set", f"images.path={tmp_path / 'images'}", "--set", "atlas.images=false"]
    command = ["run", str(EXAMPLES / "own-network.yaml"), "--out", str(tmp_path / "run")]
    assert main([*command, *given]) == 0
    run = Run.open(tmp_path / "run")
    explained = run.read("explanations", ["layer", "pooling"]).group_by(["layer", "pooling"])
    found = {tuple(row.values()) for row in explained.aggregate([]).to_pylist()}
    assert found == {("0", "avg"), ("0", "max"), ("2", "avg")}


def test_every_example_says_at_its_head_what_it_is() -> None:
    for path in EXAMPLES.glob("*.yaml"):
        head = path.read_text().split("images:")[0]
        assert head.startswith("# "), path.name
        assert len(head) > 60, path.name
