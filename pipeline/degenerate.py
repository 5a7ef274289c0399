"""Concepts that a list could do without, named: constant, repeated, or sums of others."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from core.moments import merged
from core.synonyms import degenerate_concepts
from pipeline.expected import SYNONYMS
from pipeline.moments import StoredMoments
from pipeline.plan import Plan
from pipeline.rundir import Run
from pipeline.scores import VAL

SCHEMA = pa.schema(
    [
        ("explainer", pa.string()),
        ("position", pa.int32()),
        ("concept", pa.string()),
        ("status", pa.string()),
        ("same_as", pa.string()),
    ]
)


def name_degenerate(run: Run, plan: Plan, made: str) -> None:
    """Write the table of active concepts that the training images do not tell from others.

    They are judged at each explainer's sharpest concept scores. The searches never take a concept
    that says nothing beside those already chosen; the table says which ones those are.
    """
    if run.is_fresh(SYNONYMS, made):
        return
    rows: list[dict[str, Any]] = []
    for explainer in plan.explainers:
        stored = StoredMoments(run, plan, explainer)
        subsets = stored.concepts(max(stored.sharpness.values()))
        train = merged([moments for name, moments in subsets.items() if name != VAL])
        status, partner = degenerate_concepts(train)
        for place in (n for n, what in enumerate(status) if what):
            rows.append(
                {
                    "explainer": explainer.name,
                    "position": int(stored.positions[place]),
                    "concept": stored.texts[place],
                    "status": str(status[place]),
                    "same_as": stored.texts[partner[place]] if partner[place] >= 0 else None,
                }
            )
    run.write(SYNONYMS, "degenerate_concepts.parquet", pa.Table.from_pylist(rows, SCHEMA), made)
