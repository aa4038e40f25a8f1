"""The open epoch: which changes belong together, and what has to be published.

An epoch is the unit of history. Changes within one overwrite each other; the first change of a
row in a later epoch first copies it to its "_past" twin. This object hands out the open epoch's
number, and notes in the outbox what changed in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from syncer.metadata.db import Database

_CLOCK_REALTIME_COARSE = 5
#: Far more than the kernel's clock for files is ahead of its last tick.
_MOST_AHEAD_NS = 10**9


class FileClock:
    """The time as the kernel puts it on files. Safe for use from several threads.

    The kernel sets some times itself and leaves others to us. Its clock is that of its last tick,
    or a little ahead of it: of the latest time that it put on any file and somebody looked at. By
    a finer clock, what we touch could be younger than what is written afterwards, and by a coarser
    one older than what was written before; `make` would build too much, or too little.
    """

    def __init__(self) -> None:
        self._seen_ns = 0

    def now_ns(self) -> int:
        """No time that the kernel sets later is earlier, and none that `note` told is later.

        Unless somebody has set the clock back: then the times that were seen mean nothing any more.
        """
        now_ns = time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)
        if self._seen_ns > now_ns + _MOST_AHEAD_NS:
            self._seen_ns = 0
        return max(now_ns, self._seen_ns)

    def note(self, time_ns: int) -> None:
        """The kernel told a file's time. If a program chose it, only a past one counts."""
        if self._seen_ns < time_ns <= time.time_ns():
            self._seen_ns = time_ns


class Epochs:
    """The open epoch of a database. All methods hold, or are called under, `db.lock`."""

    def __init__(self, db: Database, clock_ns: Callable[[], int] | None = None) -> None:
        self._db = db
        self.file_clock = FileClock()
        self.now_ns = clock_ns or self.file_clock.now_ns
        #: What the outbox has for the open epoch; spares a statement per repeated change.
        self._touched: set[tuple[int, bytes]] = set()
        #: The number of the open epoch: changes made now belong to it.
        self.open = self._newest() + 1
        self._is_used = False
        db.on_rollback(self._forget)

    def _newest(self) -> int:
        row = self._db.query_one("SELECT max(seq) FROM epoch")
        return int(row[0]) if row and row[0] else 0

    def touch(self, node: int, name: bytes = b"") -> None:
        """Note that a node (or, with a name, an entry of directory `node`) changed."""
        key = (node, name)
        if key in self._touched:
            return
        if not self._is_used:
            self._write_row()
        self._touched.add(key)
        self._db.execute("INSERT OR IGNORE INTO outbox VALUES(?, ?, ?)", (self.open, node, name))

    def has_touched(self, key: tuple[int, bytes]) -> bool:
        """Whether `touch` was told of it in this epoch: then its row, if there is one, is of it."""
        return key in self._touched

    def _write_row(self) -> None:
        machine = self._db.get_meta("machine")
        newest = self._db.query_one(
            "SELECT machine, counter, time_ns FROM epoch ORDER BY seq DESC LIMIT 1"
        )
        counter, time_ns = 0, self.now_ns()
        if newest is not None:
            counter, time_ns = newest[1], max(time_ns, newest[2] + 1)
            if newest[0] != machine:
                row = self._db.query_one(
                    "SELECT max(counter) FROM epoch WHERE machine = ?", (machine,)
                )
                counter = row[0] or 0 if row else 0
        self._db.execute(
            "INSERT INTO epoch VALUES(?, ?, ?, ?)", (self.open, machine, counter + 1, time_ns)
        )
        self._is_used = True

    def close(self) -> int:
        """End the open epoch if anything changed in it; returns the newest closed one."""
        with self._db.lock:
            if self._is_used:
                self._begin(self.open + 1)
            return self.open - 1

    def restart(self) -> None:
        """Begin behind the newest epoch there is: others have changed the tables."""
        with self._db.lock:
            self._begin(self._newest() + 1)

    def _begin(self, seq: int) -> None:
        self.open = seq
        self._touched.clear()
        self._is_used = False

    def _forget(self) -> None:
        """A transaction was rolled back, and perhaps the notes in it."""
        self._touched.clear()
        self._is_used = self._newest() == self.open
