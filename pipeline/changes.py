"""What changed in a run directory from before a start to after it: images, neurons, explanations, scores.

Tables are overwritten while a run works, so that what they said is read before. Of the images only ids in
parts that are going to be made anew are read, so that a run of many shards that adds some costs little.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.diff import SAME, flat_settings, similarity
from pipeline.expected import EXPLANATIONS, IMAGES, QUARANTINE, SCORES
from pipeline.export import chosen_explanations
from pipeline.outcome import MeanScore, mean_scores
from pipeline.rundir import Run, TableEntry
from pipeline.show import equation

#: Entries of a list that are named; of more, the number is told alone.
NAMED = 100

#: Explanations that are shown in full, those that changed most.
SHOWN = 20

_Key = tuple[Any, ...]


@dataclass(frozen=True)
class Before:
    """What the tables of a run said before a start; nothing where they were not finished."""

    tables: dict[str, TableEntry]
    settings: dict[str, str]
    """By dotted keys."""
    image_parts: frozenset[str]
    """Names of the parts of the images table."""
    leaving: frozenset[str]
    """Ids of the images in parts that the run will make anew or drop."""
    quarantined: frozenset[str]
    explanations: dict[_Key, dict[str, Any]] | None
    """Chosen ones by layer, pooling, explainer and neuron."""
    means: list[MeanScore]

    @classmethod
    def of(cls, run: Run, image_parts: Iterable[str]) -> Before:
        """Look at a run.

        Args:
            run: A run directory, perhaps an empty one.
            image_parts: Parts of the images table that the run will have when it is done.
        """
        tables = run.tables()
        parts = run.parts(IMAGES) if IMAGES in tables else []
        stay = set(image_parts)
        return cls(
            tables,
            settings_of(run),
            frozenset(parts),
            frozenset(_image_ids(run, (part for part in parts if part not in stay))),
            frozenset(_quarantine(run)) if QUARANTINE in tables else frozenset(),
            _explanations(run) if EXPLANATIONS in tables else None,
            mean_scores(run) if SCORES in tables else [],
        )


def settings_of(run: Run) -> dict[str, str]:
    """The settings in a run's `run.yaml` by dotted keys; none where there is no such file."""
    if not run.folder.exists("run.yaml"):
        return {}
    return flat_settings(yaml.safe_load(run.folder.read("run.yaml")))


def changes(before: Before, run: Run) -> dict[str, Any]:
    """What is different now, as JSON-shaped facts; a table that is not finished has none."""
    tables = run.tables()
    now = settings_of(run)
    keys = [key for key in dict.fromkeys([*before.settings, *now]) if before.settings]
    settings = [
        {"key": key, "before": before.settings.get(key), "after": now.get(key)}
        for key in keys
        if before.settings.get(key) != now.get(key)
    ]
    facts: dict[str, Any] = {"settings": settings}
    if IMAGES in tables:
        facts["images"] = _image_changes(before, run)
    if EXPLANATIONS in tables:
        same = tables[EXPLANATIONS] == before.tables.get(EXPLANATIONS)
        facts["neurons"] = _neuron_changes(before, None if same else _explanations(run))
    if SCORES in tables:
        facts["scores"] = _score_changes(before.means, mean_scores(run))
    return facts


# Images -----------------------------------------------------------------------------------------


def _image_ids(run: Run, parts: Iterable[str]) -> Iterable[str]:
    for part in parts:
        yield from run.folder.read_table(part, ["image_id"])["image_id"].to_pylist()


def _quarantine(run: Run) -> dict[str, dict[str, str]]:
    rows = run.read(QUARANTINE, ["image_id", "path", "reason"]).to_pylist()
    return {row["image_id"]: row for row in rows}


def _image_changes(before: Before, run: Run) -> dict[str, Any]:
    came = set(_image_ids(run, (p for p in run.parts(IMAGES) if p not in before.image_parts)))
    bad = _quarantine(run) if QUARANTINE in run.tables() else {}
    fresh = [bad[image_id] for image_id in bad if image_id not in before.quarantined]
    return {
        "used": run.tables()[IMAGES].rows,
        "new": len(came - before.leaving),
        "gone": len(before.leaving - came),
        "quarantined": len(bad),
        "newly_quarantined": len(fresh),
        "quarantine": fresh[:NAMED],
    }


# Neurons ----------------------------------------------------------------------------------------


def _explanations(run: Run) -> dict[_Key, dict[str, Any]]:
    keys = ("layer", "pooling", "explainer", "neuron")
    rows = chosen_explanations(run, "shares").to_pylist()
    return {tuple(row[key] for key in keys): row for row in rows}


def _neurons(explanations: Mapping[_Key, Any]) -> set[_Key]:
    return {(layer, pooling, neuron) for layer, pooling, _, neuron in explanations}


def _neuron_changes(before: Before, after: dict[_Key, dict[str, Any]] | None) -> dict[str, Any]:
    """What became of neurons and explanations; `after` is None where the table is the same."""
    old = before.explanations or {}
    after = old if after is None else after
    if before.explanations is None:
        return {"compared": 0, "failed": _failed(after)}
    common = [key for key in after if key in old]
    changed = []
    for key in common:
        alike = _similarity(old[key], after[key])
        if alike < SAME:
            entry = dict(zip(("layer", "pooling", "explainer", "neuron"), key, strict=True))
            entry |= {"similarity": round(alike, 4)}
            entry |= {"before": _in_words(old[key]), "after": _in_words(after[key])}
            changed.append(entry)
    changed.sort(key=lambda entry: entry["similarity"])
    had, has = _neurons(old), _neurons(after)
    told = _told(len(common), len(common) - len(changed), len(has - had), len(had - has), changed)
    return told | {"failed": _failed(after)}


def _told(
    compared: int, same: int, new: int, removed: int, changed: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "compared": compared,
        "same": same,
        "changed": len(changed),
        "new": new,
        "removed": removed,
        "changed_most": changed[:SHOWN],
    }


def _similarity(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Of two explanations; 1 for two that have no terms, 0 where one alone has."""
    if one["concepts"] and other["concepts"]:
        return similarity(one, other)
    return float(one["status"] == other["status"] and one["concepts"] == other["concepts"])


def _in_words(row: dict[str, Any]) -> str:
    return equation(row) if row["concepts"] else str(row["status"])


def _failed(explanations: dict[_Key, dict[str, Any]]) -> list[str]:
    """Neurons that failed, as LAYER:NEURON."""
    failed = {
        f"{layer}:{neuron}" if pooling == "avg" else f"{layer}:{neuron} ({pooling})"
        for (layer, pooling, _, neuron), row in explanations.items()
        if row["status"] == "failed"
    }
    return sorted(failed)[:NAMED]


# Scores -----------------------------------------------------------------------------------------


def _score_changes(old: list[MeanScore], new: list[MeanScore]) -> list[dict[str, Any]]:
    """Mean correlations of layers, each with that of before."""
    known = {(m.layer, m.pooling, m.explainer, m.simulator): m.correlation for m in old}
    return [
        {
            "layer": m.layer,
            "pooling": m.pooling,
            "explainer": m.explainer,
            "simulator": m.simulator,
            "neurons": m.neurons,
            "before": known.get((m.layer, m.pooling, m.explainer, m.simulator)),
            "after": m.correlation,
        }
        for m in new
    ]
