"""Which files were closed lately."""

from __future__ import annotations

import time

#: More than are closed at once: one by each of libfuse's threads, some times over.
_MOST = 1024


class Closings(dict[int, float]):
    """Node -> when its last handle was closed, for those that were closed last. Whoever notes holds
    a lock; others may look at any time."""

    def note(self, number: int) -> None:
        """The last handle of a node is closed now."""
        self.pop(number, None)
        self[number] = time.monotonic()
        if len(self) > _MOST:
            del self[next(iter(self))]

    def since_seconds(self, number: int) -> float:
        """For how long a node has been closed; inf if it was not closed lately."""
        return time.monotonic() - self.get(number, float("-inf"))
