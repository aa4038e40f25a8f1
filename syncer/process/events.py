"""What may happen to a mount, and the main thread's waiting for it."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import time
from dataclasses import dataclass

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Those that end a process."""


@dataclass(frozen=True)
class Serves:
    """The mount answers."""


@dataclass(frozen=True)
class Signalled:
    """Somebody wants it to end."""

    number: int

    def __str__(self) -> str:
        return signal.Signals(self.number).name


@dataclass(frozen=True)
class LoopEnded:
    """It is unmounted, or could not be mounted."""

    error: BaseException | None

    def __str__(self) -> str:
        return str(self.error or "it was unmounted")


Event = Serves | Signalled | LoopEnded


class Events:
    """What happens to a mount, for the main thread to wait for.

    Waiting for a queue alone may miss a signal: Python's handler runs between two steps of the main
    thread, and one that comes just before it waits would not wake it. The byte that the C handler
    writes into a pipe does.
    """

    def __init__(self) -> None:
        # Of all queues, this one may be put to by a signal handler.
        self._queue: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)

    def take_signals(self) -> None:
        """Make events of the signals that end a process."""
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda number, _: self._queue.put(Signalled(number)))

    def put(self, event: Event) -> None:
        self._queue.put(event)
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"\0")

    def next(self, timeout_seconds: float | None) -> Event | None:
        """What happens next; None if nothing does in time."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            with contextlib.suppress(queue.Empty):
                return self._queue.get_nowait()
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                return None
            if select.select([self._reader], [], [], remaining)[0]:
                os.read(self._reader, 4096)
