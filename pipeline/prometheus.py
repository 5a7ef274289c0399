"""The account of a start as Prometheus text, for the textfile collector of the node exporter.

The file is replaced whole when a start ends. `neuroscribe_last_success_timestamp_seconds` is what an alarm
should look at: it stands still when runs fail, and when none is started at all.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Iterator, Mapping
from typing import Any

_PREFIX = "neuroscribe_"


def metrics_text(facts: Mapping[str, Any]) -> str:
    """The metrics of a start, all gauges, each with the run directory as a label.

    Args:
        facts: As `pipeline.account.account` gives them.

    Source:
        Prometheus text exposition format 0.0.4.
    """
    lines: list[str] = []
    for name, text, samples in _families(facts):
        found = [(labels, value) for labels, value in samples if value is not None]
        if not found:
            continue
        lines += [f"# HELP {_PREFIX}{name} {text}", f"# TYPE {_PREFIX}{name} gauge"]
        for labels, value in found:
            every = {"run": facts["run"], **labels}
            inside = ",".join(f'{key}="{_escaped(one)}"' for key, one in every.items())
            lines.append(f"{_PREFIX}{name}{{{inside}}} {float(value):.15g}")
    return "\n".join(lines) + "\n"


_Samples = list[tuple[dict[str, str], Any]]


def _families(facts: Mapping[str, Any]) -> Iterator[tuple[str, str, _Samples]]:
    stages, totals, changes = facts["stages"], facts["totals"], facts["changes"]
    images, neurons = changes.get("images", {}), changes.get("neurons", {})

    def of_stages(key: str) -> _Samples:
        return [({"stage": row["stage"]}, row.get(key)) for row in stages]

    yield "exit_code", "Exit code of the last start.", [({}, facts["exit_code"])]
    yield "seconds", "Duration of the last start.", [({}, facts["seconds"])]
    finished, success = facts["finished"], facts["last_success"]
    yield "last_run_timestamp_seconds", "End of the last start.", [({}, _seconds(finished))]
    yield (
        "last_success_timestamp_seconds",
        "End of the last start with exit code 0 or 3.",
        [({}, None if success is None else _seconds(success))],
    )
    yield (
        "images",
        "Images by what became of them.",
        [
            ({"state": "used"}, totals["images"]),
            ({"state": "quarantined"}, totals["quarantined"]),
        ],
    )
    yield (
        "images_changed",
        "Images that came, went or were quarantined in the last start.",
        [({"change": key}, images.get(key)) for key in ("new", "gone", "newly_quarantined")],
    )
    by_status = sorted(totals["neurons"].items())
    yield "neurons", "Neurons by status.", [({"status": s}, count) for s, count in by_status]
    yield (
        "explanations_changed",
        "Explanations that the last start compared and changed, and neurons new and removed.",
        [({"change": key}, neurons.get(key)) for key in ("compared", "changed", "new", "removed")],
    )
    yield "stage_seconds", "Duration of each stage of the last start.", of_stages("seconds")
    yield "stage_rows", "Rows that a stage of the last start wrote.", of_stages("rows")
    yield "stage_bytes", "Bytes that a stage of the last start wrote.", of_stages("bytes")
    yield (
        "stage_rows_per_second",
        "Rate of a stage of the last start.",
        of_stages("rows_per_second"),
    )
    yield (
        "correlation",
        "Mean correlation of chosen explanations on test images.",
        [
            (
                {key: row[key] for key in ("layer", "pooling", "explainer", "simulator")},
                row["after"],
            )
            for row in changes.get("scores", [])
        ],
    )


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _seconds(stamp: str) -> int:
    return calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ"))
