"""That a database is not changed any more, and why. What can be read of it is read."""

from __future__ import annotations

from collections.abc import Callable

from syncer.errors import CorruptError, PermanentError, SyncerError


class Standstill:
    """Of one open database; it begins once, and ends with the process.

    Safe for use from several threads.
    """

    def __init__(self) -> None:
        #: A CorruptError if SQLite found the file damaged, or what else this process can't go on
        #: after. None: it has not begun.
        self.reason: SyncerError | None = None
        self._hook: Callable[[], None] = lambda: None

    def on_begin(self, hook: Callable[[], None]) -> None:
        """Have `hook` called when it begins. It may hold the database's lock."""
        self._hook = hook

    def begin(self, reason: SyncerError) -> None:
        """Nothing is to be changed from now on."""
        if self.reason is None:
            self.reason = reason
            self._hook()

    def refuse(self) -> None:
        """Raise a CorruptError or PermanentError if it has begun."""
        if self.reason is not None:
            # One of its own: a traceback would grow with each raise.
            kind = CorruptError if isinstance(self.reason, CorruptError) else PermanentError
            raise kind(str(self.reason))
