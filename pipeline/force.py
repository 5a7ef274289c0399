"""Redoing stages although their tables are fresh: what they made is taken away first, and nothing else.

Files are deleted by the names that a run gives them; what somebody else has put into the run directory
stays, and so does what lies in a store, which other runs read too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline import ablated_layer, fit, simulate
from pipeline.expected import STAGES, Expected, made_by, moments_table
from pipeline.plan import Plan
from pipeline.rundir import Run

_TEXTS, _TEXT = "recordings/texts", re.compile(r"^[0-9a-f]{24}\.npz$")

#: Folders of the blocks that a stage has under way.
_WORK = {"fit": fit.WORK, "simulate": simulate.WORK, "ablate": ablated_layer.WORK}


def discard(run: Run, plan: Plan, expected: Expected, stages: Sequence[str]) -> None:
    """Take the tables of some stages out of the manifest, then delete what they are made of.

    Args:
        run: The run, locked.
        plan: Its plan.
        expected: What the tables would be made from.
        stages: Whose tables; those of other stages stay, and are fresh if the result is the same.
    """
    entries = run.tables()
    named = {*entries, *expected.tables}
    # Scores of explanations from elsewhere are made by another command.
    tables = [t for t in named if made_by(t) in stages and not t.startswith("external/")]
    for table in tables:
        run.withdraw(table)
    for table in tables:
        if (place := expected.places.get(table)) is not None:
            run.prune(place, [])
        if table in entries and entries[table].path.endswith(".parquet"):
            run.folder.delete(entries[table].path)
    if "moments" in stages:
        for explainer in plan.explainers:
            path = moments_table(explainer.name)
            run.prune(path, [])
            run.prune(f"{path}/lanes", [])
    if "concepts" in stages:
        for name in run.folder.names(_TEXTS):
            if _TEXT.match(name):
                run.folder.delete(f"{_TEXTS}/{name}")
    for stage in STAGES:
        if stage in stages and stage in _WORK:
            run.prune(_WORK[stage], [])
