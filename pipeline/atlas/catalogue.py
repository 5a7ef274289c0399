"""The tables of a run, turned into arrays that are addressed by neuron, explainer and length.

Neurons are numbered through the whole network: layer by layer in the order of the explanations
table (the order of the network), and by neuron number inside a layer and pooling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int, UInt8

from core.errors import RecordingError
from core.sharpness import Sharpness
from pipeline.atlas.data import FIT_CHECK, MEASURES, AtlasData

STATUSES = ("ok", "constant", "dead", "low-variance", "failed")
ABSENT = 255
"""Status of a neuron that an explainer has no row for."""


@dataclass(frozen=True, slots=True)
class NeuronGroup:
    """The neurons of one layer under one pooling."""

    layer: str
    pooling: str
    neurons: Int[np.ndarray, " neurons"]
    """Neuron numbers within the layer, ascending."""
    start: int
    """Number, within the whole network, of the first neuron."""

    @property
    def stop(self) -> int:
        """One past the number, within the whole network, of the last neuron."""
        return self.start + len(self.neurons)


@dataclass(frozen=True, slots=True)
class ExplainerCatalogue:
    """All explanations by one explainer, and their scores.

    ``rows[neuron, length]`` is a row of the arrays that follow it, or -1 where there is no
    explanation of that length. Length 0 is the empty row that a neuron without explanation has.
    """

    name: str
    concepts: tuple[str, ...]
    """Concepts that some explanation uses, in the order of their positions."""
    positions: Int[np.ndarray, " concepts"]
    """Columns of these concepts in the explainer's concept scores."""
    status: UInt8[np.ndarray, " neurons"]
    """Indices into `STATUSES`, or `ABSENT`."""
    chosen: Int[np.ndarray, " neurons"]
    """The chosen length; 0 where there is no explanation."""
    rows: Int[np.ndarray, "neurons lengths"]
    offsets: Int[np.ndarray, " rows_plus_one"]
    term_concepts: Int[np.ndarray, " terms"]
    """Indices into ``concepts``."""
    term_weights: Float[np.ndarray, " terms"]
    term_shares: Float[np.ndarray, " terms"]
    """Share of the neuron's variance that each term explains; NaN where unknown."""
    term_stability: Float[np.ndarray, " terms"]
    """Share of the folds that selected the concept again; NaN where unknown."""
    synonyms: pa.ChunkedArray
    """For each row the near-synonyms of each term, or null."""
    bias: Float[np.ndarray, " rows"]
    train: Float[np.ndarray, " rows"]
    validation: Float[np.ndarray, " rows"]
    gap: Float[np.ndarray, " rows"]
    """Validation minus test correlation by the explainer itself; NaN where there is none."""
    scores: Float[np.ndarray, "simulators neurons lengths 3"]
    """Correlation and the ends of its interval; NaN where there is none."""
    measures: Float[np.ndarray, "measures simulators neurons"]
    """What chosen explanations were measured by beside correlation; NaN where there is none."""
    sharpness: tuple[Sharpness, ...]
    """What was done to the logits of the concept scores in some layer, sharpest first."""
    level: UInt8[np.ndarray, " neurons"]
    """Which of these each neuron is explained with."""

    def used_at(self, level: int) -> Int[np.ndarray, " used"]:
        """Indices of the concepts in explanations, of any length, at one sharpness."""
        rows = self.rows[self.level == level]
        in_use = np.zeros(len(self.bias), bool)
        in_use[rows[rows >= 0]] = True
        return np.unique(self.term_concepts[np.repeat(in_use, np.diff(self.offsets))])

    def chosen_scores(self) -> Float[np.ndarray, "simulators neurons"]:
        """Correlation of every neuron's chosen explanation, NaN where there is none."""
        values = self.scores[:, np.arange(len(self.chosen)), self.chosen, 0]
        return np.where(self.chosen > 0, values, np.nan)

    def chosen_rows(self) -> Int[np.ndarray, " neurons"]:
        """Row of every neuron's chosen explanation, -1 where there is none."""
        picked = self.rows[np.arange(len(self.chosen)), self.chosen]
        return np.where(self.chosen > 0, picked, -1)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Every neuron of a run with its explanations and scores."""

    groups: tuple[NeuronGroup, ...]
    simulators: tuple[str, ...]
    """Simulators in the order of the scores table; the explainer's own fit check comes last."""
    explainers: tuple[ExplainerCatalogue, ...]
    measures: tuple[str, ...] = ()
    """Names of what chosen explanations were measured by, as columns of the scores table."""

    @property
    def neurons(self) -> int:
        """Number of neurons in the whole network."""
        return self.groups[-1].stop if self.groups else 0

    def status(self) -> UInt8[np.ndarray, " neurons"]:
        """One status for each neuron: ``ok`` where any explainer says so, else the first one's."""
        result = np.full(self.neurons, ABSENT, np.uint8)
        for explainer in self.explainers:
            result = np.where(
                (result == ABSENT) | (explainer.status == 0), explainer.status, result
            )
        return result


def catalogue_of(data: AtlasData) -> Catalogue:
    """Read the tables of explanations, scores and concepts.

    Raises:
        RecordingError: Tables that contradict each other: an explanation twice, a score or a
            concept of something that is not there, an unknown status, a layer without sharpness.
    """
    explanations = data.explanations.combine_chunks()
    groups = _groups(explanations)
    simulators = _first_seen(data.scores["simulator"])
    simulators = [name for name in simulators if name != FIT_CHECK] + [
        name for name in simulators if name == FIT_CHECK
    ]
    known = _first_seen(data.concepts["explainer"])
    names = known + [name for name in _first_seen(explanations["explainer"]) if name not in known]
    lengths = int(pc.max(explanations["length"]).as_py() or 0) if len(explanations) else 0
    measures = tuple(name for name in MEASURES if name in data.scores.column_names)

    explainers = []
    for name in names:
        own = explanations.filter(pc.equal(explanations["explainer"], name)).combine_chunks()
        if len(own) == 0:
            continue
        scores = data.scores.filter(pc.equal(data.scores["explainer"], name)).combine_chunks()
        concepts = data.concepts.filter(pc.equal(data.concepts["explainer"], name))
        rows = data.sharpness.filter(pc.equal(data.sharpness["explainer"], name))
        sharpness, level = _levels(name, rows, groups)
        tables = (own, scores, concepts)
        explainers.append(
            _explainer(name, *tables, groups, simulators, lengths, measures, sharpness, level)
        )
    strangers = set(_first_seen(data.scores["explainer"])) - {part.name for part in explainers}
    if strangers:
        raise RecordingError(
            f"the scores name {', '.join(map(repr, sorted(strangers)))} as explainer, but no "
            "explanation comes from there; build both tables from one run"
        )
    return Catalogue(tuple(groups), tuple(simulators), tuple(explainers), measures)


def _explainer(
    name: str,
    table: pa.Table,
    score_table: pa.Table,
    concept_table: pa.Table,
    groups: Sequence[NeuronGroup],
    simulators: Sequence[str],
    max_length: int,
    measures: Sequence[str],
    sharpness: tuple[Sharpness, ...],
    level: UInt8[np.ndarray, " neurons"],
) -> ExplainerCatalogue:
    total = groups[-1].stop
    neurons = _neuron_numbers(table, groups)
    lengths = _integers(table["length"])

    rows = np.full((total, max_length + 1), -1, np.int32)
    rows[neurons, lengths] = np.arange(len(table), dtype=np.int32)
    if np.count_nonzero(rows >= 0) != len(table):
        raise RecordingError(
            f"explainer '{name}' explains a neuron twice at one length; the table of explanations "
            "was probably written twice: run the fit stage again"
        )

    statuses = pc.index_in(table["status"], value_set=pa.array(STATUSES))
    if statuses.null_count:
        unknown = table["status"].filter(pc.is_null(statuses))[0].as_py()
        raise RecordingError(
            f"explainer '{name}' has a neuron of status {unknown!r}; known: {', '.join(STATUSES)}"
        )
    status = np.full(total, ABSENT, np.uint8)
    status[neurons] = _integers(statuses).astype(np.uint8)

    is_chosen = _booleans(table["chosen"]) & (lengths > 0)
    chosen = np.zeros(total, np.int64)
    chosen[neurons[is_chosen]] = lengths[is_chosen]

    counts = _integers(pc.list_value_length(table["concepts"]))
    if not np.array_equal(counts, _integers(pc.list_value_length(table["weights"]))):
        raise RecordingError(
            f"explainer '{name}' has an explanation with unequal numbers of concepts and weights"
        )
    columns, texts = _term_columns(name, table["concepts"], concept_table)
    positions, term_concepts = np.unique(columns, return_inverse=True)

    scores = np.full((len(simulators), total, max_length + 1, 3), np.nan)
    measured = np.full((len(measures), len(simulators), total), np.nan)
    gap = np.full(len(table), np.nan)
    if len(score_table):
        place = {simulator: number for number, simulator in enumerate(simulators)}
        by = np.array([place[simulator] for simulator in score_table["simulator"].to_pylist()])
        scored, scored_length = (
            _neuron_numbers(score_table, groups),
            _integers(score_table["length"]),
        )
        if (scored_length > max_length).any() or (rows[scored, scored_length] < 0).any():
            raise RecordingError(
                f"a score of explainer '{name}' belongs to no explanation; the tables of "
                "explanations and scores are from different runs"
            )
        for part, key in enumerate(("correlation", "ci_low", "ci_high")):
            scores[by, scored, scored_length, part] = _floats(score_table[key])
        marked = scored_length == chosen[scored]
        for part, key in enumerate(measures):
            measured[part, by[marked], scored[marked]] = _floats(score_table[key])[marked]
        gaps = _floats(score_table["selection_gap"])
        known = np.isfinite(gaps)
        gap[rows[scored[known], scored_length[known]]] = gaps[known]

    return ExplainerCatalogue(
        name=name,
        concepts=tuple(texts[position] for position in positions.tolist()),
        positions=positions,
        status=status,
        chosen=chosen,
        rows=rows,
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        term_concepts=term_concepts.astype(np.int32),
        term_weights=_floats(pc.list_flatten(table["weights"])),
        term_shares=_of_terms(name, table, "shares", counts),
        term_stability=_of_terms(name, table, "stability", counts),
        synonyms=table["synonyms"],
        bias=_floats(table["bias"]),
        train=_floats(table["train_correlation"]),
        validation=_floats(table["val_correlation"]),
        gap=gap,
        scores=scores,
        measures=measured,
        sharpness=sharpness,
        level=level,
    )


def _levels(
    name: str, rows: pa.Table, groups: Sequence[NeuronGroup]
) -> tuple[tuple[Sharpness, ...], UInt8[np.ndarray, " neurons"]]:
    """What an explainer's layers differ in, sharpest first, and which of that each neuron has."""
    chosen = {
        (row["layer"], row["pooling"]): Sharpness(row["factor"], row["shift"])
        for row in rows.to_pylist()
        if row["chosen"]
    }
    for group in groups:
        if (group.layer, group.pooling) not in chosen:
            raise RecordingError(
                f"no sharpness is chosen for explainer '{name}' and layer '{group.layer}' "
                f"({group.pooling}); build both tables from one run"
            )
    own = [chosen[group.layer, group.pooling] for group in groups]
    found = tuple(sorted(set(own), reverse=True))
    sizes = [len(group.neurons) for group in groups]
    return found, np.repeat([found.index(sharpness) for sharpness in own], sizes).astype(np.uint8)


def _of_terms(
    name: str, table: pa.Table, column: str, counts: Int[np.ndarray, " rows"]
) -> Float[np.ndarray, " terms"]:
    """A value for each term, NaN in rows where the whole list is null."""
    lists = table[column]
    there = ~_booleans(pc.is_null(lists))
    sizes = _integers(pc.list_value_length(lists))
    if not np.array_equal(sizes[there], counts[there]):
        raise RecordingError(
            f"explainer '{name}' has an explanation with unequal numbers of concepts and {column}"
        )
    values = np.full(int(counts.sum()), np.nan)
    values[np.repeat(there, counts)] = _floats(pc.list_flatten(lists))
    return values


def _term_columns(
    name: str, lists: pa.ChunkedArray, concepts: pa.Table
) -> tuple[Int[np.ndarray, " terms"], dict[int, str]]:
    """Each term's column in the concept scores, and the texts of all columns."""
    positions = _integers(concepts["position"])
    texts = dict(zip(positions.tolist(), concepts["concept"].to_pylist(), strict=True))
    terms = pc.list_flatten(lists)
    if pa.types.is_integer(terms.type):
        columns = _integers(terms)
        known = np.isin(columns, positions)
    else:
        found = pc.index_in(terms, value_set=concepts["concept"].cast(terms.type))
        known = ~_booleans(pc.is_null(found))
        columns = np.append(positions, -1)[_integers(found, missing=-1)]
    if not known.all():
        stranger = terms[int(np.flatnonzero(~known)[0])].as_py()
        raise RecordingError(
            f"explainer '{name}' explains with {stranger!r}, which is not in its table of "
            "concepts; build both tables from one run"
        )
    return columns.astype(np.int64), texts


def _groups(table: pa.Table) -> list[NeuronGroup]:
    numbers = _integers(table["neuron"])
    layer_codes, layers = _codes(table["layer"])
    pooling_codes, poolings = _codes(table["pooling"])
    keys = layer_codes * max(1, len(poolings)) + pooling_codes
    found, first = np.unique(keys, return_index=True)
    groups, start = [], 0
    for key in found[np.argsort(first)].tolist():
        neurons = np.unique(numbers[keys == key])
        layer, pooling = divmod(key, len(poolings))
        groups.append(NeuronGroup(layers[layer], poolings[pooling], neurons, start))
        start += len(neurons)
    return groups


def _neuron_numbers(table: pa.Table, groups: Sequence[NeuronGroup]) -> Int[np.ndarray, " rows"]:
    """The number, within the whole network, of each row's neuron."""
    numbers = _integers(table["neuron"])
    layer_codes, layers = _codes(table["layer"])
    pooling_codes, poolings = _codes(table["pooling"])
    result = np.full(len(table), -1, np.int64)
    for group in groups:
        if group.layer not in layers or group.pooling not in poolings:
            continue
        own = (layer_codes == layers.index(group.layer)) & (
            pooling_codes == poolings.index(group.pooling)
        )
        place = np.searchsorted(group.neurons, numbers[own])
        place = np.minimum(place, len(group.neurons) - 1)
        known = group.neurons[place] == numbers[own]
        result[own] = np.where(known, group.start + place, -1)
    if (result < 0).any():
        row = int(np.flatnonzero(result < 0)[0])
        layer, neuron = table["layer"][row].as_py(), table["neuron"][row].as_py()
        raise RecordingError(
            f"a score belongs to {layer}:{neuron}, which no explanation knows; the tables of "
            "explanations and scores are from different runs"
        )
    return result


def _codes(values: pa.ChunkedArray) -> tuple[Int[np.ndarray, " rows"], list[str]]:
    """Texts as numbers, in order of first appearance, and the texts."""
    encoded = pa.chunked_array([values]) if isinstance(values, pa.Array) else values
    if pa.types.is_dictionary(encoded.type):
        encoded = encoded.cast(encoded.type.value_type)
    encoded = encoded.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return _integers(encoded.indices), encoded.dictionary.to_pylist()


def _first_seen(values: pa.ChunkedArray) -> list[str]:
    return _codes(values)[1] if len(values) else []


def _integers(values: pa.ChunkedArray, missing: int = 0) -> Int[np.ndarray, " rows"]:
    return np.asarray(pc.fill_null(values, missing).to_numpy(), dtype=np.int64)


def _floats(values: pa.ChunkedArray) -> Float[np.ndarray, " rows"]:
    return np.asarray(pc.cast(values, pa.float64()).fill_null(np.nan).to_numpy(), np.float64)


def _booleans(values: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False), dtype=bool)
