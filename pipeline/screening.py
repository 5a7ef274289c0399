"""Screening: which concepts the moments keep when an explainer has more active ones than allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from core.moment_sums import MomentSum
from core.moments import CrossMoments, merged
from core.screening import nearest_concepts
from core.sharpness import NATIVE
from pipeline.engine import run_tasks
from pipeline.expected import ACTIVATIONS
from pipeline.explainers import ExplainerPlan
from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.rundir import Run
from pipeline.scores import ScoreSource, Shards, read_rows
from pipeline.storage import Folder
from pipeline.targets import Column, columns_of

#: About so many training images are looked at, and so many concepts of all at a time.
IMAGES_SCREENED, CONCEPTS_AT_ONCE = 50_000, 4_096

#: Shards that one task reads.
LANE = 64


def screened(
    run: Run,
    plan: Plan,
    explainer: ExplainerPlan,
    source: ScoreSource,
    shards: Shards,
    active: np.ndarray,
) -> np.ndarray:
    """Positions of the concepts to keep: all active ones, or those nearest to some neuron.

    Screening looks at cross moments of a sample of the training images at the model's own sharpness,
    some thousand concepts at a time, so that no concept block is needed.
    """
    most = plan.config.fit.resolved.max_concepts
    if len(active) <= most:
        return active
    share = min(1.0, IMAGES_SCREENED / plan.index.split_counts["train"])
    parts = run.parts(ACTIVATIONS)
    columns = columns_of(plan)
    lanes = [range(s, min(s + LANE, len(parts))) for s in range(0, len(parts), LANE)]
    chunks = [active[s : s + CONCEPTS_AT_ONCE] for s in range(0, len(active), CONCEPTS_AT_ONCE)]
    calls: list[tuple[Any, ...]] = [
        (run.folder, shards, lane, source, chunk, parts, columns, share)
        for chunk in chunks
        for lane in lanes
    ]
    progress = Progress(f"screen {explainer.name}", len(calls), "blocks")
    found = {}
    for position, result in run_tasks(_sum_chunk, calls):
        found[position] = result
        progress.advance(1)
    crosses: list[list[CrossMoments]] = [[] for _ in columns]
    scatter = []
    for chunk in range(len(chunks)):
        results = [found[chunk * len(lanes) + lane] for lane in range(len(lanes))]
        squares = merged([result[-1] for result in results])
        scatter.append(squares.neuron_scatter)
        for place in range(len(columns)):
            crosses[place].append(merged([result[place] for result in results]))
    whole = [
        CrossMoments(
            part[0].count,
            np.concatenate([p.concept_mean for p in part]),
            part[0].neuron_mean,
            part[0].neuron_scatter,
            np.concatenate([p.cross for p in part]),
        )
        for part in crosses
    ]
    kept = nearest_concepts(whole, np.concatenate(scatter), most)
    progress.close(f"{len(kept):,} of {len(active):,} active concepts are kept")
    return np.asarray(active[kept])


def _sum_chunk(
    folder: Folder,
    shards: Shards,
    numbers: Sequence[int],
    source: ScoreSource,
    positions: np.ndarray,
    parts: Sequence[str],
    columns: Sequence[Column],
    share: float,
) -> list[CrossMoments]:
    """Cross moments of some concepts with each column, and last their own sums of squares."""
    sums = [MomentSum(len(positions), column.neurons) for column in columns]
    # The scatter of the concepts comes for nothing as that of the second array.
    own = MomentSum(1, len(positions))
    for number in numbers:
        inside = shards.rows(folder, number, "train", share)
        values = read_rows(folder, shards, number, source.parts[number], [source.column])
        scores = source.levels(folder, values[source.column][inside], positions)
        scores = source.scores(scores, NATIVE)
        read = read_rows(folder, shards, number, parts[number], [c.name for c in columns])
        for total, column in zip(sums, columns, strict=True):
            total.add(scores, read[column.name][inside])
        own.add(scores[:, :1], scores)
    return [CrossMoments.from_sum(total) for total in (*sums, own)]
