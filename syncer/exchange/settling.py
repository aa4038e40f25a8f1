"""What was put on a remote that can't promise to keep it, until it has had its time.

Where `Remote.put` could not sync, a power cut of the server within the next seconds may take the
object. Nobody can put a segment again, as its epochs have left the outbox. So each of these objects
is looked at once more after a while; if one is gone, a new checkpoint makes up for all of them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from syncer.errors import MissingError
from syncer.remote.base import Remote


class Settling:
    """Puts objects, and looks after those that are not safe. Used by one thread at a time."""

    def __init__(
        self,
        remote: Remote,
        seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._remote = remote
        self._seconds = seconds
        self._clock = clock
        self._waiting: deque[tuple[float, str, int]] = deque()  # due, key, bytes

    def put(self, key: str, data: bytes) -> None:
        """As `Remote.put`."""
        if not self._remote.put(key, data):
            self._waiting.append((self._clock() + self._seconds, key, len(data)))

    def has_lost(self) -> bool:
        """Look at those whose time has come; whether one of them is not there as it was put.

        What it waits for is forgotten then. Raises what `Remote.stat` raises.
        """
        while self._waiting and self._waiting[0][0] <= self._clock():
            _, key, size_bytes = self._waiting[0]
            try:
                is_whole = self._remote.stat(key).size_bytes == size_bytes
            except MissingError:
                is_whole = False
            if not is_whole:
                self._waiting.clear()
                return True
            self._waiting.popleft()
        return False
