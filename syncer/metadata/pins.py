"""Which files are to stay local always: pins, and what they reach.

A pin names a node, so it stays with it through renames. What lies below a pinned folder is pinned
by where it is, which is looked up when somebody asks: pinning a folder of 100,000 files is one row.

Two things follow from a pin, and the rest of the program sees to them: that the blocks of what it
reaches are marked in table `block` (`PinnedBlocks`), and that they are local (`PinKeeper`). Whoever
changes what the pins reach notes it here, in the same transaction:

- `want`: something has come into their reach. The keeper goes through it soon.
- `loosen`: something may have left it. The keeper goes through all pins, sooner or later, and
  takes the marks from what it does not find.

`meta.pins_stale` says that either has been noted and not been seen to yet, for the next start.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from syncer.metadata.db import Database

_MAX_CACHED = 20_000


class Pins:
    """The pins of one machine. Safe for use from several threads; `db.lock` guards its fields."""

    def __init__(self, db: Database) -> None:
        self._db = db
        #: Something was noted; for the keeper to wait on.
        self.noted = threading.Event()
        self._nodes: dict[int, None] = {}
        #: Folder -> whether it is pinned, itself or by one above it.
        self._folders: dict[int, bool] = {}
        self._wanted: dict[int, None] = {}
        self._is_stale = False
        self._load()
        self._is_loose = self._is_stale
        db.on_rollback(self._reload)

    def _load(self) -> None:
        rows = self._db.query("SELECT node FROM pin ORDER BY seq")
        self._nodes = dict.fromkeys(row[0] for row in rows)
        self._folders.clear()
        self._is_stale = bool(self._db.get_meta("pins_stale", 0))

    def _reload(self) -> None:
        if self._nodes or self._is_stale:
            self._load()

    # What is pinned

    def tops(self) -> list[int]:
        """The nodes that were pinned themselves, the first pinned first."""
        with self._db.lock:
            return list(self._nodes)

    def is_top(self, number: int) -> bool:
        """Whether a node was pinned itself."""
        return number in self._nodes

    def is_pinned(self, number: int) -> bool:
        """Whether a node was pinned, or lies below a pinned folder under any of its names."""
        return self.top_of(number) is not None

    def top_of(self, number: int) -> int | None:
        """The pinned node because of which this one is pinned; None: it is not."""
        if not self._nodes:
            return None
        with self._db.lock:
            if number in self._nodes:
                return number
            for (parent,) in self._db.query("SELECT parent FROM name WHERE node = ?", (number,)):
                if self._is_folder_pinned(parent):
                    while parent not in self._nodes:
                        parent = self._parent(parent)
                    return int(parent)
            return None

    def _is_folder_pinned(self, folder: int) -> bool:
        way: list[int] = []
        at: int | None = folder
        while at is not None and at not in self._nodes and at not in self._folders:
            way.append(at)
            at = self._parent(at)
        is_pinned = at is not None and (at in self._nodes or self._folders[at])
        if len(self._folders) > _MAX_CACHED:
            self._folders.clear()
        self._folders.update(dict.fromkeys(way, is_pinned))
        return is_pinned

    def _parent(self, folder: int) -> int | None:
        row = self._db.query_one("SELECT parent FROM name WHERE node = ?", (folder,))
        return row[0] if row else None

    # Changing it

    def add(self, numbers: Iterable[int]) -> None:
        """Pin these nodes. The caller sees to what they reach, or calls `loosen`."""
        with self._db.transaction():
            self._db.execute_many(
                "INSERT OR IGNORE INTO pin(node) VALUES(?)", [(number,) for number in numbers]
            )
            self._set_stale()
            self._load()

    def remove(self, numbers: Iterable[int]) -> None:
        """Take these pins away."""
        with self._db.transaction():
            self._db.execute_many(
                "DELETE FROM pin WHERE node = ?", [(number,) for number in numbers]
            )
            self.loosen()
            self._load()

    def inherit(self, old: int, new: int) -> None:
        """A file takes another's place, as when an editor saves: it takes its pin, too."""
        if old in self._nodes:
            with self._db.transaction():
                self._db.execute("UPDATE OR REPLACE pin SET node = ? WHERE node = ?", (new, old))
                self.want(new)
                self.loosen()
                self._load()

    def arrived(self, number: int, folder: int, *, is_folder: bool) -> None:
        """A node that is there already has got a name in a folder."""
        if not self._nodes:
            return
        if is_folder:
            self._folders.clear()
        if self._is_folder_pinned(folder) or number in self._nodes:
            self.want(number)

    def left(self, number: int, folder: int) -> None:
        """A node loses a name in a folder; in the transaction, before it does."""
        if self._nodes and (number in self._nodes or self._is_folder_pinned(folder)):
            self.loosen()

    def want(self, number: int) -> None:
        """What is at and below a node has come into the reach of the pins."""
        with self._db.lock:
            self._wanted[number] = None
            self._set_stale()

    def loosen(self) -> None:
        """Something may have left the reach of the pins, or may not be local that should be."""
        with self._db.lock:
            self._is_loose = True
            self._set_stale()

    def _set_stale(self) -> None:
        if not self._is_stale:
            self._db.set_meta("pins_stale", 1)
            self._is_stale = True
        self.noted.set()

    def forget(self) -> None:
        """Others have changed the tables."""
        with self._db.lock:
            self._load()

    # Seeing to it

    @property
    def is_loose(self) -> bool:
        """Whether all pins have to be gone through."""
        return self._is_loose

    def tighten(self) -> None:
        """All pins are gone through from now on: what is noted by now is part of that."""
        with self._db.transaction():
            self._is_loose = False
            self._wanted.clear()
            # A removed node's number is never used again.
            self._db.execute("DELETE FROM pin WHERE node NOT IN (SELECT id FROM node)")
            self._load()

    def take_wanted(self) -> list[int]:
        """What has come into reach; forgets it."""
        with self._db.lock:
            wanted, self._wanted = list(self._wanted), {}
            return wanted

    def settle(self) -> None:
        """Everything that was taken has been seen to; what was noted since has not."""
        with self._db.transaction():
            if self._is_stale and not self._is_loose and not self._wanted:
                self._db.set_meta("pins_stale", 0)
                self._is_stale = False
