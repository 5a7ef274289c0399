"""What is known of a layer before anything is recorded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """What one forward pass shows about a layer."""

    name: str
    """Name in ``named_modules()``."""
    kind: str
    """Name of its class."""
    shape: tuple[int, ...]
    """Shape of its output without the batch axis; empty where there is no such tensor."""
    neurons: int
    """Channels of its output; 0 where it cannot be recorded."""
    calls: int
    """How often it runs in one pass."""
    reason: str = ""
    """Why it cannot be recorded; empty where it can."""
