"""Explanations of a neuron by other methods: simpler ones of the run, and ones from elsewhere.

An entry is ``[method, concepts, weights, scores, explainer]``: the name of the method, texts and
weights as they were given, for each simulator ``[correlation, low, high]`` or null, and the number of
the explainer whose concepts were used, null for explanations from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline.atlas.catalogue import Catalogue
from pipeline.atlas.encode import CORRELATION_PLACES

METHOD_COLUMNS = (
    *("layer", "pooling", "neuron", "explainer", "method", "simulator"),
    *("correlation", "ci_low", "ci_high", "concepts", "weights"),
)

Entry = list[Any]


class Others:
    """Explanations by other methods, by neuron."""

    def __init__(self, tables: Sequence[pa.Table], catalogue: Catalogue) -> None:
        """Gather them.

        Args:
            tables: With `METHOD_COLUMNS`, a row for each judge. In one table, rows of a neuron and
                method with an explainer's name and without one are of the same explanation: the
                explainer's own scores, and those of simulators, which need no explainer.
            catalogue: Names the neurons, simulators and explainers. Rows of others are left out.
        """
        self._entries: dict[int, list[Entry]] = {}
        numbers = {
            (group.layer, group.pooling, neuron): group.start + place
            for group in catalogue.groups
            for place, neuron in enumerate(group.neurons.tolist())
        }
        simulators = {name: place for place, name in enumerate(catalogue.simulators)}
        explainers = {part.name: place for place, part in enumerate(catalogue.explainers)}
        for table in tables:
            whose = set(table["explainer"].to_pylist())
            elsewhere = None in whose
            found: dict[tuple[int, str, int | None], Entry] = {}
            for row in table.select(METHOD_COLUMNS).to_pylist():
                neuron = numbers.get((row["layer"], row["pooling"], row["neuron"]))
                if neuron is None or row["simulator"] not in simulators:
                    continue
                explainer = None if elsewhere else explainers.get(row["explainer"])
                key = neuron, row["method"], explainer
                if key not in found:
                    scores: list[Any] = [None] * len(simulators)
                    found[key] = [row["method"], row["concepts"], _short(row["weights"]), scores]
                    found[key].append(explainer)
                    self._entries.setdefault(neuron, []).append(found[key])
                place = simulators[row["simulator"]]
                if row["correlation"] is not None and found[key][3][place] is None:
                    found[key][3][place] = [
                        None if row[name] is None else round(row[name], CORRELATION_PLACES)
                        for name in ("correlation", "ci_low", "ci_high")
                    ]

    def of(self, neuron: int) -> list[Entry]:
        """Those of one neuron, by its number within the whole network."""
        return self._entries.get(neuron, [])


def _short(weights: Sequence[float]) -> list[float]:
    return [float(f"{weight:.4g}") for weight in weights]
