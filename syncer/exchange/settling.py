"""What was put on a remote that can't promise to keep it, until it has had its time.

Where `Remote.put` could not sync, a power cut of the server within the next seconds may take the
object. Nobody can put a segment again, as its epochs have left the outbox. So each of these objects
is looked at once more after a while; if one is gone, a new checkpoint makes up for all of them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

from syncer.errors import MissingError
from syncer.remote.base import Remote

#: Each is held in memory, in a few copies.
_PUT_AT_ONCE = 4


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
        self._note(key, data, is_safe=self._remote.put(key, data))

    def place(
        self, key: str, data: bytes, may_show: Callable[[], bool], look_for: Collection[str]
    ) -> frozenset[str] | None:
        """As `Remote.place`: the keys that are there then, or None if nothing was stored."""
        placed = self._remote.place(key, data, may_show, look_for)
        if placed is None:
            return None
        self._note(key, data, is_safe=placed.is_safe)
        return placed.there

    def _note(self, key: str, data: bytes, *, is_safe: bool) -> None:
        if not is_safe:
            self._waiting.append((self._clock() + self._seconds, key, len(data)))

    def put_all(self, objects: Sequence[tuple[str, bytes]]) -> None:
        """Put several, some at once, since each takes some round trips.

        Raises an error of one of them after all have ended.
        """
        if len(objects) < 2:
            for key, data in objects:
                self.put(key, data)
            return
        with ThreadPoolExecutor(_PUT_AT_ONCE, thread_name_prefix="syncer-publish") as pool:
            puts = [pool.submit(self._remote.put, key, data) for key, data in objects]
        for (key, data), put in zip(objects, puts, strict=True):
            self._note(key, data, is_safe=put.result())

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
