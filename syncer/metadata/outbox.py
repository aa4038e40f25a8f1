"""What the remote does not know yet, as `status` and those who wait for it ask.

Whether there is anything, and how old, is the first key of table `outbox`. How much it is has to be
counted, which after a large import takes a second: that is done on a view of its own, beside all
other work, and a large figure stands for a while.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from syncer.errors import SyncerError
from syncer.metadata.db import Database

log = logging.getLogger(__name__)

#: Of so many changes a count stands for a second, of twice as many for two. It takes about 30 ms.
_CHANGES_PER_SECOND = 20_000

_COUNT = """
SELECT count(*), count(DISTINCT node.id) FROM outbox LEFT JOIN node
ON node.id = outbox.node AND outbox.name = x'' AND node.mode & 61440 = 32768
"""


@dataclass(frozen=True)
class Unpublished:
    """How much there is that the remote does not know."""

    changes: int
    """Of nodes and names, each once for every epoch in which it changed."""
    files: int
    """Regular files that changed."""


class Outbox:
    """Questions to table `outbox`, which `Epochs` fills. Safe for use from several threads."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._counting = threading.Lock()
        # The lock guards these; who has it may take the database's.
        self._counted = Unpublished(0, 0)
        self._counted_until = 0.0

    def oldest(self) -> int | None:
        """The oldest epoch of which the remote lacks something, or None if it knows all."""
        row = self._db.query_one("SELECT min(epoch) FROM outbox")
        return None if row is None else row[0]

    def is_empty_up_to(self, epoch: int) -> bool:
        """Whether the remote has all changes up to an epoch."""
        oldest = self.oldest()
        return oldest is None or oldest > epoch

    def count(self) -> Unpublished:
        """How much it is; where it is very much, how much it was some seconds ago."""
        if self.oldest() is None:
            return Unpublished(0, 0)
        with self._counting:
            if time.monotonic() >= self._counted_until:
                try:
                    self._counted = self._count()
                except SyncerError as error:
                    # A full disk or damage, which `status` is to tell of.
                    log.debug("what is not published can't be counted: %s", error)
                stands_seconds = self._counted.changes // _CHANGES_PER_SECOND
                self._counted_until = time.monotonic() + stands_seconds
            return self._counted

    def _count(self) -> Unpublished:
        with self._db.snapshot() as reader:
            ((changes, files),) = reader.query(_COUNT)
        return Unpublished(changes, files)

    def changed_keys(self) -> Iterator[tuple[int, bytes]]:
        """What changed, each once: (node, name), with name b"" for the node itself."""
        with self._db.snapshot() as reader:
            yield from reader.query("SELECT DISTINCT node, name FROM outbox")
