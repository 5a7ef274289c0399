"""What a command says on stderr while it works: lines for a person, or a JSON object a line for a machine."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Literal, TextIO

Format = Literal["text", "json"]

_format: Format = "text"


def use_format(name: Format) -> None:
    """Choose how lines are written from now on; the command line does so once."""
    global _format
    _format = name


def is_json() -> bool:
    """Whether lines are for a machine."""
    return _format == "json"


def say(
    text: str, event: str, *, level: str = "info", stream: TextIO | None = None, **facts: Any
) -> None:
    """Say one thing.

    Args:
        text: For a person.
        event: What it is, in one word that does not change: `plan`, `progress`, `finished`, `error`, …
        level: `info`, `warning` or `error`.
        stream: Where it goes; stderr by default.
        facts: For a machine, beside `time`, `level`, `event` and `text`.
    """
    out = stream or sys.stderr
    if is_json():
        now = time.time()
        stamp = (
            time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        )
        entry = {"time": stamp, "level": level, "event": event, **facts, "text": text}
        text = json.dumps(entry, ensure_ascii=False, allow_nan=False)
    out.write(text + "\n")
    out.flush()
