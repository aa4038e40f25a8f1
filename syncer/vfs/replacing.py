"""Opening a file at the very moment when another one takes its place.

libfuse's high-level interface knows a file by its name. One that nobody has open loses it when it
is replaced, and a program that has found it by then, and is about to open it, gets ESTALE. The
kernel looks the path up anew, once. If the file that is there now is replaced as well before it is
open, the program would get the error.

So a rename steps aside once for those who have looked up its target and not opened it yet: it fails
with ESTALE, upon which the kernel tries it again, from a lookup of its names on. That lookup waits
until the target is open; then libfuse hides it, and it can be opened even later: see `hidden`.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable

#: Who looks up a name within this time after it was replaced may have been refused before.
_WATCHED_SECONDS = 5.0
#: How long an open may take that follows a lookup. Where none follows, a rename waits for it.
_OPENS_SECONDS = 0.05
_MAX_PATHS = 1024


class Replacing:
    """Lookups of names that are replaced again and again. Safe for use from several threads."""

    def __init__(self) -> None:
        #: The thread of the program that makes the present call; set by the binding.
        self.thread: Callable[[], int] = lambda: 0
        self._changed = threading.Condition()
        # The condition guards what is below. Threads are those of programs.
        #: path -> when it was replaced last; the oldest first.
        self._replaced: dict[bytes, float] = {}
        #: thread -> (path that it has looked up, and may be about to open, when).
        self._looked: dict[int, tuple[bytes, float]] = {}
        #: thread -> the path of the rename that stepped aside.
        self._aside: dict[int, bytes] = {}

    def looked_up(self, path: bytes | int) -> None:
        """A path is looked up, or asked for its attributes: it may be opened soon."""
        if isinstance(path, int) or path not in self._replaced:
            return
        thread = self.thread()
        with self._changed:
            if self._aside.get(thread) == path:
                self._changed.wait_for(lambda: not self._is_wanted(path, thread), _OPENS_SECONDS)
            else:
                self._looked[thread] = path, time.monotonic()

    def opened(self) -> None:
        """What was looked up is open, by whatever name it has by now."""
        if self._looked:
            with self._changed:
                self._looked.pop(self.thread(), None)
                self._changed.notify_all()

    def step_aside(self, path: bytes) -> None:
        """What is there is about to be replaced; ESTALE if this is to be tried again."""
        if not self._looked and not self._aside:
            return
        thread = self.thread()
        with self._changed:
            has_waited = self._aside.pop(thread, None) == path
            if not has_waited and self._is_wanted(path, thread):
                self._aside[thread] = path
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def replaced(self, path: bytes) -> None:
        """Something else has taken the place of what was there."""
        now = time.monotonic()
        with self._changed:
            self._replaced.pop(path, None)
            self._replaced[path] = now
            oldest = next(iter(self._replaced))
            if len(self._replaced) > _MAX_PATHS or self._replaced[oldest] < now - _WATCHED_SECONDS:
                del self._replaced[oldest]

    def _is_wanted(self, path: bytes, thread: int) -> bool:
        """Whether another thread may be about to open what is there."""
        since = time.monotonic() - _OPENS_SECONDS
        for other in [other for other, (_, at) in self._looked.items() if at < since]:
            del self._looked[other]
        return any(other != thread and at == path for other, (at, _) in self._looked.items())
