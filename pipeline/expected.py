"""What every table of a run would be made from: the one place that says what depends on what.

A table is fresh when the manifest gives it the fingerprint that is expected here. Recorded tables are
made in parts, one a shard, and each part is expected under a name of its own, so that a changed image
costs its shard and another simulator its own pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actors.views import View, refusals
from pipeline.ablation_config import PREDICTED
from pipeline.columns import activation_column
from pipeline.concept_lists import provenance
from pipeline.explainers import ExplainerPlan
from pipeline.fingerprints import fingerprint, fingerprint_file
from pipeline.plan import ClipPlan, Plan, Shard, TargetPlan
from pipeline.rundir import part_name

IMAGES, QUARANTINE, ACTIVATIONS = "images", "quarantine", "activations"
CONCEPT_LISTS, CALIBRATION = "concept_lists", "calibration"
CONCEPTS, SHARPNESS, SYNONYMS = "concepts", "sharpness", "degenerate_concepts"
PATHS, EXPLANATIONS, SCORES, SANITY = "paths", "explanations", "scores", "sanity"
LOGITS, ABLATIONS, REPLACEMENTS = "logits", "ablations", "replacements"
IMPORTANCE, BASELINES, COMPARISON = "importance", "baselines", "comparison"
BASELINE_SCORES = "baseline_scores"
ATLAS = "atlas"

STAGES = ("record", "concepts", "sharpen", "moments", "fit", "simulate", "ablate", "report")

#: Raised when the same sources and settings would give other results.
SHARPNESS_VERSION, MOMENTS_VERSION, FIT_VERSION, SCORE_VERSION, PAGE_VERSION = 3, 4, 4, 4, 6
ABLATION_VERSION, BASELINE_VERSION, CALIBRATION_VERSION, SIGMOID_VERSION = 1, 2, 1, 2
USED_VERSION = 2


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
    """Folder of a recorded table of a run that shares no store."""
    return f"recordings/{table}"


def made_by(table: str) -> str:
    """The stage that makes a table."""
    stages = {
        "concept_scores": "concepts",
        CONCEPTS: "concepts",
        CONCEPT_LISTS: "concepts",
        CALIBRATION: "concepts",
        SHARPNESS: "sharpen",
        "moments": "moments",
        SYNONYMS: "moments",
        PATHS: "fit",
        EXPLANATIONS: "fit",
        SCORES: "simulate",
        SANITY: "simulate",
        BASELINES: "simulate",
        BASELINE_SCORES: "simulate",
        COMPARISON: "simulate",
        LOGITS: "ablate",
        ABLATIONS: "ablate",
        REPLACEMENTS: "ablate",
        IMPORTANCE: "ablate",
        ATLAS: "report",
    }
    return stages.get(table.partition("/")[0], "record")


@dataclass(frozen=True)
class Expected:
    """Fingerprints of all tables, and the names of the parts of those that are made by shards."""

    tables: dict[str, str]
    parts: dict[str, list[str]]
    places: dict[str, str]
    """Folders of the tables that are made by shards: in the run, or in the store that it shares."""
    summed: dict[str, str]
    """What the sums of moments depend on beside images and concepts: for each column of activations,
    and for each explainer."""
    views: dict[str, View]
    """How all models of the run look at images, by key: these decide which images can be used."""

    def of_stage(self, stage: str) -> dict[str, str]:
        """Fingerprints of the tables that a stage makes."""
        return {name: made for name, made in self.tables.items() if made_by(name) == stage}


def views_of(plan: Plan) -> dict[str, View]:
    """How all models of a plan look at images, by key."""
    preprocessings = [plan.target.preprocess, *(clip.preprocess for clip in plan.clips.values())]
    return {preprocess.view.key: preprocess.view for preprocess in preprocessings}


def expect(plan: Plan, dtype: str, views: Mapping[str, View] | None = None) -> Expected:
    """What every table would be made from.

    Args:
        plan: The run's plan.
        dtype: Number format that models run in, `auto` resolved.
        views: Views that decide which images can be used, by key; None for those of the plan's models.
    """
    views = views_of(plan) if views is None else dict(views)
    # Which images there are rows of is decided by all models together, as far as they can refuse any.
    used = _used(views)
    shards = plan.shards
    keeps = [_kept(plan, shard) for shard in shards]
    directed = [
        [name, d.settings.layer, d.fingerprint] for name, d in plan.target.directions.items()
    ]
    layers = {name: list(poolings) for name, poolings in plan.target.layers.items()}
    network = (plan.target.fingerprint, _passes(plan, plan.target, dtype))
    made = {
        QUARANTINE: [fingerprint(QUARANTINE, s.pixels, used) for s in shards],
        IMAGES: _images(plan, used),
        ACTIVATIONS: [
            fingerprint(ACTIVATIONS, s.pixels, used, *network, layers, *kept, *directed)
            for s, kept in zip(shards, keeps, strict=True)
        ],
    }
    for name, clip in plan.clips.items():
        encoder = (clip.fingerprint, _passes(plan, clip, dtype))
        made[embeddings_table(name)] = [
            fingerprint("embeddings", s.pixels, used, *encoder, *kept)
            for s, kept in zip(shards, keeps, strict=True)
        ]
    if plan.config.ablation is not None:
        made[LOGITS] = [
            fingerprint(LOGITS, s.pixels, used, plan.target.fingerprint, _held_out(plan, s))
            for s in shards
        ]
    calibrations = {name: _calibration(clip, made) for name, clip in plan.clips.items()}
    for explainer in plan.explainers:
        made[scores_table(explainer.name)] = _concept_scores(plan, explainer, made, calibrations)
    tables = {name: fingerprint(name, parts) for name, parts in made.items()}
    scored = [[e.name, tables[scores_table(e.name)]] for e in plan.explainers]
    seed = plan.config.images.split.seed
    # With keep 'test' active concepts are judged on a sample of the images, which the seed draws.
    sampled = [] if plan.config.recordings.keep == "all" else [seed]
    tables[CONCEPTS] = fingerprint(CONCEPTS, tables[IMAGES], scored, *sampled)
    lists = [[e.name, provenance(e.lists)] for e in plan.explainers if e.lists]
    if lists:
        tables[CONCEPT_LISTS] = fingerprint(CONCEPT_LISTS, lists)
    measured = [[n, calibrations[n]] for n, clip in plan.clips.items() if clip.labels is not None]
    if measured:
        tables[CALIBRATION] = fingerprint(CALIBRATION, measured)
    fit = plan.config.fit.resolved
    sources = (tables[IMAGES], tables[ACTIVATIONS])
    sharpness = (SHARPNESS_VERSION, fit.model_dump()["sharpness"], seed)
    tables[SHARPNESS] = fingerprint(SHARPNESS, *sources, tables[CONCEPTS], *sharpness)
    for name, scores in scored:
        cut = (fit.folds, fit.max_concepts)
        tables[moments_table(name)] = fingerprint(
            "moments", MOMENTS_VERSION, *sources, scores, *sharpness, *cut
        )
    moments = [[e.name, tables[moments_table(e.name)]] for e in plan.explainers]
    tables[SYNONYMS] = fingerprint(SYNONYMS, MOMENTS_VERSION, moments)
    settings = fit.model_dump(exclude={"length", "tolerance", "preset"})
    if fit.device == "cpu":
        del settings["device"]
    if fit.search == "paper":
        settings["tolerance"] = fit.tolerance
    tables[PATHS] = fingerprint(PATHS, FIT_VERSION, moments, settings)
    choice = (fit.length, fit.tolerance)
    tables[EXPLANATIONS] = fingerprint(EXPLANATIONS, FIT_VERSION, tables[PATHS], *choice)
    simulators = [
        [
            s.name,
            tables[embeddings_table(s.name)],
            plan.clips[s.name].text_fingerprint,
            *calibrations[s.name],
        ]
        for s in plan.config.simulators
    ]
    scoring = plan.config.simulate.model_dump(exclude={"baselines"})
    tables[SCORES] = fingerprint(SCORES, SCORE_VERSION, tables[EXPLANATIONS], simulators, scoring)
    tables[SANITY] = fingerprint(SANITY, tables[SCORES])
    if plan.config.simulate.baselines:
        simpler = (BASELINE_VERSION, tables[SCORES], sorted(plan.config.simulate.baselines))
        for name in (BASELINES, BASELINE_SCORES, COMPARISON):
            tables[name] = fingerprint(name, *simpler)
    tables |= _ablations(plan, tables, simulators)
    page = plan.config.atlas.model_dump()
    shown = [tables.get(t) for t in (COMPARISON, ABLATIONS, REPLACEMENTS, IMPORTANCE)]
    shown += [tables[t] for t in (CONCEPT_LISTS, CALIBRATION) if t in tables]
    tables[ATLAS] = fingerprint(ATLAS, PAGE_VERSION, tables[SCORES], tables[CONCEPTS], shown, page)
    places = {name: _place(plan.config.store, name, parts[0]) for name, parts in made.items()}
    parts = {
        name: [part_name(places[name], n, part) for n, part in enumerate(made[name])]
        for name in made
    }
    return Expected(tables, parts, places, _summed(plan, dtype, calibrations, used), views)


def _used(views: Mapping[str, View]) -> list[object]:
    """What decides which images can be used, beside the images themselves.

    Of the models' preprocessing that is only what can refuse an image that decodes, which no usual one does.
    """
    return [USED_VERSION, *refusals(views.values())]


def _passes(plan: Plan, model: TargetPlan | ClipPlan, dtype: str) -> str:
    """How a model's passes are made: number format, compiled or not, who decodes what it looks at."""
    if plan.config.recordings.compile:
        dtype = f"{dtype}, compiled"
    if plan.config.recordings.decode == "gpu" and model.preprocess.view.plain:
        dtype = f"{dtype}, decoded on GPUs"
    return dtype


def _place(store: str | None, table: str, first: str) -> str:
    """Folder of a table that is made by shards; one in a store is named for its first part."""
    kind = table.partition("/")[0]
    if store is None or kind in (ACTIVATIONS, LOGITS):
        return table_path(table)
    return f"{store}/{kind}/{first[:16]}"


def image_parts(plan: Plan) -> list[str]:
    """Names of the parts of the images table, which depend on no number format."""
    made = _images(plan, _used(views_of(plan)))
    place = _place(plan.config.store, IMAGES, made[0])
    return [part_name(place, number, part) for number, part in enumerate(made)]


def _images(plan: Plan, used: list[object]) -> list[str]:
    return [fingerprint(IMAGES, shard.rows, used) for shard in plan.shards]


def _ablations(
    plan: Plan, tables: dict[str, str], simulators: Sequence[Sequence[object]]
) -> dict[str, str]:
    """Fingerprints of the tables of ablation, where there is one."""
    settings = plan.config.ablation
    if settings is None:
        return {}
    classes = settings.classes
    made = fingerprint(
        ABLATION_VERSION,
        *(tables[name] for name in (LOGITS, ACTIVATIONS, EXPLANATIONS)),
        simulators,
        settings.model_dump(exclude={"classes"}),
        classes if classes == PREDICTED else [fingerprint_file(classes), tables[IMAGES]],
        plan.config.images.split.seed,
    )
    names = [ABLATIONS]
    names += [REPLACEMENTS] * settings.joint + [IMPORTANCE] * settings.importance
    return {name: fingerprint(name, made) for name in names}


def _held_out(plan: Plan, shard: Shard) -> list[list[int]]:
    """Which rows of a shard are validation and test images."""
    splits = plan.index.rows["split"].slice(shard.start, shard.stop - shard.start).to_pylist()
    return [[row for row, one in enumerate(splits) if one == split] for split in ("val", "test")]


def _summed(
    plan: Plan, dtype: str, calibrations: dict[str, list[float | str]], used: list[object]
) -> dict[str, str]:
    """Fingerprints of the sources of moments, each by itself: what is added leaves the others' alone."""
    target, config = plan.target, plan.config
    # What else is read decides what is folded, and which kernels a compiler makes one.
    together = [target.unfolded, list(target.layers) if config.recordings.compile else []]
    summed = {}
    for layer, poolings in target.layers.items():
        directed = target.directions.get(layer)
        source = [layer] if directed is None else [directed.settings.layer, directed.fingerprint]
        for pooling in poolings:
            passes = _passes(plan, target, dtype)
            made = fingerprint(target.fingerprint, passes, *source, pooling, *together)
            summed[activation_column(layer, pooling)] = made
    cut = (config.fit.resolved.folds, config.images.split.seed, config.recordings.keep)
    for explainer in plan.explainers:
        facts: list[object] = [explainer.kind]
        if clip := plan.clips.get(explainer.name):
            passes = _passes(plan, clip, dtype)
            facts = [clip.text_fingerprint, *calibrations[explainer.name], passes]
        summed[explainer.name] = fingerprint("moments", MOMENTS_VERSION, used, *cut, *facts)
    return summed


def _kept(plan: Plan, shard: Shard) -> list[object]:
    """Which rows of a shard recorded tables keep, where that is not all of them."""
    if plan.config.recordings.keep == "all":
        return []
    splits = plan.index.rows["split"].slice(shard.start, shard.stop - shard.start).to_pylist()
    return ["test", [row for row, split in enumerate(splits) if split == "test"]]


def _calibration(clip: ClipPlan, made: dict[str, list[str]]) -> list[float | str]:
    """Slope and shift, or what they are measured on: all training images and their labels."""
    if clip.labels is None:
        return [clip.slope, clip.shift]
    named = [list(clip.labels.labels), list(clip.labels.places), list(clip.labels.texts)]
    sources = (made[IMAGES], made[embeddings_table(clip.name)], clip.text_fingerprint)
    return [fingerprint(CALIBRATION, CALIBRATION_VERSION, named, *sources)]


def _concept_scores(
    plan: Plan,
    explainer: ExplainerPlan,
    made: dict[str, list[str]],
    calibrations: dict[str, list[float | str]],
) -> list[str]:
    """What each shard's part of an explainer's concept scores is made from."""
    if explainer.kind != "open_clip":
        kept = [] if plan.config.recordings.keep == "all" else ["test"]
        return [
            fingerprint(part, explainer.fingerprint, *shard.scores(explainer), *kept)
            for part, shard in zip(made[IMAGES], plan.shards, strict=True)
        ]
    clip = plan.clips[explainer.name]
    facts = (
        SIGMOID_VERSION,
        clip.text_fingerprint,
        explainer.fingerprint,
        *calibrations[explainer.name],
    )
    return [fingerprint(part, *facts) for part in made[embeddings_table(explainer.name)]]
