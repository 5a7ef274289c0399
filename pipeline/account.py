"""The account of a start: what it did, what changed since the one before, and what failed.

`summary.json` and `metrics.prom` are for machines and `summary.html` for people. They are written however the
start ends, but where the directory belongs to another run by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.account_page import account_page
from pipeline.changes import Before, changes
from pipeline.exit_codes import DONE, DONE_WITH_FAILURES, STOPPED, exit_code
from pipeline.expected import IMAGES, STAGES
from pipeline.lock import locked
from pipeline.log import say
from pipeline.outcome import summarise
from pipeline.prometheus import metrics_text
from pipeline.rundir import Run, timestamp

SUMMARY, PAGE, METRICS = "summary.json", "summary.html", "metrics.prom"


@contextmanager
def accounted(
    run: Run, image_parts: Iterable[str], still_ours: Callable[[], bool]
) -> Iterator[None]:
    """Write the account of what is done in a `with` block, whether it succeeds or not.

    Args:
        run: Where.
        image_parts: Parts of the images table that the run will have when it is done.
        still_ours: Whether the run directory is locked by this process.
    """
    begun = time.time()
    before = Before.of(run, image_parts)
    caught: BaseException | None = None
    try:
        yield
    except BaseException as error:
        caught = error
        raise
    finally:
        try:
            if still_ours():
                _write(run, before, begun, caught)
        except Exception as fault:
            _say_lost(fault)


@contextmanager
def refusals_accounted(run: Run) -> Iterator[None]:
    """Write the account of a start that is refused in a `with` block, before there is a plan.

    Only where an earlier start has left an account: a mistake in the first one makes no directory.
    """
    begun = time.time()
    try:
        yield
    except BaseException as error:
        try:
            if run.folder.exists(SUMMARY):
                with locked(run.folder):
                    parts = run.parts(IMAGES) if IMAGES in run.tables() else []
                    _write(run, Before.of(run, parts), begun, error, looked=False)
        except Exception as fault:
            _say_lost(fault)
        raise


def _say_lost(fault: Exception) -> None:
    # What is wrong with the storage has ended the run already, or will the next.
    text = f"the summary of this start could not be written: {fault}"
    say(text, "summary", level="warning")


def _write(
    run: Run, before: Before, begun: float, caught: BaseException | None, looked: bool = True
) -> None:
    facts = account(run, before, begun, time.time(), caught)
    if not looked:  # times are kept to the second, and an earlier start may have ended in this one
        facts["stages"] = []
    run.folder.write_json(SUMMARY, facts)
    run.folder.write(PAGE, account_page(facts).encode())
    run.folder.write(METRICS, metrics_text(facts).encode())


def account(
    run: Run, before: Before, begun: float, over: float, caught: BaseException | None
) -> dict[str, Any]:
    """What a start did, as JSON-shaped facts.

    Args:
        run: Where.
        before: What its tables said before.
        begun: When it started, in seconds since 1970.
        over: When it ended.
        caught: What ended it; None where it came to its end.
    """
    summary = summarise(run)
    code = summary.exit_code if caught is None else exit_code(caught)
    last = (run.folder.read_json(SUMMARY) or {}).get("last_success")
    good = code in (DONE, DONE_WITH_FAILURES)
    state = "done" if good else "stopped" if code == STOPPED else "failed"
    return {
        "run": run.folder.url,
        "state": state,
        "exit_code": code,
        "reason": None if caught is None else str(caught) or type(caught).__name__,
        "started": timestamp(begun),
        "finished": timestamp(over),
        "seconds": round(over - begun, 2),
        "last_success": timestamp(over) if good else last,
        "first": not before.tables,
        "stages": _stages(run, timestamp(begun)),
        "totals": {
            "images": summary.images,
            "quarantined": summary.quarantined,
            "neurons": summary.neurons,
        },
        "changes": changes(before, run),
        "atlas": summary.atlas,
    }


def _stages(run: Run, since: str) -> list[dict[str, Any]]:
    """What the ledger says of the stages that this start looked at."""
    ledger = run.ledger()["stages"]
    rows = []
    for stage in STAGES:
        entry = ledger.get(stage, {})
        if entry.get("started", "") < since:
            continue
        keys = ("rows", "bytes", "rows_per_second") if _worked(entry) else ()
        row = {"stage": stage, "state": entry["state"], "seconds": entry.get("last_seconds")}
        rows.append(row | {key: entry.get(key) for key in keys})
    return rows


def _worked(entry: dict[str, Any]) -> bool:
    """Whether figures are of this start: one that found everything fresh keeps the older ones."""
    return entry.get("seconds") == entry.get("last_seconds") or entry["state"] != "done"
