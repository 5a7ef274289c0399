"""The overview: the network at a glance, and what every other page needs to know first.

The value of the shard ``overview``. Numbers of neurons, statuses, and for each explainer and
simulator the distribution of scores, for the network and for each layer; how sharp the concept
scores are, and which concepts say nothing of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from core.sharpness import NEARLY
from pipeline.atlas.bands import Band
from pipeline.atlas.catalogue import ABSENT, STATUSES, Catalogue, ExplainerCatalogue
from pipeline.atlas.data import FIT_CHECK, AtlasData
from pipeline.atlas.details import NEURONS_PER_SHARD
from pipeline.atlas.effects import effects_of
from pipeline.atlas.encode import correlations, plain
from pipeline.atlas.samples import CONCEPTS_PER_SHARD, IMAGES_PER_SHARD

FORMAT = 4
"""Version of the atlas's shards; the page refuses others."""

SCORE_BINS = 80
"""Equal bins of scores from -1 to 1."""

TOP_CONCEPTS = 40

ABOVE_CHANCE = 0.05
"""A score is above chance where its q-value is at most this: the share of false discoveries."""

NAMED_CONCEPTS = 500
"""At most so many degenerate concepts of an explainer are named; all are counted."""


def overview_of(
    data: AtlasData,
    catalogue: Catalogue,
    bands: Sequence[Band],
    sample: Int[np.ndarray, " sample"],
    splits: Sequence[tuple[str, int]],
) -> dict[str, object]:
    """The value of the overview shard.

    Args:
        data: For the title and provenance.
        catalogue: All neurons.
        bands: Bands of ranks.
        sample: Rows of the shared sample of images.
        splits: Names and sizes of the splits.
    """
    status = catalogue.status()
    explained = np.zeros(catalogue.neurons, bool)
    for explainer in catalogue.explainers:
        explained |= explainer.chosen > 0
    return {
        "format": FORMAT,
        "title": data.title,
        "provenance": plain(data.provenance),
        "images": {
            "count": len(data.images),
            "splits": [list(split) for split in splits],
            "pictures": data.thumbnails is not None,
            "per_shard": IMAGES_PER_SHARD,
        },
        "bands": [[band.start, band.stop, band.low, band.high] for band in bands],
        "pictures": [len(band.picks()) for band in bands],
        "sample": sample.tolist(),
        "explained": int(explained.sum()),
        "statuses": list(STATUSES),
        "groups": [
            {
                "layer": group.layer,
                "pooling": group.pooling,
                "count": len(group.neurons),
                # Numbers are listed only where they are not simply 0, 1, 2 ...
                "neurons": None
                if np.array_equal(group.neurons, np.arange(len(group.neurons)))
                else group.neurons.tolist(),
                "statuses": _tally(status[group.start : group.stop]),
            }
            for group in catalogue.groups
        ],
        "neurons_per_shard": NEURONS_PER_SHARD,
        "concepts_per_shard": CONCEPTS_PER_SHARD,
        "simulators": list(catalogue.simulators),
        "fit_check": FIT_CHECK,
        "measures": list(catalogue.measures),
        "above_chance": ABOVE_CHANCE,
        "folds": data.folds,
        "nearly": NEARLY,
        "explainers": [_explainer(part, catalogue, data) for part in catalogue.explainers],
        **effects_of(data, catalogue),
    }


def _explainer(
    explainer: ExplainerCatalogue, catalogue: Catalogue, data: AtlasData
) -> dict[str, object]:
    lengths = explainer.chosen[explainer.chosen > 0]
    table = data.concepts.filter(
        [name == explainer.name for name in data.concepts["explainer"].to_pylist()]
    )
    active = table["active"].to_pylist() if "active" in table.column_names else None
    return {
        "name": explainer.name,
        "concepts": len(table),
        "active": None if active is None else sum(map(bool, active)),
        "used": len(explainer.concepts),
        "explained": len(lengths),
        "lengths": np.bincount(lengths, minlength=1)[1:].tolist(),
        "top": _top_concepts(explainer),
        "sharpness": _sharpness(explainer, catalogue, data),
        "degenerate": _degenerate(explainer.name, data),
        "sanity": _sanity(explainer.name, data),
        "scores": [
            {
                "all": _distribution(scores),
                "groups": [_distribution(scores[g.start : g.stop]) for g in catalogue.groups],
                "above_chance": above,
            }
            for scores, above in zip(
                explainer.chosen_scores(), _above_chance(explainer, catalogue), strict=True
            )
        ],
    }


def _sharpness(
    explainer: ExplainerCatalogue, catalogue: Catalogue, data: AtlasData
) -> dict[str, object]:
    """Factors and shifts in use and each group's place among them; what was tried, sharpest first.

    ``curves`` has for each group the mean validation correlation with each of the factors
    ``tried``, at the shift of the group; both are empty where nothing was tried.
    """
    rows = [row for row in data.sharpness.to_pylist() if row["explainer"] == explainer.name]
    keys = ("layer", "pooling", "shift", "factor")
    found = {tuple(row[key] for key in keys): row["val_correlation"] for row in rows}
    tried = sorted({row["factor"] for row in rows}, reverse=True)
    if all(value is None for value in found.values()):
        tried = []
    levels = [int(explainer.level[group.start]) for group in catalogue.groups]
    curves = []
    for g, level in zip(catalogue.groups, levels, strict=True):
        own = (g.layer, g.pooling, explainer.sharpness[level].shift)
        values = [found.get((*own, factor)) for factor in tried]
        curves.append(correlations(np.array(values, np.float64)))
    return {
        "factors": [sharpness.factor for sharpness in explainer.sharpness],
        "shifts": [sharpness.shift for sharpness in explainer.sharpness],
        "levels": levels,
        "tried": tried,
        "curves": curves if tried else [],
    }


def _degenerate(name: str, data: AtlasData) -> dict[str, object]:
    rows = [row for row in data.degenerate.to_pylist() if row["explainer"] == name]
    kinds = [row["status"] for row in rows]
    return {
        "counts": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        "names": [[row["concept"], row["status"], row["same_as"]] for row in rows[:NAMED_CONCEPTS]],
    }


def _above_chance(explainer: ExplainerCatalogue, catalogue: Catalogue) -> list[list[int] | None]:
    """For each simulator the neurons above chance and those that were tested, or None."""
    if "q_value" not in catalogue.measures:
        return [None] * len(catalogue.simulators)
    found = explainer.measures[catalogue.measures.index("q_value")]
    return [
        [int((q <= ABOVE_CHANCE).sum()), int(np.isfinite(q).sum())]
        if np.isfinite(q).any()
        else None
        for q in found
    ]


def _sanity(name: str, data: AtlasData) -> list[list[object]]:
    """What each measure did: name, neurons, shares that fell in either test, whether it passes."""
    rows = [] if data.sanity is None else data.sanity.to_pylist()
    keys = ("metric", "neurons", "missing_share", "extra_share", "passes")
    return [[row[key] for key in keys] for row in rows if row["explainer"] == name]


def _distribution(scores: Float[np.ndarray, " neurons"]) -> dict[str, object]:
    finite = scores[np.isfinite(scores)]
    if len(finite) == 0:
        return {"count": 0}
    bins = np.clip(((finite + 1.0) * (SCORE_BINS / 2)).astype(np.int64), 0, SCORE_BINS - 1)
    counts = np.bincount(bins, minlength=SCORE_BINS)
    first, last = np.flatnonzero(counts)[[0, -1]].tolist()
    return {
        "count": len(finite),
        "mean": round(float(finite.mean()), 4),
        "median": round(float(np.median(finite)), 4),
        "first": first,
        "bins": counts[first : last + 1].tolist(),
    }


def _top_concepts(explainer: ExplainerCatalogue) -> list[list[object]]:
    """The concepts that most chosen explanations use: text, uses with weight > 0, with < 0."""
    rows = explainer.chosen_rows()
    in_use = np.zeros(len(explainer.bias), bool)
    in_use[rows[rows >= 0]] = True
    of_terms = np.repeat(in_use, np.diff(explainer.offsets))
    concepts, weights = explainer.term_concepts[of_terms], explainer.term_weights[of_terms]
    size = len(explainer.concepts)
    positive = np.bincount(concepts[weights > 0], minlength=size)
    negative = np.bincount(concepts[weights < 0], minlength=size)
    most = np.argsort(-(positive + negative), kind="stable")[:TOP_CONCEPTS]
    return [
        [explainer.concepts[c], int(positive[c]), int(negative[c])]
        for c in most.tolist()
        if positive[c] + negative[c]
    ]


def _tally(status: Int[np.ndarray, " neurons"]) -> dict[str, int]:
    names = (*STATUSES, "absent")
    codes = np.where(status == ABSENT, len(STATUSES), status)
    counts = np.bincount(codes, minlength=len(names)).tolist()
    return {name: count for name, count in zip(names, counts, strict=True) if count}
