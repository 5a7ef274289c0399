"""Fingerprints: the same in every process, since they decide what is done again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline import planted
from pipeline.config import parse_config
from pipeline.expected import Expected, expect
from pipeline.moment_files import _shards
from pipeline.plan import Plan
from pipeline.planning import prepare

PROGRAM = """
from core.labels import Hierarchy
from pipeline.concepts_config import ConceptsConfig
from pipeline.images_config import ImagesConfig
from pipeline.explainers import plan_explainer
from pipeline.sources import ImageIndex
import pyarrow as pa

ids = [f"{n:03d}" for n in range(40)]
labels = [f"class{n % 7}" for n in range(40)]
rows = pa.table({"image_id": ids, "label": labels, "split": ["train"] * 40})
unseen = [f"other{n}" for n in range(50)]
hierarchy = Hierarchy(
    {name: name for name in [*set(labels), *unseen]},
    {"some": frozenset([*unseen, "class1", "class2"]), "few": frozenset(["class3", "class4"])},
)
index = ImageIndex(rows, pa.table({}))
print(plan_explainer(ConceptsConfig(name="l", kind="labels"), index, hierarchy, []).fingerprint)
"""


def test_labels_have_one_fingerprint_whatever_the_order_of_sets_in_a_process() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(4)
    }
    assert len(found) == 1


def planned(folder: Path, images: dict[str, Any]) -> tuple[Plan, Expected]:
    explainers = [
        {"name": "few", "kind": "attributes", "columns": ["furry", "weight"]},
        {"name": "labels", "kind": "labels"},
    ]
    sections = planted.config(folder, images=images, concepts=explainers)
    plan = prepare(parse_config({**sections, "recordings": {"shard_size": 20}}, base=folder))
    return plan, expect(plan, "float32")


def changed(before: Expected, after: Expected) -> set[str]:
    """Tables of which a part or the whole would be made from something else."""
    return {
        name
        for name in before.tables
        if before.tables[name] != after.tables[name]
        or before.parts.get(name) != after.parts.get(name)
    }


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """60 images in a folder with their manifest: labels, two attributes that are used, one that is not."""
    planted.write_images(tmp_path, 60)
    paths = sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "images").rglob("*.png"))
    columns = {
        "path": paths,
        "kind": [p.split("/")[1] for p in paths],
        "furry": [n % 3 == 0 for n in range(60)],
        "weight": [n / 60 for n in range(60)],
        "rest": list(range(60)),
    }
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    return tmp_path / "list.parquet"


def put(path: Path, column: str, values: list[Any]) -> None:
    """Put other values into a column of a manifest, or a column that it does not have."""
    table = pq.read_table(path)
    if column in table.column_names:
        table = table.drop_columns(column)
    pq.write_table(table.append_column(column, [values]), path)


def settings(manifest: Path) -> dict[str, Any]:
    return {"path": str(manifest), "label": "kind"}


def test_a_data_set_that_is_moved_with_its_times_makes_nothing_stale(manifest: Path) -> None:
    _, before = planned(manifest.parent, settings(manifest))
    elsewhere = manifest.parent / "elsewhere/deep"
    shutil.copytree(manifest.parent / "images", elsewhere / "images")
    shutil.copy2(manifest, elsewhere / manifest.name)
    shutil.rmtree(manifest.parent / "images")
    _, after = planned(manifest.parent, settings(elsewhere / manifest.name))
    assert changed(before, after) == set()


def test_a_column_that_nothing_is_made_from_makes_nothing_stale(manifest: Path) -> None:
    before, expected = planned(manifest.parent, settings(manifest))
    for column, values in (("rest", [0] * 60), ("new", [1.5] * 60), ("words", ["x"] * 60)):
        put(manifest, column, values)
        after, now = planned(manifest.parent, settings(manifest))
        assert changed(expected, now) == set(), column
        labels = before.explainers[1]
        assert _shards(before, labels) == _shards(after, labels)


def test_an_attribute_makes_stale_what_is_made_from_it_and_in_its_shard_alone(
    manifest: Path,
) -> None:
    before, expected = planned(manifest.parent, settings(manifest))
    put(manifest, "weight", [n / 60 + (n == 25) for n in range(60)])
    after, now = planned(manifest.parent, settings(manifest))
    found = changed(expected, now)
    assert {"concept_scores/few", "moments/few", "concepts", "explanations", "scores"} <= found
    assert not found & {"images", "quarantine", "activations", "concept_scores/labels"}
    parts = [e.parts["concept_scores/few"] for e in (expected, now)]
    same = [a == b for a, b in zip(*parts, strict=True)]
    assert same == [True, False, True]
    few, labels = before.explainers
    sums = zip(_shards(before, few), _shards(after, few), strict=True)
    assert [a == b for a, b in sums] == same
    assert _shards(before, labels) == _shards(after, labels)


def test_a_label_or_a_split_makes_the_table_of_images_stale(manifest: Path) -> None:
    _, before = planned(manifest.parent, settings(manifest))
    kinds = pq.read_table(manifest)["kind"].to_pylist()
    put(manifest, "kind", ["odd", *kinds[1:]])
    _, after = planned(manifest.parent, settings(manifest))
    found = changed(before, after)
    assert {"images", "concept_scores/labels", "explanations"} <= found
    assert not found & {"activations", "quarantine"}
    _, other = planned(manifest.parent, settings(manifest) | {"split": {"seed": 1}})
    assert "images" in changed(after, other)
    assert "activations" not in changed(after, other)


def test_another_column_of_pictures_is_recorded_anew(tmp_path: Path) -> None:
    planted.write_images(tmp_path, 60)
    pictures = [path.read_bytes() for path in sorted((tmp_path / "images").rglob("*.png"))]
    table = pa.table({"left": pictures, "right": pictures[::-1]})
    table = table.append_column("furry", pa.array([n % 3 == 0 for n in range(60)]))
    table = table.append_column("weight", pc.divide(pa.array(range(60), pa.float64()), 60))
    table = table.append_column("kind", [["a", "b"] * 30])
    pq.write_table(table, tmp_path / "rows.parquet")
    images = {"path": str(tmp_path / "rows.parquet"), "label": "kind"}
    _, left = planned(tmp_path, images | {"image": "left"})
    _, again = planned(tmp_path, images | {"image": "left"})
    _, right = planned(tmp_path, images | {"image": "right"})
    assert changed(left, again) == set()
    assert {"activations", "quarantine", "images", "scores"} <= changed(left, right)
