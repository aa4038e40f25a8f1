"""Times of reading that the table of nodes does not have yet.

With the first reading after a change, a file's time of reading moves. As a transaction, that would
cost more than opening and closing the file. So it is remembered, and shown with the node; the
committer's rounds write many at once, and each change of a node writes its own. Who is killed
loses those of the last seconds: such a file shows the reading before.
"""

from __future__ import annotations

from collections.abc import Callable

from syncer.metadata.db import Database
from syncer.metadata.node import Node

#: One transaction writes so many, while others wait for a few milliseconds.
_AT_ONCE = 200
#: Where so many are waiting, since no round succeeds, the oldest are let go of.
_MOST = 100_000


class Readings:
    """Safe for use from several threads, since each step is one of a dictionary's own.

    Two that meet at one node may lose one of two readings at the same time.
    """

    def __init__(self) -> None:
        self._times_ns: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._times_ns)

    def note(self, node_id: int, atime_ns: int) -> None:
        if len(self._times_ns) >= _MOST:
            self.drop(next(iter(self._times_ns), 0))
        self._times_ns[node_id] = atime_ns

    def drop(self, node_id: int) -> None:
        """The table has a time of reading that counts, or the node is gone."""
        self._times_ns.pop(node_id, None)

    def shown(self, node: Node) -> Node:
        """The node as callers see it, from its row."""
        atime_ns = self._times_ns.get(node.id)
        return node if atime_ns is None else node._replace(atime_ns=atime_ns)

    def all_shown(self, entries: list[tuple[bytes, Node]]) -> list[tuple[bytes, Node]]:
        """The same of a directory's entries."""
        if not self._times_ns:
            return entries
        return [(name, self.shown(node)) for name, node in entries]

    def save(self, db: Database, save: Callable[[int], None]) -> None:
        """Have `save` write the row of each node that has one, many in a transaction."""
        while numbers := list(self._times_ns)[:_AT_ONCE]:
            with db.transaction():
                for number in numbers:
                    save(number)
                    self.drop(number)
