"""Bytes per second: holding a transfer to a limit, and measuring one. Pure but for the clock."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

# A limit may be passed by so much at a time; a shorter burst would leave fast links idle.
_BURST_SECONDS = 0.25
#: How often a transfer that waits looks whether it is still wanted.
_LOOK_SECONDS = 0.5


class RateLimit:
    """A token bucket that may run into debt. May be used from several threads.

    A caller takes what it is about to transfer and waits until earlier debts are paid, so a block
    that is larger than the bucket passes too, and the rate holds on average.
    """

    def __init__(self, bytes_per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`bytes_per_second` of 0 is no limit."""
        self._clock = clock
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        # The lock guards everything below. Time up to which all that was taken is paid.
        self._bytes_per_second = bytes_per_second
        self._paid_until = clock()
        #: Counts the changes of the limit.
        self._changes = 0

    def set(self, bytes_per_second: int) -> None:
        """Change the limit, for those who wait as well."""
        with self._lock:
            self._bytes_per_second = bytes_per_second
            self._paid_until = self._clock()
            self._changes += 1
            self._changed.notify_all()

    def wait(self, size_bytes: int, is_over: Callable[[], bool] = lambda: False) -> None:
        """Count a transfer, and wait until it may begin; or until `is_over`, looked at now and
        then."""
        while not is_over():
            changes = self._changes
            until = self._clock() + self.take(size_bytes)
            with self._lock:
                while self._changes == changes and not is_over():
                    left = until - self._clock()
                    if left <= 0:
                        return
                    self._changed.wait(min(left, _LOOK_SECONDS))

    def take(self, size_bytes: int) -> float:
        """Count a transfer; returns for how many seconds the caller is to wait before it."""
        with self._lock:
            if not self._bytes_per_second:
                return 0.0
            now = self._clock()
            start = max(self._paid_until, now - _BURST_SECONDS)
            self._paid_until = start + size_bytes / self._bytes_per_second
            return max(0.0, start - now)


class MovingRate:
    """How much per second, averaged over the last few seconds. May be used from several threads."""

    def __init__(
        self, window_seconds: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._window_seconds = window_seconds
        self._clock = clock
        self._lock = threading.Lock()
        # The lock guards the samples: (second, amount), one for each tenth of a second at most.
        self._samples: deque[tuple[float, float]] = deque()

    def add(self, amount: float) -> None:
        tenth = round(self._clock(), 1)
        with self._lock:
            if self._samples and self._samples[-1][0] == tenth:
                amount += self._samples.pop()[1]
            self._samples.append((tenth, amount))
            self._expire()

    def per_second(self) -> float:
        with self._lock:
            self._expire()
            return sum(amount for _, amount in self._samples) / self._window_seconds

    def _expire(self) -> None:
        oldest = self._clock() - self._window_seconds
        while self._samples and self._samples[0][0] < oldest:
            self._samples.popleft()
