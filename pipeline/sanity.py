"""Which measures may be trusted here: the sanity tests of `core.sanity` on a run's own neurons.

The tests are of neurons of one known concept. The nearest to them are the neurons of each layer that
one concept predicts best on validation images; the concept is there where the explainer's own score
of it is at least one half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from core.concept_scores import sharpened
from core.sanity import NEARLY_ALL, sanity_tests
from core.sharpness import Sharpness
from pipeline.engine import run_tasks
from pipeline.measures import measures_of
from pipeline.sparse_weights import sparse_weights

#: Neurons of a layer that measures are tried on.
NEURONS = 32

SANITY_SCHEMA = pa.schema(
    [
        ("explainer", pa.string()),
        ("metric", pa.string()),
        ("neurons", pa.int32()),
        ("missing_share", pa.float64()),
        ("extra_share", pa.float64()),
        ("passes", pa.bool_()),
    ]
)


def sanity_table(layers: Sequence[tuple[Any, ...]], metrics: Sequence[str], top: float) -> pa.Table:
    """One row for each explainer and measure, over the best neurons of all layers.

    Args:
        layers: For each layer and explainer what `layer_sanity` takes, but for the last two.
        metrics: Names of measures.
        top: Share of the images on which a neuron counts as on.
    """
    layers = [call for call in layers if call[0].num_rows]
    fell: dict[tuple[str, str], list[tuple[int, int, int]]] = {}
    for position, found in run_tasks(layer_sanity, [(*call, metrics, top) for call in layers]):
        explainer = layers[position][0]["explainer"][0].as_py()
        for metric, sums in found.items():
            fell.setdefault((explainer, metric), []).append(sums)
    rows = []
    for (explainer, metric), sums in sorted(fell.items()):
        neurons, missing, extra = np.sum(sums, axis=0).tolist()
        shares = [count / neurons if neurons else None for count in (missing, extra)]
        passes = all(share is not None and share >= NEARLY_ALL for share in shares)
        rows.append((explainer, metric, int(neurons), *shares, passes))
    names = SANITY_SCHEMA.names
    return pa.Table.from_pylist(
        [dict(zip(names, row, strict=True)) for row in rows], schema=SANITY_SCHEMA
    )


def layer_sanity(
    explanations: pa.Table,
    places: Mapping[str, int],
    activations: np.ndarray,
    sharpness: Sharpness,
    logits: bool,
    levels: np.ndarray,
    metrics: Sequence[str],
    top: float,
) -> dict[str, tuple[int, int, int]]:
    """For each measure: neurons that took part, and those whose score fell in either test.

    Args:
        explanations: Explanations of one concept, of one layer, pooling and explainer.
        places: Column of each concept in `levels`.
        activations: Recorded activations on test images, (images, neurons of the layer).
        sharpness: What logits are multiplied by, and what is added.
        logits: Whether levels are logits.
        levels: The explainer's own logits or scores on test images, (images, concepts).
        metrics: Names of measures.
        top: Share of the images on which a neuron counts as on.
    """
    weights, used = sparse_weights(explanations, places)
    raising = np.flatnonzero(weights.sum(axis=1) > 0)
    validation = explanations["val_correlation"].to_numpy()[raising]
    best = np.sort(raising[np.argsort(-validation, kind="stable")[:NEURONS]])
    concepts = used[weights[best].indices]
    scores = levels[:, concepts].astype(np.float64)
    scores = sharpened(scores, sharpness) if logits else scores
    actual = activations[:, explanations["neuron"].to_numpy()[best]]
    reports = sanity_tests(measures_of(metrics, top), actual, scores)
    found = {}
    for name, report in reports.items():
        count = int(np.isfinite(report.missing_drop).sum())
        missing, extra = (
            round(count * share) if count else 0
            for share in (report.missing_share, report.extra_share)
        )
        found[name] = (count, missing, extra)
    return found
