"""The C library's allocator in the mounted process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_GAPS = """
from syncer.process import memory
memory.keep_freed_memory()
gaps = memory.Gaps()
buffers, small = [], []
for _ in range(64):
    buffers.append(b"x" * (1 << 20))
    small.append(b"x" * 20_000)
assert gaps.look()
full = memory.resident_bytes()
# Much is in use, and has not grown.
assert not gaps.look()
buffers.clear()
assert not gaps.look()
kept = memory.resident_bytes()
buffers = [b"x" * 1_200_000 for _ in range(28)]
assert gaps.look()
print(full, kept, memory.resident_bytes())
"""

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


of_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others have no mallopt")


@of_glibc
def test_what_lies_between_small_things_is_given_back_once_the_process_grows() -> None:
    done = subprocess.run([sys.executable, "-c", _GAPS], capture_output=True, text=True, check=True)
    full, kept, after = (int(word) for word in done.stdout.split())
    assert kept > full - (8 << 20), "freed buffers are not kept"
    assert after < full - (24 << 20)


@of_glibc
def test_buffers_that_were_freed_are_used_again() -> None:
    assert faults(keeps=True) < 500 < 10_000 < faults(keeps=False)
