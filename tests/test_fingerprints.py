"""Fingerprints: the same in every process, since they decide what is done again."""

from __future__ import annotations

import os
import subprocess
import sys

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
