"""Calibrations that are measured on the labels of training images, with a picture of how good they are.

A model that was not trained with a sigmoid loss has no slope and shift of its own. Where images have
labels, the cosine between an image and the texts of all labels says what they should be
(`core.calibration`). That takes recorded embeddings, so it is done when they are there: a plan says what
will be measured, `calibrated` gives the same plan with the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from core.calibration import PRIOR, CosineCounts, fit_calibration, reliability
from core.concept_scores import concept_logits
from core.errors import ConceptError
from pipeline.calibration_figure import reliability_figure
from pipeline.columns import matrix
from pipeline.concepts import embed_texts, lanes
from pipeline.engine import run_tasks
from pipeline.expected import CALIBRATION, IMAGES, Expected, embeddings_table
from pipeline.plan import ClipPlan, LabelTexts, Plan
from pipeline.rundir import Run
from pipeline.storage import Folder


def calibrated(run: Run, plan: Plan, expected: Expected) -> Plan:
    """The plan with all slopes and shifts known; measures those that are not.

    Raises:
        ConceptError: The labels cannot tell; the message says why.
    """
    if CALIBRATION not in expected.tables:
        return plan
    if not run.is_fresh(CALIBRATION, expected.tables[CALIBRATION]):
        run.withdraw(CALIBRATION)
        rows = [_measured(run, clip) for clip in plan.clips.values() if clip.labels is not None]
        table = pa.Table.from_pylist(rows)
        run.write(CALIBRATION, "calibration.parquet", table, expected.tables[CALIBRATION])
    known = {row["model"]: row for row in run.read(CALIBRATION).to_pylist()}
    clips = {
        name: replace(clip, slope=known[name]["slope"], shift=known[name]["shift"])
        if clip.labels is not None
        else clip
        for name, clip in plan.clips.items()
    }
    return replace(plan, clips=clips)


def _measured(run: Run, clip: ClipPlan) -> dict[str, object]:
    """A model's row of the table; its picture is written beside."""
    assert clip.labels is not None
    texts = embed_texts(run, clip, clip.labels.texts)
    jobs = list(zip(run.parts(IMAGES), run.parts(embeddings_table(clip.name)), strict=True))
    calls = [
        (run.folder, [jobs[n] for n in lane], texts, clip.labels)
        for lane in lanes(range(len(jobs)))
    ]
    parts = dict(run_tasks(_count, calls))
    counts = reduce(CosineCounts.merge, parts.values())
    try:
        found = fit_calibration(counts)
    except ConceptError as error:
        raise ConceptError(f"calibration of {clip.name!r} on labels: {error}") from error
    reliable = reliability(counts, found.slope, found.own_shift)
    figure = f"calibration/{clip.name}.svg"
    caption = (
        f"{clip.name}: a = {found.slope:.1f}, b = {found.own_shift:.3f} on "
        f"{len(clip.labels.texts):,} labels, {found.shift:.3f} at one in {1 / PRIOR:,.0f}"
    )
    run.folder.write(figure, reliability_figure(reliable, caption).encode())
    return {
        "model": clip.name,
        "slope": found.slope,
        "shift": found.shift,
        "labels_shift": found.own_shift,
        "labels": len(clip.labels.texts),
        "images": int(counts.present.sum()),
        "prior": counts.prior,
        "error": reliable.error,
        "match_error": reliable.match_error,
        "score": reliable.score.tolist(),
        "observed": reliable.observed.tolist(),
        "pairs": reliable.pairs.tolist(),
        "figure": figure,
    }


def _count(
    folder: Folder, jobs: Sequence[tuple[str, str]], texts: str, labels: LabelTexts
) -> CosineCounts:
    """Cosines of the training images of some shards with the texts of all labels."""
    embedded = folder.read_arrays(texts)["embedding"]
    places = pa.array(labels.labels, pa.string())
    total = CosineCounts.of(np.empty((0, len(embedded)), np.float32), np.empty(0, np.int64))
    for images, name in jobs:
        known = folder.read_table(images, ["split", "label"])
        label = pc.index_in(known["label"], value_set=places)
        used = pc.and_(pc.equal(known["split"], "train"), pc.is_valid(label))
        rows = folder.read_table(name, ["embedding"]).filter(used)
        if not rows.num_rows:
            continue
        own = np.asarray(labels.places)[label.filter(used).to_numpy()]
        cosines = concept_logits(matrix(rows["embedding"]), embedded, 1.0, 0.0)
        total = total.merge(CosineCounts.of(cosines, own))
    return total
