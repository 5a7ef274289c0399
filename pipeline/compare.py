"""The run's own explanations beside others of the same neurons, by the same scores.

Baselines and explanations from elsewhere are compared with the chosen explanation of each neuron,
pair by pair: every row of the table is over neurons that both have a score of.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from core.comparison import Mean, mean_with_interval, paired_difference
from pipeline.concepts_config import OWN_SCORE
from pipeline.external import LINEAR
from pipeline.text_table import table_lines

COMPARISON_SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("pooling", pa.string()),
        ("explainer", pa.string()),
        ("simulator", pa.string()),
        ("method", pa.string()),
        ("neurons", pa.int32()),
        ("mean", pa.float64()),
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("difference", pa.float64()),
        ("difference_low", pa.float64()),
        ("difference_high", pa.float64()),
        ("better_share", pa.float64()),
    ]
)

_Scores = dict[int, float]


def comparison_table(ours: pa.Table, theirs: pa.Table, confidence: float) -> pa.Table:
    """Means of every method and paired differences, by layer, explainer and simulator.

    Args:
        ours: The table of scores; its chosen explanations take part, as method `linear`.
        theirs: Scores of other explanations, with their `method`. Those without `explainer` are
            compared with the explanations of every explainer, others with those of their own.
        confidence: Coverage of the intervals, which are Student's, over neurons.

    Returns:
        For each layer, explainer and simulator a row `linear`, over the neurons that some other
        method explains too, then one a method, over the neurons that it and ours have a score of;
        `difference` is ours less theirs.
    """
    keys = ("layer", "pooling", "explainer", "simulator")
    chosen = _grouped(ours.filter(ours["chosen"]), keys)
    others = _grouped(theirs, (*keys, "method"))
    methods = theirs["method"].unique().to_pylist()
    rows: list[dict[str, Any]] = []
    for key, mine in chosen.items():
        about = dict(zip(keys, key, strict=True))
        anyone = tuple(None if name == "explainer" else about[name] for name in keys)
        found = {
            method: others.get((*key, method)) or others.get((*anyone, method), {})
            for method in methods
        }
        shared = sorted({neuron for scores in found.values() for neuron in scores} & mine.keys())
        if not shared:
            continue
        mean = mean_with_interval(_values(mine, shared), confidence)
        rows.append(about | {"method": LINEAR} | _mean(mean))
        for method, scores in found.items():
            both = sorted(scores.keys() & mine.keys())
            if not both:
                continue
            their_scores, our_scores = _values(scores, both), _values(mine, both)
            paired = paired_difference(our_scores, their_scores, confidence)
            gap = paired.difference
            rows.append(
                about
                | {"method": method}
                | _mean(mean_with_interval(their_scores, confidence))
                | {"difference": gap.mean, "difference_low": gap.low, "difference_high": gap.high}
                | {"better_share": paired.better_share}
            )
    for row in rows:
        row |= {k: None for k, v in row.items() if isinstance(v, float) and np.isnan(v)}
    return pa.Table.from_pylist(rows, schema=COMPARISON_SCHEMA)


def _grouped(table: pa.Table, keys: tuple[str, ...]) -> dict[tuple[Any, ...], _Scores]:
    """Known correlations by neuron, for each group in the order of the table."""
    table = table.filter(pc.is_valid(table["correlation"]))
    columns = [table[name].to_pylist() for name in (*keys, "neuron", "correlation")]
    groups: dict[tuple[Any, ...], _Scores] = {}
    for *key, neuron, correlation in zip(*columns, strict=True):
        groups.setdefault(tuple(key), {})[neuron] = correlation
    return groups


def _values(scores: _Scores, neurons: list[int]) -> np.ndarray:
    return np.array([scores[neuron] for neuron in neurons])


def _mean(mean: Mean) -> dict[str, Any]:
    return {"neurons": mean.count, "mean": mean.mean, "ci_low": mean.low, "ci_high": mean.high}


def comparison_lines(table: pa.Table, confidence: float) -> list[str]:
    """The comparison for a terminal; `*` marks the best mean of a layer, explainer and simulator."""
    rows = table.to_pylist()
    best: dict[tuple[str, ...], float] = {}
    for row in rows:
        best[_group(row)] = max(row["mean"], best.get(_group(row), -np.inf))
    head = (
        *("layer", "scored by", "explanations", "neurons", "correlation", "", ""),
        *("linear less these", "linear better"),
    )
    cells, last = [], None
    for row in rows:
        group = _group(row)
        where = row["layer"] if row["pooling"] == "avg" else f"{row['layer']} ({row['pooling']})"
        by = f"{row['explainer']} itself" if row["simulator"] == OWN_SCORE else row["simulator"]
        ours = row["method"] == LINEAR
        share = row["better_share"]
        cells.append(
            (
                *((where, by) if group != last else ("", "")),
                f"{LINEAR} by {row['explainer']}" if ours else row["method"],
                f"{row['neurons']:,}",
                f"{row['mean']:.3f}",
                "*" if row["mean"] == best[group] else "",
                _interval(row["ci_low"], row["ci_high"]),
                "" if ours else _signed(row),
                "" if share is None else f"{100 * share:.0f} %",
            )
        )
        last = group
    lines = table_lines(head, cells, right=(3, 4, 8))
    return [
        "Correlation on test images: mean over neurons; in brackets "
        f"{100 * confidence:g} % intervals over neurons; * best.",
        *lines,
    ]


def _group(row: dict[str, Any]) -> tuple[str, ...]:
    return (row["layer"], row["pooling"], row["explainer"], row["simulator"])


def _interval(low: float | None, high: float | None, sign: str = "") -> str:
    return "" if low is None else f"({low:{sign}.3f} … {high:{sign}.3f})"


def _signed(row: dict[str, Any]) -> str:
    around = _interval(row["difference_low"], row["difference_high"], sign="+")
    return f"{row['difference']:+.3f} {around}".rstrip()
