"""How many bytes may lie on the local disk: reservations, two limits, and who waits for room.

Room is asked for before it is used, so that neither limit is ever passed: what the person allows
(blocks, inline contents and reservations together), and the floor of free space on the disk,
which other programs use as well. Bytes are counted as the disk counts them, in whole pages.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from syncer.errors import AbandonedError, LocalFullError, PermanentError

_PAGE_BYTES = 4096
# The disk is looked at again after this time, or after this much was reserved on the old look.
_LOOK_SECONDS = 0.2
_LOOK_BYTES = 16_000_000
# A waiter looks for itself that often: other programs free space without telling.
_WAIT_SECONDS = 0.25


def disk_bytes(size_bytes: int) -> int:
    """What a file of this size takes on the disk: whole pages, as the usual file systems do it."""
    return -(-size_bytes // _PAGE_BYTES) * _PAGE_BYTES


class _Vain(threading.local):
    """What the calling thread has waited for in vain; see `Budget.one_limit`."""

    is_noted = False
    #: When the wait began.
    since: float | None = None


class Budget:
    """The local room. May be used from several threads.

    A reservation ends in `keep` (it has become a file) or `cancel`; a file's bytes end in `free`.
    `wanted` is set whenever room gets short, and is for the evictor to wait on.
    """

    def __init__(
        self, folder: Path, limit_bytes: int, min_free_bytes: int, timeout_seconds: float = 30.0
    ) -> None:
        self.wanted = threading.Event()
        #: Tells whether the calling thread waits in vain, as for a program that is being killed.
        self.is_abandoned: Callable[[], bool] = lambda: False
        self._folder = folder
        self._timeout_seconds = timeout_seconds
        self._changed = threading.Condition()
        # The condition guards everything below.
        self._limit_bytes = limit_bytes
        self._min_free_bytes = min_free_bytes
        self._used_bytes = 0
        self._reserved_bytes = 0
        self._inline_bytes = 0
        self._waiting = 0
        self._progress_at = 0.0
        self._closed = False
        # What the disk had free at the last look, less what was reserved then and since.
        self._free_bytes = 0
        self._looked_at = float("-inf")
        self._since_look_bytes = 0
        self._vain = _Vain()

    @contextlib.contextmanager
    def one_limit(self) -> Iterator[None]:
        """The calling thread has one time limit for all room that it asks for in here.

        After a wait in vain, those that follow are as long only if something is freed or uploaded.
        """
        self._vain.is_noted = True
        try:
            yield
        finally:
            self._vain.is_noted, self._vain.since = False, None

    def reserve(self, size_bytes: int) -> None:
        """Set room aside, and wait for it if need be.

        Raises LocalFullError if nothing was freed or uploaded for the time limit: waiting longer
        would not help. Raises AbandonedError if the caller waits in vain.
        """
        with self._changed:
            if self._take(size_bytes):
                return
            began = time.monotonic() if self._vain.since is None else self._vain.since
            self._waiting += 1
            try:
                while not self._take(size_bytes):
                    deadline = max(began, self._progress_at) + self._timeout_seconds
                    remaining = deadline - time.monotonic()
                    if self._closed or remaining <= 0:
                        if self._vain.is_noted:
                            self._vain.since = began
                        raise LocalFullError(self._why())
                    if self.is_abandoned():
                        raise AbandonedError("nobody waits for this room any more")
                    self.wanted.set()
                    self._changed.wait(min(remaining, _WAIT_SECONDS))
            finally:
                self._waiting -= 1

    def try_reserve(self, size_bytes: int) -> bool:
        """Set room aside if there is some at once."""
        with self._changed:
            return self._take(size_bytes)

    def _take(self, size_bytes: int) -> bool:
        room = self._room()
        if room - size_bytes < self._margin():
            self.wanted.set()
        if size_bytes > room or self._closed:
            return False
        self._reserved_bytes += size_bytes
        self._free_bytes -= size_bytes
        self._since_look_bytes += size_bytes
        return True

    def _room(self) -> int:
        now = time.monotonic()
        stale = now - self._looked_at >= _LOOK_SECONDS
        if stale or self._since_look_bytes >= _LOOK_BYTES:
            try:
                disk = os.statvfs(self._folder)
            except OSError as error:
                raise PermanentError(
                    f"the disk that holds {self._folder} fails ({error.strerror})"
                ) from error
            # Of what is reserved, nothing may have reached the disk yet.
            self._free_bytes = disk.f_bavail * disk.f_frsize - self._reserved_bytes
            self._looked_at = now
            self._since_look_bytes = 0
        counted = self._used_bytes + self._reserved_bytes + self._inline_bytes
        return min(self._limit_bytes - counted, self._free_bytes - self._min_free_bytes)

    def _margin(self) -> int:
        """The room that eviction keeps: 5 % of the limit, of small limits up to 64 MB more."""
        return max(self._limit_bytes // 20, min(64_000_000, self._limit_bytes // 16))

    def _why(self) -> str:
        limit = self._limit_bytes // 1_000_000
        full = f"the limit of {limit} MB is full of data that can't be uploaded; see status"
        return self._why_of_disk() or full

    def _why_of_disk(self) -> str:
        """The reason, if the disk leaves less room than the limit does."""
        counted = self._used_bytes + self._reserved_bytes + self._inline_bytes
        if self._free_bytes - self._min_free_bytes >= self._limit_bytes - counted:
            return ""
        floor = self._min_free_bytes // 1_000_000
        return f"the local disk has less than {floor} MB free; free some space"

    def shortage(self) -> str:
        """Why writers wait for room, or would if there were any; "" if there is room."""
        with self._changed:
            if not self._waiting and self._room() > 0:
                return ""
            if why := self._why_of_disk():
                return why
            limit = self._limit_bytes // 1_000_000
            full = f"the limit of {limit} MB is full of what is not uploaded yet"
            return full if self._waiting else ""

    def keep(self, size_bytes: int) -> None:
        """Turn a reservation into use."""
        with self._changed:
            self._reserved_bytes -= size_bytes
            self._used_bytes += size_bytes

    def cancel(self, size_bytes: int) -> None:
        """Give a reservation back, unused."""
        with self._changed:
            self._reserved_bytes -= size_bytes
            self._free_bytes += size_bytes
            self._changed.notify_all()

    def adopt(self, size_bytes: int) -> None:
        """Count a file that is on the disk already."""
        with self._changed:
            self._used_bytes += size_bytes

    def free(self, size_bytes: int) -> None:
        """Count files that were unlinked."""
        with self._changed:
            self._used_bytes -= size_bytes
            self._free_bytes += size_bytes
            self._progress_at = time.monotonic()
            self._changed.notify_all()

    def set_inline(self, size_bytes: int) -> None:
        """Count the contents that lie in the metadata: all of them together."""
        with self._changed:
            self._inline_bytes = size_bytes

    def set_limits(self, limit_bytes: int, min_free_bytes: int) -> None:
        """Change both limits; if more is used already, the evictor works it off."""
        with self._changed:
            self._limit_bytes = limit_bytes
            self._min_free_bytes = min_free_bytes
            self._changed.notify_all()
        self.wanted.set()

    def progress(self) -> None:
        """Waiting helps: something was uploaded, or is being uploaded without an error."""
        with self._changed:
            self._progress_at = time.monotonic()

    def excess_bytes(self) -> int:
        """How much to evict now: nothing while room is above the high mark, else to the low one."""
        with self._changed:
            room, margin = self._room(), self._margin()
            return 2 * margin - room if room < margin else 0

    @property
    def slack_bytes(self) -> int:
        """The room that eviction brings about."""
        with self._changed:
            return 2 * self._margin()

    @property
    def used_bytes(self) -> int:
        """Blocks and inline contents on the disk, and what is about to be written."""
        with self._changed:
            return self._used_bytes + self._reserved_bytes + self._inline_bytes

    @property
    def limit_bytes(self) -> int:
        with self._changed:
            return self._limit_bytes

    @property
    def waiting(self) -> int:
        """How many callers wait for room."""
        with self._changed:
            return self._waiting

    def close(self) -> None:
        """Let no one wait any more: waiters and later callers fail with LocalFullError."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __repr__(self) -> str:
        return (
            f"<Budget used={self._used_bytes} reserved={self._reserved_bytes} "
            f"inline={self._inline_bytes} limit={self._limit_bytes} waiting={self._waiting}>"
        )
