"""Two runs compared as a page: its shard against the table of the comparison, and its links."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from atlas_reading import Files, typed, value_of

from pipeline.atlas.compare import SCRIPTS, atlas_link, build_comparison
from pipeline.diff import CHANGES, Diff

WORDS = ["dog", "</script><script>x", "שלום", "🦜", "cat"]


def side(rng: np.random.Generator, run: str, explained: bool) -> dict[str, Any]:
    """One run's part of a row; an explanation has up to three terms."""
    size = int(rng.integers(1, 4)) if explained else 0
    return {
        f"status_{run}": "ok" if explained else "dead",
        f"concepts_{run}": [WORDS[w] for w in rng.permutation(len(WORDS))[:size]],
        f"weights_{run}": rng.normal(size=size).tolist(),
        f"bias_{run}": float(rng.normal()) if explained else None,
    }


@pytest.fixture(scope="module")
def diff() -> Diff:
    rng = np.random.default_rng(0)
    rows = []
    for layer, pooling in (("early", "avg"), ("late", "max")):
        for neuron in range(40):
            there = rng.random(2) < 0.8
            change = {(True, True): "changed", (True, False): "lost", (False, True): "gained"}
            row: dict[str, Any] = {"layer": layer, "pooling": pooling, "explainer": "clip"}
            row |= {"neuron": neuron, "change": change.get(tuple(there.tolist()), "neither")}
            both = bool(there.all())
            row |= {"similarity": float(rng.random()) if both else None}
            row |= {"agreement": float(rng.uniform(-1, 1)) if both and neuron % 2 else None}
            for run, explained in zip("ab", there.tolist(), strict=True):
                row |= side(rng, run, explained)
                row[f"correlation_{run}.sim"] = float(rng.random()) if explained else None
            row["intervals_overlap.sim"] = bool(neuron % 3) if both else None
            rows.append(row)
    settings = [("fit.tolerance", "0.02", "0.05")]
    places = ("/runs/a", "/runs/b")
    missing, unread = ["late, in A alone"], {"clip": "its model differs"}
    return Diff(places, pa.Table.from_pylist(rows), ["sim"], settings, missing, unread)


@pytest.fixture(scope="module")
def files(diff: Diff) -> Files:
    found: Files = {}
    build_comparison(diff, "/runs/compared", lambda name, content: found.update({name: content}))
    return found


def test_every_neuron_reads_back_with_both_explanations(diff: Diff, files: Files) -> None:
    shard = value_of(files, "compare")
    rows = diff.table.to_pylist()
    groups = [tuple(group[:3]) for group in shard["groups"]]
    columns = {name: typed(shard[name]) for name in ("group", "neuron", "change", "similarity")}
    for run, stored in zip("ab", shard["sides"], strict=True):
        ends = np.cumsum(typed(stored["length"]).astype(int))
        terms, weights = typed(stored["term"]), typed(stored["weight"])
        for n, row in enumerate(rows):
            own = slice(int(ends[n - 1]) if n else 0, int(ends[n]))
            assert [shard["concepts"][t] for t in terms[own]] == row[f"concepts_{run}"]
            assert weights[own] == pytest.approx(row[f"weights_{run}"], rel=1e-3)
            assert shard["statuses"][typed(stored["status"])[n]] == row[f"status_{run}"]
    for n, row in enumerate(rows):
        assert groups[columns["group"][n]] == (row["layer"], row["pooling"], row["explainer"])
        assert columns["neuron"][n] == row["neuron"]
        assert shard["changes"][columns["change"][n]] == row["change"]
        alike = row["similarity"]
        expected = -32768 if alike is None else round(1e4 * alike)
        assert columns["similarity"][n] == expected
    assert shard["settings"] == [["fit.tolerance", "0.02", "0.05"]]


def test_counts_and_mean_changes_are_those_of_the_table(diff: Diff, files: Files) -> None:
    shard = value_of(files, "compare")
    frame = diff.table.to_pandas()
    for place, (layer, _, _, counts, alike) in enumerate(shard["groups"]):
        own = frame[frame.layer == layer]
        assert counts == [int((own.change == change).sum()) for change in CHANGES]
        assert alike == pytest.approx(own.similarity.mean(), abs=1e-4)
        (told,) = [row for row in shard["scores"] if row[0] == place]
        gap = (own["correlation_b.sim"] - own["correlation_a.sim"]).dropna()
        assert told[2] == len(gap)
        assert told[5] == pytest.approx(gap.mean(), abs=1e-4)
        half = 1.96 * gap.std() / np.sqrt(len(gap))  # nearly Student's for so many
        assert told[7] - told[6] == pytest.approx(2 * half, rel=0.1)
        assert told[8] == int((own["intervals_overlap.sim"] == False).sum())  # noqa: E712


def test_links_are_relative_on_one_disk_and_in_one_bucket_and_absolute_on_the_web() -> None:
    up = "../a%20b/atlas/index.html"
    assert atlas_link("/runs/a b", "/runs/out") == up
    assert atlas_link("s3://bucket/runs/a b", "s3://bucket/runs/out") == up
    assert atlas_link("s3://other/runs/a", "s3://bucket/runs/out") is None
    assert atlas_link("s3://bucket/a", "/runs/out") is None
    web = "https://host/runs/a"
    assert atlas_link(web, "/runs/out") == f"{web}/atlas/index.html"


def test_the_page_is_whole_and_no_text_of_the_runs_becomes_markup(
    files: Files,
) -> None:
    page = files["index.html"].decode()
    for name in SCRIPTS:
        assert re.search(rf'src="assets/{name}\?v=[0-9a-f]+"', page)
        assert f"assets/{name}" in files
    shard = files["data/compare.js"]
    assert shard.isascii()
    assert not set(b"<>&") & set(shard)
