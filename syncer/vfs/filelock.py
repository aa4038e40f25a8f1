"""The lock of one open file, which its holder may keep while it waits for a block or for room."""

from __future__ import annotations

import threading
from collections.abc import Callable

from syncer.errors import AbandonedError

#: Who waits looks that often whether its program still does.
_LOOK_SECONDS = 0.2


class FileLock:
    """A lock that its holder may take again, and for which nobody waits in vain.

    In vain is a wait for a program that is being killed, and a long one of the committer's.
    """

    def __init__(self, is_abandoned: Callable[[], bool]) -> None:
        """`is_abandoned` tells whether the calling thread waits in vain."""
        self._is_abandoned = is_abandoned
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        """Raises AbandonedError if the lock is not free, and the calling thread waits in vain."""
        if self._lock.acquire(blocking=False):
            return
        while not self._lock.acquire(timeout=_LOOK_SECONDS):
            if self._is_abandoned():
                raise AbandonedError("nobody waits for this file any more")

    def __exit__(self, *error: object) -> None:
        self._lock.release()
