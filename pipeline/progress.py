"""Progress that a person can watch in a terminal and read in a log, and a machine in JSON."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from pipeline.log import is_json, say

#: Seconds between two lines of a log, and between two redraws of a terminal's line.
LOG_SECONDS, TERMINAL_SECONDS = 15.0, 0.2

#: Seconds between two notes of progress in the ledger.
KEEP_SECONDS = 10.0


class Progress:
    """Counts work done in one stage: one line redrawn in a terminal, plain lines in a log.

    The rate counts the work of this start only, so that a resumed stage does not look faster than it
    is, and the time left follows from it.
    """

    def __init__(
        self,
        label: str,
        total: int,
        unit: str,
        stream: TextIO | None = None,
        keep: Callable[[str], None] | None = None,
    ) -> None:
        """Begin.

        Args:
            label: What is done.
            total: How much of it there is.
            unit: What is counted, in the plural.
            stream: Where lines go; stderr by default.
            keep: Told how far it is every few seconds, for those who do not see the stream.
        """
        self.label, self.total, self.unit, self.keep = label, total, unit, keep
        self.stream = stream or sys.stderr
        self.done = 0
        self._earlier = 0
        self._start = self._shown = self._kept = time.monotonic()
        self._terminal = self.stream.isatty() and not is_json()

    def resume_from(self, done: int) -> None:
        """Count work that an earlier start has finished."""
        self.done = self._earlier = done

    def advance(self, amount: int) -> None:
        """Count finished work, and show it when the last showing is long enough ago."""
        self.done += amount
        now = time.monotonic()
        if now - self._shown >= (TERMINAL_SECONDS if self._terminal else LOG_SECONDS):
            self._shown = now
            self._show(self._line(now), "progress", now)
        if self.keep is not None and now - self._kept >= KEEP_SECONDS:
            self._kept = now
            self.keep(self._line(now).removeprefix(f"{self.label}: "))

    def close(self, note: str = "") -> float:
        """Show the final state and return the seconds since the stage began."""
        now = time.monotonic()
        line = self._line(now, final=True) + (f"; {note}" if note else "")
        self._show(line + ("\n" if self._terminal else ""), "finished", now)
        return now - self._start

    def _line(self, now: float, final: bool = False) -> str:
        seconds = max(now - self._start, 1e-9)
        fresh = self.done - self._earlier
        line = f"{self.label}: {self.done:,} of {self.total:,} {self.unit}"
        if fresh:
            line += f", {fresh / seconds:,.1f}/s"
        if final:
            return f"{line}, {duration(seconds)}"
        if fresh and self.done < self.total:
            line += f", {duration((self.total - self.done) * seconds / fresh)} left"
        return line

    def _show(self, line: str, event: str, now: float) -> None:
        if self._terminal:
            self.stream.write(f"\r\x1b[2K{line}")
            self.stream.flush()
            return
        seconds = max(now - self._start, 1e-9)
        facts: dict[str, Any] = {
            "what": self.label,
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
            "seconds": round(seconds, 3),
            "per_second": round((self.done - self._earlier) / seconds, 3),
        }
        say(line, event, stream=self.stream, **facts)


def duration(seconds: float) -> str:
    """Seconds as people say them: 8.3 s, 4 min 10 s, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
