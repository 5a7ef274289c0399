"""Explanations made elsewhere: CSV or Parquet files as a table of weighted sums of texts.

Three layouts are read, told apart by their columns: one description a neuron, lists of concepts and
weights, and numbered columns concept0, weight0, concept1 … as the authors of linear explanations write
them. Nothing is guessed: whatever does not fit the run is a fault, and all faults are listed at once.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import UsageError, close_names
from pipeline.storage import filesystem
from pipeline.targets import Column

#: What columns may be called; the first name that a file has counts.
NAMES = {
    "layer": ("layer",),
    "neuron": ("neuron", "unit"),
    "pooling": ("pooling",),
    "method": ("method",),
    "description": ("description", "explanation", "label", "concept"),
    "concepts": ("concepts",),
    "weights": ("weights",),
    "bias": ("bias",),
    "sharpness": ("sharpness",),
    "shift": ("shift",),
}

#: The method that the run's own explanations go by in comparisons.
LINEAR = "linear"

#: Faults that are written out.
MOST_FAULTS = 20

EXTERNAL_SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("pooling", pa.string()),
        ("neuron", pa.int32()),
        ("method", pa.string()),
        ("concepts", pa.list_(pa.string())),
        ("weights", pa.list_(pa.float64())),
        ("bias", pa.float64()),
        ("sharpness", pa.float64()),
        ("shift", pa.float64()),
    ]
)


def read_explanations(
    url: str, columns: Sequence[Column], layer: str | None = None
) -> tuple[pa.Table, int]:
    """Explanations of a run's neurons from a file.

    Args:
        url: CSV or Parquet file, a path or any fsspec URL.
        columns: Layers and poolings of the run.
        layer: Use the rows of this layer alone; all rows where the file names no layer.

    Returns:
        One row an explanation (`EXTERNAL_SCHEMA`), in the order of the file, and how many rows were
        left out since they have no concept at all, as those of dead neurons.

    Raises:
        UsageError: The file cannot be read, or something in it does not fit; lists all that does not.
    """
    names, rows = _read(url)
    found = _Reader(url, names, columns, layer)
    for where, values in rows:
        found.add(where, values)
    return found.table()


def stem_of(url: str) -> str:
    """A file's name without folders and ending, as it can be part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", PurePosixPath(url).stem) or "explanations"


def _read(url: str) -> tuple[list[str], Iterator[tuple[str, dict[str, Any]]]]:
    """Column names, and rows with the place where each stands."""
    try:
        fs, path = filesystem(url)
        data: bytes = fs.cat_file(path)
        if data[:4] == b"PAR1":
            table = pq.read_table(io.BytesIO(data))
            return table.column_names, (
                (f"row {n}", row) for n, row in enumerate(table.to_pylist(), start=1)
            )
        records = _records(data.decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise UsageError(
            f"explanations {url!r} cannot be read ({type(error).__name__}: {error}); expected a CSV "
            "file in UTF-8 or a Parquet file"
        ) from error
    if not records:
        raise UsageError(f"explanations {url!r} is empty; expected a line of column names and rows")
    names = [name.strip() for name in records[0][1]]
    wrong = [where for where, values in records[1:] if len(values) != len(names)]
    if wrong:
        raise UsageError(
            f"explanations {url!r}: {len(names)} columns are named, and {len(wrong):,} rows have "
            f"another number of values, the first on {wrong[0]}; texts with commas need quotes"
        )
    return names, ((where, dict(zip(names, v, strict=True))) for where, v in records[1:])


def _records(text: str) -> list[tuple[str, list[str]]]:
    """Records of a CSV text that are not blank, with the line that each begins on."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    found, line = [], 1
    for values in reader:
        if values:
            found.append((f"line {line}", values))
        line = reader.line_num + 1
    return found


class _Fault(Exception):
    """What is wrong with a row."""


@dataclass
class _Reader:
    """Gathers explanations and faults row by row."""

    url: str
    names: Sequence[str]
    columns: Sequence[Column]
    only: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    repeated: dict[str, list[str]] = field(default_factory=dict)
    """Faults that many rows share, with the places where they stand."""
    places: dict[tuple[Any, ...], str] = field(default_factory=dict)
    without: int = 0

    def __post_init__(self) -> None:
        lower = {name.strip().lower(): name for name in reversed(self.names)}
        self._column = {
            what: next((lower[name] for name in known if name in lower), None)
            for what, known in NAMES.items()
        }
        numbers = {
            word: {int(n[len(word) :]) for n in lower if re.fullmatch(rf"{word}\d+", n)}
            for word in ("concept", "weight")
        }
        self._odd = sorted(numbers["concept"] ^ numbers["weight"])
        self._numbered = [
            (lower[f"concept{number}"], lower[f"weight{number}"])
            for number in sorted(numbers["concept"] & numbers["weight"])
        ]
        layers = dict.fromkeys(column.layer for column in self.columns)
        self._layers = list(layers)
        if self.only is not None:
            self.only = self._layer_named(self.only)
            if self.only not in layers:
                raise UsageError(
                    f"--layer {self.only!r}: the run has no such layer"
                    f"{close_names(self.only, layers)}; it has {', '.join(layers)}"
                )
        self._check_columns()

    def _check_columns(self) -> None:
        missing = []
        if self._column["neuron"] is None:
            missing.append("the neuron's number (neuron or unit)")
        if self._column["layer"] is None and self.only is None and len(self._layers) > 1:
            missing.append("its layer (layer; or say --layer NAME for the whole file)")
        if self._odd:
            missing.append(f"both concept{self._odd[0]} and weight{self._odd[0]}")
        lists = [self._column[name] is not None for name in ("concepts", "weights")]
        if any(lists) and not all(lists) and not self._numbered:
            missing.append("concepts and weights, which belong together")
        elif not (self._numbered or any(lists) or self._column["description"]):
            missing.append(
                "the explanation (description, explanation, label or concept; or concepts and "
                "weights with lists; or concept0, weight0, concept1, weight1 …)"
            )
        if missing:
            raise UsageError(
                f"explanations {self.url!r} has no column for {'; nor for '.join(missing)}. It has "
                f"the columns {', '.join(map(repr, self.names))}"
            )

    def add(self, where: str, values: Mapping[str, Any]) -> None:
        """Take in one row, or note what is wrong with it."""
        try:
            row = self._row(where, values)
        except _Fault as fault:
            self.faults.append(f"{where}: {fault}")
            return
        if row is None:
            return
        key = (row["layer"], row["pooling"], row["neuron"], row["method"])
        if key in self.places:
            self.faults.append(
                f"{where}: {row['layer']}:{row['neuron']} has an explanation on {self.places[key]} "
                "already; a column `method` tells several apart"
            )
            return
        self.places[key] = where
        if row["concepts"]:
            self.rows.append(row)
        else:
            self.without += 1

    def _row(self, where: str, values: Mapping[str, Any]) -> dict[str, Any] | None:
        def value(what: str) -> Any:
            name = self._column[what]
            return None if name is None else values[name]

        layer = self.only or self._layers[0]
        if self._column["layer"] is not None:
            layer = self._layer_named(_text(value("layer"), "layer"))
            if self.only is not None and layer != self.only:
                return None
        column = self._find(layer, value("pooling"), where)
        if column is None:
            return None
        method = stem_of(self.url) if self._column["method"] is None else value("method")
        method = _text(method, "method")
        if method == LINEAR:
            raise _Fault(f"method {LINEAR!r} is what the run's own explanations are called")
        concepts, weights = self._terms(values)
        optional = {"bias": 0.0, "sharpness": 1.0, "shift": 0.0}
        for name in optional:
            if (given := value(name)) not in (None, ""):
                optional[name] = _number(given, name)
        if optional["sharpness"] <= 0:
            factor = optional["sharpness"]
            raise _Fault(f"sharpness is {factor:g}; expected a factor above 0, as 1")
        return {
            "layer": column.layer,
            "pooling": column.pooling,
            "neuron": _neuron(value("neuron"), column),
            "method": method,
            "concepts": concepts,
            "weights": weights,
            **optional,
        }

    def _layer_named(self, name: str) -> str:
        """A layer's name as modules are called; ``mlp[1]`` and ``mlp.1`` are the same."""
        return name if name in self._layers else re.sub(r"\[(\d+)\]", r".\1", name)

    def _find(self, layer: str, pooling: Any, where: str) -> Column | None:
        """The column that a row is about; None where there is none, which is noted once for all."""
        there = [column for column in self.columns if column.layer == layer]
        poolings = [column.pooling for column in there]
        if not there:
            fault = f"the run has no layer {layer!r}{close_names(layer, self._layers)}"
        elif pooling in (None, "") and len(there) > 1:
            fault = (
                f"layer {layer!r} has poolings {', '.join(poolings)}; a column `pooling` says which"
            )
        elif pooling not in (None, "") and pooling not in poolings:
            fault = f"layer {layer!r} has no pooling {pooling!r}; it has {', '.join(poolings)}"
        else:
            return there[0] if pooling in (None, "") else there[poolings.index(pooling)]
        self.repeated.setdefault(fault, []).append(where)
        return None

    def _terms(self, values: Mapping[str, Any]) -> tuple[list[str], list[float]]:
        """Concepts and weights of a row, in the layout of the file."""
        if self._numbered:
            terms = [
                (values[concept], _number(values[weight], weight))
                for concept, weight in self._numbered
                if values[weight] not in (None, "") or values[concept] not in (None, "")
            ]
            # Places that were not needed are filled with zeros there.
            terms = [(concept, weight) for concept, weight in terms if weight != 0]
            return [_text(concept, "concept") for concept, _ in terms], [w for _, w in terms]
        if self._column["concepts"] is None:
            name = self._column["description"]
            assert name is not None
            return [_text(values[name], name)], [1.0]
        concepts = [
            _text(c, "concept") for c in _list(values[self._column["concepts"]], "concepts")
        ]
        weights = [
            _number(w, "weight") for w in _list(values[self._column["weights"] or ""], "weights")
        ]
        if len(concepts) != len(weights):
            raise _Fault(f"{len(concepts)} concepts and {len(weights)} weights; expected as many")
        return concepts, weights

    def table(self) -> tuple[pa.Table, int]:
        """All explanations, if nothing was wrong."""
        shared = [
            f"{places[0]}{f' and {len(places) - 1:,} more' if len(places) > 1 else ''}: {fault}"
            for fault, places in self.repeated.items()
        ]
        if faults := shared + self.faults:
            lines = "\n".join(f"  {fault}" for fault in faults[:MOST_FAULTS])
            rest = len(faults) - MOST_FAULTS
            more = f"\n  … and {rest:,} more faults" if rest > 0 else ""
            raise UsageError(
                f"explanations {self.url!r} do not fit the run; nothing was started:\n{lines}{more}"
            )
        if not self.rows:
            about = f" of layer {self.only!r}" if self.only else ""
            raise UsageError(f"explanations {self.url!r} has no explanation{about} to score")
        return pa.Table.from_pylist(self.rows, schema=EXTERNAL_SCHEMA), self.without


def _text(value: Any, what: str) -> str:
    text = "" if value is None else str(value).strip()
    if not text or (isinstance(value, float) and math.isnan(value)):
        raise _Fault(f"the {what} is empty")
    return text


def _number(value: Any, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise _Fault(f"{what} {value!r} is not a number") from None
    if not math.isfinite(number):
        raise _Fault(f"{what} is {number}; expected a finite number")
    return number


def _neuron(value: Any, column: Column) -> int:
    number = _number(value, "neuron")
    if not number.is_integer():
        raise _Fault(f"neuron {value!r} is not a whole number")
    if not 0 <= number < column.neurons:
        hint = "; are they counted from 1 there?" if number == column.neurons else ""
        raise _Fault(
            f"layer {column.layer!r} has neurons 0 to {column.neurons - 1}; there is no "
            f"{int(number)}{hint}"
        )
    return int(number)


def _list(value: Any, what: str) -> list[Any]:
    """A list from Parquet, or from a text that is JSON or a Python literal."""
    if value in (None, "") or isinstance(value, list):
        return value or []
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(value)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        if isinstance(found, list | tuple):
            return list(found)
    raise _Fault(f"{what} {value!r} is no list; expected [\"a\", \"b\"] or ['a', 'b']")
