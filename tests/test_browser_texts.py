"""The atlas in a real browser: for everybody's eyes and hands, and with texts that mean harm."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from atlas_planted import HOSTILE, Layer, planted
from browsing import Visit, write_atlas

from pipeline.atlas.data import AtlasData

WIDE, NARROW = 1280, 360


@pytest.fixture(scope="module")
def data() -> AtlasData:
    """A run in which concepts, image names, labels, a layer and the title are difficult texts."""
    return planted(hostile=True, layers=(Layer("conv_head", 40),), concepts=24)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, data: AtlasData) -> str:
    return (write_atlas(tmp_path_factory.mktemp("texts"), data) / "index.html").as_uri()


@pytest.fixture(scope="module")
def explained(data: AtlasData) -> dict[str, Any]:
    """A chosen explanation, of a neuron of the layer of difficult name, that uses difficult texts."""
    rows: list[dict[str, Any]] = data.explanations.to_pylist()
    named = [row for row in rows if row["chosen"] and row["layer"] != "conv_head"]
    return max(named, key=lambda row: len(set(row["concepts"]) & set(HOSTILE)))


def addresses(explained: dict[str, Any]) -> list[str]:
    layer = quote(explained["layer"], safe="")
    return [
        "#/",
        "#/neurons",
        f"#/layer/{layer}",
        f"#/neuron/{layer}/avg/{explained['neuron']}",
        "#/neuron/conv_head/avg/39",
    ]


@pytest.mark.parametrize(("scheme", "width"), [("light", WIDE), ("dark", WIDE), ("light", NARROW)])
def test_no_page_has_a_serious_finding_of_accessibility_or_is_wider_than_its_window(
    chromium: Any, home: str, explained: dict[str, Any], scheme: str, width: int
) -> None:
    size = {"width": width, "height": 900}
    with chromium.new_context(viewport=size, color_scheme=scheme) as context:
        one = Visit(context.new_page())
        for address in addresses(explained):
            page = one.open(home + address)
            assert one.audit() == []
            too_wide = page.evaluate("document.scrollingElement.scrollWidth - innerWidth")
            assert too_wide <= 0, address
        dark = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(c => c < 64)"
        assert page.evaluate(dark) == (scheme == "dark")
        assert one.faults == []


def test_difficult_texts_are_shown_letter_by_letter_and_do_nothing(
    chromium: Any, home: str, data: AtlasData, explained: dict[str, Any]
) -> None:
    with chromium.new_context() as context:
        one = Visit(context.new_page())
        concepts = "rows => rows.map(row => row.textContent)"
        page = one.open(home + "#/neurons")
        assert HOSTILE[0] in page.inner_text("header .title")
        found = set()
        for text in HOSTILE:
            query = quote(f'"{text.replace(chr(34), chr(34) * 2)}"')
            page = one.open(f"{home}#/neurons?q={query}")
            if text in page.eval_on_selector_all("a.row .concept.hit", concepts):
                found.add(text)
            assert page.evaluate("document.querySelectorAll('main img, main b b').length") == 0
        used = {
            c for row in data.explanations.to_pylist() if row["chosen"] for c in row["concepts"]
        }
        assert found == used & set(HOSTILE)
        assert len(found) >= 8
        for address in addresses(explained):
            page = one.open(home + address)
            assert "broken" not in page.title().replace(HOSTILE[0], "")
            assert page.evaluate("[...document.scripts].every(s => s.src && !s.textContent)")
        page = one.open(home + addresses(explained)[3])
        shown = page.eval_on_selector_all(".equation-box .concept", concepts)
        assert set(explained["concepts"]) <= set(shown)
        assert page.inner_text("h1") == f"{explained['layer']}:{explained['neuron']}"
        assert one.faults == []


def test_right_to_left_text_keeps_to_itself(chromium: Any, home: str) -> None:
    hebrew = next(text for text in HOSTILE if text.startswith("ש"))
    with chromium.new_context() as context:
        one = Visit(context.new_page())
        page = one.open(f"{home}#/neurons?q={quote(hebrew)}")
        places = """row => { const of = (s) => row.querySelector(s).getBoundingClientRect();
          const term = row.querySelector('.concept.hit').closest('.term');
          return [term.querySelector('.weight').getBoundingClientRect().right,
                  term.querySelector('.concept').getBoundingClientRect().left,
                  of('.neuron').left, of('.explanation').left]; }"""
        for row in page.query_selector_all("a.row"):
            weight, concept, number, explanation = row.evaluate(places)
            assert weight <= concept  # its weight stands before it, as before every other
            assert number < explanation
        assert one.faults == []


def test_a_picture_that_is_missing_leaves_its_name_and_a_page_in_print_its_evidence(
    chromium: Any, tmp_path: Path
) -> None:
    write_atlas(tmp_path, planted(layers=(Layer("conv_head", 12),)))
    for picture in (tmp_path / "thumbs").rglob("*.jpg"):
        picture.unlink()
    with chromium.new_context() as context:
        one = Visit(context.new_page())
        page = one.open((tmp_path / "index.html").as_uri() + "#/neuron/conv_head/avg/1")
        page.wait_for_selector(".band-row .blank")
        assert re.fullmatch(r"(class|image) \d+", page.inner_text(".band-row .blank >> nth=0"))
        lost = [
            fault for fault in one.faults if "/thumbs/" in fault or "ERR_FILE_NOT_FOUND" in fault
        ]
        assert one.faults == lost
        page.emulate_media(media="print")
        assert page.locator(".equation-box").first.is_visible()
        assert not page.locator("header.top").is_visible()


def test_paper_shows_tables_whole(chromium: Any, tmp_path: Path) -> None:
    write_atlas(tmp_path, planted(layers=(Layer("conv_head", 12),)))
    with chromium.new_context(viewport={"width": 718, "height": 1000}) as context:  # A4
        one = Visit(context.new_page())
        page = one.open((tmp_path / "index.html").as_uri())
        page.wait_for_selector(".scroll table")
        page.emulate_media(media="print")
        boxes = page.evaluate(
            "() => [...document.querySelectorAll('.scroll')].map((box) => "
            "[getComputedStyle(box).overflowX, box.scrollWidth - box.clientWidth])"
        )
        assert boxes
        assert all(overflow == "visible" and beyond <= 0 for overflow, beyond in boxes), boxes
        assert one.faults == []
