"""The page of a comparison in a real browser: counts, filters, and links into the atlases of both runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from atlas_planted import HOSTILE, Layer, planted
from browsing import Visit, write_atlas

from pipeline.cli import main
from pipeline.diff import diff_runs
from pipeline.expected import CONCEPTS, EXPLANATIONS, SCORES
from pipeline.rundir import Run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """Two runs of the same layers, with other explanations for all but a few neurons."""
    folder = tmp_path_factory.mktemp("compared")
    settings = {"images": {}, "fit": {"max_length": 6}}
    settings["concepts"] = [{"name": name, "kind": "table"} for name in ("attributes", "clip")]
    found = []
    for seed, name in enumerate("ab"):
        data = planted(hostile=True, layers=(Layer("conv_head", 30),), seed=seed, images=100)
        write_atlas(folder / name / "atlas", data)
        run = Run(folder / name)
        run.write(CONCEPTS, "concepts.parquet", data.concepts, "made")
        run.write(EXPLANATIONS, "explanations.parquet", data.explanations, "made")
        run.write(SCORES, "scores.parquet", data.scores, "made")
        run.folder.write("run.yaml", yaml.safe_dump(settings).encode())
        found.append(run)
    assert (
        main(["diff", found[0].folder.url, found[1].folder.url, "--atlas", str(folder / "page")])
        == 0
    )
    return found[0], found[1]


@pytest.fixture(scope="module")
def home(runs: tuple[Run, Run]) -> str:
    return (Path(runs[0].folder.url).parent / "page/index.html").as_uri()


def test_the_page_counts_filters_and_leads_into_both_atlases(
    chromium: Any, runs: tuple[Run, Run], home: str
) -> None:
    rows = diff_runs(*runs).table.to_pylist()
    counts = Counter(row["change"] for row in rows)
    assert counts["changed"] > 20
    with chromium.new_context() as context:
        one = Visit(context.new_page())
        page = one.open(home, shows="ol.diffs li")
        assert f"{counts['changed']} of {len(rows)} explanations" in page.inner_text(".summary")
        for change, count in counts.items():
            page.locator("label:has(> span:text-is('Change')) select").select_option(change)
            assert page.inner_text(".found").startswith(f"{count} of {len(rows)} ")
            assert page.locator("ol.diffs li").count() == min(count, 40)
        page.locator("label:has(> span:text-is('Change')) select").select_option("changed")
        page.locator("label:has(> span:text-is('Layer')) select").select_option("conv_head")
        shown = page.evaluate("location.hash")
        again = one.open(home + shown, shows="ol.diffs li")
        inside = sum(row["change"] == "changed" and row["layer"] == "conv_head" for row in rows)
        assert again.inner_text(".found").startswith(f"{inside} of ")
        for side, run in zip("AB", runs, strict=True):
            page = one.open(home + shown, shows="ol.diffs li")
            first = page.locator("ol.diffs li").first
            name = first.locator("h3").inner_text()
            first.locator("a.letter", has_text=side).click()
            page.wait_for_selector("h1 .layer")
            assert page.inner_text("h1") == name
            assert page.url.startswith(Path(run.folder.path("atlas/index.html")).as_uri())
        assert one.faults == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_the_page_is_for_everybody_and_difficult_texts_do_nothing(
    chromium: Any, home: str, scheme: str, width: int
) -> None:
    size = {"width": width, "height": 900}
    with chromium.new_context(viewport=size, color_scheme=scheme) as context:
        one = Visit(context.new_page())
        page = one.open(home + "#change=changed", shows="ol.diffs li")
        assert one.audit() == []
        assert page.evaluate("document.scrollingElement.scrollWidth - innerWidth") <= 0
        for text in HOSTILE[:4]:
            page.fill("#query", text)
            concepts = page.locator("ol.diffs .concept").all_inner_texts()
            assert text in concepts
        assert page.title() == "What changed"
        assert one.faults == []
