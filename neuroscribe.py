"""Explain every neuron of a vision network, and read what was found: the Python interface.

    import neuroscribe

    run = neuroscribe.explain("config.yaml", out="runs/mine")  # or neuroscribe.open_run("runs/mine")
    run.table("scores").to_pandas()
    neuron = run.neuron("layer4", 1337)
    print(neuron["siglip"])                       # 2.3·lab coat + 1.1·medical instrument + 0.5

Everything that the commands do is in `pipeline`; this module is for notebooks and scripts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from core.errors import ConfigError, NeuroscribeError, close_names
from pipeline.config import load_config, parse_config
from pipeline.expected import EXPLANATIONS, SCORES
from pipeline.rundir import Run as _Run

__all__ = ["Explanation", "NeuroscribeError", "Run", "explain", "open_run"]


@dataclass(frozen=True)
class Explanation:
    """The chosen explanation of a neuron by one explainer; as text, its equation."""

    layer: str
    pooling: str
    neuron: int
    explainer: str
    status: str
    """`ok`, or why there is nothing to explain: `constant, dead, low-variance, failed`."""
    concepts: Sequence[str]
    """Largest part of the activation first."""
    weights: Sequence[float]
    """Of the concepts, in units of the layer's activations."""
    bias: float | None
    correlation: Mapping[str, float | None]
    """Score on test images by simulator; `explainer` is the explainer's own fit check."""

    def __str__(self) -> str:
        from pipeline.show import equation

        row = {"concepts": self.concepts, "weights": self.weights, "bias": self.bias}
        return equation(row) if self.status == "ok" else self.status


class Run:
    """A run directory with explanations: its tables, neurons and what uses a concept."""

    def __init__(self, url: str | Path) -> None:
        """Open a run.

        Args:
            url: The run directory, local or any fsspec URL.

        Raises:
            ConfigError: There is no run.
        """
        self._run = _Run.open(url)
        self.url = self._run.folder.url

    @property
    def tables(self) -> list[str]:
        """Names of the tables that are finished."""
        return sorted(self._run.tables())

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A table, or some of its columns; `docs/data-format.md` says what they hold.

        Raises:
            ConfigError: The run has no such table.
        """
        if name not in self._run.tables():
            raise ConfigError(
                f"{self.url!r} has no table {name!r}{close_names(name, self.tables)}; it has "
                f"{', '.join(self.tables)}"
            )
        return self._run.read(name, None if columns is None else list(columns))

    def neuron(self, layer: str, neuron: int, pooling: str | None = None) -> dict[str, Explanation]:
        """The chosen explanations of a neuron, by explainer.

        Args:
            layer: As the network names it.
            neuron: Counted from 0.
            pooling: Needed where the layer was recorded with several.

        Raises:
            ConfigError: The run has no such layer or neuron, or the pooling is missing.
        """
        table = self.table(EXPLANATIONS)
        layers = pc.unique(table["layer"]).to_pylist()
        if layer not in layers:
            raise ConfigError(
                f"the run has no layer {layer!r}{close_names(layer, layers)}; it has "
                f"{', '.join(layers)}"
            )
        table = table.filter(pc.equal(table["layer"], layer))
        poolings = pc.unique(table["pooling"]).to_pylist()
        if pooling is None and len(poolings) > 1:
            raise ConfigError(f"{layer} has poolings {', '.join(poolings)}; say which")
        mine = pc.and_(table["chosen"], pc.equal(table["neuron"], neuron))
        mine = pc.and_(mine, pc.equal(table["pooling"], pooling or poolings[0]))
        found = self._explanations(table.filter(mine))
        if not found:
            last = pc.max(table["neuron"]).as_py()
            raise ConfigError(f"{layer} has neurons 0 to {last}; there is no {neuron}")
        return {one.explainer: one for one in found}

    def search(self, text: str) -> list[Explanation]:
        """Chosen explanations that use a concept with this text in it, best predicted first."""
        table = self.table(EXPLANATIONS)
        table = table.filter(table["chosen"])
        lists = table["concepts"].combine_chunks()
        hits = pc.match_substring(pc.list_flatten(lists), text, ignore_case=True)
        rows = pc.unique(pc.list_parent_indices(lists).filter(hits))
        found = table.take(rows)
        order = pc.sort_indices(found, sort_keys=[("val_correlation", "descending")])
        return self._explanations(found.take(order))

    def score(self, explanations: str | Path, layer: str | None = None) -> pa.Table:
        """Score explanations made elsewhere on this run's test images; the scores are kept in the run.

        Args:
            explanations: CSV or Parquet file, as `docs/scoring.md` describes them.
            layer: Only those of this layer; needed where the file names none.

        Returns:
            The table `external/<name of the file>`: a row for each explanation and simulator.

        Raises:
            NeuroscribeError: The file does not fit the run, or the run is not finished.
        """
        from pipeline.score import score_file

        return score_file(self.url, str(explanations), layer).scores

    def export(self, out: str | Path | None = None) -> list[str]:
        """Write the chosen explanations as CSV files in the layout of the paper's authors.

        Args:
            out: Folder or URL; by default `export` in the run.

        Returns:
            The files.
        """
        from pipeline.export import export_csv
        from pipeline.storage import Folder

        return export_csv(self._run, Folder(out or self._run.folder.path("export")))

    def diff(self, later: Run) -> pa.Table:
        """Which neurons mean something else in a later run: a row for each neuron of both.

        `docs/results.md` says what its columns hold; this run's end in `_a`, the later one's in `_b`.

        Raises:
            ConfigError: The runs have no layer and explainer in common.
        """
        from pipeline.diff import diff_runs

        return diff_runs(self._run, later._run).table

    def _explanations(self, rows: pa.Table) -> list[Explanation]:
        keys = ("layer", "pooling", "neuron", "explainer")
        scores = self.table(SCORES).filter(pc.field("chosen")) if SCORES in self.tables else None
        known: dict[tuple[Any, ...], dict[str, float | None]] = {}
        if scores is not None:
            there = pc.is_in(scores["neuron"], value_set=pc.unique(rows["neuron"]))
            for row in scores.filter(there).to_pylist():
                place = known.setdefault(tuple(row[key] for key in keys), {})
                place[row["simulator"]] = row["correlation"]
        return [
            Explanation(
                **{key: row[key] for key in (*keys, "status", "concepts", "weights", "bias")},
                correlation=known.get(tuple(row[key] for key in keys), {}),
            )
            for row in rows.to_pylist()
        ]

    def __repr__(self) -> str:
        return f"neuroscribe.open_run({self.url!r})"


def explain(config: str | Path | Mapping[str, Any], out: str | Path) -> Run:
    """Carry out a configuration, as `neuroscribe run` does; call again to resume.

    Progress goes to stderr, in a notebook below the cell.

    Args:
        config: YAML file, or the same as nested dictionaries; relative paths in these start from the
            working directory.
        out: The run directory.

    Raises:
        NeuroscribeError: Something is wrong, and the message says what to do; see `core.errors`.
    """
    from pipeline.run import execute

    if isinstance(config, Mapping):
        parsed = parse_config(dict(config), base=Path.cwd())
    else:
        parsed = load_config(config)
    execute(parsed, out)
    return Run(out)


def open_run(url: str | Path) -> Run:
    """Open a run that is there already."""
    return Run(url)
