"""The account of a start on one page, for whoever comes in the morning: what changed, and what failed.

The page needs no other file, loads nothing and runs no script; every text from outside is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from pipeline.concepts_config import OWN_SCORE
from pipeline.progress import duration

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --page: #fff;
  --good: #1a7f37; --warn: #9a6700; --bad: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa4af; --line: #3d444d;
  --page: #0d1117; --good: #3fb950; --warn: #d29922; --bad: #ff7b72; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .3rem 0; } .soft { color: var(--soft); overflow-wrap: anywhere; }
.done { color: var(--good); } .attention { color: var(--warn); } .failed { color: var(--bad); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; } th { font-weight: 600; color: var(--soft); }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td { overflow-wrap: anywhere; }
"""

_HEADLINES = {
    0: ("done", "Done"),
    3: ("attention", "Done, with images or neurons that could not be used"),
    4: ("failed", "Stopped: more images were bad than the configuration allows"),
    75: ("attention", "Stopped early; the same command goes on from here"),
}


def account_page(facts: Mapping[str, Any]) -> str:
    """The page, from the facts that `pipeline.account.account` gives."""
    kind, headline = _HEADLINES.get(facts["exit_code"], ("failed", "Failed"))
    changed = facts["changes"]
    # The page lies beside the atlas, so that both may be moved.
    atlas = '<p><a href="atlas/index.html">Atlas</a></p>' if facts["atlas"] else ""
    body = [
        f'<h1 class="{kind}">{headline}</h1>',
        f'<p class="soft">{escape(facts["run"])}</p>',
        f"<p>From {facts['started']} to {facts['finished']}, {duration(facts['seconds'])}; exit code "
        f"{facts['exit_code']}.</p>",
    ]
    if facts["reason"]:
        body.append(f'<p class="{kind}">{escape(facts["reason"])}</p>')
    if facts["state"] != "done":
        body.append(f"<p>Last success: {facts['last_success'] or 'none yet'}.</p>")
    body += [atlas, "<h2>What changed</h2>", *(f"<p>{line}</p>" for line in _change_lines(facts))]
    body += _settings(changed["settings"])
    body += _explanations(changed.get("neurons", {}).get("changed_most", []))
    body += _scores(changed.get("scores", []))
    body += _failures(changed)
    body += _stages(facts["stages"])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{headline} · neuroscribe</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _change_lines(facts: Mapping[str, Any]) -> list[str]:
    """Sentences on images and neurons; what is not finished is said to be so."""
    changed = facts["changes"]
    images, neurons = changed.get("images"), changed.get("neurons")
    lines = []
    if facts["first"]:
        lines.append("This is the first start in this run directory.")
    if images is None:
        lines.append("The images are not all recorded yet.")
    else:
        lines.append(
            f"Images: {images['used']:,} used, {images['new']:,} of them new, {images['gone']:,} gone; "
            f"{images['quarantined']:,} quarantined, {images['newly_quarantined']:,} of them now."
        )
    if neurons is None:
        lines.append("The explanations are not finished yet.")
        return lines
    counts = ", ".join(
        f"{count:,} {escape(status)}"
        for status, count in sorted(facts["totals"]["neurons"].items())
    )
    lines.append(f"Neurons: {counts}.")
    if neurons["compared"] or "changed" in neurons:
        lines.append(
            f"Explanations: {neurons['changed']:,} of {neurons['compared']:,} changed; neurons: "
            f"{neurons['new']:,} new, {neurons['removed']:,} removed."
        )
    elif not facts["first"]:
        lines.append("There were no finished explanations to compare with.")
    return lines


def _settings(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    if not settings:
        return []
    rows = [(row["key"], _given(row["before"]), _given(row["after"])) for row in settings]
    return ["<h2>Settings that differ</h2>", _table("Settings", ("key", "before", "now"), rows)]


def _given(value: str | None) -> str:
    return "—" if value is None else value


def _explanations(changed: Sequence[Mapping[str, Any]]) -> list[str]:
    if not changed:
        return []
    rows = [
        (
            f"{row['layer']}:{row['neuron']}"
            + ("" if row["pooling"] == "avg" else f" ({row['pooling']})"),
            row["explainer"],
            row["before"],
            row["after"],
            f"{row['similarity']:.2f}",
        )
        for row in changed
    ]
    head = ("neuron", "explainer", "before", "now", "similarity")
    return ["<h2>Explanations that changed most</h2>", _table("Explanations", head, rows, {4})]


def _scores(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for row in scores:
        before, after = row["before"], row["after"]
        rows.append(
            (
                row["layer"] if row["pooling"] == "avg" else f"{row['layer']} ({row['pooling']})",
                row["explainer"],
                "itself (fit check)" if row["simulator"] == OWN_SCORE else row["simulator"],
                f"{row['neurons']:,}",
                f"{after:.3f}",
                "—" if before is None else f"{after - before:+.3f}".replace("-", "−"),
            )
        )
    head = ("layer", "explainer", "scored by", "neurons", "mean correlation", "change")
    return ["<h2>Scores</h2>", _table("Scores", head, rows, {3, 4, 5})] if rows else []


def _failures(changed: Mapping[str, Any]) -> list[str]:
    lines = []
    images = changed.get("images", {})
    if bad := images.get("quarantine"):
        rows = [(row["path"], row["reason"]) for row in bad]
        lines += ["<h2>Images quarantined now</h2>", _table("Images", ("image", "reason"), rows)]
        lines += _and_more(images["newly_quarantined"] - len(rows), "quarantine.parquet")
    if failed := changed.get("neurons", {}).get("failed"):
        text = ", ".join(escape(name) for name in failed)
        lines += ["<h2>Neurons that failed</h2>", f"<p>{text}</p>"]
    return lines


def _and_more(count: int, where: str) -> list[str]:
    return [f"<p>And {count:,} more, in {where}.</p>"] if count > 0 else []


def _stages(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        (
            row["stage"],
            row["state"],
            "" if row["seconds"] is None else f"{row['seconds']:,.1f}",
            f"{row['rows']:,}" if row.get("rows") else "",
            f"{row['rows_per_second']:,}" if row.get("rows_per_second") else "",
            f"{row['bytes'] / 1e6:,.1f}" if row.get("bytes") else "",
        )
        for row in stages
    ]
    head = ("stage", "state", "seconds", "rows", "rows/s", "MB")
    return ["<h2>Stages</h2>", _table("Stages", head, rows, {2, 3, 4, 5})]


def _table(
    label: str, head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()
) -> str:
    right = set(numbers)

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=number' if place in right else ''}>{escape(cell)}</{tag}>"
            for place, cell in enumerate(row)
        )

    lines = [f"<tr>{cells(row, 'td')}</tr>" for row in rows]
    # What scrolls can be reached by keyboard.
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table>'
        f"<thead><tr>{cells(head, 'th')}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
