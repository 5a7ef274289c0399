"""The chosen explanations as CSV files, in the layout that the authors of linear explanations publish.

One file a layer, pooling and explainer. `neuroscribe score` reads them, as it reads the authors' own.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from core.errors import ConfigError
from core.sharpness import NATIVE
from pipeline.concepts_config import OWN_SCORE
from pipeline.expected import ABLATIONS, EXPLANATIONS, SCORES
from pipeline.rundir import Run
from pipeline.scores import read_sharpness
from pipeline.storage import Folder

#: Places for concepts that a file has at least, as the authors' files do; 0 fills those not needed.
PLACES = 10

_Key = tuple[Any, ...]
_NEURON = ("layer", "pooling", "neuron", "explainer")
_ABOUT = (*_NEURON, "status", "concepts", "weights", "bias", "val_correlation")


def chosen_explanations(run: Run, *more: str) -> pa.Table:
    """The explanation of chosen length of every neuron, and some more columns of the table.

    Raises:
        ConfigError: The run has no explanations.
    """
    if EXPLANATIONS not in run.tables():
        raise ConfigError(
            f"{run.folder.url!r} has no explanations yet; run 'neuroscribe run' on it until its stage "
            "fit is done"
        )
    table = run.read(EXPLANATIONS, [*_ABOUT, *more, "chosen"])
    return table.filter(table["chosen"]).drop_columns("chosen")


def export_csv(run: Run, out: Folder) -> list[str]:
    """Write every chosen explanation, and return the paths of the files written.

    The columns of a file are `layer, pooling, unit, val correlation, weight0, concept0 …, bias,
    sharpness, shift`, then what is known of the scores: `sim correlation` and `sim ablation(…)` by
    the first simulator, as the authors call them, and `correlation, ci_low, ci_high` followed by a
    simulator's name, for each. Numbers are written so that reading gives the same float64. A neuron
    that has nothing to explain has a row without concepts.

    Args:
        run: With explanations; scores and ablations are added where it has them.
        out: Where `EXPLAINER.LAYER.POOLING.csv` are written; what cannot stand in a file name is
            percent-encoded.

    Raises:
        ConfigError: The run has no explanations, or a file stands where the folder would be.
    """
    explanations = chosen_explanations(run)
    if out.is_file():
        raise ConfigError(f"{out.url!r} is a file; expected a folder to write into")
    scores, simulators = _scores(run)
    first = next((name for name in simulators if name != OWN_SCORE), None)
    ablations = _ablations(run, first)
    kinds = sorted({key[-1] for key in ablations}, reverse=True)
    names = list(dict.fromkeys(explanations["explainer"].to_pylist()))
    chosen = {name: read_sharpness(run, name) for name in names}
    groups: dict[_Key, list[dict[str, Any]]] = {}
    for row in explanations.to_pylist():
        groups.setdefault((row["explainer"], row["layer"], row["pooling"]), []).append(row)
    written = []
    for (explainer, layer, pooling), rows in groups.items():
        places = max(PLACES, *(len(row["concepts"]) for row in rows))
        head = ["layer", "pooling", "unit", "val correlation"]
        head += [f"{word}{n}" for n in range(places) for word in ("weight", "concept")]
        head += ["bias", "sharpness", "shift"]
        head += ["sim correlation"] * (first is not None)
        head += [f"sim ablation({kind})" for kind in kinds]
        head += [f"{what} {name}" for name in simulators for what in _SCORE]
        lines: list[Sequence[Any]] = [head]
        for row in rows:
            neuron = tuple(row[name] for name in _NEURON)
            found = {name: scores.get((*neuron, name), _UNKNOWN) for name in simulators}
            cells = [layer, pooling, row["neuron"], _known(row["val_correlation"])]
            cells += _terms(row, places)
            cells += [_known(row["bias"]), *chosen[explainer].get((layer, pooling), NATIVE)]
            cells += [found[first][0]] if first is not None else []
            cells += [ablations.get((*neuron, kind), "") for kind in kinds]
            cells += [value for name in simulators for value in found[name]]
            lines.append(cells)
        file = quote(f"{explainer}.{layer}.{pooling}.csv", safe="")
        out.write(file, _csv(lines))
        written.append(out.path(file))
    return written


_SCORE = ("correlation", "ci_low", "ci_high")
_UNKNOWN = ("", "", "")


def _scores(run: Run) -> tuple[dict[_Key, tuple[Any, ...]], list[str]]:
    """Scores of chosen explanations by neuron and simulator, and the simulators."""
    if SCORES not in run.tables():
        return {}, []
    table = run.read(SCORES, [*_NEURON, "simulator", "chosen", *_SCORE])
    rows = table.filter(table["chosen"]).to_pylist()
    found = {
        (*(row[name] for name in _NEURON), row["simulator"]): tuple(_known(row[s]) for s in _SCORE)
        for row in rows
    }
    return found, list(dict.fromkeys(row["simulator"] for row in rows))


def _ablations(run: Run, simulator: str | None) -> dict[_Key, Any]:
    """Ablation scores by one simulator, by neuron and kind."""
    if ABLATIONS not in run.tables():
        return {}
    rows = run.read(ABLATIONS, [*_NEURON, "simulator", "kind", "score"]).to_pylist()
    return {
        (*(row[name] for name in _NEURON), row["kind"]): _known(row["score"])
        for row in rows
        if row["simulator"] == simulator
    }


def _terms(row: dict[str, Any], places: int) -> list[Any]:
    """Weights and concepts in turn; a place that is not needed holds 0 twice."""
    cells: list[Any] = []
    for weight, concept in zip(row["weights"], row["concepts"], strict=True):
        cells += [weight, concept]
    return cells + [0.0, 0] * (places - len(row["concepts"]))


def _known(value: float | None) -> float | str:
    """The value, or nothing where it is null or not finite."""
    return "" if value is None or not math.isfinite(value) else value


def _csv(lines: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()
