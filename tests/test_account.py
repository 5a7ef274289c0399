"""The account of a start: what changed since the one before, for people, machines and Prometheus."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import planted as planted_network
from pipeline.account_page import account_page
from pipeline.cli import main
from pipeline.prometheus import metrics_text
from pipeline.rundir import Run
from pipeline.show import status_facts, status_lines

#: One line of the exposition format: name, labels in braces, value.
SAMPLE = re.compile(
    r'^([a-z_:][a-z0-9_:]*)\{((?:[a-z_]+="(?:[^"\\]|\\\\|\\"|\\n)*",?)+)\} (-?[0-9.e+]+)$'
)
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Every sample by name and label values but the run; a line that is not understood fails."""
    found = {}
    described = set()
    for line in text.splitlines():
        if line.startswith("#"):
            described.add(line.split()[2])
            continue
        match = SAMPLE.match(line)
        assert match, line
        assert match[1] in described
        labels = dict(LABEL.findall(match[2]))
        labels.pop("run")
        found[(match[1], *labels.values())] = float(match[3])
    return found


class Page(html.parser.HTMLParser):
    """Reads a page: its text, and what a browser would load or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = ""
        self.foreign: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag != "meta":
            self.open.append(tag)
        if tag in {"script", "link", "img", "iframe"}:
            self.foreign.append(tag)
        known = ("href", "atlas/index.html")
        self.foreign += [
            one[0]
            for one in attrs
            if one != known and (one[0] in {"src", "href"} or one[0][:2] == "on")
        ]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def starts(
    tmp_path_factory: pytest.TempPathFactory, local_ray: None
) -> dict[str, tuple[int, dict[str, Any], str, str]]:
    """Starts in one run directory: exit code, summary, page and metrics of each."""
    folder = tmp_path_factory.mktemp("night")
    planted_network.write_images(folder, 420)
    spoilt = folder / "images" / "odd" / "00411.png"
    spoilt.write_bytes(spoilt.read_bytes()[:-40])
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(planted_network.config(folder)))
    out = folder / "run"

    def start(*more: str) -> tuple[int, dict[str, Any], str, str]:
        code = main(["run", str(config), "--out", str(out), *more])
        files = [out / name for name in ("summary.json", "summary.html", "metrics.prom")]
        summary, page, metrics = (file.read_text() for file in files)
        return code, json.loads(summary), page, metrics

    found = {"first": start("--set", "images.limit=300")}
    found["again"] = start("--set", "images.limit=300")
    found["grown"] = start("--set", "fit.tolerance=0.3")
    found["refused"] = start("--set", "recordings.max_quarantined=0.0001")
    found["mistaken"] = start("--set", "images.path=nowhere")
    return found


def test_the_first_start_says_that_it_is_the_first_and_what_it_did(starts: Any) -> None:
    code, facts, page, _ = starts["first"]
    assert code == facts["exit_code"] == 3  # one planted neuron fails by design
    assert facts["state"] == "done"
    assert facts["first"] is True
    assert facts["changes"]["images"]["new"] == facts["changes"]["images"]["used"] > 250
    assert facts["changes"]["neurons"]["failed"] == [f"neurons:{planted_network.FAILED}"]
    assert facts["stages"][0]["stage"] == "record"
    assert all(row["state"] == "done" for row in facts["stages"])
    assert "first start" in Page(page).text


def test_a_second_start_finds_nothing_changed_and_costs_no_stage_anything(starts: Any) -> None:
    _, facts, _, _ = starts["again"]
    changed = facts["changes"]
    assert (changed["images"]["new"], changed["images"]["gone"]) == (0, 0)
    assert changed["neurons"]["changed"] == changed["neurons"]["new"] == 0
    assert changed["neurons"]["compared"] == changed["neurons"]["same"] == 63
    assert changed["settings"] == []
    assert all(row["after"] == row["before"] for row in changed["scores"])
    assert all("rows" not in row for row in facts["stages"] if row["stage"] in ("record", "fit"))
    assert sum(row["seconds"] for row in facts["stages"]) < 3


def test_new_images_are_counted_and_new_bad_ones_named(starts: Any) -> None:
    _, facts, page, _ = starts["grown"]
    images = facts["changes"]["images"]
    before = starts["again"][1]["changes"]["images"]
    assert images["new"] == images["used"] - before["used"]
    assert images["gone"] == 0
    assert images["newly_quarantined"] == images["quarantined"] == 1
    assert images["quarantine"][0]["reason"] == "truncated"
    assert "odd/00411.png" in Page(page).text
    keys = {row["key"] for row in facts["changes"]["settings"]}
    assert keys == {"images.limit", "fit.tolerance"}


def test_a_start_without_a_plan_is_accounted_for_where_others_were(
    starts: Any, tmp_path: Path
) -> None:
    code, facts, page, metrics = starts["mistaken"]
    assert code == facts["exit_code"] == 2
    assert facts["state"] == "failed"
    assert "nowhere" in facts["reason"]
    assert facts["reason"] in Page(page).text
    assert samples(metrics)["neuroscribe_exit_code",] == 2
    assert facts["last_success"] == starts["grown"][1]["last_success"]
    assert facts["stages"] == []
    assert facts["changes"]["images"]["used"] == starts["grown"][1]["changes"]["images"]["used"]
    # A mistake in the first start makes no directory.
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(planted_network.config(tmp_path)))
    assert main(["run", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()


def test_the_status_says_how_the_latest_start_ended(starts: Any) -> None:
    run = Run.open(starts["mistaken"][1]["run"])
    facts = status_facts(run)
    assert facts["working"] is None
    assert facts["last_start"]["exit_code"] == 2
    assert facts["last_start"]["last_success"] == starts["mistaken"][1]["last_success"]
    assert any("exit code 2" in line and "nowhere" in line for line in status_lines(run))


def test_explanations_that_changed_are_shown_before_and_now(starts: Any) -> None:
    _, facts, page, _ = starts["grown"]
    neurons = facts["changes"]["neurons"]
    assert neurons["changed"] > 10
    assert neurons["changed"] + neurons["same"] == neurons["compared"]
    most = neurons["changed_most"]
    assert [row["similarity"] for row in most] == sorted(row["similarity"] for row in most)
    assert all(row["similarity"] < 0.9 and row["before"] != row["after"] for row in most)
    assert most[0]["before"] in Page(page).text
    assert any(row["after"] < row["before"] for row in facts["changes"]["scores"])


def test_a_start_that_is_stopped_above_the_threshold_says_why(starts: Any) -> None:
    code, facts, page, metrics = starts["refused"]
    assert code == facts["exit_code"] == 4
    assert facts["state"] == "failed"
    assert "max_quarantined" in facts["reason"]
    assert facts["reason"] in Page(page).text
    assert facts["last_success"] == starts["grown"][1]["last_success"]
    found = samples(metrics)
    assert found["neuroscribe_exit_code",] == 4
    assert (
        found["neuroscribe_last_success_timestamp_seconds",]
        <= (found["neuroscribe_last_run_timestamp_seconds",])
    )


@pytest.mark.parametrize("name", ["first", "again", "grown", "refused"])
def test_every_page_is_whole_and_loads_nothing(starts: Any, name: str) -> None:
    page = Page(starts[name][2])
    assert page.open == []
    assert page.foreign == []
    assert "url(" not in starts[name][2]


def test_the_metrics_say_what_the_summary_says(starts: Any) -> None:
    _, facts, _, metrics = starts["grown"]
    found = samples(metrics)
    assert found["neuroscribe_exit_code",] == 3
    assert found["neuroscribe_images", "used"] == facts["totals"]["images"]
    assert found["neuroscribe_images", "quarantined"] == 1
    assert found["neuroscribe_images_changed", "new"] == facts["changes"]["images"]["new"]
    assert found["neuroscribe_neurons", "failed"] == 1
    record = next(row for row in facts["stages"] if row["stage"] == "record")
    assert found["neuroscribe_stage_seconds", "record"] == pytest.approx(record["seconds"])
    assert found["neuroscribe_stage_rows_per_second", "record"] == record["rows_per_second"]


def test_a_start_out_of_time_leaves_its_account(tmp_path: Path, local_ray: None) -> None:
    planted_network.write_images(tmp_path, 120)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(planted_network.config(tmp_path)))
    out = tmp_path / "run"
    assert main(["run", str(config), "--out", str(out), "--max-seconds", "0.05"]) == 75
    facts = json.loads((out / "summary.json").read_text())
    assert (facts["exit_code"], facts["state"], facts["last_success"]) == (75, "stopped", None)
    assert "time limit" in facts["reason"]
    assert "images" not in facts["changes"]
    assert "not all recorded" in Page((out / "summary.html").read_text()).text
    assert not Run(out).tables()


NASTY = '<script>alert("1")</script>&"\\\n'


def nasty() -> dict[str, Any]:
    """Facts in which every text from outside tries to get out of its place."""
    return {
        "run": NASTY,
        "state": "failed",
        "exit_code": 1,
        "reason": NASTY,
        "started": "2026-01-01T00:00:00Z",
        "finished": "2026-01-01T00:00:10Z",
        "seconds": 10.0,
        "last_success": None,
        "first": False,
        "stages": [{"stage": NASTY, "state": NASTY, "seconds": 1.0}],
        "totals": {"images": 1, "quarantined": 1, "neurons": {NASTY: 1}},
        "changes": {
            "settings": [{"key": NASTY, "before": NASTY, "after": NASTY}],
            "images": {
                **dict.fromkeys(("used", "new", "gone", "quarantined", "newly_quarantined"), 1),
                "quarantine": [{"image_id": NASTY, "path": NASTY, "reason": NASTY}],
            },
            "neurons": {
                **dict.fromkeys(("compared", "same", "changed", "new", "removed"), 1),
                "changed_most": [
                    {
                        **dict.fromkeys(
                            ("layer", "pooling", "explainer", "before", "after"), NASTY
                        ),
                        "neuron": 1,
                        "similarity": 0.5,
                    }
                ],
                "failed": [NASTY],
            },
            "scores": [
                {
                    **dict.fromkeys(("layer", "pooling", "explainer", "simulator"), NASTY),
                    "neurons": 1,
                    "before": 0.1,
                    "after": 0.2,
                }
            ],
        },
        "atlas": None,
    }


def test_text_from_outside_is_escaped_on_the_page_and_in_the_metrics() -> None:
    page = Page(account_page(nasty()))
    assert page.foreign == []
    assert page.open == []
    assert page.text.count("<script>") >= 12
    assert "{" not in account_page(nasty()).split("</style>")[1]
    found = samples(metrics_text(nasty()))
    escaped = NASTY.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
    assert found["neuroscribe_neurons", escaped] == 1
