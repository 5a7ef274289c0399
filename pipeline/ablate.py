"""The ablate stage: neurons take their simulated activations, and the network's loss says what that cost.

The target runs once more over validation and test images, in float32, for its logits. Where a layer is
pooled and read by a linear head, everything else is algebra over recorded activations; elsewhere the rest
of the network runs again, see `pipeline.curves`. Lines and temperature come from validation images, means
from training images; test images are for scores alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from core.temperature import calibrated_temperature
from pipeline.ablated_layer import WORK, Layer, Scored, Work
from pipeline.ablation_config import AblationConfig
from pipeline.ablation_plan import ablated_columns
from pipeline.classes import UNKNOWN, class_of
from pipeline.engine import Workers
from pipeline.expected import (
    ABLATIONS,
    IMAGES,
    IMPORTANCE,
    LOGITS,
    REPLACEMENTS,
    Expected,
    table_path,
)
from pipeline.held_out import Known, held_out_rows, read_logits, simulations
from pipeline.images_table import rows_of
from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.replays import Replayers, replayers
from pipeline.rundir import Run
from pipeline.targets import Column

TABLES = (LOGITS, ABLATIONS, REPLACEMENTS, IMPORTANCE)


def ablate(run: Run, plan: Plan, expected: Expected, workers: Workers) -> None:
    """Score explanations by what replacing neurons costs the network, and commit the tables.

    Without a section `ablation` tables that an earlier configuration has left are withdrawn.

    Raises:
        StoppedEarly: The cluster was lost.
        RecordingError: Images cannot be used that could be when they were recorded.
    """
    made = expected.of_stage("ablate")
    with run.stage("ablate") as facts:
        for table in (t for t in TABLES if t not in made):
            run.withdraw(table)
        if all(run.is_fresh(table, fresh) for table, fresh in made.items()):
            return
        for table in (t for t in made if t != LOGITS):
            run.withdraw(table)
        facts |= {"rows": 0, "bytes": 0, "workers": workers.actors}
        settings = plan.config.ablation
        assert settings is not None
        columns = ablated_columns(plan, settings)
        with replayers(plan.target, columns, workers) as pool:
            _Stage(run, plan, expected, pool, settings, facts).carry_out(columns)


class _Stage:
    """One start of the stage."""

    def __init__(
        self,
        run: Run,
        plan: Plan,
        expected: Expected,
        pool: Replayers,
        settings: AblationConfig,
        facts: dict[str, Any],
    ) -> None:
        self.run, self.plan, self.expected, self.pool = run, plan, expected, pool
        self.settings, self.facts = settings, facts
        self.images = held_out_rows(run, run.parts(IMAGES), ["image_id", "label"])
        self.shards = self.images["shard"].to_numpy()

    def carry_out(self, columns: Sequence[Column]) -> None:
        """Record logits, score layer after layer, and write the tables."""
        self._record_logits()
        known = self._known()
        (heads,) = self.pool.map("examine", [(self._rows(int(self.shards[0])).slice(0, 8), ())])
        sources = [simulations(self.run, self.plan, e) for e in self.plan.explainers]
        work = Work(self.run, self.expected.tables[ABLATIONS])
        scored = []
        for column in columns:
            layer = Layer(self.run, self.plan, column, known, self.settings, sources, work)
            expand, head = heads[column.name]
            if head is not None:
                scored.append(layer.exactly(head))
            else:
                scored.append(layer.again(self.pool, self._rows, self.shards, expand))
        self._write(scored)

    def _rows(self, shard: int) -> pa.Table:
        """Rows of the index of a shard's validation and test images."""
        rows = rows_of(self.plan, self.plan.shards[shard])
        here = self.images.filter(pc.equal(self.images["shard"], shard))["image_id"]
        return rows.filter(pc.is_in(rows["image_id"], value_set=here.combine_chunks()))

    def _record_logits(self) -> None:
        """Record the logits that are not there yet; shards without such images have an empty part."""
        names = self.expected.parts[LOGITS]
        made = self.expected.tables[LOGITS]
        if self.run.is_fresh(LOGITS, made):
            return
        self.run.withdraw(LOGITS)
        there = set(self.run.part_files(table_path(LOGITS)))
        lacking = [n for n, name in enumerate(names) if name.rsplit("/", 1)[-1] not in there]
        full = set(self.shards.tolist())
        progress = Progress("ablate: logits", len(names), "shards")
        progress.resume_from(len(names) - len(lacking))
        calls = ((self._rows(n), (self.run.folder, names[n])) for n in lacking if n in full)
        for size in self.pool.map("logits", calls):
            self.facts["bytes"] += size
            progress.advance(1)
        for n in (n for n in lacking if n not in full):
            like = self.run.folder.read_table(names[int(self.shards[0])])
            self.run.folder.write_table(names[n], like.slice(0, 0))
            progress.advance(1)
        self.run.prune(table_path(LOGITS), names)
        self.run.commit(LOGITS, table_path(LOGITS), made, self.images.num_rows)
        progress.close(f"{self.images.num_rows:,} validation and test images")

    def _known(self) -> Known:
        logits = read_logits(self.run, self.run.parts(LOGITS))
        labels = class_of(self.settings.classes, self.images["label"].to_pylist(), logits)
        splits, usable = self.images["split"].to_numpy(), labels != UNKNOWN
        if missing := int((~usable).sum()):
            self.facts["images_without_label"] = missing
        val, test = ((splits == split) & usable for split in ("val", "test"))
        temperature = self.settings.temperature
        if temperature == "auto":
            seen = torch.from_numpy(logits[val]), torch.from_numpy(labels[val])
            temperature = calibrated_temperature(*seen)
        self.facts["temperature"] = round(temperature, 4)
        z = torch.from_numpy(logits).double()
        right = torch.from_numpy(np.where(usable, labels, 0))
        loss = torch.nn.functional.cross_entropy(z / temperature, right, reduction="none")
        best = z.gather(1, right[:, None])[:, 0] >= z.amax(dim=1)
        return Known(
            logits=logits,
            labels=labels,
            val=val,
            test=test,
            temperature=temperature,
            loss=np.where(usable, loss.numpy(), np.nan),
            correct=best.numpy() & usable,
        )

    def _write(self, scored: Sequence[Scored]) -> None:
        tables = {ABLATIONS: pa.concat_tables([layer.ablations for layer in scored])}
        if self.settings.importance:
            tables[IMPORTANCE] = pa.concat_tables([layer.importance for layer in scored])
        if self.settings.joint:
            tables[REPLACEMENTS] = pa.concat_tables([layer.replacements for layer in scored])
        for name, table in tables.items():
            made = self.expected.tables[name]
            self.facts["bytes"] += self.run.write(name, f"{name}.parquet", table, made)
        self.facts["rows"] = tables[ABLATIONS].num_rows
        errors = {layer.name: round(layer.error, 6) for layer in scored if layer.error is not None}
        if errors:
            self.facts["curve_errors"] = errors
        self.run.prune(WORK, [])
