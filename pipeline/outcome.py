"""What a run has come to: what its tables say in a few figures."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.concepts_config import OWN_SCORE
from pipeline.exit_codes import DONE, DONE_WITH_FAILURES
from pipeline.expected import (
    COMPARISON,
    EXPLANATIONS,
    IMAGES,
    QUARANTINE,
    REPLACEMENTS,
    SCORES,
)
from pipeline.fit import count_statuses
from pipeline.rundir import Run


@dataclass(frozen=True)
class MeanScore:
    """Mean test correlation of the chosen explanations of one layer."""

    layer: str
    pooling: str
    explainer: str
    simulator: str
    neurons: int
    """Neurons with a score."""
    total: int
    """Neurons of the layer; a score is undefined where a neuron is not `ok`, or where it or its
    prediction does not vary on test images."""
    length: float
    correlation: float


@dataclass(frozen=True)
class Summary:
    """What a run has come to."""

    url: str
    images: int
    quarantined: int
    neurons: dict[str, int]
    means: list[MeanScore] = field(default_factory=list)
    atlas: str | None = None
    seconds: float = 0.0
    comparison: pa.Table | None = None
    """Linear explanations beside simpler ones, where the configuration asks for some."""
    confidence: float = 0.95
    """Of the comparison's intervals."""
    replacements: pa.Table | None = None
    """The network with whole layers replaced, where the configuration asks for it."""

    @property
    def exit_code(self) -> int:
        """0, or 3 where an image was quarantined or a neuron failed."""
        failed = self.quarantined or self.neurons.get("failed", 0)
        return DONE_WITH_FAILURES if failed else DONE


def summarise(run: Run, seconds: float = 0.0, confidence: float = 0.95) -> Summary:
    """What the tables of a run say so far."""
    tables = run.tables()
    return Summary(
        url=run.folder.url,
        images=tables[IMAGES].rows if IMAGES in tables else 0,
        quarantined=tables[QUARANTINE].rows if QUARANTINE in tables else 0,
        neurons=count_statuses(run) if EXPLANATIONS in tables else {},
        means=mean_scores(run) if SCORES in tables else [],
        atlas=run.folder.path(tables["atlas"].path) if "atlas" in tables else None,
        seconds=seconds,
        comparison=run.read(COMPARISON) if COMPARISON in tables else None,
        confidence=confidence,
        replacements=run.read(REPLACEMENTS) if REPLACEMENTS in tables else None,
    )


def mean_scores(run: Run) -> list[MeanScore]:
    """Mean test correlation of chosen explanations, by layer, explainer and simulator."""
    scores = run.read(SCORES)
    scores = scores.filter(scores["chosen"])
    keys = ["layer", "pooling", "explainer", "simulator"]
    means = scores.group_by(keys, use_threads=False).aggregate(
        [("correlation", "mean"), ("length", "mean"), ("correlation", "count"), ("neuron", "count")]
    )
    rows = [
        MeanScore(
            row["layer"],
            row["pooling"],
            row["explainer"],
            row["simulator"],
            row["correlation_count"],
            row["neuron_count"],
            row["length_mean"],
            row["correlation_mean"],
        )
        for row in means.to_pylist()
        if row["correlation_count"]
    ]
    layers = {row.layer: number for number, row in reversed(list(enumerate(rows)))}
    return sorted(
        rows,
        key=lambda r: (
            r.explainer,
            r.simulator != OWN_SCORE,
            r.simulator,
            layers[r.layer],
            r.pooling,
        ),
    )
