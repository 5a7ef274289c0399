"""Whether two explanations of a neuron predict the same, read with the concept scores of one run.

Explanations that share no word may say the same, and a word may be kept while the rest turns. What both
predict of the same images tells: their correlation on the test images of the second of two runs. Only
stored concept scores are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import expit, logit

from core.metrics import pearson
from core.sharpness import NATIVE, Sharpness
from pipeline.columns import matrix
from pipeline.expected import CONCEPTS, IMAGES, scores_table
from pipeline.rundir import Run
from pipeline.scores import TEST, read_sharpness
from pipeline.sparse_weights import sparse_weights

#: Neurons whose predictions are held at a time.
BLOCK = 256

_Key = tuple[Any, ...]
_Rows = Mapping[_Key, Mapping[str, Any]]


def agreements(
    runs: tuple[Run, Run], explained: tuple[_Rows, _Rows], explainers: Sequence[Mapping[str, Any]]
) -> tuple[dict[_Key, float], dict[str, str]]:
    """Correlation of what two explanations of a neuron predict on the test images of the second run.

    Each is read at the sharpness that its weights were fitted for. Scores are stored in half
    precision, and a score that was stored as 0 or 1 stays so at any sharpness.

    Args:
        runs: A and B.
        explained: Explanations of A and of B by layer, pooling, explainer and neuron:
            `concepts` and `weights`, both empty where there is nothing to explain.
        explainers: Settings of the explainers of A and of B, by name.

    Returns:
        Correlations by neuron, where B knows all concepts of both explanations and neither
        prediction is constant; and the explainers that cannot be compared, with the reason.
    """
    found: dict[_Key, float] = {}
    unread: dict[str, str] = {}
    before, after = explained
    keys = [key for key in after if key in before]
    for explainer in dict.fromkeys(key[2] for key in keys):
        places = _places(runs[1], explainer)
        mine = [
            key
            for key in keys
            if key[2] == explainer
            and before[key]["concepts"]
            and after[key]["concepts"]
            and places.keys() >= {*before[key]["concepts"], *after[key]["concepts"]}
        ]
        if why := _not_comparable(runs[1], explainer, explainers):
            unread[explainer] = why
        elif not mine:
            unread[explainer] = "B does not know the concepts of A"
        else:
            own = [{key: rows[key] for key in mine} for rows in explained]
            found |= _correlations(runs, own, places, explainer)
    return found, unread


def _places(run: Run, explainer: str) -> dict[str, int]:
    """Where each concept of an explainer stands in its table of scores."""
    listed = run.read(CONCEPTS, ["explainer", "position", "concept"])
    listed = listed.filter(pc.equal(listed["explainer"], explainer))
    return dict(zip(listed["concept"].to_pylist(), listed["position"].to_pylist(), strict=True))


def _not_comparable(b: Run, explainer: str, explainers: Sequence[Mapping[str, Any]]) -> str:
    """Why weights fitted in A say nothing about concept scores of B, or nothing."""
    one, other = (sections[explainer] for sections in explainers)
    for key in ("kind", "model", "calibration"):
        if one.get(key) != other.get(key):
            return f"its {key} differs"
    if scores_table(explainer) not in b.tables():
        return f"B has no table {scores_table(explainer)}"
    return ""


def _correlations(
    runs: tuple[Run, Run], explained: Sequence[_Rows], places: Mapping[str, int], explainer: str
) -> dict[_Key, float]:
    """Correlations of the predictions for neurons of one explainer that both runs explain."""
    concepts = {c for rows in explained for row in rows.values() for c in row["concepts"]}
    used = sorted(concepts)
    scores = _test_scores(runs[1], explainer, [places[concept] for concept in used])
    if len(scores) < 2:
        return {}
    columns = {concept: column for column, concept in enumerate(used)}
    chosen = [read_sharpness(run, explainer) for run in runs]
    groups: dict[_Key, list[_Key]] = {}
    for key in explained[1]:
        groups.setdefault(key[:2], []).append(key)
    found: dict[_Key, float] = {}
    for column, keys in groups.items():
        for start in range(0, len(keys), BLOCK):
            block = keys[start : start + BLOCK]
            predicted = [
                _predicted([rows[key] for key in block], columns, scores, own[column])
                for rows, own in zip(explained, chosen, strict=True)
            ]
            for key, value in zip(block, pearson(*predicted).tolist(), strict=True):
                if np.isfinite(value):
                    found[key] = value
    return found


def _test_scores(run: Run, explainer: str, positions: Sequence[int]) -> np.ndarray:
    """Stored scores of some concepts on test images, (images, concepts), part by part."""
    images = run.read(IMAGES, ["image_id", "split"])
    test = images.filter(pc.equal(images["split"], TEST))["image_id"]
    pieces = [np.zeros((0, len(positions)), dtype=np.float16)]
    for part in run.parts(scores_table(explainer)):
        content = run.folder.read_table(part, ["image_id", "score"])
        inside = content.filter(pc.is_in(content["image_id"], value_set=test))
        pieces.append(matrix(inside["score"])[:, positions])
    return np.concatenate(pieces)


def _predicted(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, int],
    scores: np.ndarray,
    sharpness: Sharpness,
) -> np.ndarray:
    """What explanations predict but for their bias, (images, explanations)."""
    table = pa.table({name: [row[name] for row in rows] for name in ("concepts", "weights")})
    weights, used = sparse_weights(table, columns)
    levels = scores[:, used].astype(np.float64)
    if sharpness != NATIVE:
        levels = expit(sharpness.factor * logit(levels) + sharpness.shift)
    predicted: np.ndarray = (weights @ levels.T).T
    return predicted
