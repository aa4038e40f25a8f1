"""Which blocks are local, which of them the remote lacks, and when a file may go.

Owns table `block` and the columns `local_*` and `dirty_*` of `usage`. Knows nothing of what the
blocks hold or of how they travel: see `blocks` and `transfer`.

A block's file is safe from removal as long as one of these is true:

- it has a row: eviction deletes those of clean blocks that are not pinned, `unname` those of
  dropped ones, and nothing deletes any others;
- it is held: put or fetched, and not yet let go with `unhold`.

A file that loses its last protection is doomed: it stays, and counts against the limit, until
it is unlinked. The order of a removal, and what a crash at each point leaves:

1. the row is deleted and the file doomed    kill: a file without a row, which `sweep` removes;
                                             power cut: the row is back, and its file is there
2. files that replace it are synced          (only where content was dropped, not evicted: if
                                             they were lost, this one would be needed again)
3. the database is synced                    from here on no crash brings the row back, and
                                             what made the block clean is durable, too
4. the file is unlinked                      a crash before it: a file without a row, as above
5. its bytes are given back to the budget

So a row lacks its file only where someone else removed it: that is a miss, and is repaired.
Before step 3 the row is looked for once more: the transaction of step 1 may have been undone.

Locks, in this order: `db.lock`, `_lock`, the cache's and the budget's own. Nobody waits for room,
disk or network while holding one. A hold on a block that is at steps 3 to 5 waits until they are
over, and its holder writes the file anew.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from syncer.blocks.budget import disk_bytes
from syncer.blocks.cache import Cache
from syncer.blocks.doubt import Doubt
from syncer.blocks.entries import FileSync, Hold, Usage
from syncer.blocks.garbage import Garbage
from syncer.blocks.pinned import PinnedBlocks
from syncer.errors import MissingError
from syncer.metadata.db import Database
from syncer.metadata.undo import Undo

#: What eviction picks from: the index block_clean.
_EVICTABLE = "SELECT id, size FROM block WHERE dirty IS NULL AND pinned = 0"


class Ledger:
    """The local blocks of one machine. May be used from several threads."""

    def __init__(self, db: Database, cache: Cache) -> None:
        self.cache = cache
        self.undo = Undo(db)
        self.pinned = PinnedBlocks(db, cache.budget)
        self.garbage = Garbage(db)
        self.doubt = Doubt(db)
        #: Set whenever a block becomes dirty, for who waits for one, and clears it before a look.
        self.has_new_dirty = threading.Event()
        self._db = db
        self._lock = threading.Lock()
        self._removed = threading.Condition(self._lock)
        # The lock guards the next three.
        self._holds: dict[bytes, Hold] = {}
        self._doomed: dict[bytes, int] = {}  # id -> bytes that its removal gives back
        self._removing: dict[bytes, int] = {}  # the same, at steps 3 to 5
        # Both are guarded by db.lock.
        self._next_used = 1 + self._newest("used", "dirty IS NULL AND pinned = 0")
        self._next_dirty = 1 + self._newest("dirty", "dirty IS NOT NULL")
        usage = self.usage()
        cache.budget.adopt(usage.local_bytes)
        cache.budget.set_inline(usage.inline_bytes)

    def _newest(self, column: str, where: str) -> int:
        row = self._db.query_one(f"SELECT max({column}) FROM block WHERE {where}")
        return int(row[0] or 0) if row else 0

    @property
    def newest_dirty(self) -> int:
        """The place in the queue that the newest dirty block got; it only grows."""
        return self._next_dirty - 1

    def usage(self) -> Usage:
        """What is local, as of now."""
        row = self._db.query_one(
            "SELECT local_bytes, local_blocks, dirty_bytes, dirty_blocks, inline_bytes FROM usage"
        )
        assert row is not None
        return Usage(*row)

    def _account(self, blocks: int, disk: int, dirty_blocks: int, dirty: int) -> None:
        if blocks or dirty_blocks:
            self._db.execute(
                "UPDATE usage SET local_blocks = local_blocks + ?, local_bytes = local_bytes + ?,"
                " dirty_blocks = dirty_blocks + ?, dirty_bytes = dirty_bytes + ?",
                (blocks, disk, dirty_blocks, dirty),
            )

    def _with_rows(self, block_ids: Iterable[bytes]) -> set[bytes]:
        with self._db.lock:
            return {
                block_id
                for block_id in block_ids
                if self._db.query_one("SELECT 1 FROM block WHERE id = ?", (block_id,))
            }

    # Holding --------------------------------------------------------------------------------

    def _hold(self, block_id: bytes, size_bytes: int) -> Hold:
        with self._lock:
            while block_id in self._removing:
                self._removed.wait()
            hold = self._holds.setdefault(block_id, Hold(size_bytes))
            hold.count += 1
            if self._doomed.pop(block_id, 0):
                hold.charged = True
        # A row that eviction is deleting just now is gone when this query gets db.lock; one
        # that it finds stays, since the block is held.
        if self._with_rows([block_id]):
            with self._lock:
                hold.charged = True
        return hold

    def unhold(self, block_ids: Iterable[bytes]) -> None:
        """Let go of blocks, once for each time that `put` returned them.

        What nothing names goes. Not before the transaction that names the blocks is over.
        """
        counts = Counter(block_ids)
        with self._db.lock:
            named = self._with_rows(counts)
            with self._lock:
                for block_id, count in counts.items():
                    hold = self._holds.get(block_id)
                    if hold is None:
                        continue
                    hold.count -= count
                    if hold.count <= 0:
                        del self._holds[block_id]
                        if hold.charged and block_id not in named:
                            self._doomed[block_id] = disk_bytes(hold.size_bytes)

    # Naming, inside the transactions of those who own the metadata -----------------------------

    def name(self, block_ids: Iterable[bytes]) -> None:
        """Content names these blocks once more. Inside the caller's transaction.

        A held block that the remote lacks becomes dirty, and so does one that was garbage. One that
        is neither held nor local is on the remote, and needs nothing; no more does HOLE.

        Raises MissingError if the remote is about to lose a block that is not here either.
        """
        for block_id in block_ids:
            was_garbage = self.garbage.name(block_id)
            row = self._db.query_one("SELECT size, dirty FROM block WHERE id = ?", (block_id,))
            if row is not None:
                if row[1] is not None:
                    self._db.execute("UPDATE block SET refs = refs + 1 WHERE id = ?", (block_id,))
                elif was_garbage:
                    self._make_dirty(block_id, row[0])
                continue
            with self._lock:
                hold = self._holds.get(block_id)
                if hold is None or not hold.stored:
                    if was_garbage:
                        raise MissingError(f"block {block_id.hex()} was pruned")
                    continue
                size_bytes, synced = hold.size_bytes, hold.synced
            self._add_dirty(block_id, size_bytes, synced=synced)

    def _make_dirty(self, block_id: bytes, size_bytes: int, refs: int = 1) -> None:
        sql = "UPDATE block SET dirty = ?, refs = ? WHERE id = ?"
        self._db.execute(sql, (self._next_dirty, refs, block_id))
        self._end_of_queue_moved()
        self._account(0, 0, 1, size_bytes)

    def _add_dirty(self, block_id: bytes, size_bytes: int, *, synced: bool) -> None:
        self._db.execute(
            "INSERT INTO block VALUES(?, ?, ?, 1, ?, 0, 0)",
            (block_id, size_bytes, self._next_dirty, int(synced)),
        )
        self._end_of_queue_moved()
        self._account(1, disk_bytes(size_bytes), 1, size_bytes)

    def _end_of_queue_moved(self) -> None:
        self._next_dirty += 1
        if not self.has_new_dirty.is_set():
            self.has_new_dirty.set()

    def unname(self, block_ids: Iterable[bytes]) -> None:
        """Content that never became history names these once less. In the caller's transaction.

        A dirty block that nothing names any more is dropped without an upload; its file goes
        with `collect`.
        """
        blocks, disk, dirty = 0, 0, 0
        for block_id in block_ids:
            row = self._db.query_one(
                "SELECT size, refs, synced FROM block WHERE id = ? AND dirty IS NOT NULL",
                (block_id,),
            )
            if row is None:
                continue
            size_bytes, refs, synced = row
            if refs > 1:
                self._db.execute("UPDATE block SET refs = refs - 1 WHERE id = ?", (block_id,))
                continue
            self._db.execute("DELETE FROM block WHERE id = ?", (block_id,))
            if not synced:
                self.undo.note_dropped(block_id)
            with self._lock:
                hold = self._holds.get(block_id)
                if hold is not None:
                    hold.charged = True
                else:
                    self._doomed[block_id] = disk_bytes(size_bytes)
            blocks += 1
            disk += disk_bytes(size_bytes)
            dirty += size_bytes
        self._account(-blocks, -disk, -blocks, -dirty)

    # Clean and dirty ------------------------------------------------------------------------

    def dirty_queue(self, limit: int, after: int = 0) -> list[tuple[bytes, int]]:
        """Blocks that the remote lacks, oldest first: (id, place in the queue), behind `after`."""
        rows = self._db.query(
            "SELECT id, dirty FROM block WHERE dirty > ? ORDER BY dirty LIMIT ?", (after, limit)
        )
        return [(row[0], row[1]) for row in rows]

    def is_dirty(self, block_id: bytes) -> bool:
        """Whether the remote lacks this block, and content names it."""
        return bool(
            self._db.query_one(
                "SELECT 1 FROM block WHERE id = ? AND dirty IS NOT NULL", (block_id,)
            )
        )

    def mark_clean(self, block_ids: Iterable[bytes]) -> None:
        """The remote has these now, whole and to stay. One that was dropped meanwhile is skipped.

        In one transaction. They count as used now.
        """
        blocks, dirty = 0, 0
        with self._db.transaction():
            for block_id in block_ids:
                row = self._db.query_one(
                    "SELECT size FROM block WHERE id = ? AND dirty IS NOT NULL", (block_id,)
                )
                if row is None:
                    continue
                self._db.execute(
                    "UPDATE block SET dirty = NULL, refs = 0, used = ? WHERE id = ?",
                    (self._next_used, block_id),
                )
                self._next_used += 1
                blocks += 1
                dirty += row[0]
            self._account(0, 0, -blocks, -dirty)
        self.cache.budget.progress()

    def _add_clean(self, block_id: bytes, size_bytes: int) -> None:
        """Give a row to a held block that came from the remote, unless it has one."""
        with self._db.transaction():
            if self._with_rows([block_id]):
                return
            self._db.execute(
                "INSERT INTO block VALUES(?, ?, NULL, 0, 0, ?, 0)",
                (block_id, size_bytes, self._next_used),
            )
            self._next_used += 1
            self._account(1, disk_bytes(size_bytes), 0, 0)

    # Power-safe -----------------------------------------------------------------------------

    def begin_sync(self, node_id: int) -> FileSync:
        """Note which blocks a file names that are not synced yet. The caller holds its lock."""
        with self._db.lock:
            rows, held = self._unsynced(self.undo.unsynced(node_id))
            return FileSync(node_id, self.undo.end_turn_of(node_id), rows, held)

    def _unsynced(self, block_ids: set[bytes]) -> tuple[dict[bytes, int | None], dict[bytes, Hold]]:
        rows: dict[bytes, int | None] = {}
        for block_id in block_ids:
            row = self._db.query_one(
                "SELECT dirty FROM block WHERE id = ? AND synced = 0", (block_id,)
            )
            if row is not None:
                rows[block_id] = row[0]
        with self._lock:
            holds = {block_id: self._holds.get(block_id) for block_id in block_ids}
        held = {key: hold for key, hold in holds.items() if hold and hold.stored}
        return rows, {key: hold for key, hold in held.items() if not hold.synced}

    def finish_sync(self, begun: FileSync) -> None:
        """Make what `begin_sync` noted power-safe; waits for the disk, while the file may change.

        What it names no more by then is synced as well: without power it may go back to that. For
        the rows to be safe, `db.sync` comes after it. Not to be called inside a transaction.
        Raises PermanentError if the disk fails.
        """
        wanted = begun.rows.keys() | begun.held.keys()
        if wanted:
            there = set(self.cache.sync(wanted))
            self._mark_synced(
                [row for row in begun.rows.items() if row[0] in there],
                [hold for block_id, hold in begun.held.items() if block_id in there],
            )
        self.undo.synced(begun.node_id, begun.turn)

    def sync_all(self) -> None:
        """The same at once for all blocks: ends a turn, see `undo`.

        But for clean ones: the remote has them, and what a cut damages here is fetched anew.
        That they are clean is as safe as the rows that name them, which `db.sync` makes so.
        """
        with self._db.lock:
            turn = self.undo.end_turn()
            rows = [
                (row[0], row[1])
                for row in self._db.query(
                    "SELECT id, dirty FROM block WHERE synced = 0 AND dirty IS NOT NULL"
                )
            ]
            with self._lock:
                held = [hold for hold in self._holds.values() if hold.stored and not hold.synced]
        if rows or held:
            self.cache.sync_all()
        with self._db.transaction():
            self._mark_synced(rows, held)
            self.undo.drop(turn)

    def _mark_synced(self, rows: Sequence[tuple[bytes, int | None]], held: Iterable[Hold]) -> None:
        with self._lock:
            for hold in held:
                hold.synced = True
        with self._db.transaction():
            # By its place in the queue: a block that was dropped and put anew while we waited
            # for the disk has another one, and another file.
            self._db.execute_many("UPDATE block SET synced = 1 WHERE id = ? AND dirty IS ?", rows)

    # Removal --------------------------------------------------------------------------------

    def _doom_oldest(self, wanted_bytes: int, limit: int) -> list[bytes]:
        """Step 1 for up to `limit` of the clean blocks that were used longest ago, unpinned."""
        with self._db.transaction():
            if self.doubt.is_on():
                return []
            with self._lock:
                unavailable = len(self._holds) + len(self._removing)
            rows = self._db.query(f"{_EVICTABLE} ORDER BY used LIMIT ?", (limit + unavailable,))
            return self._doom(rows, wanted_bytes)

    def _doom_these(self, block_ids: Iterable[bytes]) -> list[bytes]:
        """Step 1 for those of these blocks that are clean and not pinned."""
        with self._db.transaction():
            rows = [
                row
                for block_id in block_ids
                for row in self._db.query(f"{_EVICTABLE} AND id = ?", (block_id,))
            ]
            return self._doom(rows, sum(disk_bytes(row[1]) for row in rows))

    def _doom(self, rows: Iterable[tuple[bytes, int]], wanted_bytes: int) -> list[bytes]:
        """Delete rows of clean blocks until so much is freed, but not of those in use."""
        victims: dict[bytes, int] = {}
        freed = 0
        with self._lock:
            for block_id, size_bytes in rows:
                if freed >= wanted_bytes:
                    break
                if block_id not in self._holds and block_id not in self._removing:
                    victims[block_id] = disk_bytes(size_bytes)
                    freed += victims[block_id]
            self._doomed.update(victims)
        self._delete_clean(victims)
        return list(victims)

    def _delete_clean(self, sizes: dict[bytes, int]) -> None:
        self._db.execute_many(
            "DELETE FROM block WHERE id = ? AND dirty IS NULL",
            [(block_id,) for block_id in sizes],
        )
        self._account(-len(sizes), -sum(sizes.values()), 0, 0)

    def collect(self) -> None:
        """Remove the files of blocks that were dropped before this call: steps 2 to 5.

        Not to be called inside a transaction.
        """
        dropped = self.dropped()
        if dropped:
            self.sync_all()
            self._unlink(dropped)

    def dropped(self) -> list[bytes]:
        """Blocks whose files wait for their removal."""
        with self._lock:
            return list(self._doomed)

    def is_passing(self, block_id: bytes) -> bool:
        """Whether a block's file may be there without a row for a moment: held, or about to go."""
        with self._lock:
            return any(block_id in busy for busy in (self._holds, self._doomed, self._removing))

    def _unlink(self, block_ids: Sequence[bytes]) -> int:
        """Steps 3 to 5; returns how many bytes were freed."""
        with self._db.lock:
            named = self._with_rows(block_ids)
            batch: dict[bytes, int] = {}
            with self._lock:
                for block_id in block_ids:
                    charge = self._doomed.pop(block_id, None)
                    if charge is not None and block_id not in named:
                        batch[block_id] = charge
                self._removing.update(batch)
        if not batch:
            return 0
        try:
            self._db.sync()
            self.cache.remove(batch)
        except BaseException:
            with self._lock:
                self._doomed.update(batch)
            raise
        finally:
            self._end_removal(batch)
        freed = sum(batch.values())
        self.cache.budget.free(freed)
        return freed

    def _end_removal(self, block_ids: Iterable[bytes]) -> None:
        with self._lock:
            for block_id in block_ids:
                del self._removing[block_id]
            self._removed.notify_all()

    def sweep(self, stopping: Callable[[], bool] = lambda: False) -> list[bytes]:
        """After an unclean end: make files and rows match. Reads both; for the background.

        Removes files that nothing names, and rows of clean blocks whose files are gone. Returns
        the dirty blocks whose files are gone: their content is lost if the remote lacks them.
        Ends early when `stopping`.
        """
        lost: list[bytes] = []
        for first_byte in range(256):
            if stopping():
                break
            lost += self.sweep_part(first_byte)
        return lost

    def sweep_part(self, first_byte: int) -> list[bytes]:
        """As `sweep`, for the blocks whose ids begin with this byte."""
        self._unlink(self._doom_strays(first_byte))
        return self._drop_absent(first_byte)

    def _rows_from(self, first_byte: int) -> dict[bytes, tuple[int, int | None]]:
        low = bytes([first_byte])
        rows = self._db.query(
            "SELECT id, size, dirty FROM block WHERE id BETWEEN ? AND ?", (low, low + b"\xff" * 16)
        )
        return {row[0]: (row[1], row[2]) for row in rows}

    def _doom_strays(self, first_byte: int) -> list[bytes]:
        # Files first: one that appears after this is no stray.
        files = set(self.cache.ids(first_byte))
        with self._db.lock:
            strays = files - self._rows_from(first_byte).keys()
            with self._lock:
                strays -= self._holds.keys() | self._doomed.keys() | self._removing.keys()
                # Nobody has counted them.
                self._doomed.update(dict.fromkeys(strays, 0))
        return list(strays)

    def _drop_absent(self, first_byte: int) -> list[bytes]:
        # Rows first: a file that goes after this takes its row with it.
        absent = self._rows_from(first_byte)
        for block_id in self.cache.ids(first_byte):
            absent.pop(block_id, None)
        if not absent:
            return []
        with self._db.transaction():
            now = self._rows_from(first_byte)
            with self._lock:
                gone = {
                    block_id: disk_bytes(size_bytes)
                    for block_id, (size_bytes, dirty) in absent.items()
                    if dirty is None
                    and now.get(block_id) == (size_bytes, None)
                    and block_id not in self._holds
                    and block_id not in self._removing
                }
                self._doomed.update(gone)
            self._delete_clean(gone)
        self._unlink(list(gone))
        dirty = [block_id for block_id, row in absent.items() if row[1] is not None]
        return [block_id for block_id in dirty if not self.cache.has(block_id)]
