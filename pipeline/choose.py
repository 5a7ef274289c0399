"""Choosing: from the path of each neuron, the one length to read, and what could stand in for its terms.

Works on the table of paths alone, so that another rule costs seconds; only the near-synonyms of the
chosen terms look at the moments again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from core.lengths import choose_lengths, correlation_standard_error, one_standard_error
from core.moments import ConceptMoments, CrossMoments, Moments, merged
from core.synonyms import near_synonyms
from pipeline.engine import run_tasks
from pipeline.expected import IMAGES
from pipeline.fit_config import FitConfig
from pipeline.moments import StoredMoments
from pipeline.plan import Plan
from pipeline.rundir import Run
from pipeline.scores import VAL
from pipeline.sources import count_splits
from pipeline.targets import columns_of

#: Neurons whose near-synonyms one task finds.
BLOCK = 256

#: Near-synonyms of a term that are kept, of so many concepts that could take its place; how much they
#: must correlate with it; and the share of the neuron's correlation that taking its place may cost.
MOST, TRIED, ALIKE, LOSS = 3, 16, 0.5, 0.02


def choose(run: Run, plan: Plan, paths: pa.Table) -> pa.Table:
    """The table of explanations: the paths, `chosen`, and near-synonyms of chosen terms."""
    settings = plan.config.fit.resolved
    val_images = count_splits(run.read(IMAGES, ["split"]))[VAL]
    chosen = chosen_rows(paths, settings, val_images)
    synonyms: list[Any] = [None] * paths.num_rows
    for row, lists in _synonyms(run, plan, paths, np.flatnonzero(chosen)):
        synonyms[row] = lists
    place = paths.column_names.index("length") + 1
    table = paths.add_column(place, "chosen", pa.array(chosen))
    return table.append_column("synonyms", pa.array(synonyms, pa.list_(pa.list_(pa.string()))))


def chosen_rows(paths: pa.Table, settings: FitConfig, val_images: int) -> np.ndarray:
    """Which row of each neuron's path is the one to read.

    Args:
        paths: Rows of one neuron and explainer lie together, in the order of their lengths.
        settings: The rule, presets resolved.
        val_images: Validation images that correlations were measured on.

    Returns:
        A mark for each row; of each neuron one row is marked.
    """
    length = paths["length"].to_numpy()
    first = length <= 1
    neuron = np.cumsum(first) - 1
    count = int(first.sum())
    shape = (count, max(1, int(length.max(initial=0))))
    places = (neuron, np.maximum(length - 1, 0))
    available = np.zeros(count, dtype=np.int64)
    np.maximum.at(available, neuron, length)

    def matrix(name: str) -> np.ndarray:
        values = np.full(shape, np.nan)
        values[places] = paths[name].to_numpy()
        return values

    if settings.search == "paper":  # it stops at the length it has chosen
        wanted = available
    elif settings.length == "cross-validation":
        wanted = one_standard_error(matrix("cv_correlation"), matrix("cv_error"), available)
    elif settings.length == "one-standard-error":
        val = matrix("val_correlation")
        error = correlation_standard_error(val, val_images)
        wanted = one_standard_error(val, error, available)
    else:
        wanted = choose_lengths(matrix("val_correlation"), settings.tolerance, available)
    marks: np.ndarray = length == wanted[neuron]
    return marks


def _synonyms(run: Run, plan: Plan, paths: pa.Table, rows: np.ndarray) -> list[tuple[int, Any]]:
    """For each of some rows, the near-synonyms of every term, best first."""
    chosen = paths.take(pa.array(rows))
    found: list[tuple[int, Any]] = []
    for explainer in plan.explainers:
        stored = StoredMoments(run, plan, explainer)
        place = {text: position for position, text in enumerate(stored.texts)}
        mine = pc.equal(chosen["explainer"], explainer.name)
        for sharpness in sorted(set(stored.sharpness.values()), reverse=True):
            train = ray.put(_train(stored.concepts(sharpness)))
            for column in columns_of(plan):
                if stored.sharpness[column.layer, column.pooling] != sharpness:
                    continue
                here = pc.and_(
                    pc.equal(chosen["layer"], column.layer),
                    pc.equal(chosen["pooling"], column.pooling),
                )
                at = np.flatnonzero(pc.and_(mine, here).to_numpy())
                if not at.size:
                    continue
                cross = ray.put(_train(stored.cross(column)))
                calls = []
                for start in range(0, len(at), BLOCK):
                    some = chosen.take(pa.array(at[start : start + BLOCK]))
                    terms = [[place[text] for text in row] for row in some["concepts"].to_pylist()]
                    calls.append((train, cross, some["neuron"].to_numpy(), terms))
                for call, positions in run_tasks(_replacements, calls):
                    for offset, own in enumerate(positions):
                        row = int(rows[at[call * BLOCK + offset]])
                        texts = [[stored.texts[p] for p in term] for term in own]
                        found.append((row, texts))
    return found


def _train(subsets: dict[str, Moments]) -> Moments:
    return merged([moments for name, moments in subsets.items() if name != VAL])


def _replacements(
    concepts: ConceptMoments, cross: CrossMoments, neurons: np.ndarray, terms: list[list[int]]
) -> list[list[list[int]]]:
    """Positions of the near-synonyms of each term of each neuron's explanation.

    Args:
        concepts: Moments of the training images.
        cross: The same with the neurons of a layer.
        neurons: Some of its neurons.
        terms: Concepts of their explanations.
    """
    longest = max((len(own) for own in terms), default=0)
    sets = np.full((len(terms), max(1, longest)), -1, dtype=np.int32)
    for row, chosen in enumerate(terms):
        sets[row, : len(chosen)] = chosen
    own = cross.take_neurons(neurons)
    own = cross.take_neurons(neurons)
    positions, _ = near_synonyms(sets, concepts, own, most=TRIED, loss=LOSS)
    norm = np.sqrt(np.diagonal(concepts.scatter))
    found: list[list[list[int]]] = []
    for row, chosen in enumerate(terms):
        found.append([])
        for term, concept in enumerate(chosen):
            others = positions[row, term][positions[row, term] >= 0]
            alike = (
                np.abs(concepts.scatter[concept, others]) >= ALIKE * norm[concept] * norm[others]
            )
            found[-1].append(others[alike][:MOST].tolist())
    return found
