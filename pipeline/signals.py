"""Orderly stops: SIGTERM and SIGINT become an error that stages pass through, with exit code 75."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from core.errors import StoppedEarly


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
        raise StoppedEarly(f"stopped by {signal.Signals(number).name}; run again to resume")

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
