"""The report stage: every table of a run → the atlas, the page that people look at."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from importlib import metadata

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from core.sharpness import Sharpness
from pipeline.atlas.build import build_atlas
from pipeline.atlas.data import AtlasData
from pipeline.columns import activation_column, matrix
from pipeline.concepts_config import ConceptsConfig
from pipeline.engine import recording_workers
from pipeline.expected import (
    ABLATIONS,
    ACTIVATIONS,
    ATLAS,
    BASELINE_SCORES,
    CALIBRATION,
    COMPARISON,
    CONCEPT_LISTS,
    CONCEPTS,
    EXPLANATIONS,
    IMAGES,
    IMPORTANCE,
    REPLACEMENTS,
    SANITY,
    SCORES,
    SHARPNESS,
    STAGES,
    SYNONYMS,
    Expected,
)
from pipeline.fingerprints import fingerprint
from pipeline.moments import StoredMoments
from pipeline.number_format import number_format
from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.report_maps import RunHeatMaps
from pipeline.report_scores import ConceptScores, SharedRows
from pipeline.rundir import Run
from pipeline.score import external_scores
from pipeline.scores import explainer_source, model_source, shards_of
from pipeline.thumbnails import thumbnails

#: Facts of the ledger that the atlas shows beside the seconds of a stage.
_WORK = ("rows", "rows_per_second", "bytes", "workers")


def report(run: Run, plan: Plan, expected: Expected) -> None:
    """Build the atlas if a table has changed since it was built."""
    external = external_scores(run)
    whole = expected.tables[ATLAS]
    if external:
        whole = fingerprint(whole, {name: entry.fingerprint for name, entry in external.items()})
    with run.stage("report") as facts:
        if not run.is_fresh(ATLAS, whole):
            run.withdraw(ATLAS)
            progress = Progress("report", 0, "files")
            written = 0

            def write(name: str, data: bytes) -> None:
                nonlocal written
                written += len(data)
                run.folder.write(f"{ATLAS}/{name}", data, durable=False)
                progress.total += 1
                progress.advance(1)

            build_atlas(_atlas_data(run, plan, expected, list(external)), write)
            facts |= {"rows": progress.done, "bytes": written}
            run.commit(ATLAS, f"{ATLAS}/index.html", whole, progress.done)
            progress.close(run.folder.path(f"{ATLAS}/index.html"))


def _atlas_data(run: Run, plan: Plan, expected: Expected, external: Sequence[str]) -> AtlasData:
    parts = [run.folder.read_table(part) for part in run.parts(IMAGES)]
    if (keep := plan.config.recordings.keep) != "all":  # only these have rows in recorded tables
        parts = [part.filter(pc.equal(part["split"], keep)) for part in parts]
    images = pa.concat_tables(parts)
    sizes = [len(part) for part in parts]
    explainers = {explainer.name: explainer for explainer in plan.explainers}

    def activations(layer: str, pooling: str) -> np.ndarray:
        column = activation_column(layer, pooling)
        return matrix(run.read(ACTIVATIONS, [column])[column])

    @cache
    def shared(explainer: str) -> SharedRows:
        own = explainers[explainer]
        source = explainer_source(run, plan, own)
        return SharedRows(run.folder, shards_of(run, plan), source, sizes, len(own.concepts))

    @cache
    def simulated(simulator: str, explainer: str) -> tuple[SharedRows, np.ndarray]:
        own = StoredMoments(run, plan, explainers[explainer])
        source = model_source(run, plan.clips[simulator], own.texts)
        count = len(explainers[explainer].concepts)
        return SharedRows(run.folder, shards_of(run, plan), source, sizes, count), own.positions

    def simulated_scores(simulator: str, explainer: str, sharpness: Sharpness) -> ConceptScores:
        rows, positions = simulated(simulator, explainer)
        return ConceptScores(rows, sharpness, positions)

    atlas = plan.config.atlas
    heat_maps = None
    if atlas.images and atlas.heat_maps:
        workers = recording_workers(plan.config.ray)
        dtype = number_format(run, plan, workers)
        heat_maps = RunHeatMaps(plan, images, workers, dtype)
    made = partial(_table, run, expected)
    others = [] if (simpler := made(BASELINE_SCORES)) is None else [simpler]
    return AtlasData(
        title=f"{plan.config.target.model.partition(':')[2]} explained",
        provenance=_provenance(run, plan),
        explanations=run.read(EXPLANATIONS),
        scores=_with_ablations(run.read(SCORES), made(ABLATIONS)),
        concepts=run.read(CONCEPTS),
        sharpness=run.read(SHARPNESS),
        degenerate=run.read(SYNONYMS),
        images=images,
        activations=activations,
        concept_scores=lambda explainer, sharpness: ConceptScores(shared(explainer), sharpness),
        simulated_scores=simulated_scores,
        thumbnails=partial(thumbnails, plan, images) if atlas.images else None,
        heat_maps=heat_maps,
        others=[*others, *(run.read(name) for name in external)],
        sanity=run.read(SANITY),
        comparison=made(COMPARISON),
        replacements=made(REPLACEMENTS),
        importance=made(IMPORTANCE),
        folds=plan.config.fit.resolved.folds,
    )


def _table(run: Run, expected: Expected, name: str) -> pa.Table | None:
    """A table that not every run has; one that an earlier configuration has left is not this run's."""
    wanted = expected.tables.get(name)
    return run.read(name) if wanted is not None and run.is_fresh(name, wanted) else None


def _with_ablations(scores: pa.Table, ablations: pa.Table | None) -> pa.Table:
    """The scores, with a column for each kind of ablation score where there are some."""
    if ablations is None:
        return scores
    keys = ["layer", "pooling", "neuron", "explainer", "length", "simulator"]
    rows = list(zip(*(scores[key].to_pylist() for key in keys), strict=True))
    for kind in sorted(set(ablations["kind"].to_pylist())):
        mine = ablations.filter(pc.equal(ablations["kind"], kind)).select([*keys, "score"])
        known = {tuple(row[key] for key in keys): row["score"] for row in mine.to_pylist()}
        column = pa.array([known.get(row) for row in rows], pa.float64())
        scores = scores.append_column(f"ablation_{kind}", column)
    return scores


def _sources_of_concepts(run: Run, plan: Plan) -> dict[str, object]:
    """Lists that concepts are from, and calibrations that were measured, where there are some."""
    told: dict[str, object] = {}
    if any(explainer.lists for explainer in plan.explainers):
        told["concept_lists"] = {
            f"{row['explainer']}, {row['list']}": f"{row['added']:,} concepts; {row['source']}; "
            f"licence: {row['licence']}"
            for row in run.read(CONCEPT_LISTS).to_pylist()
        }
    if any(clip.labels is not None for clip in plan.clips.values()):
        told["calibration"] = {
            row["model"]: f"a = {row['slope']:.1f}, b = {row['shift']:.3f}, measured on "
            f"{row['labels']:,} labels of {row['images']:,} images ({row['figure']})"
            for row in run.read(CALIBRATION).to_pylist()
        }
    return told


def _provenance(run: Run, plan: Plan) -> dict[str, object]:
    config = plan.config
    fit = config.fit.resolved
    counts = plan.index.split_counts
    stages = run.ledger()["stages"]
    # A stage that the configuration leaves out takes no time worth a line.
    timed = [name for name in STAGES if stages.get(name, {}).get("seconds")]
    tables = run.tables()
    return {
        "model": config.target.model,
        "weights": config.target.weights,
        "layers": {
            name: f"{plan.target.infos[name].neurons} neurons, {', '.join(poolings)}"
            for name, poolings in plan.target.layers.items()
        },
        "images": {
            "path": config.images.path,
            **counts,
            "quarantined": tables["quarantine"].rows,
        },
        "explainers": {
            explainer.name: _explainer(explainer.kind, len(explainer.concepts), section)
            for explainer, section in zip(plan.explainers, config.concepts, strict=True)
        },
        **_sources_of_concepts(run, plan),
        "simulators": {s.name: s.model for s in config.simulators},
        "fit": f"{fit.search}, at most {fit.max_length} concepts, length by {fit.length}",
        "fingerprints": {"target": plan.target.fingerprint}
        | {name: clip.fingerprint for name, clip in plan.clips.items()}
        | {name: entry.fingerprint for name, entry in tables.items()},
        "versions": {
            name: _version(name)
            for name in ("neuroscribe", "torch", "ray", "timm", "open_clip_torch", "pyarrow")
        },
        "command": f"neuroscribe run CONFIG.yaml --out {run.folder.url}",
        "seconds": {name: stages[name]["seconds"] for name in timed},
        "work": {
            name: {key: stages[name][key] for key in _WORK if key in stages[name]} for name in timed
        },
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # sent along with a job, not installed
        return "not installed"


def _explainer(kind: str, concepts: int, section: ConceptsConfig) -> str:
    """An explainer in words: its kind, its list of concepts and its model."""
    words = [kind, f"{concepts:,} concepts"]
    lists = [section.concepts] if isinstance(section.concepts, str) else section.concepts or []
    places = [" + ".join(lists), section.path]
    words += [f"of {place}" for place in places if place]
    words += [f"by {section.model}"] if section.model else []
    return ", ".join(words)
