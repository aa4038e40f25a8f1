"""The C library's allocator in the mounted process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource
from syncer.process.memory import keep_freed_memory
if {keeps}:
    keep_freed_memory()
def use():
    buffers = [bytearray(1 << 20) for _ in range(8)]
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*, keeps: bool) -> int:
    """How often 80 MiB in buffers, eight at once, take a page from the kernel."""
    words = [sys.executable, "-c", _FAULTS.format(keeps=keeps)]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others have no mallopt")
def test_buffers_that_were_freed_are_used_again() -> None:
    assert faults(keeps=True) < 500 < 10_000 < faults(keeps=False)
