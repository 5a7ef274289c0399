"""Orderly stops: signals, a time limit and lost locks become an error with exit code 75.

`StoppedEarly` is raised in the main thread wherever it is, and passes through the stages, which leave
whole files behind. Where a library has swallowed the error, `raise_if_stopped` raises it again.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from core.errors import NeuroscribeError, StoppedEarly

#: Why this process is to stop; the first reason is the one that is told.
_reasons: list[str] = []

#: What wakes the main thread. Where nobody handles it, it does nothing.
_WAKE = signal.SIGURG


def raise_if_stopped() -> None:
    """Raise `StoppedEarly` if a stop was asked for and the error has been lost on its way."""
    if _reasons:
        raise StoppedEarly(f"stopped by {_reasons[0]}; run again to resume")


def request_stop(reason: str) -> None:
    """Stop the main thread as SIGTERM would; any thread may ask for it.

    Args:
        reason: What the run was stopped by.
    """
    _reasons.append(reason)
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, _WAKE)


@contextmanager
def time_limit(until: float | None) -> Iterator[None]:
    """Ask for a stop if a `with` block is not over in time.

    Args:
        until: On the clock of `time.monotonic`, in seconds; None is never.
    """
    if until is None:
        yield
        return
    left = max(0.0, until - time.monotonic())
    timer = threading.Timer(left, request_stop, ["the time limit"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Note what asks for a stop for the length of a `with` block, and raise `StoppedEarly` after it.

    For code of others that an error in its midst would leave hanging.
    """
    with _handled_by(_note):
        yield
        raise_if_stopped()


@contextmanager
def stop_signals() -> Iterator[None]:
    """Raise `StoppedEarly` on SIGTERM, SIGINT and `request_stop` for the length of a `with` block.

    Signals can only be caught in the main thread; elsewhere this does nothing. It may be nested: Ray
    installs handlers of its own when it starts, over which a second block puts these again.
    """
    with _handled_by(_stop):
        try:
            yield
        except NeuroscribeError:
            raise
        except Exception:
            # Compiled code of others may make another error of it on its way: SystemError, for one.
            raise_if_stopped()
            raise


def _note(number: int, _frame: FrameType | None) -> None:
    if number != _WAKE:
        _reasons.append(signal.Signals(number).name)


def _stop(number: int, frame: FrameType | None) -> None:
    _note(number, frame)
    raise_if_stopped()


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle signals so for the length of a `with` block; the outermost block forgets reasons."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT, _WAKE)
    before = {number: signal.signal(number, handler) for number in numbers}
    outermost = before[_WAKE] is signal.SIG_DFL
    if outermost:
        _reasons.clear()
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
        if outermost:
            _reasons.clear()
