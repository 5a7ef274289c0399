"""Memory that is kept, counted in pages that the system had to fill."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from actors.allocator import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    print("no glibc")
    raise SystemExit
total = 0.0
for turn in range(16):
    if turn == 8:  # by then the heap is as large as it will be
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    total += float(torch.ones(16_000_000).sum())  # 64 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, total)
"""


def test_large_tensors_that_come_and_go_take_no_new_pages_once_memory_is_kept() -> None:
    said = {
        how: subprocess.run(
            [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
        ).stdout
        for how in ("as it comes", "kept")
    }
    if "no glibc" in said["kept"]:
        pytest.skip("the C library is not glibc, which alone can be told to keep memory")
    (pages, total), (pages_kept, total_kept) = (said[how].split() for how in said)
    assert total_kept == total
    assert int(pages_kept) < int(pages) / 10
