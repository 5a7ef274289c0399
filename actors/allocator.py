"""Memory that a process frees is kept for its next tensors and images instead of being handed back.

The C library gives large blocks back to the system at once and asks for new ones, which the system
fills with zeros page by page. A forward pass on a CPU does so at every layer: half of its time went
there. Pillow does so with every image.
"""

from __future__ import annotations

import ctypes
from typing import Any

from PIL import Image

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

_LARGEST = 2**31 - 1

_PILLOW_BLOCKS = 8
"""Blocks of 16 MB that Pillow keeps."""


def keep_freed_memory() -> bool:
    """Keep freed memory in this process, from now on.

    This holds for the main thread; a thread that is there already may have memory of its own, of which
    large blocks go back to the system as before. The process then stays as large as it has ever
    been. Calculations give the same bits.

    Returns:
        Whether the C library can be told so; others than glibc cannot, and are left as they are.
    """
    pillow: Any = Image
    pillow.core.set_blocks_max(_PILLOW_BLOCKS)
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    # Only the main thread's arena grows without bound: threads that are yet to come are to share it.
    settings = (_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, _LARGEST)
    return all(library.mallopt(setting, value) for setting, value in settings)
