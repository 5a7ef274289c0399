"""Shards of neurons: all that the page of one neuron shows, but for texts and pictures of images.

The value of shard ``neurons/<group>/<number>`` is ``{neurons, concepts}``: ``concepts`` holds, for
each explainer, the texts of the concepts used in the shard by concept number, and ``neurons`` a
record for each of `NEURONS_PER_SHARD` consecutive neurons of the group:

* ``n``: the neuron's number in its layer;
* ``values``: null where an activation is not finite, else ``min``, ``max``, ``mean``, ``spread``
  (standard deviation), ``zero`` (share of images at exactly 0), ``histogram`` (counts in
  `HISTOGRAM_BINS` equal bins from min to max), ``rows`` and ``levels`` (rows of the images shown,
  band by band as the overview lists the bands, and their activations), ``sample`` (float16
  activations of the overview's sample of images) and ``bins`` (mean activation and number of test
  images in each bin of the area chart);
* ``by``: for each explainer null, or ``status``, ``chosen`` (the chosen length, 0 for none),
  ``concepts`` (numbers of the concepts used at any length), ``synonyms`` (for each term of the
  chosen length the texts that could stand in for it, or null), ``measures`` (for each simulator the
  values of the overview's ``measures``, or null), ``profile`` (null where activations are; float16,
  the mean score of each of ``concepts`` in each bin), ``worst`` (for each simulator null, or two
  lists, predicted too high and too low, of ``[row, predicted, recorded]``) and ``path``, a list over
  lengths of ``[length, bias, train correlation, validation correlation, terms, weights, scores,
  shares, stability, gap]``, where terms index ``concepts``, scores hold ``[correlation, low, high]``
  or null per simulator, shares are of the neuron's variance, stability is the share of folds that
  selected a term again (null where no folds were kept), and gap is validation minus test
  correlation by the explainer itself. Correlations, scores, shares and gap are in 1/10,000;
* ``others``: explanations of the neuron by other methods (`pipeline.atlas.others`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float16, Int

from pipeline.atlas.bands import Band, rankings
from pipeline.atlas.catalogue import ABSENT, STATUSES, Catalogue, ExplainerCatalogue, NeuronGroup
from pipeline.atlas.encode import correlations, half_precision, significant, ten_thousandths
from pipeline.atlas.others import Others
from pipeline.atlas.predictions import Failure, Predictions

NEURONS_PER_SHARD = 64
HISTOGRAM_BINS = 40

Record = dict[str, Any]
"""One object of a shard, as JSON will hold it."""


def neuron_shards(
    group: NeuronGroup,
    activations: Float16[np.ndarray, "images layer_neurons"],
    catalogue: Catalogue,
    bands: Sequence[Band],
    sample: Int[np.ndarray, " sample"],
    predictions: Predictions,
    others: Others,
) -> Iterator[tuple[Record, list[Int[np.ndarray, " rows"]]]]:
    """The shards of one layer and pooling, in order.

    Args:
        group: The neurons.
        activations: Recorded activations of the whole layer.
        catalogue: Explanations and scores of the whole network.
        bands: Bands of ranks; their pictures are chosen here.
        sample: Rows of the images whose activations every neuron keeps.
        predictions: Of test images.
        others: Explanations by other methods.

    Yields:
        A shard's value, and for each of its neurons the rows of the images that its page shows.
    """
    ranks = np.concatenate([band.picks() for band in bands]) if bands else np.empty(0, np.int64)
    for first in range(0, len(group.neurons), NEURONS_PER_SHARD):
        neurons = group.neurons[first : first + NEURONS_PER_SHARD]
        values = np.ascontiguousarray(activations[:, neurons], dtype=np.float16)
        records: list[Record] = [{"n": number} for number in neurons.tolist()]
        shown = _describe_activations(records, values, ranks, sample)
        start = group.start + first
        texts: list[dict[str, str]] = []
        by: list[list[Record | None]] = []
        for explainer in catalogue.explainers:
            explanations = _explanations(explainer, start, start + len(neurons))
            used = sorted({c for each in explanations if each for c in each["concepts"]})
            texts.append({str(number): explainer.concepts[number] for number in used})
            by.append(explanations)
        for place, (record, *each) in enumerate(zip(records, *by, strict=True)):
            record["by"] = each
            record["others"] = others.of(start + place)
            if record["values"] is not None and record["values"]["max"] > record["values"]["min"]:
                actual = values[predictions.rows, place].astype(np.float64)
                failed = _describe_predictions(
                    record, start + place, actual, catalogue, predictions
                )
                shown[place] = np.union1d(shown[place], failed)
        yield {"neurons": records, "concepts": texts}, shown


def _describe_activations(
    records: Sequence[Record],
    values: Float16[np.ndarray, "images neurons"],
    ranks: Int[np.ndarray, " ranks"],
    sample: Int[np.ndarray, " sample"],
) -> list[Int[np.ndarray, " rows"]]:
    """Put ``values`` into each record; return the rows of the images that each one shows."""
    finite = np.isfinite(values).all(axis=0)
    wide = np.where(finite, values, 0).astype(np.float64)
    means = significant(wide.mean(axis=0))
    spreads = significant(wide.std(axis=0))
    rows = np.zeros((len(records), len(ranks)), np.int64)
    zero = np.zeros(len(records))
    histograms = []
    for number, order in enumerate(rankings(values)):
        rows[number] = order[ranks]
        rising = wide[order[::-1], number]
        histograms.append(_histogram(rising))
        zero[number] = np.diff(np.searchsorted(rising, [0.0, np.nextafter(0.0, 1.0)])).item()
    lowest = significant(wide.min(axis=0))
    highest = significant(wide.max(axis=0))
    levels = significant(np.take_along_axis(wide, rows.T, axis=0).T)
    shares = np.round(zero / len(values), 4).tolist()
    for number, record in enumerate(records):
        if not finite[number]:
            record["values"] = None
            continue
        record["values"] = {
            "min": lowest[number],
            "max": highest[number],
            "mean": means[number],
            "spread": spreads[number],
            "zero": shares[number],
            "histogram": histograms[number],
            "rows": rows[number].tolist(),
            "levels": levels[number * len(ranks) : (number + 1) * len(ranks)],
            "sample": half_precision(values[sample, number]),
            "bins": None,
        }
    return [np.unique(own if there else own[:0]) for own, there in zip(rows, finite, strict=True)]


def _describe_predictions(
    record: Record,
    neuron: int,
    actual: Float[np.ndarray, " tests"],
    catalogue: Catalogue,
    predictions: Predictions,
) -> Int[np.ndarray, " rows"]:
    """Put bins, profiles and failures into a record; return the rows of images that failed."""
    cut = order, starts = predictions.bins(actual)
    counts = np.diff(np.append(starts, len(actual)))
    means = np.add.reduceat(actual[order], starts) / counts
    record["values"]["bins"] = [significant(means, 4), counts.tolist()]
    failed: set[int] = set()
    for explainer, own in zip(catalogue.explainers, record["by"], strict=True):
        if own is None or not own["path"]:
            continue
        level = int(explainer.level[neuron])
        concepts = np.array(own["concepts"], dtype=np.int64)
        own["profile"] = half_precision(predictions.profile(explainer, level, concepts, cut))
        if not explainer.chosen[neuron]:
            continue
        row = int(explainer.rows[neuron, explainer.chosen[neuron]])
        found = predictions.failures(explainer, level, row, actual)
        own["worst"] = [
            None if one is None else [[_failure(failure) for failure in side] for side in one]
            for one in found
        ]
        failed |= {row for one in found if one for side in one for row, _, _ in side}
    return np.array(sorted(failed), dtype=np.int64)


def _failure(failure: Failure) -> list[float | None]:
    row, *numbers = failure
    return [row, *significant(np.array(numbers), 4)]


def _histogram(rising: Float[np.ndarray, " images"]) -> list[int]:
    """Counts in equal bins from the lowest to the highest of ascending values."""
    edges = np.linspace(rising[0], rising[-1], HISTOGRAM_BINS + 1)
    below = np.searchsorted(rising, edges[:-1], "left")
    counts: list[int] = np.diff(np.append(below, len(rising))).tolist()
    return counts


def _explanations(explainer: ExplainerCatalogue, start: int, stop: int) -> list[Record | None]:
    """One record for each neuron from ``start`` to ``stop``; None where there is no row."""
    table = explainer.rows[start:stop]
    place, lengths = np.nonzero(table >= 0)
    rows = table[place, lengths]
    counts = explainer.offsets[rows + 1] - explainer.offsets[rows]
    ends = np.cumsum(counts)
    terms = np.repeat(explainer.offsets[rows] - (ends - counts), counts) + np.arange(counts.sum())
    concepts = explainer.term_concepts[terms].tolist()
    weights = significant(explainer.term_weights[terms])
    bias = significant(explainer.bias[rows])
    train = ten_thousandths(explainer.train[rows])
    validation = ten_thousandths(explainer.validation[rows])
    shares = ten_thousandths(explainer.term_shares[terms])
    stability = correlations(explainer.term_stability[terms])
    gaps = ten_thousandths(explainer.gap[rows])
    synonyms = explainer.synonyms.take(pa.array(rows)).to_pylist()
    scores = ten_thousandths(explainer.scores[:, start + place, lengths])
    simulators = explainer.scores.shape[0]

    measured = np.moveaxis(explainer.measures[:, :, start:stop], 0, -1)
    known = np.isfinite(measured).any(axis=-1)
    marks_of, names = significant(measured), measured.shape[-1]

    records: list[Record | None] = []
    for neuron in range(start, stop):
        status = int(explainer.status[neuron])
        if status == ABSENT:
            records.append(None)
        else:
            records.append(
                {
                    "status": STATUSES[status],
                    "chosen": int(explainer.chosen[neuron]),
                    "concepts": [],
                    "synonyms": None,
                    "measures": [
                        marks_of[at * names : (at + 1) * names] if known.flat[at] else None
                        for at in range(neuron - start, known.size, stop - start)
                    ],
                    "profile": None,
                    "worst": None,
                    "path": [],
                }
            )
    local: list[dict[int, int]] = [{} for _ in records]
    for row, (neuron, length, end, count) in enumerate(
        zip(place.tolist(), lengths.tolist(), ends.tolist(), counts.tolist(), strict=True)
    ):
        record, numbers = records[neuron], local[neuron]
        if length == 0 or record is None:
            continue
        own = concepts[end - count : end]
        for concept in own:
            numbers.setdefault(concept, len(numbers))
        firsts = [3 * (simulator * len(rows) + row) for simulator in range(simulators)]
        marks = [scores[first : first + 3] for first in firsts]
        again = stability[end - count : end]
        if length == record["chosen"]:
            record["synonyms"] = synonyms[row]
        record["path"].append(
            [
                length,
                bias[row],
                train[row],
                validation[row],
                [numbers[concept] for concept in own],
                weights[end - count : end],
                [None if mark[0] is None else mark for mark in marks],
                shares[end - count : end],
                None if None in again else again,
                gaps[row],
            ]
        )
    for record, numbers in zip(records, local, strict=True):
        if record is not None:
            record["concepts"] = list(numbers)
    return records
