"""The self-test: a network whose explanations are known by construction, through the whole pipeline.

It says in a minute whether this installation finds the truth: Ray, decoding, recording, Parquet, moments,
fit and scores are those of every other run.
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import planted
from pipeline.concepts_config import OWN_SCORE
from pipeline.config import parse_config
from pipeline.run import execute
from pipeline.rundir import Run

IMAGES = 1500


@dataclass(frozen=True)
class Check:
    """One thing that is known beforehand, and what was found."""

    what: str
    found: float
    needed: float

    @property
    def passed(self) -> bool:
        """Whether enough was found."""
        return self.found >= self.needed


def selftest(out: str | Path | None = None, images: int = IMAGES) -> list[Check]:
    """Draw images, explain the planted network, and compare with what was planted.

    Args:
        out: Folder for images and run; by default a temporary one, which is removed again.
        images: How many images to draw.
    """
    place = tempfile.TemporaryDirectory() if out is None else nullcontext(str(out))
    with place as folder:
        planted.write_images(Path(folder), images)
        config = parse_config(planted.config(Path(folder)), base=Path(folder))
        execute(config, Path(folder) / "run")
        return checks(Run.open(Path(folder) / "run"))


def checks(run: Run) -> list[Check]:
    """What the tables of a run of the planted network say against the truth."""
    concepts, weights, _ = planted.planted()
    rows = run.read("explanations").to_pylist()
    third = {row["neuron"]: row for row in rows if row["length"] == planted.TERMS}
    chosen = {row["neuron"]: row for row in rows if row["chosen"]}
    neurons = range(planted.NEURONS)
    known = [
        {planted.NAMES[c]: w for c, w in zip(concepts[n], weights[n], strict=True)} for n in neurons
    ]
    right = [n for n in neurons if n in third and set(third[n]["concepts"]) == set(known[n])]
    close = [
        abs(weight - known[n][name]) <= 0.05 * abs(known[n][name])
        for n in right
        for name, weight in zip(third[n]["concepts"], third[n]["weights"], strict=True)
    ]
    lengths = [chosen[n]["length"] == planted.TERMS for n in neurons]
    statuses = {"constant": planted.CONSTANT, "dead": planted.DEAD, "failed": planted.FAILED}
    named = [chosen[n]["status"] == status for status, n in statuses.items()]
    scores = [
        row["correlation"]
        for row in run.read("scores").to_pylist()
        if row["chosen"] and row["simulator"] == OWN_SCORE and row["neuron"] < planted.NEURONS
    ]
    return [
        Check("neurons explained by exactly their concepts", len(right) / len(known), 0.95),
        Check("of their weights within 5 %", float(np.mean(close)) if close else 0.0, 0.95),
        Check("neurons with the right number of concepts chosen", float(np.mean(lengths)), 0.9),
        Check("constant, dead and failed neurons called so", float(np.mean(named)), 1.0),
        Check("mean correlation on test images", float(np.mean(scores)), 0.95),
    ]


def check_lines(found: list[Check]) -> list[str]:
    """The checks as text."""
    lines = [
        f"  {'passed' if check.passed else 'FAILED'}  {check.found:6.3f}  (at least {check.needed:g})  "
        f"{check.what}"
        for check in found
    ]
    verdict = "this installation finds the truth" if all(c.passed for c in found) else "it does not"
    return ["A network with planted explanations:", *lines, f"Self-test: {verdict}."]
