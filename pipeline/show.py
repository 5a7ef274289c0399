"""What the commands print: a summary, the status of a run, its layers, and single neurons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from actors.layer_info import LayerInfo
from core.errors import ConfigError, close_names
from pipeline.compare import comparison_lines
from pipeline.concepts_config import OWN_SCORE
from pipeline.decoding import ON_CPUS, ON_DEVICE
from pipeline.expected import ABLATIONS, EXPLANATIONS, SCORES, STAGES
from pipeline.lock import RunLock
from pipeline.outcome import Summary, summarise
from pipeline.progress import duration
from pipeline.rundir import Run, timestamp
from pipeline.text_table import table_lines

#: What is told of the latest start that ended, of what its account says.
LAST_START = ("state", "exit_code", "reason", "started", "finished", "last_success")


def summary_lines(summary: Summary) -> list[str]:
    """What a finished run has come to, for a person."""
    counts = f"; neurons: {_counts(summary.neurons)}" if summary.neurons else ""
    lines = ["", f"{summary.images:,} images, {summary.quarantined:,} quarantined{counts}"]
    if summary.means:
        lines += [
            "",
            "Mean correlation on test images, at the chosen lengths:",
            *_mean_lines(summary),
        ]
    if summary.comparison is not None:
        table = summary.comparison
        simulated = table.filter(pc.not_equal(table["simulator"], OWN_SCORE))
        lines += ["", *comparison_lines(simulated if len(simulated) else table, summary.confidence)]
    if summary.replacements is not None:
        lines += ["", *_replacement_lines(summary.replacements)]
    if summary.quarantined:
        lines += [
            "",
            f"Images that could not be used, with reasons: {summary.url}/quarantine.parquet",
        ]
    if summary.atlas:
        link = summary.atlas if "://" in summary.atlas else Path(summary.atlas).as_uri()
        lines += ["", f"Atlas: {link}"]
    if summary.seconds:
        lines += [f"Done in {duration(summary.seconds)}."]
    return lines


def _counts(neurons: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {status}" for status, count in sorted(neurons.items()))


def _mean_lines(summary: Summary) -> list[str]:
    head = ("layer", "explainer", "scored by", "neurons", "length", "correlation")
    rows = [
        (
            m.layer if m.pooling == "avg" else f"{m.layer} ({m.pooling})",
            m.explainer,
            "itself (fit check)" if m.simulator == OWN_SCORE else m.simulator,
            f"{m.neurons:,}" if m.neurons == m.total else f"{m.neurons:,} of {m.total:,}",
            f"{m.length:.1f}",
            f"{m.correlation:.3f}",
        )
        for m in summary.means
    ]
    return table_lines(head, rows, right=(3, 4, 5))


def _replacement_lines(table: pa.Table) -> list[str]:
    head = ("layer", "explainer", "scored by", "neurons", "accuracy", "explained", "mean", "kept")
    rows = [
        (
            row["layer"] if row["pooling"] == "avg" else f"{row['layer']} ({row['pooling']})",
            row["explainer"],
            _who(row),
            f"{row['neurons']:,}",
            *(_percent(row[n]) for n in ("accuracy", "accuracy_replaced", "accuracy_mean")),
            _percent(row["accuracy_kept"]),
        )
        for row in table.to_pylist()
    ]
    return [
        "Accuracy with all explained neurons of a layer replaced at once, by their explanations and "
        "by their means:",
        *table_lines(head, rows, right=(3, 4, 5, 6, 7)),
    ]


def status_facts(run: Run) -> dict[str, Any]:
    """Stages, tables and failures of a run, as JSON-shaped facts."""
    ledger = run.ledger()["stages"]
    stages = {stage: ledger.get(stage, {"state": "not started"}) for stage in STAGES}
    holder = RunLock(run.folder).holder()
    since = None if holder is None else timestamp(holder.started)
    for stage, entry in stages.items():  # a start that was killed could not say so
        if entry["state"] == "running" and (since is None or entry["started"] < since):
            stages[stage] = entry | {"state": "killed"}
    last = run.folder.read_json("summary.json") or {}
    summary = summarise(run)
    return {
        "run": run.folder.url,
        "working": holder and {"pid": holder.pid, "host": holder.host, "since": since},
        "last_start": {key: last[key] for key in LAST_START if key in last} or None,
        "stages": stages,
        "tables": {
            name: {"path": e.path, "rows": e.rows, "fingerprint": e.fingerprint}
            for name, e in run.tables().items()
        },
        "images": summary.images,
        "quarantined": summary.quarantined,
        "neurons": summary.neurons,
        "atlas": summary.atlas,
    }


def status_lines(run: Run) -> list[str]:
    """The same facts for a person."""
    facts = status_facts(run)
    head = ("stage", "state", "seconds", "rows", "rows/s", "MB", "note")
    rows = []
    for stage, entry in facts["stages"].items():
        size = entry.get("bytes")
        rows.append(
            (
                stage,
                entry["state"],
                f"{entry['seconds']:,.1f}" if "seconds" in entry else "",
                f"{entry['rows']:,}" if entry.get("rows") else "",
                f"{entry['rows_per_second']:,}"
                if entry.get("rows") and "rows_per_second" in entry
                else "",
                f"{size / 1e6:,.1f}" if size else "",
                entry.get("reason") or entry.get("progress") or "",
            )
        )
    lines = [facts["run"], *table_lines(head, rows, right=(2, 3, 4, 5)), ""]
    if working := facts["working"]:
        who = f"process {working['pid']} on {working['host']}"
        lines.append(f"  at work: {who}, since {working['since']}")
    if last := facts["last_start"]:
        ended = (
            f"  last ended: {last['state']} at {last['finished']} (exit code {last['exit_code']})"
        )
        lines.append(ended + (f": {last['reason'].splitlines()[0]}" if last["reason"] else ""))
    lines.append(f"  {facts['images']:,} images used, {facts['quarantined']:,} quarantined")
    if (recorded := facts["stages"]["record"]).get(ON_DEVICE) is not None:
        lines.append(
            f"  {recorded[ON_DEVICE]:,} images decoded on GPUs, {recorded.get(ON_CPUS, 0):,} on CPUs"
        )
    if facts["neurons"]:
        lines.append(f"  neurons: {_counts(facts['neurons'])}")
    if facts["quarantined"]:
        reasons = run.read("quarantine", ["reason"])["reason"].value_counts().to_pylist()
        for entry in sorted(reasons, key=lambda e: -e["counts"]):
            lines.append(f"    {entry['counts']:,} × {entry['values']}")
    if facts["atlas"]:
        lines.append(f"  atlas: {facts['atlas']}")
    return lines


def layer_lines(infos: Sequence[LayerInfo]) -> list[str]:
    """A table of layers."""
    head = ("layer", "kind", "output of an image", "neurons", "")
    rows = [
        (
            info.name,
            info.kind,
            " × ".join(map(str, info.shape)) or "-",
            f"{info.neurons:,}" if info.neurons else "-",
            info.reason,
        )
        for info in infos
    ]
    return table_lines(head, rows, right=(3,))


def equation(row: dict[str, Any]) -> str:
    """An explanation as it is read: ``2.30·lab coat − 0.40·grass + 0.50``."""
    text = ""
    for concept, weight in zip(row["concepts"], row["weights"], strict=True):
        sign = "−" if weight < 0 else ("+" if text else "")
        text += f"{' ' if text else ''}{sign}{' ' if text else ''}{abs(weight):.3g}·{concept}"
    bias = row["bias"]
    if bias is None or (text and abs(bias) < 1e-9 * max(map(abs, row["weights"]))):
        return text
    sign = "−" if bias < 0 else ("+" if text else "")
    return f"{text}{' ' if text else ''}{sign}{' ' if text else ''}{abs(bias):.3g}"


def neuron_lines(run: Run, address: str) -> list[str]:
    """Everything about one neuron, for a terminal.

    Args:
        run: A run with explanations.
        address: ``LAYER:NEURON``.

    Raises:
        ConfigError: The run has no such layer or neuron.
    """
    layer, _, number = address.rpartition(":")
    if not layer or not number.isdecimal():
        raise ConfigError(f"{address!r} names no neuron; expected LAYER:NEURON, as conv_head:17")
    table = run.read(EXPLANATIONS)
    layers = table["layer"].unique().to_pylist()
    if layer not in layers:
        raise ConfigError(
            f"the run has no layer {layer!r}{close_names(layer, layers)}; it has {', '.join(layers)}"
        )
    table = table.filter(pc.equal(table["layer"], layer))
    last = pc.max(table["neuron"]).as_py()
    if int(number) > last:
        raise ConfigError(f"layer {layer!r} has neurons 0 to {last}; there is no {number}")
    rows = table.filter(pc.equal(table["neuron"], int(number))).to_pylist()
    scores, ablations = (_rows_of(run, t, layer, int(number)) for t in (SCORES, ABLATIONS))
    lines = [f"{layer}:{number}"]
    for pooling, explainer in dict.fromkeys((r["pooling"], r["explainer"]) for r in rows):
        path = [r for r in rows if (r["pooling"], r["explainer"]) == (pooling, explainer)]
        lines += ["", f"  {explainer} ({pooling} pooling)"]
        if path[0]["status"] != "ok":
            lines.append(f"    {path[0]['status']}: nothing to explain; mean {path[0]['bias']}")
            continue
        lines += _path_lines(path, scores, ablations)
    return lines


def _path_lines(
    path: list[dict[str, Any]], scores: list[dict[str, Any]], ablations: list[dict[str, Any]]
) -> list[str]:
    chosen = next(r for r in path if r["chosen"])
    lines = [f"    {equation(chosen)}", *_term_lines(chosen)]
    mine, ablated = (
        [r for r in rows if all(r[key] == chosen[key] for key in ("pooling", "explainer"))]
        for rows in (scores, ablations)
    )
    for score in (s for s in mine if s["chosen"] and s["correlation"] is not None):
        lines.append(
            f"    test correlation by {_who(score)}: {score['correlation']:.3f} "
            f"({score['ci_low']:.3f} … {score['ci_high']:.3f})"
        )
    for row in (r for r in ablated if r["score"] is not None):
        lines.append(
            f"    ablation score by {_who(row)}, {row['kind']}: {row['score']:.3f} "
            f"± {_three(row['standard_error'])}"
        )
    simulators = list(dict.fromkeys(s["simulator"] for s in mine))
    head = ("length", "train", "val", *simulators)
    by_length = {(s["length"], s["simulator"]): s["correlation"] for s in mine}
    rows = [
        (
            f"{r['length']}{'*' if r['chosen'] else ' '}",
            _three(r["train_correlation"]),
            _three(r["val_correlation"]),
            *(_three(by_length.get((r["length"], s))) for s in simulators),
        )
        for r in path
    ]
    right = range(1, len(head))
    return lines + ["  " + line for line in table_lines(head, rows, right=list(right))]


def _term_lines(chosen: dict[str, Any]) -> list[str]:
    """What each term is worth: its share of variance, how often folds found it, what else would do."""
    terms = len(chosen["concepts"])
    stability = chosen["stability"] or [None] * terms
    synonyms = chosen["synonyms"] or [[]] * terms
    columns = (chosen["weights"], chosen["concepts"], chosen["shares"], stability, synonyms)
    rows = [
        (
            f"{weight:.3g}".replace("-", "−"),
            concept,
            _percent(share),
            _percent(found, places=0),
            ", ".join(instead),
        )
        for weight, concept, share, found, instead in zip(*columns, strict=True)
    ]
    rows.append(("", "all terms", _percent(sum(s or 0.0 for s in chosen["shares"])), "", ""))
    head = ("weight", "concept", "of variance", "found again", "or nearly as well")
    table = table_lines(head, rows, right=(0, 2, 3))
    return ["", *("  " + line for line in table), ""]


def _percent(value: float | None, places: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{places}f} %"


def _three(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _who(row: dict[str, Any]) -> str:
    return "itself (fit check)" if row["simulator"] == OWN_SCORE else str(row["simulator"])


def _rows_of(run: Run, name: str, layer: str, neuron: int) -> list[dict[str, Any]]:
    """A table's rows about one neuron; none where the run has no such table."""
    if name not in run.tables():
        return []
    table = run.read(name)
    wanted = pc.and_(pc.equal(table["layer"], layer), pc.equal(table["neuron"], neuron))
    found: list[dict[str, Any]] = table.filter(wanted).to_pylist()
    return found


def search_lines(run: Run, text: str, limit: int) -> list[str]:
    """Neurons whose chosen explanation has a concept that contains a text."""
    table = run.read(EXPLANATIONS)
    table = table.filter(table["chosen"])
    lists = table["concepts"].combine_chunks()
    hits = pc.match_substring(pc.list_flatten(lists), text, ignore_case=True)
    rows = pc.unique(pc.list_parent_indices(lists).filter(hits))
    found: pa.Table = table.take(rows)
    ranked = sorted(found.to_pylist(), key=lambda r: -(r["val_correlation"] or -1))
    lines = [f"{len(ranked):,} explanations use a concept that contains {text!r}"]
    for row in ranked[:limit]:
        where = f"{row['layer']}:{row['neuron']}"
        lines.append(
            f"  {where:<24} {_three(row['val_correlation'])}  {row['explainer']}: {equation(row)}"
        )
    if len(ranked) > limit:
        lines.append(f"  … and {len(ranked) - limit:,} more; --limit shows more of them")
    return lines
