"""Orderly stops: SIGTERM and SIGINT become an error that stages pass through, with exit code 75."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from core.errors import StoppedEarly

#: Signals that were caught, for where a library has swallowed the error.
_caught: list[str] = []


def raise_if_stopped() -> None:
    """Raise `StoppedEarly` if a signal was caught and the error has been lost on its way."""
    if _caught:
        raise StoppedEarly(f"stopped by {_caught[0]}; run again to resume")


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Note SIGTERM and SIGINT for the length of a `with` block, and raise `StoppedEarly` after it.

    For code of others that an error in its midst would leave hanging.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, _frame: FrameType | None) -> None:
        _caught.append(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    raise_if_stopped()


@contextmanager
def stop_signals() -> Iterator[None]:
    """Raise `StoppedEarly` on SIGTERM and SIGINT for the length of a `with` block.

    Signals can only be caught in the main thread; elsewhere this does nothing. It may be nested: Ray
    installs handlers of its own when it starts, over which a second block puts these again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        _caught.append(signal.Signals(number).name)
        raise_if_stopped()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if signal.SIG_DFL in before.values() or signal.default_int_handler in before.values():
            _caught.clear()
