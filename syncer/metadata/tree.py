"""The metadata tree at "now": nodes, names and extended attributes, all versioned.

It keeps link counts, usage and the outbox true, and knows nothing about POSIX errors or handles:
`vfs` decides what a call means, this module records it. What a file holds is `Contents`'s part.
Every mutator runs in a transaction of its own or in the caller's (`transaction`).

A row that is changed for the first time in an epoch is copied to its "_past" twin with that epoch
as the end of its life; further changes in the same epoch overwrite it. So each epoch in which
something changed leaves one past row per changed row, and the present has tables of its own.

Mutators that end a file return the ids of blocks whose placement never became history, since they
were placed and removed within one epoch. The caller gives them to `Blocks.unname`.
"""

from __future__ import annotations

import stat
from contextlib import AbstractContextManager

from syncer.metadata.aliases import Aliases
from syncer.metadata.contents import Contents
from syncer.metadata.db import Database
from syncer.metadata.epochs import Epochs
from syncer.metadata.known import NAMED_NODE, NO_NODE, Known, Name
from syncer.metadata.node import ROOT, Node
from syncer.metadata.pins import Pins
from syncer.metadata.provisional import Provisional
from syncer.metadata.readings import Readings

#: Extended attributes with this prefix are not the file system's; see `moments`.
OWN_XATTRS = b"syncer."

#: Node numbers are taken from the database this many at a time; a crash skips the rest.
_NODE_BATCH = 1024
_MAX_BARE = 20_000

_NODE_COLUMNS = ", ".join(Node._fields)
_PAST_NODE = (
    "INSERT INTO node_past SELECT id, born, ?, mode, uid, gid, rdev, nlink, size, atime_ns,"
    " mtime_ns, ctime_ns, btime_ns, target, blocks FROM node WHERE id = ?"
)


class Tree:
    """Nodes and names at "now". Safe for use from several threads."""

    def __init__(self, db: Database, epochs: Epochs, contents: Contents) -> None:
        self._db = db
        self._epochs = epochs
        self._contents = contents
        #: Learns of every name that comes and goes.
        self.pins = Pins(db)
        self.provisional = Provisional(db)
        self._known = Known(db)
        self._readings = Readings()
        # These mirror rows and are guarded by db.lock.
        self._node_numbers = iter(range(0))
        #: Nodes that were made lately and never had an extended attribute.
        self._bare: set[int] = set()
        #: Counts the changes of names and nodes; a listing that spans calls compares it. Times of
        #: reading don't count.
        self.changes = 0
        #: Counts what may change where a path leads that led to a folder.
        self.folder_changes = 0
        self.aliases = Aliases()
        contents.count_blocks = self._count_blocks
        db.on_rollback(self.forget)

    def transaction(self) -> AbstractContextManager[None]:
        """Several changes as one. Holds the database's lock; no slow work inside."""
        return self._db.transaction()

    def make_root(self, uid: int, gid: int) -> None:
        """Make the root directory of a new repository."""
        now = self.now_ns()
        root = Node(
            ROOT, self._epochs.open, stat.S_IFDIR | 0o755, uid, gid, 0, 2, 0,
            now, now, now, now, None,
        )  # fmt: skip
        with self._db.transaction():
            self._insert(root)

    def now_ns(self) -> int:
        return self._epochs.now_ns()

    def note_time(self, time_ns: int) -> None:
        """The kernel told the time of a file; see `FileClock`."""
        self._epochs.file_clock.note(time_ns)

    def forget(self) -> None:
        """Drop all cached rows: a transaction was rolled back, or others changed the tables."""
        with self._db.lock:
            self._known.forget()
            self._bare.clear()
            self._contents.forget()
            # Numbers that a transaction took and lost are taken again.
            self._node_numbers = iter(range(0))
            self.changes += 1
            self.folder_changes += 1

    # Looking

    def node(self, node_id: int) -> Node | None:
        """The node of this number, or None."""
        node = self._known.node(node_id) or self._node(node_id)
        return self._readings.shown(node) if self._readings and node else node

    def _node(self, node_id: int) -> Node | None:
        with self._db.lock:
            # It may have become known while this thread waited.
            node = self._known.node(node_id)
            if node is None:
                sql = f"SELECT {_NODE_COLUMNS} FROM node WHERE id = ?"
                row = self._db.query_one(sql, (node_id,))
                if row is not None:
                    node = Node(*row)
                    self._known.put(node)
            return node

    def lookup(self, parent: int, name: bytes) -> int | None:
        """The number of the node that directory `parent` calls `name`, or None."""
        found = self._known.number((parent, name))
        return (self._number((parent, name)) if found is None else found) or None

    def _number(self, name: Name) -> int:
        if not self._db.lock.acquire(blocking=False):
            # Another thread's transaction is in progress.
            found = self._known.learn(name)
            if found is not None:
                return found
            self._db.lock.acquire()
        try:
            found = self._known.number(name)
            if found is None:
                # With the node, for which whoever looks for a name asks next.
                row = self._db.query_one(NAMED_NODE, name)
                # The kernel looks a name up, does not find it, and then makes it.
                found = NO_NODE if row is None else int(row[0])
                if row is not None and row[1] is not None:
                    self._known.put(Node._make(row[1:]))
                self._known.put_name(name, found)
            return found
        finally:
            self._db.lock.release()

    def entries(self, parent: int, after: bytes, limit: int) -> list[tuple[bytes, Node]]:
        """Up to `limit` entries of a directory in the order of their names, from after `after`."""
        rows = self._db.query(
            "SELECT name.name, node.* FROM name JOIN node ON node.id = name.node"
            " WHERE name.parent = ? AND name.name > ? ORDER BY name.name LIMIT ?",
            (parent, after, limit),
        )
        new = tuple.__new__  # `_make` counts the columns each time
        return self._readings.all_shown([(row[0], new(Node, row[1:])) for row in rows])

    def is_empty(self, directory: int) -> bool:
        return not self._db.query_one("SELECT 1 FROM name WHERE parent = ? LIMIT 1", (directory,))

    def names_of(self, node_id: int) -> list[tuple[int, bytes]]:
        """All (parent, name) that lead to a node."""
        return self._db.query("SELECT parent, name FROM name WHERE node = ?", (node_id,))

    def path_of(self, node_id: int) -> bytes:
        """One path of a node from the root, for messages; b"?" where it has none."""
        parts: list[bytes] = []
        while node_id != ROOT:
            row = self._db.query_one("SELECT parent, name FROM name WHERE node = ?", (node_id,))
            if row is None or len(parts) > 4096:
                return b"?"
            parts.append(row[1])
            node_id = row[0]
        return b"/" + b"/".join(reversed(parts))

    def totals(self) -> tuple[int, int]:
        """(nodes, bytes of files) that are there now."""
        row = self._db.query_one("SELECT nodes, file_bytes FROM usage")
        assert row is not None
        return row[0], row[1]

    # Nodes

    def create(
        self,
        parent: Node,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        *,
        rdev: int = 0,
        target: bytes | None = None,
    ) -> Node:
        """Make a node and its first name. The caller has seen that the name is free."""
        with self._db.transaction():
            now = self.now_ns()
            is_dir = stat.S_ISDIR(mode)
            size = len(target) if target is not None else 0
            number = self._next_number()
            node = Node(
                number, self._epochs.open, mode, uid, gid, rdev, 2 if is_dir else 1, size,
                now, now, now, now, target,
            )  # fmt: skip
            # First, so that whoever looks at the directory meanwhile waits: see `known`.
            self.touch_directory(parent.id, now, 1 if is_dir else 0)
            self._insert(node)
            self._contents.note_new(number)
            if len(self._bare) >= _MAX_BARE:
                self._bare.clear()
            self._bare.add(number)
            self._add_name(parent.id, name, number)
            return node

    def _next_number(self) -> int:
        number = next(self._node_numbers, None)
        if number is None:
            first = self._db.get_meta("next_node")
            self._db.set_meta("next_node", first + _NODE_BATCH)
            self._node_numbers = iter(range(first, first + _NODE_BATCH))
            number = next(self._node_numbers)
        return number

    def _insert(self, node: Node) -> None:
        self._db.execute(
            f"INSERT INTO node({_NODE_COLUMNS}) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            node,
        )
        self._db.execute("UPDATE usage SET nodes = nodes + 1")
        self._epochs.touch(node.id)
        self._known.put_new(node)

    def save(self, node: Node) -> None:
        """Make `node`, a changed copy, the present state of its row."""
        with self._db.transaction():
            before = self.node(node.id)
            assert before is not None
            self._change(before, node)

    def _change(self, before: Node, node: Node) -> None:
        """As `save`, in a transaction, of a node that is `before` now."""
        # First, so that whoever looks at it from now on waits: see `known`.
        self._known.put(before)
        self._keep_past(before)
        self._epochs.touch(node.id)
        if node.born != self._epochs.open or node.blocks != before.blocks:
            node = node._replace(born=self._epochs.open, blocks=before.blocks)
        self._overwrite(node)
        is_resized = node.size != before.size
        if not node.is_dir:
            # Also when it loses its last but one: the name that stays shows the old count.
            self.aliases.note(node.id, max(before.nlink, node.nlink), content=is_resized)
        if is_resized and node.is_file:
            self._db.execute(
                "UPDATE usage SET file_bytes = file_bytes + ?", (node.size - before.size,)
            )

    def take_stale_paths(self) -> list[bytes]:
        """All paths of files with several that this thread has changed since its last call."""
        return [path for number in self.aliases.take_stale() for path in self.paths_of(number)]

    def paths_of(self, node_id: int) -> list[bytes]:
        """All paths by which the kernel may know a node."""
        return [
            (b"" if parent == ROOT else self.path_of(parent)) + b"/" + name
            for parent, name in (*self.names_of(node_id), *self.aliases.hidden(node_id))
        ]

    def _overwrite(self, node: Node) -> None:
        self._db.execute(
            "UPDATE node SET born = ?, mode = ?, uid = ?, gid = ?, rdev = ?, nlink = ?, size = ?,"
            " atime_ns = ?, mtime_ns = ?, ctime_ns = ?, btime_ns = ?, target = ? WHERE id = ?",
            (*node[1:-1], node.id),
        )
        self._readings.drop(node.id)
        self._known.put(node)
        self.changes += 1

    def _keep_past(self, node: Node) -> None:
        """Before a change of a node's row: copy what it was to the past, if it was that before
        this epoch. The caller makes it one that was born in this epoch."""
        if node.born != self._epochs.open:
            self._db.execute(_PAST_NODE, (self._epochs.open, node.id))

    def _count_blocks(self, node_id: int, change: int) -> None:
        node = self.node(node_id)
        assert node is not None
        # Its past keeps the count that it had.
        self._keep_past(node)
        self._db.execute(
            "UPDATE node SET blocks = blocks + ?, born = ? WHERE id = ?",
            (change, self._epochs.open, node_id),
        )
        self._known.put(node._replace(born=self._epochs.open, blocks=node.blocks + change))
        self.changes += 1

    def note_reading(self, node_id: int, atime_ns: int) -> None:
        """A file was read: without a version, and in the table after `save_readings`."""
        self._readings.note(node_id, atime_ns)

    def save_readings(self) -> None:
        """Write the times of reading that are only remembered, in place."""
        self._readings.save(self._db, self._save_reading)

    def _save_reading(self, node_id: int) -> None:
        node = self.node(node_id)
        if node is not None:
            self._known.put(node)
            self._overwrite(node)

    def touch_directory(self, directory: int, now_ns: int, links: int = 0) -> None:
        """A directory's entries changed: its times, and `links` subdirectories more."""
        node = self.node(directory)
        assert node is not None
        nlink = node.nlink + links
        self._change(node, node._replace(mtime_ns=now_ns, ctime_ns=now_ns, nlink=nlink))

    # Names

    def link(self, node_id: int, parent: int, name: bytes) -> Node:
        """Give a node one more name; the caller has seen that the name is free."""
        with self._db.transaction():
            now = self.now_ns()
            node = self.node(node_id)
            assert node is not None
            self.touch_directory(parent, now)
            before, node = node, node.changed(nlink=node.nlink + 1, ctime_ns=now)
            self._change(before, node)
            self._add_name(parent, name, node_id)
            self.pins.arrived(node_id, parent, is_folder=False)
            return node

    def unlink(self, parent: int, name: bytes, *, keep: bool) -> list[bytes]:
        """Take a name away, and with its last name the node; returns the dropped block ids.

        With `keep` a node without a name stays as an orphan until `remove_orphan`: it is open.
        """
        with self._db.transaction():
            now = self.now_ns()
            node = self._take_name(parent, name)
            self.touch_directory(parent, now, -1 if node.is_dir else 0)
            links = 0 if node.is_dir else node.nlink - 1
            if links or keep:
                self._change(node, node.changed(nlink=links, ctime_ns=now))
                if not links:
                    self._db.execute("INSERT OR IGNORE INTO orphan(node) VALUES(?)", (node.id,))
                return []
            return self._remove_node(node)

    def rename(self, old_parent: int, old_name: bytes, new_parent: int, new_name: bytes) -> None:
        """Move a name; the caller has freed the new one, within the same transaction."""
        with self._db.transaction():
            now = self.now_ns()
            node = self._take_name(old_parent, old_name)
            self._add_name(new_parent, new_name, node.id)
            moved_directory = 1 if node.is_dir and old_parent != new_parent else 0
            self.touch_directory(old_parent, now, -moved_directory)
            if new_parent != old_parent:
                self.touch_directory(new_parent, now, moved_directory)
            self.pins.arrived(node.id, new_parent, is_folder=node.is_dir)
            self._change(node, node._replace(ctime_ns=now))

    def exchange(self, parent_a: int, name_a: bytes, parent_b: int, name_b: bytes) -> None:
        """Swap what two names lead to."""
        with self._db.transaction():
            now = self.now_ns()
            a = self._take_name(parent_a, name_a)
            b = self._take_name(parent_b, name_b)
            self._add_name(parent_a, name_a, b.id)
            self._add_name(parent_b, name_b, a.id)
            for node in (a, b):
                self.save(node.changed(ctime_ns=now))
            self.pins.arrived(a.id, parent_b, is_folder=a.is_dir)
            self.pins.arrived(b.id, parent_a, is_folder=b.is_dir)
            shift = int(b.is_dir) - int(a.is_dir) if parent_a != parent_b else 0
            self.touch_directory(parent_a, now, shift)
            if parent_a != parent_b:
                self.touch_directory(parent_b, now, -shift)

    def _add_name(self, parent: int, name: bytes, node_id: int) -> None:
        self._db.execute(
            "INSERT INTO name VALUES(?, ?, ?, ?)", (parent, name, node_id, self._epochs.open)
        )
        self._epochs.touch(parent, name)
        self._known.put_name((parent, name), node_id)
        self.changes += 1

    def _remove_name(self, parent: int, name: bytes) -> int:
        """Take a name away that is there; returns the number of the node that it led to."""
        key = (parent, name)
        node_id = self._known.number(key)
        born = self._epochs.open
        self._known.drop_name(key)
        if not node_id or not self._epochs.has_touched(key):
            sql = "SELECT node, born FROM name WHERE parent = ? AND name = ?"
            row = self._db.query_one(sql, key)
            assert row is not None
            node_id, born = row
        self.pins.left(node_id, parent)
        if born != self._epochs.open:
            self._db.execute(
                "INSERT INTO name_past VALUES(?, ?, ?, ?, ?)",
                (parent, name, node_id, born, self._epochs.open),
            )
        self._db.execute("DELETE FROM name WHERE parent = ? AND name = ?", key)
        self._epochs.touch(parent, name)
        self.changes += 1
        node = self.node(node_id)
        if node is None or node.is_dir:
            self.folder_changes += 1
        return node_id

    def _take_name(self, parent: int, name: bytes) -> Node:
        """As `_remove_name`; returns the node itself, which is there."""
        node = self.node(self._remove_name(parent, name))
        assert node is not None
        return node

    # Orphans

    def orphans(self) -> list[int]:
        """Files without a name."""
        return [node_id for (node_id,) in self._db.query("SELECT node FROM orphan")]

    def restore_name(self, parent: int, name: bytes, node_id: int) -> None:
        """Give a node, which may be an orphan, a name that it had."""
        with self._db.transaction():
            self._db.execute("DELETE FROM orphan WHERE node = ?", (node_id,))
            self.link(node_id, parent, name)

    def remove_orphan(self, node_id: int) -> list[bytes]:
        """Remove a file that has no name and is no longer open; returns the dropped ids."""
        with self._db.transaction():
            node = self.node(node_id)
            self._db.execute("DELETE FROM orphan WHERE node = ?", (node_id,))
            return self._remove_node(node) if node is not None and not node.nlink else []

    def _remove_node(self, node: Node) -> list[bytes]:
        dropped: list[bytes] = []
        if node.is_file:
            dropped = self._contents.end_all(node.id)
            self._contents.drop_patches(node.id)
        if node.id not in self._bare and self._db.query_one(
            "SELECT 1 FROM xattr WHERE node = ? LIMIT 1", (node.id,)
        ):
            self._end_rows("xattr", "node, name, born, {}, value", node.id)
        self._keep_past(node)
        self._db.execute("DELETE FROM node WHERE id = ?", (node.id,))
        self._db.execute(
            "UPDATE usage SET nodes = nodes - 1, file_bytes = file_bytes - ?",
            (node.size if node.is_file else 0,),
        )
        self._epochs.touch(node.id)
        self._readings.drop(node.id)
        self.aliases.forget(node.id)
        self._known.drop(node.id)
        return dropped

    def _end_rows(self, table: str, columns: str, node_id: int) -> None:
        """Move all rows of a node in `table` to the past, those of this epoch to nothing."""
        self._db.execute(
            f"INSERT INTO {table}_past SELECT {columns.format(self._epochs.open)} FROM {table}"
            " WHERE node = ? AND born != ?",
            (node_id, self._epochs.open),
        )
        self._db.execute(f"DELETE FROM {table} WHERE node = ?", (node_id,))

    # Extended attributes

    def xattr(self, node_id: int, name: bytes) -> bytes | None:
        # The kernel asks for security.capability of each file that is given another owner.
        if node_id in self._bare:
            return None
        row = self._db.query_one(
            "SELECT value FROM xattr WHERE node = ? AND name = ?", (node_id, name)
        )
        return row[0] if row else None

    def xattrs(self, node_id: int) -> list[bytes]:
        """The names of a node's extended attributes, but for syncer's own."""
        rows = self._db.query("SELECT name FROM xattr WHERE node = ?", (node_id,))
        return [row[0] for row in rows if not row[0].startswith(OWN_XATTRS)]

    def set_xattr(self, node_id: int, name: bytes, value: bytes | None) -> None:
        """Set an extended attribute, or remove it (None)."""
        with self._db.transaction():
            node = self.node(node_id)
            assert node is not None
            self._bare.discard(node_id)
            self._db.execute(
                "INSERT INTO xattr_past SELECT node, name, born, ?, value FROM xattr"
                " WHERE node = ? AND name = ? AND born != ?",
                (self._epochs.open, node_id, name, self._epochs.open),
            )
            if value is None:
                self._db.execute("DELETE FROM xattr WHERE node = ? AND name = ?", (node_id, name))
            else:
                self._db.execute(
                    "INSERT OR REPLACE INTO xattr VALUES(?, ?, ?, ?)",
                    (node_id, name, self._epochs.open, value),
                )
            self.save(node.changed(ctime_ns=self.now_ns()))
