"""Which local blocks pinned files name: the marks that keep them from eviction.

Owns the column `block.pinned`; its sum in `usage` is kept by triggers. Eviction picks from an index
without the marked blocks, so nothing that is marked is evicted, whatever the state of all else.

Marks are set at once: when a pinned file is written, before the block can become clean, and when
something is pinned. They are taken away by a *pass*, as a garbage collector does it: everything
that the pins reach is marked anew, and then those marks go that were not set again. Blocks may be
shared by files that are pinned and files that are not, and a count of names would have to follow
each rename of a folder with all that is below it. A pass that ends early costs nothing: marks that
should have gone stay until the next one.

No more is marked than leaves room for work (`allowance_bytes`): what is written and what is read
needs the rest. Beyond that, pinned files are kept like all others.
"""

from __future__ import annotations

from collections.abc import Iterable

from syncer.blocks.budget import Budget, disk_bytes
from syncer.metadata.db import Database

#: The share of the limit that pins leave, and what they leave of small limits.
_WORK_SHARE = 4
_LEAST_WORK_BYTES = 64_000_000
_SWEPT_BLOCKS = 256


class PinnedBlocks:
    """The marks. May be used from several threads; `db.lock` guards the fields."""

    def __init__(self, db: Database, budget: Budget) -> None:
        self._db = db
        self._budget = budget
        #: What was marked in the pass under way.
        self._seen: set[bytes] | None = None
        self._seen_bytes = 0

    def allowance_bytes(self) -> int:
        """How much may be marked, as the disk counts it."""
        limit = self._budget.limit_bytes
        work = max(limit // _WORK_SHARE, min(_LEAST_WORK_BYTES, limit // 2))
        row = self._db.query_one("SELECT inline_bytes FROM usage")
        assert row is not None
        return int(max(0, limit - work - row[0]))

    def used_bytes(self) -> int:
        """How much is marked."""
        row = self._db.query_one("SELECT pinned_bytes FROM usage")
        assert row is not None
        return int(row[0])

    def room_bytes(self) -> int:
        """How much more may be marked."""
        return self.allowance_bytes() - self.used_bytes()

    def mark(self, block_ids: Iterable[bytes]) -> tuple[list[bytes], int]:
        """Mark local blocks; returns those that are not local, and the bytes that are too many."""
        absent: list[bytes] = []
        refused_bytes = 0
        with self._db.transaction():
            allowed, used = self.allowance_bytes(), self.used_bytes()
            for block_id in block_ids:
                row = self._db.query_one("SELECT size, pinned FROM block WHERE id = ?", (block_id,))
                if row is None:
                    absent.append(block_id)
                    continue
                size_bytes, is_marked = disk_bytes(row[0]), bool(row[1])
                if not self._fits(block_id, size_bytes, is_marked, allowed, used):
                    refused_bytes += size_bytes
                elif not is_marked:
                    self._db.execute("UPDATE block SET pinned = 1 WHERE id = ?", (block_id,))
                    used += size_bytes
        return absent, refused_bytes

    def _fits(
        self, block_id: bytes, size_bytes: int, is_marked: bool, allowed: int, used: int
    ) -> bool:
        if not is_marked and used + size_bytes > allowed:
            return False
        if self._seen is None or block_id in self._seen:
            return True
        # In a pass also what is marked already has to fit: the limit may be lower now.
        if self._seen_bytes + size_bytes > allowed:
            return False
        self._seen.add(block_id)
        self._seen_bytes += size_bytes
        return True

    # A pass, by one thread

    def begin_pass(self) -> None:
        """From now on, `mark` notes what it marks."""
        with self._db.lock:
            self._seen = set()
            self._seen_bytes = 0

    def sweep(self) -> None:
        """Take the marks from all that was not marked since `begin_pass`."""
        after = b""
        while True:
            with self._db.transaction():
                assert self._seen is not None
                rows = self._db.query(
                    "SELECT id FROM block WHERE pinned = 1 AND id > ? ORDER BY id LIMIT ?",
                    (after, _SWEPT_BLOCKS),
                )
                self._db.execute_many(
                    "UPDATE block SET pinned = 0 WHERE id = ?",
                    [row for row in rows if row[0] not in self._seen],
                )
            if not rows:
                return
            after = rows[-1][0]

    def end_pass(self) -> None:
        """The pass is over, or given up."""
        with self._db.lock:
            self._seen = None
