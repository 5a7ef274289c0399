"""Parts of the overview that say what explanations are worth: against simpler ones, and to the network.

All are empty where a run has not made them. Explainers, simulators and groups are numbers, as the
overview lists them.

* ``comparison``: ``[explainer, simulator, group, methods]`` with methods a list of
  ``[name, neurons, mean, low, high, share of neurons where linear is better]``, linear first;
* ``replacements``: ``[explainer, simulator, group, neurons, images, accuracy, accuracy with all
  neurons simulated, with all at their mean, loss, loss simulated, loss at the mean]``;
* ``importance``: ``fractions``, and for each group the mean share of the neurons' effect that so many
  of the highest activations carry, or null;
* ``effects``: ``[explainer, simulator, pairs]`` with pairs ``[correlation, ablation score, group]``
  of neurons spread over the network.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.atlas.catalogue import Catalogue
from pipeline.atlas.data import AtlasData

PAIRS = 1500
"""At most so many neurons in one scatter plot."""

_REPLACED = (
    *("neurons", "images", "accuracy", "accuracy_replaced", "accuracy_mean"),
    *("loss", "loss_replaced", "loss_mean"),
)
_METHOD = ("method", "neurons", "mean", "ci_low", "ci_high", "better_share")


def effects_of(data: AtlasData, catalogue: Catalogue) -> dict[str, Any]:
    """Entries of the overview by name."""
    groups = {(g.layer, g.pooling): n for n, g in enumerate(catalogue.groups)}
    explainers = {explainer.name: n for n, explainer in enumerate(catalogue.explainers)}
    simulators = {name: n for n, name in enumerate(catalogue.simulators)}

    def numbered(table: pa.Table | None) -> list[tuple[list[int], dict[str, Any]]]:
        rows = [] if table is None else table.to_pylist()
        return [
            (
                [
                    explainers[row["explainer"]],
                    simulators[row["simulator"]],
                    groups[row["layer"], row["pooling"]],
                ],
                row,
            )
            for row in rows
            if row["simulator"] in simulators
        ]

    compared: dict[tuple[int, ...], list[list[Any]]] = {}
    for key, row in numbered(data.comparison):
        compared.setdefault(tuple(key), []).append([_short(row[name]) for name in _METHOD])
    return {
        "comparison": [[*key, methods] for key, methods in compared.items()],
        "replacements": [
            [*key, *(_short(row[name]) for name in _REPLACED)]
            for key, row in numbered(data.replacements)
        ],
        "importance": _importance(data.importance, groups),
        "effects": _pairs(catalogue),
    }


def _importance(
    table: pa.Table | None, groups: dict[tuple[str, str], int]
) -> dict[str, Any] | None:
    if table is None or not len(table):
        return None
    sums: dict[tuple[int, float], list[float]] = {}
    for row in table.to_pylist():
        if row["share"] is not None and np.isfinite(row["share"]):
            key = (groups[row["layer"], row["pooling"]], row["fraction"])
            sums.setdefault(key, []).append(row["share"])
    fractions = sorted({fraction for _, fraction in sums})
    found = [
        [_short(float(np.mean(sums[group, fraction]))) for fraction in fractions]
        if (group, fractions[0]) in sums
        else None
        for group in range(len(groups))
    ]
    return {"fractions": fractions, "groups": found}


def _pairs(catalogue: Catalogue) -> list[list[Any]]:
    if "ablation_norm" not in catalogue.measures:
        return []
    place = catalogue.measures.index("ablation_norm")
    group_of = np.repeat(
        np.arange(len(catalogue.groups)), [len(group.neurons) for group in catalogue.groups]
    )
    found: list[list[Any]] = []
    for number, explainer in enumerate(catalogue.explainers):
        scores = explainer.chosen_scores()
        for simulator in range(len(catalogue.simulators)):
            x, y = scores[simulator], explainer.measures[place, simulator]
            known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
            if len(known) > PAIRS:
                known = known[np.linspace(0, len(known) - 1, PAIRS).astype(np.int64)]
            if len(known):
                pairs = zip(x[known], y[known], group_of[known], strict=True)
                found.append(
                    [number, simulator, [[_short(a), _short(b), int(g)] for a, b, g in pairs]]
                )
    return found


def _short(value: Any) -> Any:
    """A number with four places; what is not finite becomes None."""
    if not isinstance(value, float | np.floating):
        return value
    return round(float(value), 4) if np.isfinite(value) else None
