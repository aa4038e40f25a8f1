"""How the C library's allocator treats the memory of the mounted process.

Buffers of 1 MiB come and go: one for each of libfuse's threads, and for each block on its way.
glibc takes such a buffer from the kernel and gives it back each time, or cuts a heap when one at
its end is freed. Whoever fills the next one then has the kernel clear 256 pages first, which takes
longer than to hash a block.

So freed buffers are kept. What is small comes to lie between them, though, and a larger one fits in
no gap: after a burst the heaps hold two or three times what is in use. Now and then the pages of
all gaps go back to the kernel.
"""

from __future__ import annotations

import ctypes
import os

#: Of malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
#: Larger than any buffer of ours.
_LARGE_BYTES = 8 << 20
#: What a heap keeps of what was freed at its end.
_KEPT_BYTES = 32 << 20
#: In all, so that threads use again what others have freed.
_HEAPS = 2
#: By how much the process grows before it looks for gaps again.
_GROWTH_BYTES = 24 << 20


def keep_freed_memory() -> None:
    """Use freed memory again before the kernel is asked for more; with other C libraries nothing
    changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_ARENA_MAX, _HEAPS)


class Gaps:
    """Gives back what the heaps hold without use, as soon as that may be much. For one thread."""

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._least_bytes = resident_bytes()

    def look(self) -> bool:
        """Whether there was reason to give some back; takes a few milliseconds then."""
        size_bytes = resident_bytes()
        self._least_bytes = min(self._least_bytes, size_bytes)
        if self._trim is None or size_bytes < self._least_bytes + _GROWTH_BYTES:
            return False
        self._trim(0)
        self._least_bytes = resident_bytes()
        return True


def resident_bytes() -> int:
    """How much memory this process takes now."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
