"""How large the remote's disk is, as `statfs` tells it: asked in the background, now and then."""

from __future__ import annotations

import contextlib
import threading
import time

from syncer.errors import SyncerError
from syncer.remote.base import Remote

#: How long what was told stays true enough.
_HOLDS_SECONDS = 60.0


class Capacity:
    """The size of a remote's disk. Safe for use from several threads."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._known: tuple[int, int] | None = None
        self._due = 0.0

    def wait(self, seconds: float) -> None:
        """Leave the remote alone for so long."""
        self._due = time.monotonic() + seconds

    def known(self) -> tuple[int, int] | None:
        """(bytes of the disk, bytes that are free), or None. Never waits."""
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _HOLDS_SECONDS
            threading.Thread(target=self._ask, name="syncer-capacity", daemon=True).start()
        return self._known

    def _ask(self) -> None:
        with contextlib.suppress(SyncerError):
            usage = self._remote.usage()
            self._known = (usage.capacity_bytes, usage.free_bytes) if usage else None
