"""The work of each stage of a run: what is not fresh, and what that takes at a machine's pace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from actors.heat_maps import has_map
from core.sharpness import GRID
from pipeline.expected import (
    ACTIVATIONS,
    COMPARISON,
    CONCEPTS,
    LOGITS,
    QUARANTINE,
    STAGES,
    Expected,
    moments_table,
    scores_table,
)
from pipeline.explainers import ExplainerPlan
from pipeline.images_table import missing_parts
from pipeline.moments import lane_memory
from pipeline.pace import Pace
from pipeline.plan import Plan
from pipeline.rundir import Run
from pipeline.scores import active_positions
from pipeline.sharpen import CONCEPTS_TRIED, IMAGES_TRIED, LENGTH_TRIED, NEURONS_TRIED
from pipeline.stream import decoded_tables, models_of
from pipeline.targets import columns_of

#: Seconds of a worker process that imports torch and the model libraries, and of the first tasks of a stage,
#: on two cores with nothing else at work.
ACTOR, TASKS = 5.0, 1.0

#: Bytes of a process that has imported the model libraries.
PROCESS = 700 * 1024**2

#: Images that the atlas shows for a neuron, of which many are shown for others as well; bytes of each.
SHOWN, THUMBNAIL = 40, 2_400

#: Bytes on disk of a row of paths and explanations together, and of scores; seconds to write either.
PATH_BYTES, SCORE_BYTES, ROW_SECONDS = 270, 29, 6e-5

#: Seconds and bytes that the atlas takes for an explanation; seconds to make an image small, once decoded.
PAGE_SECONDS, PAGE_BYTES, SMALL_SECONDS = 1e-3, 3_300, 5e-4


@dataclass(frozen=True)
class StageEstimate:
    """What one stage would take; all zero where everything is fresh."""

    stage: str
    rows: int
    """How much there is to do, in `unit`."""
    unit: str
    seconds: float
    written: int
    """Bytes."""
    memory: int
    """Bytes of all its processes together, on this machine."""
    models: float = 0.0
    """Seconds of models: of one core, or of this machine's GPU."""
    other: float = 0.0
    """Core seconds of everything else."""


class Work:
    """The work of each stage that is not fresh."""

    def __init__(self, plan: Plan, expected: Expected, pace: Pace, run: Run | None) -> None:
        self.plan, self.expected, self.pace = plan, expected, pace
        self.run = run if run is not None and run.folder.exists("manifest.json") else None
        self.notes: list[str] = []
        self.fit = plan.config.fit.resolved
        self.columns = columns_of(plan)
        self.neurons = plan.target.neurons
        self.counts = plan.index.split_counts
        self.images = plan.index.rows.num_rows
        self.pending = self._pending_images()
        self.active = {e.name: self._active(e) for e in plan.explainers}

    def stages(self) -> list[StageEstimate]:
        """Of all stages, in their order."""
        if self.plan.config.recordings.keep == "test":
            self.notes.append(
                "with recordings.keep 'test' moments are taken while images are recorded: their time "
                "belongs to the stage record, and a sample of 10,000 images is recorded twice"
            )
        steps = {
            "record": self._record,
            "concepts": self._concepts,
            "sharpen": self._sharpen,
            "moments": self._moments,
            "fit": self._fit,
            "simulate": self._simulate,
            "ablate": self._ablate,
            "report": self._report,
        }
        # Only a run that asks for ablation has that stage at all.
        wanted = [s for s in STAGES if s != "ablate" or self.plan.config.ablation is not None]
        return [steps[stage]() for stage in wanted]

    # What there is to do ----------------------------------------------------------------------

    def _stale(self, *tables: str) -> bool:
        """Whether one of these tables would be made."""
        wanted = [(table, self.expected.tables[table]) for table in tables]
        return self.run is None or any(not self.run.is_fresh(t, made) for t, made in wanted)

    def _pending_images(self) -> dict[str, int]:
        """Images that each recorded table lacks."""
        found = {}
        for table in decoded_tables(self.plan):
            shards = self.plan.shards
            numbers = (
                range(len(shards))
                if self.run is None
                else missing_parts(self.run, table, self.expected)
            )
            found[table] = sum(shards[n].stop - shards[n].start for n in numbers)
        return found

    def _active(self, explainer: ExplainerPlan) -> int:
        """How many concepts the moments will have, as far as it is known or can be foretold."""
        count = len(explainer.concepts)
        if self.run is not None and CONCEPTS in self.run.tables() and not self._stale(CONCEPTS):
            active = len(active_positions(self.run, explainer.name))
        else:
            active = max(1, round(self.pace.active.get(explainer.name, 1.0) * count))
        most = self.fit.max_concepts
        if active > most:
            self.notes.append(
                f"{explainer.name}: about {active:,} of {count:,} concepts will be active, more than "
                f"fit.max_concepts ({most:,}): they are screened, and the {most:,} nearest to some "
                "neuron are kept, for the sake of memory"
            )
        return min(active, most)

    def _levels(self, explainer: ExplainerPlan) -> int:
        """How many different sharpnesses the layers are likely to be given."""
        several = explainer.kind == "open_clip" and self.fit.sharpness == "auto"
        return min(2, len(self.columns)) if several else 1

    def _spread(self, stage: str, seconds: float, **more: Any) -> StageEstimate:
        """A stage of core seconds that tasks share."""
        found = TASKS + seconds / self.pace.cores
        return StageEstimate(stage, seconds=found, other=seconds, **more)

    @staticmethod
    def _nothing(stage: str, unit: str) -> StageEstimate:
        return StageEstimate(stage, 0, unit, 0.0, 0, 0)

    # Stages -----------------------------------------------------------------------------------

    def _record(self) -> StageEstimate:
        pace, todo = self.pace, max(self.pending.values())
        if not todo:
            return self._nothing("record", "images")
        infer = sum(pace.models[t] * n for t, n in self.pending.items() if t != QUARANTINE)
        decode = pace.decode * todo
        if pace.device == "cpu":
            seconds = infer + decode / pace.cores
        else:
            seconds = max(infer, decode / pace.cores)
        keep = self.plan.config.recordings.keep
        kept = 1.0 if keep == "all" else self.counts[keep] / self.images
        written = sum(pace.row_bytes[t] * n for t, n in self.pending.items() if t != QUARANTINE)
        shard = self.plan.config.recordings.shard_size
        models = models_of(self.plan, decoded_tables(self.plan))
        memory = 2 * pace.parameters + (1 + pace.cores) * PROCESS
        memory += 3 * shard * models.image_bytes * max(4, pace.cores)
        return StageEstimate(
            "record",
            todo,
            "images",
            pace.load + ACTOR + TASKS + seconds,
            int(kept * written),
            memory,
            models=infer * (pace.cores if pace.device == "cpu" else 1),
            other=decode,
        )

    def _concepts(self) -> StageEstimate:
        pace, keep = self.pace, self.plan.config.recordings.keep
        rows = self.images if keep == "all" else self.counts[keep]
        seconds = written = 0.0
        todo = 0
        for explainer in self.plan.explainers:
            if not self._stale(scores_table(explainer.name), CONCEPTS):
                continue
            todo += rows
            cells = rows * len(explainer.concepts)
            made = 0.0
            if explainer.kind == "open_clip":
                made = pace.logit + pace.sharpen
                seconds += pace.cores * pace.text[explainer.name] * len(explainer.concepts)
                seconds += ACTOR
            seconds += cells * (made + pace.store + pace.sharpen)
            written += cells * pace.stored_bytes
        if not todo:
            return self._nothing("concepts", "rows")
        widest = max(len(e.concepts) for e in self.plan.explainers)
        memory = pace.cores * (PROCESS + 40 * self.plan.config.recordings.shard_size * widest)
        return self._spread(
            "concepts", seconds, rows=todo, unit="rows", written=int(written), memory=memory
        )

    def _sharpen(self) -> StageEstimate:
        models = [e for e in self.plan.explainers if e.kind == "open_clip"]
        if self.fit.sharpness != "auto" or not models or not self._stale("sharpness"):
            return self._nothing("sharpen", "settings")
        used = self.counts["train"] + self.counts["val"]
        images = min(IMAGES_TRIED, used)
        neurons = sum(min(c.neurons, NEURONS_TRIED) for c in self.columns)
        seconds = used * self.pace.read
        memory = 0
        for explainer in models:
            concepts = min(self.active[explainer.name], CONCEPTS_TRIED)
            products = images * concepts * (concepts / 2 + neurons)
            search = neurons * concepts * self.pace.search / (1 + self.fit.folds)
            search *= LENGTH_TRIED / self.fit.max_length
            each = products * self.pace.product + images * concepts * self.pace.sharpen + search
            seconds += len(GRID) * each + images * concepts * self.pace.logit
            memory = max(memory, self.pace.cores * (PROCESS + 24 * images * concepts))
        return self._spread(
            "sharpen",
            seconds,
            rows=len(GRID) * len(models),
            unit="settings",
            written=10_000,
            memory=memory,
        )

    def _moments(self) -> StageEstimate:
        pace = self.pace
        rows = self.counts["train"] + self.counts["val"]
        subsets = max(1, self.fit.folds) + 1
        seconds = written = 0.0
        todo = memory = 0
        for explainer in self.plan.explainers:
            if not self._stale(moments_table(explainer.name)):
                continue
            active, levels = self.active[explainer.name], self._levels(explainer)
            todo += rows
            seconds += rows * active * (levels * active / 2 + self.neurons) * pace.product
            # Every task reads the parts of its lane, and computes the scores of its subset.
            reads = levels * 2
            seconds += reads * subsets * self.images * pace.read
            if explainer.kind == "open_clip":
                seconds += reads * rows * active * (pace.logit + pace.sharpen)
            size = 8 * subsets * active * (levels * active + self.neurons)
            written += 2 * size
            tasks = max(4, pace.cores)
            held = tasks * (PROCESS // 2 + lane_memory(self.plan, active))
            if self.plan.config.recordings.keep == "test":
                held = max(held, int(size))  # a recording actor has them all
            memory = max(memory, held)
            if explainer.kind == "open_clip" and self.run is not None and self.pending:
                self._say_once(
                    "moments: at most; sums of images that are there already are used again"
                )
        if not todo:
            return self._nothing("moments", "rows")
        seconds += written * 2e-9
        return self._spread(
            "moments", seconds, rows=todo, unit="rows", written=int(written), memory=memory
        )

    def _fit(self) -> StageEstimate:
        if not self._stale("paths", "explanations"):
            return self._nothing("fit", "neurons")
        todo = self.neurons * len(self.plan.explainers)
        rows = todo * self.fit.max_length
        seconds = 2 * rows * ROW_SECONDS
        memory = 0
        for explainer in self.plan.explainers:
            active = self.active[explainer.name]
            seconds += self.neurons * active * self.pace.search
            blocks = 3 + 2 * self.fit.folds
            widest = max(column.neurons for column in self.columns)
            seconds += blocks * active * (active + self.neurons) * 4e-9
            size = 8 * blocks * active * (self._levels(explainer) * active + widest)
            memory = max(memory, size + self.pace.cores * PROCESS // 2)
        return self._spread(
            "fit",
            seconds,
            rows=todo,
            unit="neurons",
            written=rows * PATH_BYTES,
            memory=memory,
        )

    def _simulate(self) -> StageEstimate:
        baselines = self.plan.config.simulate.baselines
        if not self._stale("scores", "sanity", *([COMPARISON] if baselines else [])):
            return self._nothing("simulate", "explanations")
        pace, test = self.pace, self.counts["test"]
        simulators = 1 + len(self.plan.config.simulators)
        explanations = self.neurons * len(self.plan.explainers) * self.fit.max_length
        # Chosen explanations are measured again: chance, agreement, other measures, sanity tests.
        measures = len(self.plan.config.simulate.metrics) + 3
        again = measures * explanations / self.fit.max_length
        seconds = (explanations + again) * simulators * test * pace.score
        seconds += explanations * simulators * ROW_SECONDS
        active = max(self.active.values())
        images = self.images if self.plan.config.recordings.keep == "all" else test
        for explainer in self.plan.explainers:
            cells = test * self.active[explainer.name] * simulators
            seconds += cells * pace.logit + images * pace.read * simulators
            if explainer.kind != "open_clip":
                for simulator in self.plan.config.simulators:
                    each = pace.text.get(simulator.name) or max(pace.text.values(), default=0.002)
                    seconds += ACTOR + pace.cores * each * self.active[explainer.name]
        if baselines:
            seconds += self.images * active * len(self.plan.explainers) * pace.sharpen * 4
        memory = test * (4 * active * simulators + 2 * self.neurons)
        memory += pace.cores * (PROCESS // 2 + 8 * test * active)
        return self._spread(
            "simulate",
            seconds,
            rows=explanations,
            unit="explanations",
            written=explanations * simulators * SCORE_BYTES,
            memory=memory,
        )

    def _ablate(self) -> StageEstimate:
        if not self._stale(LOGITS, "ablations"):
            return self._nothing("ablate", "passes")
        passes = self.counts["val"] + self.counts["test"]
        seconds = passes * self.pace.models[ACTIVATIONS]
        self.notes.append(
            "ablate: the passes for logits alone; replacing neurons costs algebra before a linear head, "
            "and elsewhere neurons × images × (13 + explainers × simulators) passes through the rest"
        )
        return StageEstimate(
            "ablate",
            passes,
            "passes",
            TASKS + seconds,
            passes * 2000,
            2 * PROCESS,
            models=seconds * (self.pace.cores if self.pace.device == "cpu" else 1),
        )

    def _report(self) -> StageEstimate:
        if not self._stale("atlas"):
            return self._nothing("report", "files")
        pace = self.pace
        keep = self.plan.config.recordings.keep
        images = self.images if keep == "all" else self.counts[keep]
        shown = min(images, SHOWN * self.neurons) if self.plan.config.atlas.images else 0
        pages = self.neurons * len(self.plan.explainers)
        # Pages are written by one process; pictures are made by tasks.
        small = shown * (pace.open + SMALL_SECONDS)
        seconds = pages * PAGE_SECONDS + small / pace.cores
        models = 0.0
        if self.plan.config.atlas.heat_maps and any(map(has_map, self.plan.target.infos.values())):
            # The target looks at what is shown once more.
            models = shown * pace.models[ACTIVATIONS]
            small += shown * pace.decode
            seconds += ACTOR + models + shown * pace.decode / pace.cores
        widest = max(column.neurons for column in self.columns)
        return StageEstimate(
            "report",
            shown + pages,
            "files",
            TASKS + seconds,
            shown * THUMBNAIL + pages * PAGE_BYTES,
            2 * PROCESS + images * (6 * widest + 1024),
            models=models * (pace.cores if pace.device == "cpu" else 1),
            other=small + pages * PAGE_SECONDS,
        )

    def _say_once(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)
