"""Repairs of the tree that become part of the history, as any change: clones get them, too.

They are for damage that the history itself has. Damage of this database alone is repaired by
building it anew (`rebuild`), which loses nothing.

What has no place gets a name in `lost+found` in the root, `#` and its number. Contents are never
made up: what is not known reads as an error. Each transaction leaves the tree better than it was,
so a repair may be cut off anywhere, and run again.
"""

from __future__ import annotations

import stat
from collections.abc import Callable

from syncer.codec import BLOCK_BYTES, ID_BYTES, MAX_FILE_BYTES
from syncer.maintain.invariants import LINKS, ROWS, STRUCTURE
from syncer.metadata.connection import Row
from syncer.metadata.contents import INLINE_RUN, RUN_BLOCKS, Contents
from syncer.metadata.db import Database
from syncer.metadata.epochs import Epochs
from syncer.metadata.node import ROOT, Node
from syncer.metadata.tree import Tree

LOST_AND_FOUND = b"lost+found"
#: Stands for a block whose id is not known any more. Nothing has this id, so reading it is EIO.
UNKNOWN_BLOCK = b"\xff" * ID_BYTES
_DIR_MODE = stat.S_IFDIR | 0o755
_FILE_MODE = stat.S_IFREG | 0o644
#: Rows that one transaction repairs.
_BATCH = 500


class Mender(Tree):
    """A tree that can also be changed in ways that no call of a file system asks for.

    Only while nobody else changes anything, so not while the collection is mounted. Another tree
    of the same database does not see what this one does before it is told to `forget`.
    """

    def __init__(self, db: Database, epochs: Epochs) -> None:
        # Contents of its own: theirs tell one tree of the blocks that they count.
        super().__init__(db, epochs, Contents(db, epochs))
        self._repairs: dict[str, Callable[[Row], None]] = {
            "no root": self._mend_root,
            "name of nothing": lambda row: self._drop_name(row[0], row[1]),
            "name in nothing": self._mend_parent,
            "node without a name": lambda row: self._place(row[0]),
            "directory with names": self._mend_names,
            "cycle": self._mend_cycle,
            "content of nothing": self._mend_content,
            "attribute of nothing": lambda row: self._end_xattrs(row[0]),
            "impossible node": self._mend_node,
            "impossible name": self._mend_name,
            "impossible content": lambda row: self._mend_run(row[0], row[1]),
            "content beyond the end": lambda row: self._fit_size(row[0]),
            "tiny file of another size": self._mend_inline,
            "wrong link count": lambda row: self._save_changed(row[0], nlink=row[2]),
        }

    def mend(self, progress: Callable[[str, int, int], None]) -> None:
        """Repair all that the checks find; again until they find nothing new."""
        for check in (*ROWS[2:], *STRUCTURE, *ROWS, *LINKS):
            done = 0
            before: list[Row] = []
            # A cycle is cut in one place, which may mend what else was found.
            limit = 1 if check.kind in ("cycle", "no root") else _BATCH
            while rows := self._db.query(f"SELECT * FROM ({check.sql}) LIMIT {limit}"):
                if rows == before:
                    break
                with self._db.transaction():
                    for row in rows:
                        self._repairs[check.kind](row)
                before = rows
                done += len(rows)
                progress(f"repairing: {check.kind}", done, 0)

    # Names

    def _drop_name(self, parent: int, name: bytes) -> None:
        """Take a name away, whatever it leads to; the past keeps it."""
        self._remove_name(parent, name)

    def _place(self, number: int) -> None:
        """Give a node a name in lost+found."""
        folder = _lost_and_found(self)
        name = b"#%d" % number
        free, count = name, 0
        while self.lookup(folder, free) is not None:
            count += 1
            free = name + b"-%d" % count
        self._add_name(folder, free, number)
        self._epochs.touch(number)

    def _mend_root(self, row: Row) -> None:
        node = self.node(ROOT)
        if node is None:
            self.make_root(0, 0)
        else:
            self.save(node.changed(mode=_DIR_MODE, target=None, size=0))

    def _mend_parent(self, row: Row) -> None:
        """What has names in it is a directory: in the place of one that is gone, a new one."""
        number = row[0]
        node = self.node(number)
        if node is None:
            self._insert_node(number, _DIR_MODE, 2, 0)
            self._place(number)
            return
        rows = self._db.query("SELECT name, node FROM name WHERE parent = ?", (number,))
        for name, child in rows:
            self._drop_name(number, name)
            if self.node(child) is not None and not self.names_of(child):
                self._place(child)

    def _insert_node(self, number: int, mode: int, links: int, size: int) -> None:
        now = self.now_ns()
        self._insert(
            Node(number, self._epochs.open, mode, 0, 0, 0, links, size, now, now, now, now, None)
        )
        self._db.execute(
            "UPDATE usage SET file_bytes = file_bytes + ?", (size if stat.S_ISREG(mode) else 0,)
        )

    def _mend_names(self, row: Row) -> None:
        names = sorted(self.names_of(row[0]))
        for parent, name in names if row[0] == ROOT else names[1:]:
            self._drop_name(parent, name)

    def _mend_cycle(self, row: Row) -> None:
        """Cut a cycle at one of its directories, found by going up until one comes again."""
        number: int = row[0]
        seen: set[int] = set()
        while number not in seen:
            seen.add(number)
            number = self.names_of(number)[0][0]
        self._drop_name(*self.names_of(number)[0])
        self._place(number)

    def _mend_name(self, row: Row) -> None:
        parent, name = row[:2]
        child = self._remove_name(parent, name)
        if self.node(child) is not None and not self.names_of(child):
            self._place(child)

    # Nodes and contents

    def _save_changed(self, number: int, **values: int | None) -> None:
        node = self.node(number)
        assert node is not None
        self.save(node.changed(**values))

    def _mend_node(self, row: Row) -> None:
        """Attributes that can be, of the kind that what is there speaks for."""
        node = self.node(row[0])
        assert node is not None
        kind = stat.S_IFMT(node.mode)
        if self._db.query_one("SELECT 1 FROM name WHERE parent = ? LIMIT 1", (node.id,)):
            kind = stat.S_IFDIR
        elif node.target is not None:
            kind = stat.S_IFLNK
        elif kind == stat.S_IFLNK or kind not in _KINDS or self._has_content(node.id):
            kind = stat.S_IFREG
        changed = node.changed(
            mode=kind | stat.S_IMODE(node.mode & 0o7777),
            uid=_within(node.uid, (1 << 32) - 1),
            gid=_within(node.gid, (1 << 32) - 1),
            nlink=max(0, node.nlink),
            size=_within(node.size, MAX_FILE_BYTES),
            target=node.target if kind == stat.S_IFLNK else None,
        )
        # Not `save`, which would copy what can't be into the past.
        self._epochs.touch(node.id)
        self._overwrite(changed.changed(born=self._epochs.open))
        if changed.is_file and self._has_content(node.id):
            self._fit_size(node.id)

    def _has_content(self, number: int) -> bool:
        return bool(self._db.query_one("SELECT 1 FROM content WHERE node = ?", (number,)))

    def _mend_content(self, row: Row) -> None:
        if self.node(row[0]) is not None:
            # The past keeps it.
            self._contents.end(row[0], INLINE_RUN)
            return
        inline = self._contents.inline(row[0])
        self._insert_node(row[0], _FILE_MODE, 1, len(inline) if inline is not None else 0)
        self._fit_size(row[0])
        self._place(row[0])

    def _fit_size(self, number: int) -> None:
        """Make a file as long as its blocks reach: none of them is given up."""
        rows = self._db.query(
            "SELECT run, data FROM content WHERE node = ? ORDER BY run DESC LIMIT 1", (number,)
        )
        if rows and rows[0][0] >= 0:
            run, data = rows[0]
            last = data[-ID_BYTES:]
            found = self._db.query_one("SELECT size FROM block WHERE id = ?", (last,))
            count = run * RUN_BLOCKS + len(data) // ID_BYTES
            size = (count - 1) * BLOCK_BYTES + (found[0] if found else BLOCK_BYTES)
            self._save_changed(number, size=min(size, MAX_FILE_BYTES))

    def _mend_run(self, number: int, run: int) -> None:
        """Keep each id that is whole; of one that is not, a block that can't be read."""
        data = self._contents.run(number, run)[: RUN_BLOCKS * ID_BYTES]
        self._contents.end(number, run, run)
        if run >= 0 and data:
            rest = len(data) % ID_BYTES
            ids = data[: len(data) - rest] + (UNKNOWN_BLOCK if rest else b"")
            self._db.execute(
                "INSERT OR REPLACE INTO content VALUES(?, ?, ?, ?)",
                (number, run, self._epochs.open, ids),
            )
            self._epochs.touch(number)

    def _mend_inline(self, row: Row) -> None:
        number, length = row[:2]
        if self._db.query_one("SELECT 1 FROM content WHERE node = ? AND run >= 0", (number,)):
            self._contents.end(number, INLINE_RUN, INLINE_RUN)
        else:
            self._save_changed(number, size=length)

    def _end_xattrs(self, number: int) -> None:
        self._end_rows("xattr", "node, name, born, {}, value", number)
        self._epochs.touch(number)


_KINDS = (
    stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR,
    stat.S_IFBLK,
)  # fmt: skip


def _within(value: int, high: int) -> int:
    return min(max(0, value), high)


# Names for what has none


def _lost_and_found(tree: Tree) -> int:
    """The directory for what has no other place."""
    number = 0
    while True:
        name = LOST_AND_FOUND + (b"-%d" % number if number else b"")
        found = tree.lookup(ROOT, name)
        if found is None:
            root = tree.node(ROOT)
            assert root is not None
            made = tree.create(root, name, stat.S_IFDIR | 0o700, root.uid, root.gid)
            return made.id
        node = tree.node(found)
        if node is not None and node.is_dir:
            return found
        number += 1


def keep_block(tree: Tree, contents: Contents, block_id: bytes, size_bytes: int) -> list[bytes]:
    """A file in lost+found for a block that nothing names; returns what it names now."""
    with tree.transaction():
        folder = tree.node(_lost_and_found(tree))
        assert folder is not None
        name = b"block-" + block_id.hex().encode()
        if tree.lookup(folder.id, name) is not None:
            return []
        made = tree.create(folder, name, stat.S_IFREG | 0o600, folder.uid, folder.gid)
        placed, _ = contents.set_blocks(made.id, {0: block_id})
        node = tree.node(made.id)
        assert node is not None
        tree.save(node.changed(size=size_bytes))
        return placed


def mend_past(db: Database) -> None:
    """Give the past's rows lives that can be, in this database: history is not rewritten."""
    with db.transaction():
        last = "(SELECT coalesce(max(seq), 0) FROM epoch)"
        for table, key in _KEYS.items():
            past = f"{table}_past"
            same = " AND ".join(f"other.{column} = {past}.{column}" for column in key)
            now = " AND ".join(f"now.{column} = {past}.{column}" for column in key)
            db.execute(f"UPDATE {table} SET born = 1 WHERE born < 1")
            db.execute(f"UPDATE {table} SET born = {last} WHERE born > {last}")
            db.execute(f"UPDATE {past} SET born = 1 WHERE born < 1")
            born = f"(SELECT born FROM {table} AS now WHERE {now})"
            db.execute(
                f"UPDATE OR IGNORE {past} SET died = min({last}, coalesce({born}, {last}))"
                f" WHERE died > min({last}, coalesce({born}, {last}))"
            )
            before = (
                f"(SELECT max(died) FROM {past} AS other WHERE {same} AND other.died < {past}.died)"
            )
            db.execute(f"UPDATE {past} SET born = {before} WHERE born < {before}")
            # A life that is empty says nothing of any epoch.
            db.execute(f"DELETE FROM {past} WHERE born >= died")
        _mend_epochs(db)


_KEYS = {
    "node": ("id",),
    "name": ("parent", "name"),
    "content": ("node", "run"),
    "xattr": ("node", "name"),
}


def _mend_epochs(db: Database) -> None:
    db.execute("DELETE FROM epoch WHERE seq < 1")
    db.execute(
        "UPDATE epoch SET time_ns = latest FROM (SELECT seq AS number,"
        " max(time_ns) OVER (ORDER BY seq) AS latest FROM epoch)"
        " WHERE number = seq AND time_ns < latest"
    )
