"""Which neurons changed meaning between two runs: the same layers of two networks, data sets or settings.

The chosen explanations of each neuron are compared by their terms, and, where both runs explain with the
same model, by what they predict of the second run's test images, so that another word for the same thing
is told from another meaning. Only tables are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from core.comparison import paired_difference
from core.errors import ConfigError
from pipeline.agreement import agreements
from pipeline.concepts_config import OWN_SCORE
from pipeline.expected import SCORES
from pipeline.export import chosen_explanations
from pipeline.rundir import Run
from pipeline.show import equation
from pipeline.storage import Folder
from pipeline.text_table import table_lines

#: Similarity of terms, or correlation of predictions, from which two explanations are the same.
SAME = 0.9

#: What a neuron's explanation may have become.
CHANGES = ("same", "reworded", "changed", "gained", "lost", "neither")

_COLUMN = ("layer", "pooling", "explainer")
_NEURON = (*_COLUMN, "neuron")
_KEPT = ("status", "concepts", "weights", "bias", "shares", "val_correlation")

_Key = tuple[Any, ...]
_Rows = dict[_Key, dict[str, Any]]


@dataclass(frozen=True)
class Diff:
    """What changed from one run to another."""

    places: tuple[str, str]
    """Where the two runs are."""
    table: pa.Table
    """A row for every neuron and explainer of both runs, as docs/results.md says."""
    simulators: list[str]
    """Those that scored explanations in both runs, the explainers themselves among them."""
    settings: list[tuple[str, str, str]]
    """Keys of run.yaml whose values differ, with both."""
    missing: list[str]
    """What one run alone has, in words."""
    unread: dict[str, str]
    """Explainers whose predictions could not be compared, with the reason."""


def diff_runs(a: Run, b: Run) -> Diff:
    """Compare the chosen explanations of two runs, neuron by neuron.

    Raises:
        ConfigError: A run has no explanations or no settings, or they share no layer with the same
            pooling and explainer.
    """
    tables = [chosen_explanations(run, "shares") for run in (a, b)]
    settings = [_settings(run) for run in (a, b)]
    before, after = (_by_neuron(table) for table in tables)
    keys = [key for key in after if key in before]
    columns = [dict.fromkeys(key[:3] for key in rows) for rows in (before, after)]
    if not keys:
        has = ["; ".join(" · ".join(key) for key in some) for some in columns]
        raise ConfigError(
            "the runs have no layer in common that has the same pooling and is explained by an "
            f"explainer of the same name; {a.folder.url!r} has {has[0]}, {b.folder.url!r} has {has[1]}"
        )
    sections = [{c["name"]: c for c in one["concepts"]} for one in settings]
    agreed, unread = agreements((a, b), (before, after), sections)
    scored = [_scores(run) for run in (a, b)]
    simulators = [name for name in scored[1] if name in scored[0]]
    rows = [
        _row(key, before[key], after[key], agreed.get(key))
        | {name: value for s in simulators for name, value in _scored(s, key, scored)}
        for key in keys
    ]
    flat = [flat_settings(one) for one in settings]
    differ = [
        (key, flat[0].get(key, "—"), flat[1].get(key, "—"))
        for key in dict.fromkeys([*flat[0], *flat[1]])
        if flat[0].get(key) != flat[1].get(key)
    ]
    missing = [*_missing("A", before, after), *_missing("B", after, before)]
    table = pa.Table.from_pylist(rows, schema=_schema(simulators))
    return Diff((a.folder.url, b.folder.url), table, simulators, differ, missing, unread)


def similarity(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """How much two explanations of a neuron have in common, by what their terms account for.

    A term is a concept with the sign of its weight; its size is its share of the variance that the
    explanation accounts for. The sum of the smaller sizes over the sum of the larger ones is 1 for
    the same terms with the same shares, and 0 where no concept appears in both with the same sign.

    Args:
        one: `concepts`, `weights` and `shares` of an explanation that has terms.
        other: Of another.

    Returns:
        In [0, 1], and the same when the two are exchanged.

    Source:
        M. Ružička's index, also called the weighted Jaccard index.
    """
    mine, theirs = _sizes(one), _sizes(other)
    terms = mine.keys() | theirs.keys()
    pairs = [(mine.get(term, 0.0), theirs.get(term, 0.0)) for term in sorted(terms)]
    return min(1.0, sum(map(min, pairs)) / sum(map(max, pairs)))


def _sizes(row: Mapping[str, Any]) -> dict[tuple[str, bool], float]:
    """Size of each term; the sizes of an explanation sum to 1."""
    shares = np.array(row["shares"], dtype=np.float64)
    if not (shares.sum() > 0 and np.isfinite(shares).all()):
        shares = np.ones(len(row["concepts"]))
    shares /= shares.sum()
    terms = zip(row["concepts"], row["weights"], shares.tolist(), strict=True)
    return {(concept, weight < 0): share for concept, weight, share in terms}


def _by_neuron(table: pa.Table) -> _Rows:
    return {tuple(row[name] for name in _NEURON): row for row in table.to_pylist()}


def _row(
    key: _Key, a: dict[str, Any], b: dict[str, Any], agreement: float | None
) -> dict[str, Any]:
    explained = (bool(a["concepts"]), bool(b["concepts"]))
    alike = similarity(a, b) if all(explained) else None
    change = {(False, True): "gained", (True, False): "lost", (False, False): "neither"}.get(
        explained
    )
    if alike is not None:
        same = alike >= SAME
        reworded = agreement is not None and agreement >= SAME
        change = "same" if same else "reworded" if reworded else "changed"
    row = dict(zip(_NEURON, key, strict=True))
    row |= {"change": change, "similarity": alike, "agreement": agreement}
    return row | {f"{n}_{run}": one[n] for run, one in (("a", a), ("b", b)) for n in _KEPT}


def _schema(simulators: Sequence[str]) -> pa.Schema:
    texts, numbers = pa.list_(pa.string()), pa.list_(pa.float64())
    kinds = dict(zip(_KEPT, (pa.string(), texts, numbers, pa.float64(), numbers), strict=False))
    fields = [(name, pa.int32() if name == "neuron" else pa.string()) for name in _NEURON]
    fields += [("change", pa.string()), ("similarity", pa.float64()), ("agreement", pa.float64())]
    fields += [(f"{n}_{run}", kinds.get(n, pa.float64())) for run in "ab" for n in _KEPT]
    for name in simulators:
        fields += [(f"correlation_{run}.{name}", pa.float64()) for run in "ab"]
        fields += [(f"intervals_overlap.{name}", pa.bool_())]
    return pa.schema(fields)


# Scores -----------------------------------------------------------------------------------------


def _scores(run: Run) -> dict[str, dict[_Key, tuple[float | None, ...]]]:
    """Correlation and interval of chosen explanations, by simulator and neuron."""
    if SCORES not in run.tables():
        return {}
    names = (*_NEURON, "simulator", "correlation", "ci_low", "ci_high")
    table = run.read(SCORES, [*names, "chosen"])
    table = table.filter(table["chosen"])
    found: dict[str, dict[_Key, tuple[float | None, ...]]] = {}
    columns = [table[name].to_pylist() for name in names]
    for *key, simulator, score, low, high in zip(*columns, strict=True):
        found.setdefault(simulator, {})[tuple(key)] = (score, low, high)
    return found


def _scored(simulator: str, key: _Key, scored: Sequence[Any]) -> Iterator[Any]:
    """The columns of one simulator in a row of the table."""
    unknown = (None, None, None)
    (a, low_a, high_a), (b, low_b, high_b) = (s[simulator].get(key, unknown) for s in scored)
    yield f"correlation_a.{simulator}", a
    yield f"correlation_b.{simulator}", b
    ends = (low_a, high_a, low_b, high_b)
    known = None if None in ends else max(low_a, low_b) <= min(high_a, high_b)
    yield f"intervals_overlap.{simulator}", known


# Settings ---------------------------------------------------------------------------------------


def _settings(run: Run) -> dict[str, Any]:
    if not run.folder.exists("run.yaml"):
        raise ConfigError(f"{run.folder.url!r} has no run.yaml; expected the settings of the run")
    found: dict[str, Any] = yaml.safe_load(run.folder.read("run.yaml"))
    return found


def flat_settings(value: Any, prefix: str = "") -> dict[str, str]:
    """Settings by dotted keys; entries of a list that have names go by these."""
    if (
        isinstance(value, list)
        and value
        and all(isinstance(v, dict) and "name" in v for v in value)
    ):
        value = {entry["name"]: {k: v for k, v in entry.items() if k != "name"} for entry in value}
    if not isinstance(value, dict) or not value:
        return {prefix: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}
    flat: dict[str, str] = {}
    for key, inner in value.items():
        flat |= flat_settings(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _missing(name: str, there: _Rows, other: _Rows) -> list[str]:
    """Layers, poolings and explainers of one run alone, and neurons of those that both have."""
    known = {key[:3] for key in other}
    extra: dict[_Key, int] = {}
    for key in there:
        if key not in other:
            extra[key[:3]] = extra.get(key[:3], 0) + 1
    return [
        f"{layer} ({pooling}) by {explainer}, in {name} alone: "
        + (f"{count:,} neurons" if (layer, pooling, explainer) in known else "all of it")
        for (layer, pooling, explainer), count in extra.items()
    ]


# For people -------------------------------------------------------------------------------------


def table_place(url: str) -> tuple[Folder, str]:
    """The folder and the name of a file to write, from its path or URL.

    Raises:
        ConfigError: The place is a folder.
    """
    place = url if "://" in url else str(Path(url).resolve())
    folder, _, name = place.rpartition("/")
    there = Folder(place)
    if not name or url.endswith("/") or (there.exists() and not there.is_file()):
        raise ConfigError(f"{url!r} is a folder; expected the name of a Parquet file to write")
    return Folder(folder or "/"), name


def diff_lines(diff: Diff, limit: int) -> list[str]:
    """The comparison for a terminal: settings, counts, scores, and the neurons that changed most.

    Args:
        diff: Of two runs.
        limit: How many neurons to list.
    """
    rows = diff.table.to_pylist()
    groups: dict[_Key, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((_layer(row), row["explainer"]), []).append(row)
    lines = [f"A: {diff.places[0]}", f"B: {diff.places[1]}", "", "Settings that differ, A → B:"]
    lines += [f"  {key}: {a} → {b}" for key, a, b in diff.settings] or ["  none"]
    lines += ["", "Neurons of both runs, by what became of their explanations:", *_counts(groups)]
    lines += [
        f"  same: similarity of terms at least {SAME}; reworded: of the others, those whose "
        f"predictions correlate at least {SAME};",
        "  gained, lost, neither: explained in B alone, in A alone, in none.",
    ]
    lines += [f"  {text}" for text in diff.missing]
    lines += [
        f"  {name}: predictions are not compared, so that none is reworded: {why}"
        for name, why in diff.unread.items()
    ]
    if scores := _score_lines(groups, diff.simulators):
        lines += ["", "Mean correlation on the test images of each run, and its change:", *scores]
    changed = sorted((row for row in rows if row["change"] == "changed"), key=_least_alike)
    if changed and limit > 0:
        lines += ["", f"Changed most, {min(limit, len(changed)):,} of {len(changed):,}:"]
    for row in changed[:limit] if limit > 0 else []:
        lines += _neuron_lines(row)
    return lines


def _counts(groups: Mapping[_Key, list[dict[str, Any]]]) -> list[str]:
    head = ("layer", "explainer", "neurons", *CHANGES, "similarity")
    cells = []
    for (layer, explainer), rows in groups.items():
        changes = [row["change"] for row in rows]
        alike = [row["similarity"] for row in rows if row["similarity"] is not None]
        cells.append(
            (
                *(layer, explainer, f"{len(rows):,}"),
                *(f"{changes.count(change):,}" for change in CHANGES),
                f"{np.mean(alike):.2f}" if alike else "-",
            )
        )
    return table_lines(head, cells, right=range(2, len(head)))


def _score_lines(
    groups: Mapping[_Key, list[dict[str, Any]]], simulators: Sequence[str]
) -> list[str]:
    """Means over neurons with a score in both runs; Student's 95 % intervals of the paired change."""
    head = ("layer", "explainer", "scored by", "neurons", "A", "B", "B less A", "clear")
    cells = []
    for (layer, explainer), rows in groups.items():
        for name in simulators:
            a, b = (
                np.array([row[f"correlation_{run}.{name}"] for row in rows], dtype=np.float64)
                for run in "ab"
            )
            gap = paired_difference(b, a).difference
            if not gap.count:
                continue
            both = np.isfinite(a) & np.isfinite(b)
            around = "" if gap.count < 2 else f" ({gap.low:+.3f} … {gap.high:+.3f})"
            apart = [row[f"intervals_overlap.{name}"] for row in rows].count(False)
            cells.append(
                (
                    *(layer, explainer, "itself" if name == OWN_SCORE else name),
                    *(f"{gap.count:,}", f"{a[both].mean():.3f}", f"{b[both].mean():.3f}"),
                    *(f"{gap.mean:+.3f}{around}", f"{apart:,}"),
                )
            )
    if not cells:
        return []
    lines = table_lines(head, cells, right=(3, 4, 5, 7))
    return [*lines, "  clear: neurons whose own two intervals do not overlap"]


def _least_alike(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Least alike first; of neurons alike, those first whose two explanations both fit well."""
    alike = row["similarity"] if row["agreement"] is None else row["agreement"]
    fits = min(row[f"val_correlation_{run}"] or 0.0 for run in "ab")
    return (alike, -fits, row["layer"], row["pooling"], row["neuron"], row["explainer"])


def _neuron_lines(row: Mapping[str, Any]) -> list[str]:
    agreement = row["agreement"]
    predicted = "" if agreement is None else f", predictions correlate {agreement:.2f}"
    lines = [
        f"  {_layer(row)}:{row['neuron']} by {row['explainer']}: "
        f"similarity {row['similarity']:.2f}{predicted}"
    ]
    for run in "ab":
        names = ("concepts", "weights", "bias")
        text = equation({name: row[f"{name}_{run}"] for name in names})
        lines.append(f"    {run.upper()}  {row[f'val_correlation_{run}'] or 0.0:.2f}  {text}")
    return lines


def _layer(row: Mapping[str, Any]) -> str:
    return row["layer"] if row["pooling"] == "avg" else f"{row['layer']} ({row['pooling']})"
