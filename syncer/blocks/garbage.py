"""Blocks that nothing names any more, and that the remote is about to lose.

Table `garbage` says which they are; `maintain/sweep` puts them there and throws their objects away.
What matters here is that a block may come back to life at any moment, when somebody writes the same
content again. The rule that makes it safe: *to name a block takes its row away, in the transaction
that names it, and makes the block dirty*. So it is uploaded, whatever becomes of the old object.

While a sweep looks for garbage, all that is named meanwhile is noted, for what it has read of the
metadata is older than that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from syncer.metadata.db import Database


class Garbage:
    """Table `garbage`. All methods hold, or are called under, `db.lock`."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._named: set[bytes] | None = None
        #: Spares each naming a look into an empty table.
        self._is_any = db.query_one("SELECT 1 FROM garbage LIMIT 1") is not None

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Note what is named from here on, for `is_named_since`. One at a time."""
        with self._db.lock:
            assert self._named is None
            self._named = set()
        try:
            yield
        finally:
            with self._db.lock:
                self._named = None

    def is_named_since(self, block_id: bytes) -> bool:
        """Whether a block was named since the watch began, or a transaction tried to."""
        assert self._named is not None
        return block_id in self._named

    def name(self, block_id: bytes) -> bool:
        """A block is named, in the transaction that is open; whether it was garbage."""
        if self._named is not None:
            self._named.add(block_id)
        if not self._is_any:
            return False
        self._db.execute("DELETE FROM garbage WHERE id = ?", (block_id,))
        return self._db.changes() > 0

    def add(self, block_ids: Iterable[bytes], now_ns: int) -> None:
        """Nothing names these. In the caller's transaction, which has made sure of it."""
        self._is_any = True
        self._db.execute_many(
            "INSERT OR IGNORE INTO garbage VALUES(?, ?)",
            [(block_id, now_ns) for block_id in block_ids],
        )

    def begin_by(self, now_ns: int) -> None:
        """Nothing is garbage since a time to come, as a clock that was ahead has noted it."""
        with self._db.transaction():
            self._db.execute("UPDATE garbage SET since_ns = ?1 WHERE since_ns > ?1", (now_ns,))

    def since(self, block_ids: Iterable[bytes]) -> dict[bytes, int]:
        """Which of these are garbage still, and since when, in ns since 1970."""
        with self._db.lock:
            rows = [
                self._db.query_one("SELECT id, since_ns FROM garbage WHERE id = ?", (block_id,))
                for block_id in block_ids
            ]
        return {row[0]: row[1] for row in rows if row is not None}

    def within(self, first_bytes: range) -> dict[bytes, int]:
        """All garbage with a first byte in the range: id -> since when."""
        low, high = bytes([first_bytes[0]]), bytes([first_bytes[-1]]) + b"\xff" * 16
        return dict(
            self._db.query("SELECT id, since_ns FROM garbage WHERE id BETWEEN ? AND ?", (low, high))
        )

    def is_empty(self) -> bool:
        """Whether there is none at all."""
        return self._db.query_one("SELECT 1 FROM garbage LIMIT 1") is None

    def forget(self, block_ids: Iterable[bytes]) -> None:
        """The remote has nothing left of these; nor may there be a local copy that counts as clean.

        Those that have one keep their row: the next sweep tries again.
        """
        with self._db.transaction():
            self._db.execute_many(
                "DELETE FROM garbage WHERE id = ?1"
                " AND NOT EXISTS (SELECT 1 FROM block WHERE block.id = ?1)",
                [(block_id,) for block_id in block_ids],
            )
