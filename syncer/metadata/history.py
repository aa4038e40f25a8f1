"""The tree at any past epoch, read-only: the state at epoch E is what began by E and had not ended.

A row of then is in its table, if it is still true, or in the table's "_past" twin. The lives of
one key's rows never overlap, so of its past rows only the first that ended after E can be the one.
Every question is a search in a primary key or an index; none reads a table as a whole, so entering
a state of long ago costs what entering the present does.

Epochs here are closed ones: what is asked about the open epoch may have another answer later.

Some may be pruned (`pruning`): then they have no row in table `epoch`, and it goes before the rows
of then do. So whoever asks about an epoch and does not find a row looks whether it is kept still,
and raises PrunedError if not. A row that is found is right even then.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from typing import NamedTuple

from syncer.codec import HOLE, split_ids
from syncer.errors import MissingError
from syncer.metadata.contents import INLINE_RUN, Contents
from syncer.metadata.db import Database
from syncer.metadata.node import ROOT, Node
from syncer.metadata.schema import FILLED_BLOCKS
from syncer.metadata.tree import OWN_XATTRS

#: Of what is true now: it has not died.
FOREVER = 1 << 62
_LAST_RUN = 1 << 62

_COLUMNS = (
    "id, born, mode, uid, gid, rdev, nlink, size, atime_ns, mtime_ns, ctime_ns, btime_ns, target"
)
_PAST_COLUMNS = ", ".join(f"past.{column}" for column in _COLUMNS.split(", "))
#: A past row's count of blocks; where it is not known, it is counted.
_BLOCKS_THEN = f"""
coalesce(past.blocks,
  (SELECT {FILLED_BLOCKS} FROM content WHERE content.node = past.id AND born <= ?3)
  + (SELECT {FILLED_BLOCKS} FROM content_past AS content
     WHERE content.node = past.id AND born <= ?3 AND died > ?3))
"""
_PAST_NODE = f"""
SELECT {_PAST_COLUMNS}, {_BLOCKS_THEN} FROM node_past AS past
WHERE id = ?1 AND died > ?3 ORDER BY died LIMIT 1
"""
#: Each entry is in one half: the lives of a node's rows do not overlap.
_ENTRIES = f"""
WITH entry(name, node) AS (
  SELECT name, node FROM name WHERE parent = ?1 AND name > ?2 AND born <= ?3
  UNION ALL
  SELECT name, node FROM name_past
  WHERE parent = ?1 AND name > ?2 AND born <= ?3 AND died > ?3
  ORDER BY 1 LIMIT ?4)
SELECT entry.name, node.* FROM entry JOIN node ON node.id = entry.node AND node.born <= ?3
UNION ALL
SELECT entry.name, {_PAST_COLUMNS}, {_BLOCKS_THEN}
FROM entry JOIN node_past AS past
  ON past.id = entry.node AND past.died > ?3 AND past.born <= ?3
"""
_XATTRS = """
SELECT name, value FROM xattr WHERE node = ?1 AND born <= ?2
UNION ALL
SELECT name, value FROM xattr_past WHERE node = ?1 AND born <= ?2 AND died > ?2
ORDER BY 1
"""
_RUNS = """
SELECT run, data FROM content WHERE node = ?1 AND run BETWEEN ?3 AND ?4 AND born <= ?2
UNION ALL
SELECT run, data FROM content_past
WHERE node = ?1 AND run BETWEEN ?3 AND ?4 AND born <= ?2 AND died > ?2
ORDER BY 1
"""


class PrunedError(MissingError):
    """What was asked about an epoch may have been pruned."""


class Moment(NamedTuple):
    """One epoch: when it began, and so when the state that it replaced was over."""

    epoch: int
    time_ns: int


class Version(NamedTuple):
    """A node's row, true for born <= e < died."""

    node: Node
    died: int

    @property
    def born(self) -> int:
        return self.node.born


class Life(NamedTuple):
    """What a name led to, true for born <= e < died."""

    node: int
    born: int
    died: int


class Removed(NamedTuple):
    """A name that is gone, with the last epoch in which it was there, kept or not."""

    name: bytes
    node: int
    last: int


class History:
    """The past of a database. Safe for use from several threads."""

    def __init__(self, db: Database) -> None:
        self._db = db

    # The tree at an epoch

    def node(self, node_id: int, epoch: int) -> Node | None:
        """The row of a node as it was, or None if there was none."""
        row = self._db.query_one(
            f"SELECT {_COLUMNS}, blocks FROM node WHERE id = ? AND born <= ?", (node_id, epoch)
        )
        if row is not None:
            return Node(*row)
        row = self._db.query_one(_PAST_NODE, (node_id, None, epoch))
        if row and row[1] <= epoch:
            return Node(*row)
        self.require(epoch)
        return None

    def require(self, epoch: int) -> None:
        """Raise PrunedError if an epoch is not kept.

        After a look that did not find something; or in the transaction that rests on a look.
        """
        if epoch > 0 and not self.is_kept(epoch):
            raise PrunedError(f"epoch {epoch} was pruned; it is not in the history any more")

    def is_kept(self, epoch: int) -> bool:
        """Whether the state of an epoch can be asked for: nothing of it was pruned."""
        return self._db.query_one("SELECT 1 FROM epoch WHERE seq = ?", (epoch,)) is not None

    def lookup(self, parent: int, name: bytes, epoch: int) -> int | None:
        """The number of the node that directory `parent` called `name`, or None."""
        row = self._db.query_one(
            "SELECT node, born FROM name WHERE parent = ? AND name = ? AND born <= ?",
            (parent, name, epoch),
        ) or self._db.query_one(
            "SELECT node, born FROM name_past WHERE parent = ? AND name = ? AND died > ?"
            " ORDER BY died LIMIT 1",
            (parent, name, epoch),
        )
        if row and row[1] <= epoch:
            return int(row[0])
        self.require(epoch)
        return None

    def find(self, path: bytes, epoch: int) -> Node | None:
        """The node at a path from the root, or None."""
        number: int | None = ROOT
        for part in path.split(b"/"):
            if part and number is not None:
                number = self.lookup(number, part, epoch)
        return None if number is None else self.node(number, epoch)

    def entries(
        self, parent: int, after: bytes, limit: int, epoch: int
    ) -> list[tuple[bytes, Node]]:
        """Up to `limit` entries of a directory in the order of their names, from after `after`."""
        rows = self._db.query(_ENTRIES, (parent, after, epoch, limit))
        self.require(epoch)
        rows.sort(key=itemgetter(0))
        return [(row[0], Node._make(row[1:])) for row in rows]

    def walk(self, parent: int, epoch: int) -> Iterator[tuple[bytes, Node]]:
        """All entries of a directory, a few at a time."""
        after = b""
        while batch := self.entries(parent, after, 256, epoch):
            yield from batch
            after = batch[-1][0]

    def run(self, node_id: int, run: int, epoch: int) -> bytes:
        """The packed ids of one run of a file's blocks, without trailing holes."""
        rows = self._db.query(_RUNS, (node_id, epoch, run, run))
        if not rows:
            self.require(epoch)
        return rows[0][1] if rows else b""

    def runs(self, node_id: int, epoch: int) -> list[tuple[int, bytes]]:
        """All runs of a file's blocks: (number, packed ids)."""
        rows = self._db.query(_RUNS, (node_id, epoch, INLINE_RUN + 1, _LAST_RUN))
        self.require(epoch)
        return [(row[0], row[1]) for row in rows]

    def run_from(self, node_id: int, run: int, epoch: int) -> tuple[int, bytes] | None:
        """The first run that there was from number `run` on, and its ids; or None."""
        row = self._db.query_one(f"{_RUNS} LIMIT 1", (node_id, epoch, run, _LAST_RUN))
        self.require(epoch)
        return (row[0], row[1]) if row else None

    def ids(self, node_id: int, epoch: int) -> list[bytes]:
        """The ids of all blocks of a file, in order, without its holes."""
        runs = self.runs(node_id, epoch)
        return [key for _, data in runs for key in split_ids(data) if key != HOLE]

    def inline(self, node_id: int, epoch: int) -> bytes | None:
        """The bytes of a tiny file that lay in its row, or None."""
        rows = self._db.query(_RUNS, (node_id, epoch, INLINE_RUN, INLINE_RUN))
        if not rows:
            self.require(epoch)
        return rows[0][1] if rows else None

    def xattrs(self, node_id: int, epoch: int) -> dict[bytes, bytes]:
        """A node's extended attributes, but for syncer's own."""
        rows = self._db.query(_XATTRS, (node_id, epoch))
        self.require(epoch)
        return {row[0]: row[1] for row in rows if not row[0].startswith(OWN_XATTRS)}

    # Moments

    def newest(self) -> int:
        """The newest epoch that has a row: it may still be open."""
        row = self._db.query_one("SELECT max(seq) FROM epoch")
        return int(row[0] or 0) if row else 0

    def time_ns(self, epoch: int) -> int:
        """When an epoch began; of one that is not kept, the one before it that is."""
        row = self._db.query_one(
            "SELECT time_ns FROM epoch WHERE seq <= ? ORDER BY seq DESC LIMIT 1", (epoch,)
        )
        return int(row[0]) if row else 0

    def epoch_at(self, time_ns: int) -> int:
        """The newest epoch that is kept of those that had begun by then; 0 if there is none.

        Times only grow with the numbers, so this halves the span of numbers until one is left:
        an index of times would cost every epoch, for a question that only people ask.
        """
        low, high = 0, self.newest()
        while low < high:
            middle = (low + high + 1) // 2
            if self.time_ns(middle) <= time_ns:
                low = middle
            else:
                high = middle - 1
        return self.kept_by(low)

    def kept_by(self, epoch: int) -> int:
        """The newest epoch up to this one that is kept; 0 if there is none."""
        row = self._db.query_one("SELECT max(seq) FROM epoch WHERE seq <= ?", (epoch,))
        return int(row[0] or 0) if row else 0

    def kept_from(self, epoch: int) -> int:
        """The oldest epoch from this one on that is kept, or this one."""
        row = self._db.query_one("SELECT min(seq) FROM epoch WHERE seq >= ?", (epoch,))
        return int(row[0] or epoch) if row else epoch

    def moments(self, after: int, limit: int) -> list[Moment]:
        """Up to `limit` epochs that are kept, behind `after`, oldest first."""
        rows = self._db.query(
            "SELECT seq, time_ns FROM epoch WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit)
        )
        return [Moment(*row) for row in rows]

    # Versions

    def versions(self, node_id: int) -> list[Version]:
        """A node's rows, oldest first. Whatever changes a content or an attribute makes one.

        Their counts of blocks are not told.
        """
        rows = self._db.query(
            f"SELECT died, {_COLUMNS} FROM node_past WHERE id = ? ORDER BY died", (node_id,)
        ) + self._db.query(f"SELECT {FOREVER}, {_COLUMNS} FROM node WHERE id = ?", (node_id,))
        return [Version(Node(*row[1:]), row[0]) for row in rows]

    def lives(self, parent: int, name: bytes) -> list[Life]:
        """The nodes that a name led to, oldest first."""
        rows = self._db.query(
            "SELECT node, born, died FROM name_past WHERE parent = ? AND name = ? ORDER BY died",
            (parent, name),
        ) + self._db.query(
            f"SELECT node, born, {FOREVER} FROM name WHERE parent = ? AND name = ?", (parent, name)
        )
        return [Life(*row) for row in rows]

    def versions_of_name(
        self, parent: int, name: bytes
    ) -> list[tuple[int, Version, Version | None]]:
        """The versions of what a name led to, oldest first: (epoch, version, the one before it).

        The epoch is the first that shows the version, of those that are kept.

        Those of each file that it led to while it did, since editors save by renaming a new file
        over it, and of the last one also those under its earlier names.
        """
        lives = self.lives(parent, name)
        found: list[tuple[int, Version, Version | None]] = []
        for life in lives:
            is_last = life is lives[-1]
            before: Version | None = None
            for version in self.versions(life.node):
                is_within = version.born < life.died and version.died > life.born
                if (is_within or is_last) and version.born < life.died and version.node.nlink:
                    since = version.born if is_last else max(version.born, life.born)
                    found.append((self.kept_from(since), version, before))
                before = version
        return found

    def removed(self, parent: int) -> list[Removed]:
        """The names in a directory that are gone, with what they led to; not what only moved."""
        rows = self._db.query(
            "SELECT past.name, past.node, max(past.died) - 1 FROM name_past AS past"
            " WHERE past.parent = ?1 AND NOT EXISTS"
            " (SELECT 1 FROM name WHERE name.parent = ?1 AND name.name = past.name)"
            " AND NOT EXISTS (SELECT 1 FROM node WHERE node.id = past.node AND node.nlink > 0)"
            " GROUP BY past.name ORDER BY past.name",
            (parent,),
        )
        return [Removed(*row) for row in rows]


class PastContents(Contents):
    """What files held at an epoch, for who only reads."""

    def __init__(self, history: History, epoch: int) -> None:
        self._history = history
        self._epoch = epoch

    def check(self) -> None:
        self._history.require(self._epoch)

    def run(self, node_id: int, run: int) -> bytes:
        return self._history.run(node_id, run, self._epoch)

    def run_from(self, node_id: int, run: int) -> tuple[int, bytes] | None:
        return self._history.run_from(node_id, run, self._epoch)

    def ids(self, node_id: int) -> list[bytes]:
        return self._history.ids(node_id, self._epoch)

    def inline(self, node_id: int) -> bytes | None:
        return self._history.inline(node_id, self._epoch)
