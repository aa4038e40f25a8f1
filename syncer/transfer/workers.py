"""Threads that work in the background until they are told to stop.

A step that fails by an exception nobody expected is logged and counted, and its thread goes on
after a rest: a worker never dies in silence.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

_REST_SECONDS = 1.0


class Crew:
    """Threads that start and stop together. Its methods are for one thread; `failures` for all."""

    def __init__(self) -> None:
        #: Set by `stop`. A step that waits for anything waits for this, too, or not for long.
        self.stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        # The lock guards the next two.
        self._failures = 0
        self._last_failure = ""

    def add(self, name: str, step: Callable[[], None]) -> None:
        """Have a thread ``syncer-<name>`` call `step` again and again, from `start` on."""
        self._threads.append(
            threading.Thread(
                target=self._run, args=(name, step), name=f"syncer-{name}", daemon=True
            )
        )

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_seconds: float) -> bool:
        """Ask all to end; False if some did not within the time. They are daemon threads."""
        self.stopping.set()
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    @property
    def failures(self) -> tuple[int, str]:
        """How many steps failed unexpectedly, and how the last one did."""
        with self._lock:
            return self._failures, self._last_failure

    def _run(self, name: str, step: Callable[[], None]) -> None:
        while not self.stopping.is_set():
            try:
                step()
            except Exception as error:
                log.exception("%s failed; it goes on", name)
                with self._lock:
                    self._failures += 1
                    self._last_failure = f"{name}: {error!r}"
                self.stopping.wait(_REST_SECONDS)
