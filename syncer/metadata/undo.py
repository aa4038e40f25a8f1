"""How files were before they named blocks that a power cut may still take.

A commit may name blocks whose files are not synced, and the commit can reach the disk before
them: any other file's fsync takes it along. If the power goes then, the file must go back to what
it was. So the first change of a file in each *turn* copies here what it replaces.

A turn is the time between two syncs of all blocks (`Ledger.sync_all`), and a change belongs to
the turn in which it is committed. One sync, and what a power cut after each step leaves:

1. turn T ends, under the database's lock         copies of T lead to the state at its beginning
2. all blocks that are named by now are synced    meanwhile changes belong to T + 1, and copies
                                                  of T + 1 lead to the state at step 1
3. they are marked so, and the copies of T and    before it is on the disk: as above; after it:
   before deleted, in one transaction             what copies of T + 1 lead to is whole
4. the database is synced                         the state at step 1 is safe
5. what was dropped before step 1 is unlinked     no copy that is left names it

The database comes back as it was after some commit. So a file is brought back by undoing its newest
turn, and the one before where that state lost blocks as well; the oldest state is whole. A file
that is younger than its copies could be, and lost blocks, becomes empty.

fsync ends a turn for one file only (`end_turn_of`), whose blocks it then syncs. The next change of
the file, even if it comes meanwhile, copies the state that fsync makes whole: undoing ends there.
Turns are numbered on from those that a killed process left copies of.

A copy may name blocks without rows: those that were evicted are on the remote, and those that were
dropped still have their files, which a cut may damage where they were not synced: these are noted.

Files in the database itself need no copy while they stay there. Names and attributes need none:
they come back with the commit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from syncer.codec import HOLE, split_ids
from syncer.metadata.db import Database

_INLINE_RUN = -1
#: No node; its rows in undo_run hold one block's id each.
_DROPPED = 0
_TABLES = ("undo_file", "undo_run", "undo_patch")
_ALL_TURNS = "SELECT turn FROM undo_file UNION ALL SELECT turn FROM undo_run"


@dataclass
class Restored:
    """What `Undo.restore` did."""

    files: list[int] = field(default_factory=list)
    """The nodes that were brought back, or emptied."""
    lost: list[int] = field(default_factory=list)
    """Those that could not be: they still name damaged blocks."""
    needed: set[bytes] = field(default_factory=set)
    """Blocks that the files name now; they may have lost their rows."""
    unneeded: set[bytes] = field(default_factory=set)
    """The damaged blocks that nothing names any more."""


class Undo:
    """The copies of the turns that are not safe yet. Fields are guarded by `db.lock`."""

    def __init__(self, db: Database) -> None:
        self._db = db
        row = db.query_one(f"SELECT max(turn) FROM ({_ALL_TURNS})")
        self._turn: int = 1 + (row[0] or 0 if row else 0)
        #: Made in this turn: before it there was nothing to go back to.
        self._new: set[int] = set()
        #: What has its copy in this turn; spares the statements.
        self._kept: set[tuple[int, int | None]] = set()
        #: node -> blocks that it was given, and in which turn, while they may be unsynced.
        self._placed: dict[int, dict[bytes, int]] = {}
        db.on_rollback(self._kept.clear)

    def note_new(self, node_id: int) -> None:
        """A file was made just now."""
        self._new.add(node_id)

    def keep(self, node_id: int, runs: Iterable[int], cut_run: int | None = None) -> None:
        """Copy what a change is about to replace: of `runs`, and of all from `cut_run` on.

        In the transaction of the change, before it.
        """
        if node_id in self._new:
            return
        if (node_id, None) not in self._kept:
            self._keep_file(node_id)
        for run in (_INLINE_RUN, *runs):
            if (node_id, run) not in self._kept:
                self._db.execute(
                    "INSERT OR IGNORE INTO undo_run VALUES(?1, ?2, ?3,"
                    " (SELECT data FROM content WHERE node = ?1 AND run = ?3))",
                    (node_id, self._turn, run),
                )
                self._kept.add((node_id, run))
        if cut_run is not None:
            self._db.execute(
                "INSERT OR IGNORE INTO undo_run SELECT node, ?, run, data FROM content"
                " WHERE node = ? AND run >= ?",
                (self._turn, node_id, cut_run),
            )

    def _keep_file(self, node_id: int) -> None:
        self._db.execute(
            "INSERT OR IGNORE INTO undo_file SELECT id, ?, size, mtime_ns FROM node WHERE id = ?",
            (self._turn, node_id),
        )
        if self._db.changes():
            self._db.execute(
                "INSERT INTO undo_patch SELECT node, ?, seq, offset, data, size, mtime_ns"
                " FROM patch WHERE node = ?",
                (self._turn, node_id),
            )
        self._kept.add((node_id, None))

    def keep_blocks(self, node_id: int) -> None:
        """As `keep`, before a file with blocks moves into the database."""
        if node_id not in self._new and self._db.query_one(
            "SELECT 1 FROM content WHERE node = ? AND run >= 0 LIMIT 1", (node_id,)
        ):
            self.keep(node_id, (), _INLINE_RUN)

    def placed(self, node_id: int, block_ids: Iterable[bytes]) -> None:
        """A file names these blocks now; they are perhaps not synced."""
        blocks = self._placed.setdefault(node_id, {})
        for block_id in block_ids:
            blocks[block_id] = self._turn

    def unsynced(self, node_id: int) -> set[bytes]:
        """The blocks of a file that may not be synced yet."""
        with self._db.lock:
            return set(self._placed.get(node_id, ()))

    def note_dropped(self, block_id: bytes) -> None:
        """A block that is perhaps not synced loses its row, and copies may name it.

        In the transaction in which it does.
        """
        self._db.execute(
            "INSERT INTO undo_run SELECT ?1, ?2, 1 + coalesce(max(run), 0), ?3 FROM undo_run"
            " WHERE node = ?1 AND turn = ?2",
            (_DROPPED, self._turn, block_id),
        )

    def dropped(self) -> list[bytes]:
        """What `note_dropped` was told since the last sync of all blocks."""
        return [
            row[0]
            for row in self._db.query("SELECT data FROM undo_run WHERE node = ?", (_DROPPED,))
        ]

    def end_turn_of(self, node_id: int) -> int:
        """Step 1 for one file, whose lock the caller holds; returns the turn that ended for it."""
        with self._db.lock:
            ended = self._turn
            self._turn += 1
            self._new.discard(node_id)
            self._kept = {key for key in self._kept if key[0] != node_id}
            return ended

    def synced(self, node_id: int, turn: int) -> None:
        """What a file was given by the end of `turn` is synced."""
        with self._db.lock:
            blocks = self._placed.pop(node_id, {})
            if left := {block_id: since for block_id, since in blocks.items() if since > turn}:
                self._placed[node_id] = left

    def end_turn(self) -> int:
        """Step 1; returns the turn that ended."""
        with self._db.lock:
            ended = self._turn
            self._turn += 1
            self._new.clear()
            self._kept.clear()
            return ended

    def drop(self, turn: int) -> None:
        """Step 3: what was committed by the end of `turn` is synced. In a transaction."""
        for table in _TABLES:
            self._db.execute(f"DELETE FROM {table} WHERE turn <= ?", (turn,))
        for node_id in list(self._placed):
            self.synced(node_id, turn)

    # After a power cut

    def restore(self, damaged: set[bytes]) -> Restored:
        """Bring back the files that name damaged blocks, which the remote lacks.

        In the caller's transaction. Of epochs that are neither safe nor published, the rows are
        rewritten, so that their past shows nothing that was lost.
        """
        durable: int = self._db.get_meta("durable", 0)
        done = Restored()
        lost: set[bytes] = set()
        found: set[bytes] = set()
        for (node_id,) in self._db.query(
            "SELECT DISTINCT node FROM outbox WHERE epoch > ? AND name = x''", (durable,)
        ):
            bad = self._named(node_id) & damaged
            if bad:
                found |= bad
                lost |= self._bring_back(node_id, damaged, durable, done)
            found |= self._mend_past(node_id, damaged, durable)
        done.unneeded = found - lost
        return done

    def _named(self, node_id: int) -> set[bytes]:
        rows = self._db.query("SELECT data FROM content WHERE node = ? AND run >= 0", (node_id,))
        return {block_id for row in rows for block_id in split_ids(row[0])} - {HOLE}

    def _bring_back(
        self, node_id: int, damaged: set[bytes], durable: int, done: Restored
    ) -> set[bytes]:
        """Undo turns of a file until it is whole; returns the damaged blocks that stay."""
        safe = max(durable, self._db.get_meta("published", 0))
        before = self._inline_bytes(node_id)
        row = self._db.query_one("SELECT size, mtime_ns FROM node WHERE id = ?", (node_id,))
        assert row is not None, "content has a node"
        size, mtime_ns = old_size, _ = row
        turns = self._db.query(
            "SELECT turn, size, mtime_ns FROM undo_file WHERE node = ? ORDER BY turn", (node_id,)
        )
        while turns and self._named(node_id) & damaged:
            turn, size, mtime_ns = turns.pop()
            self._undo_turn(node_id, turn, safe)
        left = self._named(node_id) & damaged
        if left and not self._is_younger(node_id, durable):
            done.lost.append(node_id)
            return left
        if left:
            size = 0
            for table in ("content", "patch"):
                self._db.execute(f"DELETE FROM {table} WHERE node = ?", (node_id,))
        done.files.append(node_id)
        done.needed |= self._named(node_id)
        self._forget_counts(node_id)
        for table, condition in (("node", ""), ("node_past", f" AND born > {safe}")):
            self._db.execute(
                f"UPDATE {table} SET size = ?, mtime_ns = ? WHERE id = ?{condition}",
                (size, mtime_ns, node_id),
            )
        self._db.execute(
            "UPDATE usage SET file_bytes = file_bytes + ?, inline_bytes = inline_bytes + ?",
            (size - old_size, self._inline_bytes(node_id) - before),
        )
        return set()

    def _undo_turn(self, node_id: int, turn: int, safe: int) -> None:
        """Put back what one turn replaced; versions of epochs after `safe` are rewritten."""
        key = node_id, turn, safe
        newest = "(SELECT max(epoch) FROM outbox WHERE node = ?1 AND name = x'')"
        runs = "(SELECT run FROM undo_run WHERE node = ?1 AND turn = ?2)"
        self._db.execute(
            f"INSERT INTO content_past SELECT node, run, born, {newest}, data FROM content"
            f" WHERE node = ?1 AND run IN {runs} AND born <= ?3",
            key,
        )
        self._db.execute(
            f"INSERT INTO content SELECT node, run, {newest}, data FROM undo_run"
            " WHERE node = ?1 AND turn = ?2 AND data IS NOT NULL ON CONFLICT DO UPDATE"
            " SET data = excluded.data, born = iif(born <= ?3, excluded.born, born)",
            key,
        )
        self._db.execute(
            "DELETE FROM content WHERE node = ?1 AND run IN"
            " (SELECT run FROM undo_run WHERE node = ?1 AND turn = ?2 AND data IS NULL)",
            key[:2],
        )
        self._db.execute("DELETE FROM patch WHERE node = ?", (node_id,))
        self._db.execute(
            "INSERT INTO patch SELECT node, seq, offset, data, size, mtime_ns FROM undo_patch"
            " WHERE node = ? AND turn = ?",
            key[:2],
        )

    def _is_younger(self, node_id: int, epoch: int) -> bool:
        row = self._db.query_one(
            "SELECT min(born) FROM (SELECT born FROM node WHERE id = ?1 UNION ALL"
            " SELECT born FROM node_past WHERE id = ?1)",
            (node_id,),
        )
        return row is not None and row[0] is not None and row[0] > epoch

    def _inline_bytes(self, node_id: int) -> int:
        row = self._db.query_one(
            "SELECT total(length(data)) FROM content WHERE node = ? AND run = ?",
            (node_id, _INLINE_RUN),
        )
        return int(row[0]) if row else 0

    def _forget_counts(self, node_id: int) -> None:
        """What its versions held is another now; who wants to know how many blocks, counts."""
        self._db.execute("UPDATE node_past SET blocks = NULL WHERE id = ?", (node_id,))

    def _mend_past(self, node_id: int, damaged: set[bytes], durable: int) -> set[bytes]:
        """Where the past names damaged blocks, let it be as it was before that."""
        found: set[bytes] = set()
        for run, born, died, data in self._db.query(
            "SELECT run, born, died, data FROM content_past"
            " WHERE node = ? AND run >= 0 AND born > ? ORDER BY run, died",
            (node_id, durable),
        ):
            bad = damaged.intersection(split_ids(data))
            if not bad:
                continue
            found |= bad
            self._forget_counts(node_id)
            key = node_id, run, died
            before = self._db.query_one(
                "SELECT data FROM content_past WHERE node = ? AND run = ? AND died = ?",
                (node_id, run, born),
            )
            if before is None:
                self._db.execute(
                    "DELETE FROM content_past WHERE node = ? AND run = ? AND died = ?", key
                )
            else:
                self._db.execute(
                    "UPDATE content_past SET data = ? WHERE node = ? AND run = ? AND died = ?",
                    (before[0], *key),
                )
        return found
