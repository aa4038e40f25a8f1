"""Nodes and names that are known, so that a look at them waits for nobody else's work.

Each transaction holds the database's lock, and each of its statements lets go of the interpreter:
between threads that upload, fetch and hash, one of 1 ms may hold the lock for 50. So what it has
not touched is read without the lock. For what it has, others wait: else the kernel could be told of
what was there before, and believe it for long, after it has been told of the change.
"""

from __future__ import annotations

import threading
from threading import get_ident
from typing import TypeVar

from syncer.errors import SyncerError
from syncer.metadata.db import Database
from syncer.metadata.node import Node

#: Bindings: a `Name`. A row has the number that the name leads to, and the node's columns.
NAMED_NODE = (
    "SELECT name.node, node.* FROM name LEFT JOIN node ON node.id = name.node"
    " WHERE name.parent = ? AND name.name = ?"
)
_MAX_CACHED = 20_000
#: In the place of a node's number: there is no such name.
NO_NODE = 0

Name = tuple[int, bytes]
"""The number of a directory, and what it calls an entry."""
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Known:
    """Mirrors rows of `node` and `name`. Safe for use from several threads.

    Two layers: what was true when the last transaction ended, and what the one in progress has
    touched, which only its thread sees. Whoever puts or drops holds the database's lock.

    What is not known may still be learned without that lock, from the rows that SQLite has
    committed, but not what a transaction since then has touched.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        # A value of None is on its way out, and as good as not known.
        self._nodes: dict[int, Node | None] = {}
        self._names: dict[Name, int | None] = {}
        #: Directories that were empty when they became known, and of whose names all are known
        #: since: what is not among these is not there.
        self._whole: set[int] = set()
        #: What the transaction in progress has changed or read; None: dropped.
        self._touched_nodes: dict[int, Node | None] = {}
        self._touched_names: dict[Name, int | None] = {}
        self._lock = threading.Lock()
        # It guards the next ones, and every change of what is known; it comes after all others.
        #: What transactions have touched since the last commit.
        self._recent_nodes: set[int] = set()
        self._recent_names: set[Name] = set()
        self._commits = 0
        #: Others have changed the tables since the last commit, nobody knows where.
        self._is_blind = False
        db.on_end(self._settle)
        db.on_commit(self._note_commit)

    def node(self, number: int) -> Node | None:
        """The node; None: take the lock, and if it is still not known, look into the table."""
        if number in self._touched_nodes:
            return self._touched_nodes[number] if self._db.owner == get_ident() else None
        return self._nodes.get(number)

    def number(self, name: Name) -> int | None:
        """What a name leads to, or NO_NODE; None: as with `node`."""
        if name in self._touched_names:
            return self._touched_names[name] if self._db.owner == get_ident() else None
        found = self._names.get(name)
        return NO_NODE if found is None and name[0] in self._whole else found

    def learn(self, name: Name) -> int | None:
        """What the table has for a name: its node's number, or NO_NODE. The node is known then.

        None: that can't be told without the database's lock.
        """
        commits = self._commits
        if self._is_touched(name):
            return None
        try:
            row = self._db.committed.query_one(NAMED_NODE, name)
        except SyncerError:
            # Who looks into the table under the lock finds it as well, and tells.
            return None
        with self._lock:
            if self._is_blind or self._commits != commits or self._is_touched(name):
                return None
            if row is None:
                self._remember_name(name, NO_NODE)
                return NO_NODE
            number: int = row[0]
            # A name without a node is damage, for others to find.
            if row[1] is None or number in self._recent_nodes or number in self._touched_nodes:
                return None
            self._remember_node(Node._make(row[1:]))
            self._remember_name(name, number)
            return number

    def _is_touched(self, name: Name) -> bool:
        """Whether what is committed may not be what a name leads to."""
        return name in self._touched_names or name in self._recent_names

    def put(self, node: Node) -> None:
        """This is the node's row."""
        if self._db.owner is None:
            with self._lock:
                self._remember_node(node)
        else:
            self._touched_nodes[node.id] = node

    def put_new(self, node: Node) -> None:
        """A transaction makes the node; nobody else knows its number yet."""
        self._touched_nodes[node.id] = node
        if node.is_dir:
            with self._lock:
                if len(self._whole) >= _MAX_CACHED:
                    self._whole.clear()
                self._whole.add(node.id)

    def put_name(self, name: Name, number: int) -> None:
        """The name leads there, or (NO_NODE) nowhere."""
        if self._db.owner is None:
            with self._lock:
                self._remember_name(name, number)
        else:
            self._touched_names[name] = number

    def drop(self, number: int) -> None:
        """A transaction removes the node."""
        self._touched_nodes[number] = None

    def drop_name(self, name: Name) -> None:
        """A transaction removes the name, or is about to have it lead elsewhere."""
        self._touched_names[name] = None

    def _settle(self, is_kept: bool) -> None:
        """A transaction has ended; what it did holds from now on, or did not happen."""
        nodes, names = self._touched_nodes, self._touched_names
        with self._lock:
            if is_kept:
                _take_over(self._nodes, nodes)
                _take_over(self._names, names)
                self._make_room()
                self._recent_nodes.update(nodes)
                self._recent_names.update(names)
            # Not before: until then, who looks for it waits for the lock.
            nodes.clear()
            names.clear()

    def _note_commit(self) -> None:
        with self._lock:
            self._commits += 1
            self._is_blind = False
            self._recent_nodes.clear()
            self._recent_names.clear()

    def forget(self) -> None:
        """Others changed the tables, or a transaction did not happen: nothing is known."""
        with self._lock:
            self._is_blind = True
            # First, as in `_make_room`.
            self._whole.clear()
            for known in (self._nodes, self._names, self._touched_nodes, self._touched_names):
                known.clear()

    # With `_lock`

    def _remember_node(self, node: Node) -> None:
        self._nodes[node.id] = node
        self._make_room()

    def _remember_name(self, name: Name, number: int) -> None:
        self._names[name] = number
        self._make_room()

    def _make_room(self) -> None:
        """Let go of what has been known for longest."""
        while len(self._nodes) > _MAX_CACHED:
            del self._nodes[next(iter(self._nodes))]
        while len(self._names) > _MAX_CACHED:
            name = next(iter(self._names))
            # First: who finds no such name looks whether all of the directory's are known.
            self._whole.discard(name[0])
            del self._names[name]


def _take_over(known: dict[_Key, _Value | None], touched: dict[_Key, _Value | None]) -> None:
    known.update(touched)
    if None in touched.values():
        for key, value in touched.items():
            if value is None:
                del known[key]
