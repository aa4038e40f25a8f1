"""Moments by name: named snapshots, and which epoch a person means.

A snapshot is a name for a closed epoch, so taking one costs a row, at any size of the collection.
It is kept as an extended attribute of the root directory, in a namespace that file system calls
can't reach: a row like any other, so it is in the next segment and every checkpoint, and each clone
has it, without a table and a format of its own.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest

from syncer import when
from syncer.errors import CorruptError, ExistsError, MissingError, UsageError
from syncer.metadata.db import Database
from syncer.metadata.epochs import Epochs
from syncer.metadata.history import History
from syncer.metadata.node import ROOT
from syncer.metadata.tree import OWN_XATTRS, Tree

_PREFIX = OWN_XATTRS + b"snapshot."
#: Behind all names with the prefix: "/" follows ".".
_BEHIND = OWN_XATTRS + b"snapshot/"
#: The epoch, and when the snapshot was taken in ns since 1970.
_VALUE = struct.Struct("<qq")
MAX_NAME_BYTES = 200


@dataclass(frozen=True)
class Snapshot:
    """A name for an epoch."""

    name: str
    epoch: int
    time_ns: int
    """When it was taken."""


class Moments:
    """What moments are called. Safe for use from several threads."""

    def __init__(
        self,
        db: Database,
        epochs: Epochs,
        tree: Tree,
        history: History,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._db = db
        self._epochs = epochs
        self._tree = tree
        self._history = history
        self._clock_ns = clock_ns
        #: Names that the kernel may still know as folders of what they were.
        self._removed: set[str] = set()

    def latest(self) -> int:
        """The newest epoch that is closed, and so will not change."""
        return self._epochs.open - 1

    def take(self, name: str) -> Snapshot:
        """Name the newest closed epoch. Raises UsageError, ExistsError."""
        key = _PREFIX + self._checked(name)
        with self._db.transaction():
            if self._tree.xattr(ROOT, key) is not None:
                raise ExistsError(f"there is a snapshot {name!r} already")
            if name in self._removed:
                raise ExistsError(
                    f"the snapshot {name!r} was removed during this mount, where programs may still"
                    " see it; take another name"
                )
            snapshot = Snapshot(name, self.latest(), self._clock_ns())
            self._tree.set_xattr(ROOT, key, _VALUE.pack(snapshot.epoch, snapshot.time_ns))
            return snapshot

    def _checked(self, name: str) -> bytes:
        encoded = name.encode(errors="surrogateescape")
        if not 0 < len(encoded) <= MAX_NAME_BYTES:
            raise UsageError(f"a snapshot's name has 1 to {MAX_NAME_BYTES} bytes")
        if "/" in name or name.startswith(".") or not name.isprintable() or name != name.strip():
            raise UsageError(
                f"{name!r} can't be a snapshot's name: it becomes one of a folder, so it has no"
                " '/', no dot or blank before it, and only letters that can be shown"
            )
        try:
            when.parse(name, self._clock_ns())
        except UsageError:
            return encoded
        raise UsageError(f"{name!r} can't be a snapshot's name: it is a moment by itself")

    def remove(self, name: str) -> Snapshot:
        """Take a snapshot's name away; what it showed stays until it is pruned.

        Raises MissingError.
        """
        with self._db.transaction():
            found = self.snapshot(name)
            if found is None:
                raise MissingError(f"there is no snapshot {name!r}")
            self._tree.set_xattr(ROOT, _PREFIX + name.encode(errors="surrogateescape"), None)
            self._removed.add(name)
            return found

    def named(self) -> list[Snapshot]:
        """All snapshots, oldest first."""
        rows = self._db.query(
            "SELECT name, value FROM xattr WHERE node = ? AND name >= ? AND name < ?",
            (ROOT, _PREFIX, _BEHIND),
        )
        found = [self._snapshot(row[0][len(_PREFIX) :], row[1]) for row in rows]
        return sorted(found, key=lambda snapshot: (snapshot.epoch, snapshot.time_ns))

    def snapshot(self, name: str) -> Snapshot | None:
        """The snapshot of that name, or None."""
        encoded = name.encode(errors="surrogateescape")
        value = self._tree.xattr(ROOT, _PREFIX + encoded)
        return None if value is None else self._snapshot(encoded, value)

    def _snapshot(self, encoded: bytes, value: bytes) -> Snapshot:
        name = encoded.decode(errors="surrogateescape")
        if len(value) != _VALUE.size:
            raise CorruptError(f"the snapshot {name!r} is damaged")
        return Snapshot(name, *_VALUE.unpack(value))

    def find(self, text: str) -> int:
        """The closed epoch that is meant. Raises UsageError, MissingError."""
        if snapshot := self.snapshot(text):
            return snapshot.epoch
        moment = when.parse(text, self._clock_ns())
        latest = self.latest()
        epoch = latest
        if moment.epoch is not None:
            epoch = moment.epoch
            if 0 < epoch <= latest and not self._history.is_kept(epoch):
                raise MissingError(f"epoch {epoch} was pruned; name a time, or another epoch")
        elif moment.time_ns is not None:
            epoch = min(self._history.epoch_at(moment.time_ns), latest)
        if not 0 < epoch <= latest:
            first = self._history.kept_from(1)
            raise MissingError(
                f"there is no history of {text!r}; its epochs are {first} to {latest}"
            )
        return epoch

    def is_fixed(self, text: str) -> bool:
        """Whether a name for which `find` has an answer will always have this one.

        That is so for snapshots and for times with their offset, but neither for those to come nor
        within the epoch that is still open.
        """
        if self.snapshot(text):
            return True
        moment = when.parse(text, self._clock_ns())
        if moment.time_ns is None or not when.is_written(text):
            return False
        is_over = moment.time_ns <= self._clock_ns()
        return is_over and self._history.epoch_at(moment.time_ns) <= self.latest()

    def listed(self, after: int, limit: int) -> list[tuple[str, int]]:
        """Up to `limit` closed epochs behind `after` with what `written` calls them, oldest first.

        One query for all: that a name means its epoch is seen from the one that follows.
        """
        moments = self._history.moments(after, limit + 1)
        now_ns, latest = self._clock_ns(), self.latest()
        found: list[tuple[str, int]] = []
        for moment, next_one in zip_longest(moments[:limit], moments[1:]):
            if moment is None or moment.epoch > latest:
                break
            end_ns = next_one.time_ns if next_one else now_ns + 1
            name = when.shortest(moment.time_ns, _is_within(min(end_ns, now_ns + 1)))
            found.append((name, moment.epoch))
        return found

    def written(self, epoch: int) -> str:
        """The time of an epoch, as a name by which `find` finds it again, now and later."""
        now_ns = self._clock_ns()

        def is_same(time_ns: int) -> bool:
            # Another epoch may still begin before a time that is yet to come.
            return time_ns <= now_ns and self._history.epoch_at(time_ns) == epoch

        return when.shortest(self._history.time_ns(epoch), is_same)


def _is_within(end_ns: int) -> Callable[[int], bool]:
    return lambda time_ns: time_ns < end_ns
