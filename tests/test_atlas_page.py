"""The page of the atlas: safe with any text, whole without a network, and drawn by a browser."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pytest
from atlas_planted import FOLDS, HOSTILE, Layer, planted
from atlas_reading import value_of

from pipeline.atlas.build import build_atlas
from pipeline.atlas.compare import build_comparison
from pipeline.atlas.data import AtlasData
from pipeline.diff import Diff

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def writer(folder: Path) -> Callable[[str, bytes], None]:
    """What stores files of an atlas in a folder."""

    def write(path: str, content: bytes) -> None:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)

    return write


def build_in(folder: Path, data: AtlasData) -> Path:
    build_atlas(data, writer(folder))
    return folder


@pytest.fixture(scope="module")
def hostile_data() -> AtlasData:
    return planted(hostile=True, layers=(Layer("conv_head", 40),), concepts=24)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, hostile_data: AtlasData) -> Path:
    return build_in(tmp_path_factory.mktemp("hostile"), hostile_data)


class Page(HTMLParser):
    """Elements and texts of a document."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.inside: list[str] = []
        self.group = ""
        self.marks: Counter[tuple[str, str]] = Counter()
        self.everything = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside.append(tag)
        if tag == "g":
            self.group = dict(attrs).get("class") or ""
        self.marks[tag, self.group] += 1

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.texts[self.inside[-1]] = self.texts.get(self.inside[-1], "") + data
        if not {"script", "style"} & set(self.inside):
            self.everything += data

    def drawn(self, tag: str, group: str) -> int:
        """How many elements follow a drawing's group of this class, up to the next group."""
        return self.marks[tag, group]


def drawn(folder: Path, address: str, profile: Path) -> tuple[Page, str]:
    """The document as a browser leaves it, and what it wrote to its console."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", "--enable-logging=stderr", "--virtual-time-budget=8000",
        f"--user-data-dir={profile}", f"{(folder / 'index.html').as_uri()}{address}",
    ]  # fmt: skip
    environment = {**os.environ, "LANG": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, timeout=120, check=True, env=environment)
    messages = [line for line in done.stderr.decode().splitlines() if "CONSOLE" in line]
    return Page(done.stdout.decode()), "\n".join(messages)


def rows_of(page: Page) -> list[str]:
    return [
        str(attributes["href"])
        for tag, attributes in page.elements
        if tag == "a" and attributes.get("class") == "row"
    ]


def test_hostile_titles_stay_text_and_the_page_runs_no_script_of_its_own(hostile: Path) -> None:
    page = Page((hostile / "index.html").read_text(encoding="utf-8"))
    assert page.texts["title"] == HOSTILE[0] + HOSTILE[9]
    assert page.texts.get("script", "").strip() == ""
    assert all(tag != "img" for tag, _ in page.elements)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_shards_are_plain_ascii_in_which_no_markup_can_begin(hostile: Path) -> None:
    shards = sorted(hostile.glob("data/**/*.js"))
    assert len(shards) > 5
    for shard in shards:
        content = shard.read_bytes()
        assert content.isascii()
        assert not set(b"<>&") & set(content)
        assert content.count(b"\n") == 1


def test_file_names_come_from_numbers_and_never_from_the_run(hostile: Path) -> None:
    for file in hostile.rglob("*"):
        assert re.fullmatch(r"[a-z0-9/._]+", file.relative_to(hostile).as_posix())


def test_the_folder_is_whole_and_asks_for_nothing_outside_it(hostile: Path) -> None:
    page = Page((hostile / "index.html").read_text(encoding="utf-8"))
    wanted = [
        str(attributes[name])
        for tag, attributes in page.elements
        for name in ("src", "href")
        if name in attributes and tag in ("script", "link", "img")
    ]
    files = [address.split("?")[0] for address in wanted if address != "data:,"]
    assert len(files) > 8
    assert all((hostile / file).is_file() for file in files)
    for asset in (hostile / "assets").glob("*.*"):
        text = asset.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|fetch\(|innerHTML|eval\(", text)


def test_the_drawing_libraries_are_what_their_projects_published_and_bring_their_licences(
    hostile: Path,
) -> None:
    vendor = hostile / "assets/vendor"
    licences = (vendor / "licenses.html").read_text(encoding="utf-8")
    published = dict(re.findall(r"^([0-9a-f]{64})  (\S+)$", licences, re.M))
    libraries = sorted(vendor.glob("*.js"))
    assert len(libraries) == len(published) == 2
    for library in libraries:
        content = library.read_bytes()
        assert hashlib.sha256(content).hexdigest() in published
        assert published[hashlib.sha256(content).hexdigest()] == library.name
        # Its first line names the project and the version, and so do the licences.
        said = re.search(r"/?([a-z0-9]+)(?:\.org)? v([0-9.]+)", content[:120].decode())
        assert said is not None
        assert f"{said[2]} ({library.name})" in licences


@needs_browser
def test_a_neuron_page_shows_the_equation_and_raises_no_script_error(tmp_path: Path) -> None:
    data = planted(layers=(Layer("conv_head", 70),))
    folder = build_in(tmp_path / "atlas", data)
    page, console = drawn(folder, "#/neuron/conv_head/avg/65", tmp_path / "profile")
    assert console == ""
    chosen = [r for r in data.explanations.to_pylist() if r["chosen"] and r["neuron"] == 65]
    assert len(chosen) == 2
    for row in chosen:
        written = ""
        for concept, weight in zip(row["concepts"], row["weights"], strict=True):
            sign = "−" if weight < 0 else "+"
            written += f" {sign} {float(f'{abs(weight):.3g}'):g}·{concept}"
        written = written.removeprefix(" + ").replace(" − ", "−", written.startswith(" − "))
        assert f"{written} {'−' if row['bias'] < 0 else '+'} " in page.everything
    assert "by the explainer itself, not a simulation" in page.everything
    shows_what_each_term_is_worth(data, chosen, page)
    assert "Top 10\u202f%" in page.everything
    pictures = [a["src"] for tag, a in page.elements if tag == "img" and a.get("alt")]
    shard = value_of(
        {"data/neurons/0/1.js": (folder / "data/neurons/0/1.js").read_bytes()}, "neurons/0/1"
    )
    worst = [next(filter(None, own["worst"])) for own in shard["neurons"][1]["by"]]
    failures = sum(len(side) for sides in worst for side in sides)
    assert failures >= 6
    assert len(pictures) == 18 + failures
    assert all((folder / str(source).split("?")[0]).is_file() for source in pictures)
    assert page.drawn("circle", "points") == 2 * 80
    assert page.drawn("path", "term-area") == sum(len(row["concepts"]) for row in chosen)
    assert "By other methods" not in page.everything


def shows_what_each_term_is_worth(
    data: AtlasData, chosen: list[dict[str, Any]], page: Page
) -> None:
    shown = page.everything
    for row in chosen:
        for place, (concept, share) in enumerate(zip(row["concepts"], row["shares"], strict=True)):
            instead = row["synonyms"][place]
            share = round(share, 4)
            percent = "<\u202f0.1" if share < 0.001 else f"{100 * share:.{share < 0.0995:d}f}"
            told = concept + (f", or: {', '.join(instead)}" if instead else "")
            told += f"{percent}\u202f% of the neuron’s variance"
            if row["stability"] is not None:
                told += f"{round(row['stability'][place] * FOLDS)} of {FOLDS} folds"
            assert told in shown
    for score in data.scores.to_pylist():
        if score["neuron"] == 65 and score["chosen"] and score["simulator"] == "explainer":
            gap = f"{score['selection_gap']:+.2f}".replace("-", "−")
            assert f"selection gap {gap if float(gap[1:]) else '0.00'}" in shown
            assert f"p {score['p_value']:.3f}, q {score['q_value']:.3f}" in shown


@needs_browser
def test_other_methods_stand_below_a_neurons_own_explanations(tmp_path: Path) -> None:
    folder = build_in(tmp_path / "atlas", planted(layers=(Layer("conv_head", 12),)))
    page, console = drawn(folder, "#/neuron/conv_head/avg/2", tmp_path / "profile")
    assert console == ""
    assert "best single conceptclipconcept 20.250.30" in page.everything


@needs_browser
def test_a_comparison_lists_what_changed_with_links_into_both_atlases(tmp_path: Path) -> None:
    rows = [
        compared_row(3, "changed", ["dog"], [HOSTILE[1], "cat"]),
        compared_row(7, "same", ["dog"], ["dog"]),
    ]
    table = pa.Table.from_pylist(rows)
    places = (str(tmp_path / "a"), str(tmp_path / "b"))
    folder = tmp_path / "compared"
    diff = Diff(places, table, [], [("fit.tolerance", "0.02", "0.05")], [], {})
    build_comparison(diff, str(folder), writer(folder))
    page, console = drawn(folder, "", tmp_path / "profile")
    assert console == ""
    assert "1 of 2 explanations has another meaning in B" in page.everything
    assert "fit.tolerance0.020.05" in page.everything
    assert f"1·{HOSTILE[1]} + 1·cat" in page.everything
    links = [a["href"] for _, a in page.elements if a.get("class") == "letter"]
    assert links == [f"../{run}/atlas/index.html#/neuron/fc/avg/3" for run in "ab"]


def compared_row(neuron: int, change: str, before: list[str], after: list[str]) -> dict[str, Any]:
    """A row of the comparison of two runs."""
    row: dict[str, Any] = {"layer": "fc", "pooling": "avg", "explainer": "clip", "neuron": neuron}
    row |= {"change": change, "similarity": 0.25, "agreement": None}
    for run, concepts in (("a", before), ("b", after)):
        row |= {f"status_{run}": "ok", f"concepts_{run}": concepts, f"bias_{run}": 0.0}
        row[f"weights_{run}"] = [1.0] * len(concepts)
    return row


@needs_browser
def test_the_overview_draws_the_sharpness_of_each_layer_and_names_degenerate_concepts(
    tmp_path: Path,
) -> None:
    data = planted(layers=(Layer("early", 20), Layer("late", 20)))
    page, console = drawn(build_in(tmp_path / "atlas", data), "#/", tmp_path / "profile")
    assert console == ""
    assert "Sharpness of concept scores" in page.everything
    assert page.drawn("path", "sharp-curve") == 2
    assert page.drawn("circle", "sharp-point") == 2
    assert "early×\u202f0.5 + 1late×\u202f1" in page.everything
    assert "3 concepts say nothing that others do not say" in page.everything
    assert "Correlation97\u202f%100\u202f%passesCosine40\u202f%100\u202f%fails" in page.everything
    assert "early0.4000.25087.5\u202f%" in page.everything
    assert (
        "earlyclip2080\u202f%50\u202f%10\u202f%57.1\u202f%1.002.506.0070\u202f%" in page.everything
    )
    assert page.drawn("path", "share-curve") == 2
    assert page.drawn("circle", "effect") == sum(
        r["chosen"] and r["simulator"] == "clip-b" for r in data.scores.to_pylist()
    )
    assert "concept 1constantconcept 2the same as concept 0concept 3a sum" in page.everything


@needs_browser
def test_hostile_texts_are_shown_as_they_are_and_never_run(
    hostile: Path, hostile_data: AtlasData, tmp_path: Path
) -> None:
    for explanation in hostile_data.explanations.to_pylist():
        strange = [c for c in explanation["concepts"] if c in HOSTILE]
        if explanation["layer"] != "conv_head" and explanation["chosen"] and strange:
            break
    layer = quote(explanation["layer"], safe="")
    address = f"#/neuron/{layer}/avg/{explanation['neuron']}"
    page, console = drawn(hostile, address, tmp_path / "profile")
    assert console == ""
    assert page.texts["title"].startswith(f"{explanation['layer']}:{explanation['neuron']}")
    assert all(text in page.everything for text in strange)
    assert "cannot be drawn" not in page.everything
    for address in ("#/", f"#/layer/{layer}"):
        page, console = drawn(hostile, address, tmp_path / "profile")
        assert console == ""
        assert "broken" not in page.texts["title"].split("</script>")[-1]
        assert explanation["layer"] in page.everything


@needs_browser
def test_searching_finds_the_neurons_whose_chosen_explanation_uses_the_concepts(
    tmp_path: Path,
) -> None:
    data = planted(layers=(Layer("a", 40), Layer("conv_head", 60)), concepts=15)
    folder = build_in(tmp_path / "atlas", data)
    rows = [r for r in data.explanations.to_pylist() if r["chosen"] and r["explainer"] == "clip"]
    score = {
        (r["layer"], r["neuron"]): r["correlation"]
        for r in data.scores.to_pylist()
        if r["chosen"] and r["explainer"] == "clip" and r["simulator"] == "clip-b"
    }
    wanted = []
    for row in rows:
        weights = dict(zip(row["concepts"], row["weights"], strict=True))
        negative = weights.get("concept 3", 1) < 0
        if negative and any("concept 1" in c for c in weights):
            wanted.append((row["layer"], row["neuron"]))
    wanted.sort(key=lambda key: -score[key])
    assert 2 < len(wanted) < 20
    query = quote('concept 1, -"concept 3"')
    address = f"#/neurons?explainer=clip&q={query}"
    page, console = drawn(folder, address, tmp_path / "profile")
    assert console == ""
    found = [f"#/neuron/{layer}/avg/{neuron}" for layer, neuron in wanted]
    assert rows_of(page) == found
    marked = sum(attributes.get("class") == "concept hit" for _, attributes in page.elements)
    assert marked >= 2 * len(wanted)


@needs_browser
def test_a_missing_shard_is_reported_in_words(tmp_path: Path) -> None:
    folder = build_in(tmp_path / "atlas", planted(layers=(Layer("conv_head", 12),)))
    (folder / "data/neurons/0/0.js").unlink()
    page, _ = drawn(folder, "#/neuron/conv_head/avg/1", tmp_path / "profile")
    assert "data/neurons/0/0.js of this atlas is missing or damaged" in page.everything
