"""The index: what the table of all neurons needs to search, sort and draw its rows.

One shard per explainer, ``index/<explainer>``, in typed columns over all neurons of the network
(see `pipeline.atlas.encode.column`), so that 10^5 neurons load and filter at once:

* ``concepts``: texts of all concepts that an explanation of any length uses;
* ``status``: index into the overview's ``statuses``, 255 for no row;
* ``length``: number of terms of the chosen explanation, 0 for none;
* ``scores``: for each simulator, correlations in 1/10,000, -32,768 for none;
* ``bias``: of the chosen explanation;
* ``term``, ``weight``: concept numbers and weights of the chosen explanations, neuron by neuron.
"""

from __future__ import annotations

import numpy as np

from pipeline.atlas.catalogue import ExplainerCatalogue
from pipeline.atlas.encode import column, correlation_column, smallest_unsigned, weight_kind


def index_shard(explainer: ExplainerCatalogue) -> dict[str, object]:
    """The value of one explainer's index shard."""
    rows = explainer.chosen_rows()
    has = rows >= 0
    starts = np.where(has, explainer.offsets[rows], 0)
    counts = np.where(has, explainer.offsets[rows + 1] - starts, 0)
    ends = np.cumsum(counts)
    terms = np.repeat(starts - (ends - counts), counts) + np.arange(counts.sum())
    weights = explainer.term_weights[terms]
    bias = np.where(has, explainer.bias[rows], 0.0)
    return {
        "concepts": list(explainer.concepts),
        "status": column(explainer.status, "u1"),
        "length": column(counts, smallest_unsigned(int(counts.max(initial=0)))),
        "scores": [correlation_column(row) for row in explainer.chosen_scores()],
        "bias": column(bias, weight_kind(bias)),
        "term": column(explainer.term_concepts[terms], smallest_unsigned(len(explainer.concepts))),
        "weight": column(weights, weight_kind(weights)),
    }
