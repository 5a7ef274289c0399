"""What every table of a run would be made from: the one place that says what depends on what.

A table is fresh when the manifest gives it the fingerprint that is expected here. Recorded tables are
made in parts, one a shard, and each part is expected under a name of its own, so that a changed image
costs its shard and another simulator its own pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.explainers import ExplainerPlan
from pipeline.fingerprints import fingerprint
from pipeline.plan import Plan, Shard
from pipeline.rundir import part_name

IMAGES, QUARANTINE, ACTIVATIONS = "images", "quarantine", "activations"
CONCEPTS, SHARPNESS, SYNONYMS = "concepts", "sharpness", "degenerate_concepts"
PATHS, EXPLANATIONS, SCORES, ATLAS = "paths", "explanations", "scores", "atlas"

STAGES = ("record", "concepts", "sharpen", "moments", "fit", "simulate", "report")

#: Raised when the same sources and settings would give other results.
SHARPNESS_VERSION, MOMENTS_VERSION, FIT_VERSION, SCORE_VERSION, PAGE_VERSION = 2, 2, 4, 3, 3


def embeddings_table(name: str) -> str:
    """Name of the table of a model's image embeddings."""
    return f"embeddings/{name}"


def scores_table(explainer: str) -> str:
    """Name of the table of an explainer's concept scores."""
    return f"concept_scores/{explainer}"


def moments_table(explainer: str) -> str:
    """Name of an explainer's table of moments."""
    return f"moments/{explainer}"


def table_path(table: str) -> str:
    """Folder of a recorded table, relative to the run."""
    return f"recordings/{table}"


def made_by(table: str) -> str:
    """The stage that makes a table."""
    stages = {
        "concept_scores": "concepts",
        CONCEPTS: "concepts",
        SHARPNESS: "sharpen",
        "moments": "moments",
        SYNONYMS: "moments",
        PATHS: "fit",
        EXPLANATIONS: "fit",
        SCORES: "simulate",
        ATLAS: "report",
    }
    return stages.get(table.partition("/")[0], "record")


@dataclass(frozen=True)
class Expected:
    """Fingerprints of all tables, and the names of the parts of those that are made by shards."""

    tables: dict[str, str]
    parts: dict[str, list[str]]

    def of_stage(self, stage: str) -> dict[str, str]:
        """Fingerprints of the tables that a stage makes."""
        return {name: made for name, made in self.tables.items() if made_by(name) == stage}


def expect(plan: Plan, dtype: str) -> Expected:
    """What every table would be made from.

    Args:
        plan: The run's plan.
        dtype: Number format that models run in, `auto` resolved.
    """
    shards = plan.shards
    keeps = [_kept(plan, shard) for shard in shards]
    layers = {name: list(poolings) for name, poolings in plan.target.layers.items()}
    made = {
        QUARANTINE: [fingerprint(QUARANTINE, s.pixels) for s in shards],
        IMAGES: [fingerprint(IMAGES, s.rows) for s in shards],
        ACTIVATIONS: [
            fingerprint(ACTIVATIONS, s.pixels, plan.target.fingerprint, layers, dtype, *kept)
            for s, kept in zip(shards, keeps, strict=True)
        ],
    }
    for name, clip in plan.clips.items():
        made[embeddings_table(name)] = [
            fingerprint("embeddings", s.pixels, clip.fingerprint, dtype, *kept)
            for s, kept in zip(shards, keeps, strict=True)
        ]
    for explainer in plan.explainers:
        made[scores_table(explainer.name)] = _concept_scores(plan, explainer, made)
    tables = {name: fingerprint(name, parts) for name, parts in made.items()}
    scored = [[e.name, tables[scores_table(e.name)]] for e in plan.explainers]
    tables[CONCEPTS] = fingerprint(CONCEPTS, tables[IMAGES], scored)
    fit = plan.config.fit.resolved
    seed = plan.config.images.split.seed
    sources = (tables[IMAGES], tables[ACTIVATIONS])
    sharpness = (SHARPNESS_VERSION, fit.sharpness, seed)
    tables[SHARPNESS] = fingerprint(SHARPNESS, *sources, tables[CONCEPTS], *sharpness)
    for name, scores in scored:
        cut = (fit.folds, fit.max_concepts)
        tables[moments_table(name)] = fingerprint(
            "moments", MOMENTS_VERSION, *sources, scores, *sharpness, *cut
        )
    moments = [[e.name, tables[moments_table(e.name)]] for e in plan.explainers]
    tables[SYNONYMS] = fingerprint(SYNONYMS, MOMENTS_VERSION, moments)
    settings = fit.model_dump(exclude={"length", "tolerance", "preset"})
    if fit.search == "paper":
        settings["tolerance"] = fit.tolerance
    tables[PATHS] = fingerprint(PATHS, FIT_VERSION, moments, settings)
    choice = (fit.length, fit.tolerance)
    tables[EXPLANATIONS] = fingerprint(EXPLANATIONS, FIT_VERSION, tables[PATHS], *choice)
    simulators = [
        [
            s.name,
            tables[embeddings_table(s.name)],
            plan.clips[s.name].slope,
            plan.clips[s.name].shift,
        ]
        for s in plan.config.simulators
    ]
    confidence = plan.config.simulate.confidence
    tables[SCORES] = fingerprint(
        SCORES, SCORE_VERSION, tables[EXPLANATIONS], simulators, confidence
    )
    page = plan.config.atlas.model_dump()
    tables[ATLAS] = fingerprint(ATLAS, PAGE_VERSION, tables[SCORES], tables[CONCEPTS], page)
    parts = {
        name: [part_name(table_path(name), n, part) for n, part in enumerate(made[name])]
        for name in made
    }
    return Expected(tables, parts)


def _kept(plan: Plan, shard: Shard) -> list[object]:
    """Which rows of a shard recorded tables keep, where that is not all of them."""
    if plan.config.recordings.keep == "all":
        return []
    splits = plan.index.rows["split"].slice(shard.start, shard.stop - shard.start).to_pylist()
    return ["test", [row for row, split in enumerate(splits) if split == "test"]]


def _concept_scores(plan: Plan, explainer: ExplainerPlan, made: dict[str, list[str]]) -> list[str]:
    """What each shard's part of an explainer's concept scores is made from."""
    if explainer.kind != "open_clip":
        kept = [] if plan.config.recordings.keep == "all" else ["test"]
        return [fingerprint(part, explainer.fingerprint, *kept) for part in made[IMAGES]]
    clip = plan.clips[explainer.name]
    facts = (clip.fingerprint, explainer.fingerprint, clip.slope, clip.shift)
    return [fingerprint(part, *facts) for part in made[embeddings_table(explainer.name)]]
