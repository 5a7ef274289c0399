"""The errors that neuroscribe raises on purpose.

    NeuroscribeError
    ├── UsageError            the request cannot be carried out; the command line ends with exit code 2
    │   ├── ConfigError       the configuration: unknown key, wrong type, impossible value
    │   ├── SourceError       the images: missing, empty or unreadable as a data set
    │   ├── ModelError        a network or its weights: unknown, not found, wrong shapes
    │   ├── LayerError        a layer or pooling that the target does not have
    │   └── ConceptError      a concept list, label table or hierarchy
    ├── UnreadableImage       an image that cannot be used; it is quarantined with the reason
    ├── ShapeError            arrays that do not fit together (also a ValueError)
    ├── RecordingError        tables of a run that contradict each other or are not there
    ├── ThresholdError        more images or neurons failed than the configuration allows; exit code 4
    └── StoppedEarly          a signal or a lost cluster; run again to resume; exit code 75

A message says what was found, what was expected, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NeuroscribeError(Exception):
    """Base of every error that is raised on purpose."""


class UsageError(NeuroscribeError):
    """The request cannot be carried out as written; most often nothing was started."""


class ConfigError(UsageError):
    """The configuration is wrong."""


class SourceError(UsageError):
    """The images cannot be read as a data set."""


class ModelError(UsageError):
    """A network or its weights cannot be loaded."""


class LayerError(UsageError):
    """The target has no such layer, or the pooling does not fit its output."""


class ConceptError(UsageError):
    """A concept list, label table or hierarchy cannot be used."""


class UnreadableImage(NeuroscribeError):
    """An image that cannot be used; `reason` says why in a few fixed words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ShapeError(NeuroscribeError, ValueError):
    """Arrays that do not fit together."""


class RecordingError(NeuroscribeError):
    """Tables of a run contradict each other or are not there."""


class ThresholdError(NeuroscribeError):
    """More images or neurons failed than the configuration allows."""


class StoppedEarly(NeuroscribeError):
    """The run was interrupted in an orderly way, ran out of time or is in use; it can be resumed."""


def close_names(wanted: str, known: Iterable[str], limit: int = 3) -> str:
    """A clause that offers the closest known names, or nothing where none is close.

    Returns:
        For instance ``"; close names: 'layer4', 'layer3'"``, or ``""``.
    """
    close = difflib.get_close_matches(wanted, list(known), n=limit, cutoff=0.5)
    return "; close names: " + ", ".join(repr(name) for name in close) if close else ""
