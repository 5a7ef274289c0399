"""Progress: what a person reads in a log."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import pytest

from pipeline.log import say, use_format
from pipeline.progress import Progress, duration
from pipeline.stream import count


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (250, "4 min 10 s"), (12000, "3 h 20 min")],
)
def test_durations_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_resumed_stage_counts_only_its_own_work_for_the_rate() -> None:
    stream = io.StringIO()
    progress = Progress("record", 1000, "images", stream)
    progress.resume_from(900)
    time.sleep(0.05)
    progress.advance(100)
    seconds = progress.close("2 quarantined")
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("record: 1,000 of 1,000 images, ")
    assert line.endswith("; 2 quarantined")
    rate = float(line.split(", ")[1].removesuffix("/s").replace(",", ""))
    assert rate == pytest.approx(100 / seconds, rel=0.05)


def test_a_stage_without_work_shows_no_rate() -> None:
    stream = io.StringIO()
    progress = Progress("fit", 5, "neurons", stream)
    progress.resume_from(5)
    progress.close()
    assert "/s" not in stream.getvalue()


def test_lines_for_a_machine_are_json_objects_with_the_same_figures() -> None:
    stream = io.StringIO()
    use_format("json")
    try:
        progress = Progress("record", 1000, "images", stream)
        progress.resume_from(900)
        time.sleep(0.05)
        progress.advance(100)
        progress.close('2 "quarantined"\n')
        say("plan", "plan", images=1000, stream=stream)
    finally:
        use_format("text")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["event"], first["what"], first["done"]) == ("finished", "record", 1000)
    assert first["per_second"] == pytest.approx(100 / first["seconds"], rel=0.05)
    assert first["text"].endswith('2 "quarantined"\n')
    assert (second["event"], second["level"], second["images"]) == ("plan", "info", 1000)
    assert time.strptime(second["time"][:19], "%Y-%m-%dT%H:%M:%S")


def test_an_actor_that_goes_on_with_smaller_batches_is_told_of_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    facts: dict[str, Any] = {"rows": 0, "bytes": 0}
    for size in (256, 128, 256, 128):
        count(facts, {"images": 10, "bytes": 5, "overflowed": 0, "batch_size": size})
    assert (facts["rows"], facts["batch_size"]) == (40, 128)
    (line,) = capsys.readouterr().err.splitlines()
    assert "256 images in a pass" in line
    assert "goes on with 128" in line
