"""Which blocks make up a file: the rows of table `content`, at "now", versioned by epoch.

Mutators return ids for the caller to pass on to `Blocks`: those that were placed, and those
whose placement never became history, since it was made and undone within one epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from syncer.codec import BLOCK_BYTES, HOLE, ID_BYTES, split_ids
from syncer.metadata.connection import Row
from syncer.metadata.db import Database
from syncer.metadata.epochs import Epochs
from syncer.metadata.schema import COUNTED_BLOCKS

#: Blocks per row: a change in a 100 GB file rewrites one row of 4 KiB.
RUN_BLOCKS = 256
#: The run that holds a tiny file's bytes themselves.
INLINE_RUN = -1
_LAST_RUN = 1 << 62
_MAX_NEW = 20_000


class Contents:
    """The contents of files. Safe for use from several threads."""

    def __init__(self, db: Database, epochs: Epochs) -> None:
        self._db = db
        self._epochs = epochs
        #: Changes the count of a node's blocks: (node, by how many); set by the tree.
        self.count_blocks: Callable[[int, int], None] = lambda node_id, change: None
        # Both spare queries and are guarded by db.lock.
        #: Nodes that were made lately and never had a row here.
        self._new: set[int] = set()
        #: Nodes that may have patches; None: it is to be looked up.
        self._patched: set[int] | None = None

    def run(self, node_id: int, run: int) -> bytes:
        """The packed ids of one run of a file's blocks, without trailing holes."""
        row = self._db.query_one(
            "SELECT data FROM content WHERE node = ? AND run = ?", (node_id, run)
        )
        return row[0] if row else b""

    def note_new(self, node_id: int) -> None:
        """A node was made just now. In the transaction in which it was."""
        if len(self._new) >= _MAX_NEW:
            self._new.clear()
        self._new.add(node_id)

    def forget(self) -> None:
        """A transaction was rolled back, or others changed the tables."""
        self._new.clear()
        self._patched = None

    def check(self) -> None:
        """Raise MissingError if what was read here before may be out of date."""

    def ids(self, node_id: int) -> list[bytes]:
        """The ids of all blocks of a file, in order, without its holes."""
        rows = self._db.query(
            "SELECT data FROM content WHERE node = ? AND run >= 0 ORDER BY run", (node_id,)
        )
        return [block_id for row in rows for block_id in split_ids(row[0]) if block_id != HOLE]

    def blocks(self, node_id: int) -> list[tuple[int, bytes]]:
        """(index, id) of all blocks of a file, in order, without its holes."""
        rows = self._db.query(
            "SELECT run, data FROM content WHERE node = ? AND run >= 0 ORDER BY run", (node_id,)
        )
        return [
            (index, block_id)
            for run, data in rows
            for index, block_id in enumerate(split_ids(data), run * RUN_BLOCKS)
            if block_id != HOLE
        ]

    def next_data(self, node_id: int, first: int) -> int | None:
        """The index of the first block from `first` on that is not a hole, or None."""
        run, place = divmod(first, RUN_BLOCKS)
        while (found := self.run_from(node_id, run)) is not None:
            ids = split_ids(found[1])
            for number in range(place if found[0] == run else 0, len(ids)):
                if ids[number] != HOLE:
                    return found[0] * RUN_BLOCKS + number
            run, place = found[0] + 1, 0
        return None

    def run_from(self, node_id: int, run: int) -> tuple[int, bytes] | None:
        """The first run that there is from number `run` on, and its ids; or None."""
        row = self._db.query_one(
            "SELECT run, data FROM content WHERE node = ? AND run >= ? ORDER BY run LIMIT 1",
            (node_id, run),
        )
        return (row[0], row[1]) if row else None

    def inline(self, node_id: int) -> bytes | None:
        """The bytes of a tiny file that lie in its row, or None."""
        row = self._db.query_one(
            "SELECT data FROM content WHERE node = ? AND run = ?", (node_id, INLINE_RUN)
        )
        return row[0] if row else None

    def inline_bytes(self) -> int:
        """What all inline contents take, now and past."""
        row = self._db.query_one("SELECT inline_bytes FROM usage")
        assert row is not None
        return int(row[0])

    def set_inline(self, node_id: int, data: bytes) -> list[bytes]:
        """Make `data` the whole content of a tiny file; returns the dropped block ids."""
        with self._db.transaction():
            dropped = self.end(node_id, INLINE_RUN + 1)
            self._write_run(node_id, INLINE_RUN, data, self._row(node_id, INLINE_RUN))
            return dropped

    def set_blocks(
        self, node_id: int, blocks: Mapping[int, bytes]
    ) -> tuple[list[bytes], list[bytes]]:
        """Place blocks (index -> id, or HOLE) in a file; returns (placed, dropped) ids.

        A file that was inline loses its inline bytes: the caller has put them into a block.
        """
        with self._db.transaction():
            runs: dict[int, list[int]] = {}
            for index in blocks:
                runs.setdefault(index // RUN_BLOCKS, []).append(index)
            placed: list[bytes] = []
            dropped: list[bytes] = []
            filled = 0
            for run, indexes in runs.items():
                row = self._row(node_id, run)
                if row is None:
                    # A file with blocks is not inline as well.
                    self.end(node_id, INLINE_RUN, INLINE_RUN)
                data = bytearray(row[1] if row else b"")
                last = (max(indexes) % RUN_BLOCKS + 1) * ID_BYTES
                data.extend(bytes(max(0, last - len(data))))
                for index in indexes:
                    start = index % RUN_BLOCKS * ID_BYTES
                    before = data[start : start + ID_BYTES]
                    if blocks[index] not in (HOLE, before):
                        placed.append(blocks[index])
                    filled += (blocks[index] != HOLE) - (before != HOLE)
                    data[start : start + ID_BYTES] = blocks[index]
                dropped += self._write_run(node_id, run, bytes(data), row)
            self._count_blocks(node_id, filled)
            return placed, dropped

    def cut(self, node_id: int, count: int) -> list[bytes]:
        """Remove all blocks from index `count` on; returns the dropped ids."""
        with self._db.transaction():
            run, rest = divmod(count, RUN_BLOCKS)
            dropped = self.end(node_id, run + 1 if rest else run)
            if not count:
                self.end(node_id, INLINE_RUN, INLINE_RUN)
            row = self._row(node_id, run) if rest else None
            data = row[1] if row else b""
            if len(data) > rest * ID_BYTES:
                dropped += self._write_run(node_id, run, data[: rest * ID_BYTES], row)
                self._count_blocks(node_id, -filled_blocks(run, data[rest * ID_BYTES :]))
            return dropped

    def _row(self, node_id: int, run: int) -> Row | None:
        """(born, data) of the present row of a run."""
        if node_id in self._new:
            return None
        return self._db.query_one(
            "SELECT born, data FROM content WHERE node = ? AND run = ?", (node_id, run)
        )

    def _write_run(self, node_id: int, run: int, data: bytes, row: Row | None) -> list[bytes]:
        """Make `data` the present row of a run, in place of `row`; returns the ids that it
        dropped."""
        self._new.discard(node_id)
        dropped: list[bytes] = []
        if row is not None:
            if row[0] == self._epochs.open:
                dropped = self._lost_ids(node_id, run, row[1], data)
            else:
                self._db.execute(
                    "INSERT INTO content_past VALUES(?, ?, ?, ?, ?)",
                    (node_id, run, row[0], self._epochs.open, row[1]),
                )
        if run == INLINE_RUN:
            gone = len(row[1]) if row is not None and row[0] == self._epochs.open else 0
            self._count_inline(len(data) - gone)
            self._count_blocks(node_id, bool(data) - bool(row and row[1]))
        self._db.execute(
            "INSERT OR REPLACE INTO content VALUES(?, ?, ?, ?)",
            (node_id, run, self._epochs.open, data),
        )
        self._epochs.touch(node_id)
        return dropped

    def end_all(self, node_id: int) -> list[bytes]:
        """As `end`, of all runs of a node that is about to go, with its count of blocks."""
        return self._end(node_id, INLINE_RUN, _LAST_RUN)[0]

    def end(self, node_id: int, first_run: int, last_run: int = _LAST_RUN) -> list[bytes]:
        """End the rows of some runs, now part of the past; returns the dropped ids."""
        dropped, filled = self._end(node_id, first_run, last_run)
        self._count_blocks(node_id, -filled)
        return dropped

    def _end(self, node_id: int, first_run: int, last_run: int) -> tuple[list[bytes], int]:
        """Returns the dropped ids, and how many blocks there were."""
        if node_id in self._new:
            return [], 0
        rows: list[Row] = self._db.query(
            "SELECT run, born, data FROM content WHERE node = ? AND run BETWEEN ? AND ?",
            (node_id, first_run, last_run),
        )
        dropped: list[bytes] = []
        for run, born, data in rows:
            if born != self._epochs.open:
                self._db.execute(
                    "INSERT INTO content_past VALUES(?, ?, ?, ?, ?)",
                    (node_id, run, born, self._epochs.open, data),
                )
            elif run == INLINE_RUN:
                self._count_inline(-len(data))
            else:
                dropped += self._lost_ids(node_id, run, data, b"")
        if rows:
            self._db.execute(
                "DELETE FROM content WHERE node = ? AND run BETWEEN ? AND ?",
                (node_id, first_run, last_run),
            )
            self._epochs.touch(node_id)
        return dropped, sum(filled_blocks(run, data) for run, _, data in rows)

    def _lost_ids(self, node_id: int, run: int, before: bytes, after: bytes) -> list[bytes]:
        """Ids of a row of this epoch that neither its successor nor the past has in their place."""
        if run == INLINE_RUN or after.startswith(before):
            return []
        row = self._db.query_one(
            "SELECT data FROM content_past WHERE node = ? AND run = ? AND died = ?",
            (node_id, run, self._epochs.open),
        )
        past = row[0] if row else b""
        lost = []
        for start in range(0, len(before), ID_BYTES):
            end = start + ID_BYTES
            old = before[start:end]
            if old not in (HOLE, after[start:end], past[start:end]):
                lost.append(old)
        return lost

    def _count_inline(self, change_bytes: int) -> None:
        self._db.execute("UPDATE usage SET inline_bytes = inline_bytes + ?", (change_bytes,))

    def _count_blocks(self, node_id: int, change: int) -> None:
        if change:
            self.count_blocks(node_id, change)

    # Patches

    def add_patches(
        self, node_id: int, patches: Sequence[tuple[int, bytes]], size: int, mtime_ns: int
    ) -> None:
        """Note rewritten bytes (offset, data), and the size and time that the file has with them.

        No patch crosses the border of a block.
        """
        with self._db.transaction():
            if self._patched is not None:
                self._patched.add(node_id)
            row = self._db.query_one("SELECT max(seq) FROM patch WHERE node = ?", (node_id,))
            first = (row[0] or 0) + 1 if row else 1
            self._db.execute_many(
                "INSERT INTO patch VALUES(?, ?, ?, ?, ?, ?)",
                [
                    (node_id, first + place, offset, data, size, mtime_ns)
                    for place, (offset, data) in enumerate(patches)
                ],
            )

    def patches(self, node_id: int) -> list[tuple[int, bytes, int, int]]:
        """The patches of a file in order: (offset, data, size, mtime_ns)."""
        return self._db.query(
            "SELECT offset, data, size, mtime_ns FROM patch WHERE node = ? ORDER BY seq",
            (node_id,),
        )

    def drop_patches(self, node_id: int, index: int | None = None) -> None:
        """Remove the patches of a file, or (with `index`) of one of its blocks."""
        if self._patched is None:
            self._patched = set(self.patched_nodes())
        if node_id not in self._patched:
            return
        if index is None:
            self._patched.discard(node_id)
            self._db.execute("DELETE FROM patch WHERE node = ?", (node_id,))
        else:
            self._db.execute(
                "DELETE FROM patch WHERE node = ? AND offset >= ? AND offset < ?",
                (node_id, index * BLOCK_BYTES, (index + 1) * BLOCK_BYTES),
            )

    def patched_nodes(self) -> list[int]:
        """The files that have patches."""
        return [row[0] for row in self._db.query("SELECT DISTINCT node FROM patch")]


def filled_blocks(run: int, data: bytes) -> int:
    """How many blocks of a row are no holes; the bytes of a tiny file count as one."""
    if run == INLINE_RUN:
        return int(bool(data))
    ids = split_ids(data)
    return len(ids) - ids.count(HOLE)


def recount_blocks(db: Database, node_ids: Iterable[int]) -> None:
    """Make column node.blocks true for rows that came from elsewhere. In a transaction."""
    db.execute_many(
        f"UPDATE node SET blocks = {COUNTED_BLOCKS} WHERE id = ?",
        [(node_id,) for node_id in node_ids],
    )
