"""Adding the sums of lanes to running totals, in the order of the lanes, wave by wave.

Totals are folded from the left, so that they are the same bits wherever a wave or a run ends: a run with
more images goes on from the total that an earlier one has left. The files of a lane are deleted once
they are in a total.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from pipeline.engine import run_tasks
from pipeline.moment_files import Growth, Stretch, read_moments, write_moments
from pipeline.storage import Folder


class RunningTotals:
    """Adds waves of lanes to the totals of an explainer's blocks, while the next wave is summed."""

    def __init__(self, folder: Folder, stretches: Sequence[Stretch], memory: int) -> None:
        self._folder, self._stretches, self._memory = folder, stretches, memory
        self._thread = ThreadPoolExecutor(1)
        self._under_way: Future[int] | None = None
        self.written = 0
        """Bytes of the totals written so far."""

    def __enter__(self) -> RunningTotals:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._thread:
            if kind is None:
                self._finish()

    def add(self, wave: range) -> None:
        """Begin to add a wave whose lanes are summed, once the wave before has been added."""
        self._finish()
        self._under_way = self._thread.submit(self._add, wave)

    def _finish(self) -> None:
        if self._under_way is not None:
            self.written += self._under_way.result()

    def _add(self, wave: range) -> int:
        written = 0
        # A stretch that grows a total ends where another one of its block may begin.
        for growing in (True, False):
            stretches = [s for s in self._stretches if (s.growth is not None) == growing]
            additions = [a for s in stretches if (a := _addition(s, wave)) is not None]
            if calls := [(self._folder, addition) for addition in additions]:
                written += sum(size for _, size in run_tasks(_fold, calls, memory=self._memory))
        return written


@dataclass(frozen=True, eq=False)
class _Addition:
    """What one task does: lanes are added to a total, and totals are written on the way."""

    covered: range
    """Numbers of lanes that the total covers after each step."""
    before: str | None
    """File of the total before; None where there is none."""
    lanes: list[str]
    """One a step; none where everything is taken from older totals."""
    writes: dict[int, str]
    """Totals to write, by the number of lanes that they cover."""
    grown: dict[int, tuple[str, str]]
    """Older totals to put together with them, and the files that they become."""
    growth: Growth | None
    stale: list[str]
    """Files that are not needed any more once all is written."""


def _addition(stretch: Stretch, wave: range) -> _Addition | None:
    """What a wave brings to a stretch, if anything."""
    first, stop = max(stretch.first, wave.start), min(stretch.stop, wave.stop)
    if first >= stop or stretch.lanes == stretch.totals[1:]:
        return None
    covered = range(first + 1, stop + 1)
    lanes = [name for lane in range(first, stop) if (name := stretch.lane(lane)) is not None]
    written = stretch.lasting | ({stop} if lanes and stop < stretch.stop else set())
    before = stretch.totals[first] if first and lanes else None
    return _Addition(
        covered,
        before,
        lanes,
        {n: stretch.totals[n] for n in covered if n in written},
        {n: names for n, names in (stretch.grown or {}).items() if n in covered},
        stretch.growth,
        [*lanes, *([before] if before and first not in stretch.lasting else [])],
    )


def _fold(folder: Folder, addition: _Addition) -> int:
    """Carry out an addition; a task that is started again finds what it has done."""
    written = 0
    results = {*addition.writes.values(), *(name for _, name in addition.grown.values())}
    if not all(folder.exists(name) for name in results):
        total: Any = read_moments(folder, addition.before) if addition.before else None
        for step, count in enumerate(addition.covered):
            if addition.lanes:
                lane: Any = read_moments(folder, addition.lanes[step])
                total = lane if total is None else total.merge(lane)
            if count in addition.writes:
                written += write_moments(folder, addition.writes[count], total)
            if addition.growth is not None and count in addition.grown:
                older, name = addition.grown[count]
                old: Any = read_moments(folder, older).select(addition.growth.old)
                if total is not None:
                    old = old.with_concepts(addition.growth.kept, addition.growth.new, total)
                written += write_moments(folder, name, old)
    for name in addition.stale:
        folder.delete(name)
    return written
