"""The estimate of a run for a terminal, and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pipeline.estimate import Estimate
from pipeline.progress import duration
from pipeline.text_table import table_lines


def estimate_facts(found: Estimate) -> dict[str, Any]:
    """The estimate as JSON-shaped facts."""
    return asdict(found) | {"seconds": found.seconds, "written": found.written}


def estimate_lines(found: Estimate) -> list[str]:
    """The same for a person."""
    head = ("stage", "to do", "", "time", "MB written", "GB of memory")
    rows = [("start", "", "", duration(found.preparing), "", "")]
    rows += [
        (stage.stage, "fresh", "", "", "", "")
        if not stage.rows
        else (
            stage.stage,
            f"{stage.rows:,}",
            stage.unit,
            duration(stage.seconds),
            f"{stage.written / 1e6:,.1f}",
            f"{stage.memory / 1e9:,.1f}",
        )
        for stage in found.stages
    ]
    whole = (duration(found.seconds), f"{found.written / 1e6:,.1f}")
    peak = max((stage.memory for stage in found.stages), default=0)
    rows.append(("all", "", "", *whole, f"{peak / 1e9:,.1f}"))
    lines = [
        f"{found.images:,} images, {found.neurons:,} neurons; on this machine ({found.cores} logical "
        f"CPUs, models on {found.device}), measured for {duration(found.measured)}:",
        *table_lines(head, rows, right=(1, 3, 4, 5)),
    ]
    lines += [f"  {note}" for note in found.notes]
    costs = [
        (cost.machine, duration(3600 * cost.hours), f"{cost.usd:,.2f}") for cost in found.costs
    ]
    lines += ["", "On one machine of a kind, at list prices:"]
    lines += table_lines(("machine", "time", "USD"), costs, right=(1, 2))
    return [*lines, f"  prices of {found.prices}"]
