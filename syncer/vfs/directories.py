"""Open directories: listings that go on over many calls while entries come and go."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from syncer.metadata.node import Node
from syncer.metadata.tree import Tree
from syncer.vfs.files import Files

#: Entries read from the database at once; a call of the kernel's takes from 25 to some 900.
_ROWS = 128
#: More looks than a listing itself causes, in the time of one request of the kernel's.
_FEW_LOOKS = 8


#: Up to so many entries, from after a name on; fewer only at the end.
Entries = Callable[[bytes, int], Sequence[tuple[bytes, Node]]]


@dataclass
class _Listing:
    """An open directory. Entries are numbered in the order in which they are shown: that numbered
    `n` has the name `shown[n]`, for seekdir. Who goes back and finds other names gets new numbers
    for them, so those that a program noted before stay true until it begins anew."""

    entries: Entries
    dots: Callable[[], tuple[Node, Node]]
    shown: list[bytes] = field(default_factory=list)
    #: What comes after number `rows_at`, and the number that the first of it gets.
    rows: Sequence[tuple[bytes, Node]] = ()
    rows_at: int = 0
    number: int = 0
    #: Whether nothing comes after the rows.
    is_end: bool = False
    #: Of the tree, before the look at the rows. The kernel takes for true what it is told by a
    #: request that began after a change, so none may get rows from before it.
    changes: int = -1
    #: How often anybody had looked at a file when the kernel asked last, and whether who reads
    #: this listing looks at the files before reading on.
    looks: int | None = None
    is_looked_at: bool = False

    def number_rows(self) -> None:
        """Give new rows their numbers: again those that they had, if all are as they were."""
        again = self.shown[self.rows_at : self.rows_at + len(self.rows)]
        as_before = again == [name for name, _ in self.rows[: len(again)]]
        self.number = self.rows_at if as_before else len(self.shown)


class Directories:
    """The table of open directories. Different handles may be used by different threads.

    The order is that of the names, and what comes next is looked up by the last name delivered.
    So entries that come and go meanwhile neither hide others nor make them show twice.
    """

    def __init__(self, tree: Tree, files: Files) -> None:
        self._tree = tree
        self._files = files
        self._listings: dict[int, _Listing] = {}
        self._numbers = itertools.count(1)

    def open(self, node_id: int, entries: Entries | None = None) -> int:
        """Open a directory; returns a handle for the other methods.

        `entries` tells what is in it, where that is not only what the tree knows.
        """
        entries = entries or partial(self._tree.entries, node_id)
        return self._add(_Listing(entries, lambda: self._dots(node_id)))

    def open_past(self, entries: Entries, node: Node) -> int:
        """Open a directory of another moment, whose entries someone else knows; as `open`."""
        return self._add(_Listing(entries, lambda: (node, node)))

    def _add(self, listing: _Listing) -> int:
        handle = next(self._numbers)
        self._listings[handle] = listing
        return handle

    def rewind(self, handle: int) -> None:
        """The reading begins anew, and so do the numbers."""
        self._listings[handle].shown.clear()

    def read(self, handle: int, offset: int, limit: int) -> Sequence[tuple[bytes, Node]]:
        """Up to `limit` entries from number `offset` on, without "." and ".."."""
        listing = self._listings[handle]
        offset = min(offset, len(listing.shown))
        if listing.changes != self._tree.changes or listing.rows_at != offset:
            listing.rows, listing.is_end = (), False
        if not listing.rows and not listing.is_end:
            listing.changes = self._tree.changes
            after = listing.shown[offset - 1] if offset else b""
            listing.rows = listing.entries(after, _ROWS)
            listing.is_end = len(listing.rows) < _ROWS
            listing.rows_at = offset
            listing.number_rows()
        return self._files.all_overlaid(listing.rows[:limit])

    def is_looked_at(self, handle: int, looks: int) -> bool:
        """Whether who reads a listing looks at its files before reading on, as far as can be seen.

        To be asked once in each request; `looks` is how often anybody has looked at a file by now.
        """
        listing = self._listings[handle]
        if listing.looks is not None and looks > listing.looks + _FEW_LOOKS:
            listing.is_looked_at = True
        listing.looks = looks
        return listing.is_looked_at

    def number(self, handle: int) -> int:
        """The number of the first entry of the last `read`."""
        return self._listings[handle].number

    def delivered(self, handle: int, names: Sequence[bytes]) -> None:
        """These entries, the first of the last `read`, have reached the kernel."""
        listing = self._listings[handle]
        listing.shown.extend(names[len(listing.shown) - listing.number :])
        listing.rows = listing.rows[len(names) :]
        listing.number += len(names)
        listing.rows_at = listing.number

    def dots(self, handle: int) -> tuple[Node, Node]:
        """The nodes of "." and ".."."""
        return self._listings[handle].dots()

    def _dots(self, node_id: int) -> tuple[Node, Node]:
        node = self._tree.node(node_id)
        if node is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        names = self._tree.names_of(node.id)
        parent = self._tree.node(names[0][0]) if names else None
        return node, parent or node

    def release(self, handle: int) -> None:
        """The handle is closed."""
        self._listings.pop(handle, None)
