"""How the C library's allocator treats the memory of the mounted process.

Buffers of 1 MiB come and go: one for each of libfuse's threads, and for each block on its way.
glibc takes such a buffer from the kernel and gives it back each time, or cuts a heap when one at
its end is freed. Whoever fills the next one then has the kernel clear 256 pages first, which takes
longer than to hash a block.
"""

from __future__ import annotations

import ctypes

#: Of malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
#: Larger than any buffer of ours.
_LARGE_BYTES = 8 << 20
#: What a heap keeps of what was freed at its end.
_KEPT_BYTES = 32 << 20
#: In all, so that threads use again what others have freed.
_HEAPS = 2


def keep_freed_memory() -> None:
    """Use freed memory again before the kernel is asked for more; with other C libraries nothing
    changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_ARENA_MAX, _HEAPS)
