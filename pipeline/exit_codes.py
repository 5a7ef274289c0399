"""The exit codes of the command line, and which error ends with which."""

from __future__ import annotations

from core.errors import StoppedEarly, ThresholdError, UsageError

#: Exit codes of the command line, as docs/operations.md says.
DONE, FAULT, USAGE, DONE_WITH_FAILURES, ABOVE_THRESHOLD, STOPPED = 0, 1, 2, 3, 4, 75


def exit_code(error: BaseException) -> int:
    """The exit code that an error ends the command line with."""
    if isinstance(error, StoppedEarly | KeyboardInterrupt):
        return STOPPED
    if isinstance(error, UsageError):
        return USAGE
    return ABOVE_THRESHOLD if isinstance(error, ThresholdError) else FAULT
