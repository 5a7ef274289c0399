"""The atlas in a real browser: every page and control, against the tables that the atlas was built from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atlas_planted import Layer, planted
from browsing import Visit, write_atlas

from pipeline.atlas.data import AtlasData
from pipeline.rundir import Run
from pipeline.serve import AtlasServer

LAYERS = (Layer("blocks.1", 24), Layer("conv_head", 100))
Open = Callable[..., Visit]


@pytest.fixture(scope="module")
def data() -> AtlasData:
    return planted(layers=LAYERS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: AtlasData) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    write_atlas(folder / "atlas", data)
    return folder


@pytest.fixture
def visit(chromium: Any, run: Path) -> Iterator[Open]:
    """Opens a page of the atlas from disk; at the end of the test nothing may have gone wrong."""
    contexts, visits = [], []

    def opened(address: str, width: int = 1280, base: str | None = None, **context: Any) -> Visit:
        size = {"width": width, "height": 900}
        contexts.append(chromium.new_context(viewport=size, **context))
        visits.append(Visit(contexts[-1].new_page()))
        visits[-1].open((base or (run / "atlas/index.html").as_uri()) + address)
        return visits[-1]

    yield opened
    faults = [fault for one in visits for fault in one.faults]
    for context in contexts:
        context.close()
    assert faults == []


def chosen(data: AtlasData, explainer: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Chosen explanations by an explainer, with the score of its first simulator."""
    simulator = "explainer" if explainer == "attributes" else "clip-b"
    scores = {
        (row["layer"], row["neuron"]): row["correlation"]
        for row in data.scores.to_pylist()
        if row["chosen"] and row["explainer"] == explainer and row["simulator"] == simulator
    }
    return {
        (row["layer"], row["neuron"]): row | {"score": scores.get((row["layer"], row["neuron"]))}
        for row in data.explanations.to_pylist()
        if row["chosen"] and row["explainer"] == explainer
    }


def listed(page: Any) -> list[str]:
    """Addresses of the rows of the table, in order, as far as they are drawn."""
    script = "rows => rows.map(row => row.getAttribute('href'))"
    found: list[str] = page.eval_on_selector_all("a.row", script)
    return found


def found_on(page: Any) -> str:
    """How many neurons the page says it has found, without how they lie over the layers."""
    said: str = page.inner_text(".found")
    return said.split(" · ")[0]


def choose(page: Any, filter_name: str, value: str) -> None:
    page.locator(f"label:has(> span:text-is('{filter_name}')) select").select_option(value)


def link(key: tuple[str, int]) -> str:
    return f"#/neuron/{key[0]}/avg/{key[1]}"


def expected_links(
    rows: dict[tuple[str, int], dict[str, Any]], keep: Callable[[dict[str, Any]], bool]
) -> list[str]:
    """Links of the neurons to keep, best score first, in the order of the network where equal."""
    found = [key for key, row in rows.items() if keep(row)]
    rounded = {key: round((rows[key]["score"] or -9) * 10_000) for key in found}
    return [link(key) for key in sorted(found, key=lambda key: -rounded[key])]


def equation(row: dict[str, Any]) -> str:
    """The explanation of a row of the table as the page writes it, without its bias."""
    text = ""
    for concept, weight in zip(row["concepts"], row["weights"], strict=True):
        text += f" {'−' if weight < 0 else '+'} {float(f'{abs(weight):.3g}'):g}·{concept}"
    return text.removeprefix(" + ").replace(" − ", "−", text.startswith(" − "))


# The folder ------------------------------------------------------------------------------------


@pytest.mark.parametrize("over_http", [False, True], ids=["from disk", "from a server"])
def test_every_kind_of_page_is_drawn_and_asks_for_nothing_outside_its_folder(
    visit: Open, run: Path, over_http: bool
) -> None:
    pages = {
        "#/": "planted network",
        "#/neurons": "Neurons",
        "#/layer/conv_head": "conv_head",
        "#/neuron/conv_head/avg/70": "conv_head:70",
        "#/neuron/conv_head/avg/96": "conv_head:96",
        "#/nowhere": "Nothing here",
    }
    server = AtlasServer(Run(run), 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        base = server.address if over_http else (run / "atlas/index.html").as_uri()
        one = visit("", base=base)
        for address, heading in pages.items():
            page = one.open(base + address)
            assert page.inner_text("h1") == heading
            broken = "pictures => pictures.filter(p => p.complete && !p.naturalWidth).length"
            assert page.eval_on_selector_all("img", broken) == 0
        if not over_http:
            assert page.eval_on_selector_all("img", "pictures => pictures.length") == 0
        home = base.removesuffix("index.html")
        assert len(one.asked) > 20
        assert [url for url in one.asked if not url.startswith((home, "data:"))] == []
    finally:
        one.page.close()
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_first_page_says_of_the_network_what_its_tables_say(
    visit: Open, data: AtlasData
) -> None:
    page = visit("#/").page
    text = page.inner_text("main")
    rows = chosen(data, "clip")
    explained = sum(row["status"] == "ok" for row in rows.values())
    assert f"{len(rows)} neurons in 2 layers" in text
    assert f"{explained} of them are explained" in text
    scores = [row["score"] for row in rows.values() if row["score"] is not None]
    assert f"{sum(scores) / len(scores):.2f}\nclip simulated by clip-b" in text
    for name in ("neuroscribe run <config> --out 'runs/x'", "9f2c", "61 s"):
        assert name in page.text_content("main")
    page.click("table.facts a:text-is('constant')")
    page.wait_for_selector("a.row")
    assert sorted(listed(page)) == sorted(
        link(key) for key, row in rows.items() if row["status"] == "constant"
    )


# The table -------------------------------------------------------------------------------------


def test_searching_as_one_types_finds_what_the_tables_hold_and_keeps_it_in_the_address(
    visit: Open, data: AtlasData
) -> None:
    page = visit("#/neurons?explainer=clip").page
    rows = chosen(data, "clip")
    weights = {key: dict(zip(r["concepts"], r["weights"], strict=True)) for key, r in rows.items()}

    def found(query: str, keep: Callable[[dict[str, float]], bool]) -> None:
        page.fill("#query", query)
        keys = [key for key in rows if keep(weights[key])]
        assert found_on(page) == f"{len(keys)} of 124 neurons"
        expected = expected_links({key: rows[key] for key in keys}, lambda row: True)
        drawn = listed(page)
        assert drawn == expected[: len(drawn)]
        assert len(drawn) >= min(len(expected), 15) > 0

    found("concept 3", lambda w: any("3" in c for c in w))
    found('"concept 3"', lambda w: "concept 3" in w)
    found('-"concept 3"', lambda w: w.get("concept 3", 0) < 0)
    found("CONCEPT 1, t 5", lambda w: any("1" in c for c in w) and any("5" in c for c in w))
    assert page.evaluate("location.hash") == "#/neurons?q=CONCEPT+1%2C+t+5&explainer=clip"
    page.fill("#query", "conv_head:17")
    assert listed(page) == [link(("conv_head", 17))]
    page.fill("#query", "no such thing")
    assert "No neuron matches" in page.inner_text("main")
    page.fill("#query", "")
    assert found_on(page) == "124 neurons"


def test_filters_of_layer_status_explainer_and_score_keep_what_the_tables_say(
    visit: Open, data: AtlasData
) -> None:
    page = visit("#/neurons").page
    rows = chosen(data, "clip")
    choose(page, "Explainer", "clip")
    choose(page, "Layer", "blocks.1")
    assert found_on(page) == "24 of 124 neurons"
    choose(page, "Status", "ok")
    kept = expected_links(rows, lambda r: r["layer"] == "blocks.1" and r["status"] == "ok")
    assert found_on(page) == f"{len(kept)} of 124 neurons"
    assert listed(page) == kept[: len(listed(page))]
    choose(page, "Layer", "")
    slider = page.get_by_label("Least score")
    for _ in range(7):
        slider.press("ArrowRight")
    high = expected_links(rows, lambda r: r["score"] is not None and round(r["score"], 4) >= 0.35)
    assert 0 < len(high) < 60
    assert found_on(page) == f"{len(high)} of 124 neurons"
    drawn = listed(page)
    assert drawn == high[: len(drawn)]
    choose(page, "Length", "5")
    choose(page, "Signs", "lowering")
    kept = expected_links(
        rows,
        lambda r: (
            r["status"] == "ok"
            and round(r["score"], 4) >= 0.35
            and r["length"] == 5
            and min(r["weights"]) < 0
        ),
    )
    assert 0 < len(kept) < 15
    assert listed(page) == kept
    shown = page.evaluate("location.hash")
    assert found_on(visit(shown).page) == found_on(page)


def test_columns_sort_in_both_directions_and_say_so(visit: Open, data: AtlasData) -> None:
    page = visit("#/neurons?explainer=clip&status=ok").page
    rows = {key: row for key, row in chosen(data, "clip").items() if row["status"] == "ok"}
    names = {"Score": lambda r: round(r["score"] * 10_000), "Length": lambda r: r["length"]}
    for name, value in names.items():
        for sign, said in ((-1, "descending"), (1, "ascending")):
            header = page.get_by_role("columnheader", name=name)
            if not (name == "Score" and sign == -1):  # it begins like this
                header.get_by_role("button").click()
            assert header.get_attribute("aria-sort") == said
            order = sorted(rows, key=lambda key, sign=sign, value=value: sign * value(rows[key]))
            drawn = listed(page)
            assert drawn == [link(key) for key in order[: len(drawn)]]
    page.get_by_role("columnheader", name="Neuron").get_by_role("button").click()
    assert listed(page)[:2] == [link(("blocks.1", 0)), link(("blocks.1", 1))]


def test_scrolling_reaches_the_last_neuron_though_few_rows_are_drawn(visit: Open) -> None:
    page = visit("#/neurons?sort=neuron").page
    assert 10 < len(listed(page)) < 60
    page.evaluate("window.scrollTo(0, 1e9)")
    page.wait_for_function(
        "() => document.querySelector('a.row:last-child b').textContent === '99'"
    )
    assert listed(page)[-1] == link(("conv_head", 99))


# A neuron --------------------------------------------------------------------------------------


def test_a_link_to_a_neuron_outlives_a_run_with_more_layers_and_other_images(
    visit: Open, tmp_path: Path
) -> None:
    later = planted(layers=(Layer("stem", 70), *LAYERS), seed=9, images=300)
    write_atlas(tmp_path, later)
    key = ("conv_head", 70)
    page = visit("#/neurons?explainer=clip&sort=neuron&layer=conv_head").page
    page.fill("#query", "70")
    page.click(f"a.row[href='{link(key)}']")
    page.wait_for_selector("h1 .layer")
    address = page.evaluate("location.hash")
    assert address == link(key)
    again = visit(address, base=(tmp_path / "index.html").as_uri()).page
    assert again.inner_text("h1") == "conv_head:70"
    assert again.title() == "conv_head:70 – planted network"
    for explainer in ("clip", "attributes"):
        assert equation(chosen(later, explainer)[key]) in again.inner_text("main")


def test_the_slider_shows_the_explanation_of_every_length(visit: Open, data: AtlasData) -> None:
    key = ("conv_head", 65)
    page = visit(link(key)).page
    card = page.locator("article.explanation").filter(has=page.get_by_text("clip", exact=True)).last
    box = card.locator(".equation-box")
    path = {
        row["length"]: row
        for row in data.explanations.to_pylist()
        if (row["layer"], row["neuron"], row["explainer"]) == (*key, "clip")
    }
    own = chosen(data, "clip")[key]["length"]
    slider = card.locator("input[type=range]")
    assert equation(path[own]) in box.inner_text()
    slider.focus()
    slider.press("Home")
    for length in sorted(path):
        assert equation(path[length]) in box.inner_text()
        said = f"{length} concept{'s' if length > 1 else ''}"
        assert slider.get_attribute("aria-valuetext") == said
        assert ("the chosen length" in card.locator(".now").inner_text()) == (length == own)
        slider.press("ArrowRight")
    card.get_by_role("button", name="back to the chosen length").click()
    assert equation(path[own]) in box.inner_text()


def test_pointing_at_a_drawing_tells_what_is_there(visit: Open, data: AtlasData) -> None:
    number = 65
    activations = data.activations("conv_head", "avg")[:, number]
    rows = {path: row for row, path in enumerate(data.images["path"].to_pylist())}
    page = visit(link(("conv_head", number))).page
    tip = page.locator("#tooltip")
    scatter = page.locator(".scatter").first
    scatter.scroll_into_view_if_needed()
    points = scatter.locator(".points:not(.lit) circle")
    for place in (0, 17, 79):
        box = points.nth(place).bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        told = tip.locator("p").all_inner_texts()
        level, split = told[-2].removeprefix("activation ").split(" · ")
        assert split == "test"
        # Of points that lie upon each other any may be told of, but with its own activation.
        actual = activations[rows[told[-1]]]
        assert float(level.replace("−", "-")) == pytest.approx(actual, rel=0.01)
    page.mouse.move(3, 3)
    assert not tip.is_visible()
    area = page.locator(".area-plot").first
    area.scroll_into_view_if_needed()
    marks, images = area.locator(".bin-marks path, .bin-marks line"), 0
    top = area.bounding_box()["y"]
    for place in range(marks.count()):
        page.mouse.move(marks.nth(place).bounding_box()["x"], top + 60)
        images += int(tip.inner_text().split(" · ")[1].split()[0])
    tests = sum(split == "test" for split in data.images["split"].to_pylist())
    assert images == tests


def test_a_score_stands_before_those_of_all_neurons(visit: Open, data: AtlasData) -> None:
    scored = {key: row["score"] for key, row in chosen(data, "clip").items()}
    scores = np.array([score for score in scored.values() if score is not None])
    ranked = sorted(scores)
    for place in (2, len(ranked) // 2, len(ranked) - 3):
        own = ranked[place]
        key = next(key for key, score in scored.items() if score == own)
        page = visit(link(key)).page
        card = page.locator("article.explanation").filter(has=page.get_by_text("clip", exact=True))
        said = card.last.locator(".interval:not(.check) .rank").inner_text()
        share = float(said.removeprefix("above ").split("\u202f")[0]) / 100
        # The page knows how many scores each of 80 bins has, not where in it they lie.
        same_bin = np.floor((scores + 1) * 40) == np.floor((own + 1) * 40)
        assert share == pytest.approx(np.mean(scores < own), abs=np.mean(same_bin) + 0.005)


def test_bars_of_lengths_are_told_by_keyboard(visit: Open, data: AtlasData) -> None:
    page = visit("#/").page
    for number, explainer in enumerate(("attributes", "clip")):
        lengths = [row["length"] for row in chosen(data, explainer).values()]
        bars = page.locator(".lengths-row figure").nth(number).locator(".length rect")
        for place in range(bars.count()):
            bars.nth(place).focus()
            count = lengths.count(place + 1)
            said = f"Length {place + 1}: {count} explanation{'s' if count != 1 else ''} ("
            assert page.locator("#tooltip").inner_text().startswith(said)


def test_a_concept_leads_to_the_neurons_of_all_layers_that_use_it(
    visit: Open, data: AtlasData
) -> None:
    rows = chosen(data, "clip")
    users = {key: set(row["concepts"]) for key, row in rows.items()}
    early = set().union(*(own for (layer, _), own in users.items() if layer == "blocks.1"))
    key = next(key for key, own in users.items() if key[0] == "conv_head" and own & early)
    concept = min(users[key] & early)
    page = visit(link(key)).page
    card = page.locator("article.explanation").filter(has=page.get_by_text("clip", exact=True)).last
    card.locator(".equation-box").get_by_role("link", name=concept, exact=True).click()
    page.wait_for_selector("a.row")
    choose(page, "Explainer", "clip")
    expected = expected_links(rows, lambda row: concept in row["concepts"])
    assert {address.split("/")[2] for address in expected} == {"blocks.1", "conv_head"}
    assert listed(page) == expected


# Keys ------------------------------------------------------------------------------------------


def focused(page: Any) -> str:
    found: str = page.evaluate("(document.activeElement.id || document.activeElement.className)")
    return found


def test_everything_is_reached_by_keyboard_alone(visit: Open) -> None:
    page = visit("#/").page
    page.keyboard.press("Tab")
    assert focused(page) == "skip"
    page.keyboard.press("Enter")
    assert focused(page) == "main"
    page.keyboard.press("/")
    page.wait_for_selector("#query:focus")
    page.keyboard.type('"concept 3"')
    page.keyboard.press("Escape")
    before = listed(page)
    page.focus("a.row")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1 .layer")
    assert page.evaluate("location.hash") == before[1]
    assert "2 of " in page.inner_text(".steps")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("address => location.hash === address", arg=before[2])
    page.wait_for_function("() => document.querySelector('.steps')?.innerText.includes('3 of ')")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("address => location.hash === address", arg=before[1])
    page.keyboard.press("u")
    page.wait_for_function("() => location.hash.startsWith('#/layer/')")
    page.keyboard.press("u")
    page.wait_for_function("() => location.hash === '#/'")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()


@pytest.mark.parametrize("address", ["#/", "#/neurons", link(("conv_head", 65))])
def test_no_control_is_skipped_by_the_tab_key_and_none_keeps_the_focus(
    visit: Open, address: str
) -> None:
    page = visit(address).page
    controls = """() => [...document.querySelectorAll('a[href], button, input, select, summary')]
      .filter(e => !e.disabled && e.checkVisibility() && !e.closest('dialog')).length"""
    wanted = page.evaluate(controls)
    reached = """() => { window.seen = new Set(); document.addEventListener('focusin', (event) => {
      if (event.target.matches('a[href], button, input, select, summary')) seen.add(event.target);
    }); }"""
    page.evaluate(reached)
    stops = wanted + page.evaluate("document.querySelectorAll('[tabindex=\"0\"]').length")
    for _ in range(stops + 5):
        page.keyboard.press("Tab")
    assert page.evaluate("seen.size") >= wanted > 5
