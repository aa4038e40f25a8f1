"""One machine id, one data directory: a copy, or one that was restored from a backup, is noticed.

Each process that works with a data directory leaves a mark beside the chain of writers:

    writers/<machine>.<token>      empty; the token is random, and is noted in the database first

The next one finds a mark that its database knows, leaves its own and removes the former. A mark
that the database does not know is another data directory's under the same machine id, which began
later than this one was copied, or than it was backed up. Whoever finds one must take a new machine
id. As each look at the chain of writers lists the marks as well, this shows before each segment.
Behind it, the own mark is looked for: whoever goes on in its place removes that before looking
which segments there are. So if it still stands, they will see this one.

The order, and what a crash after each step leaves:

1. Look: a mark that is not known ends it here.
2. The new token is noted, beside the database too, and synced. Crash: a token that no mark has,
   which does no harm.
3. The mark is put. Crash: two marks, both known.
4. Look again: of two that begin at once, each sees the other's mark, and both go.
5. The former marks are removed. Crash: as after step 3.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable

from syncer.errors import AccessError, TemporaryError
from syncer.exchange.wire import log_folder
from syncer.exchange.writers import (
    Writers,
    mark_key,
    new_machine,
    note_machine,
    shares_numbers,
)
from syncer.metadata.db import Database
from syncer.remote.base import Remote

#: Former tokens that are remembered, as the remote's disk may be restored from a backup, too.
_REMEMBERED = 64


class Identity:
    """Whether this data directory may act under its machine's id. Used by one thread at a time."""

    def __init__(
        self,
        db: Database,
        remote: Remote,
        writers: Writers,
        note: Callable[[str], None] = lambda tokens: None,
    ) -> None:
        """`note` keeps the known tokens for a rebuilding of the database: see `journal`."""
        self._db = db
        self._remote = remote
        self._writers = writers
        self._note = note
        #: Whether the last `begin` could leave a mark.
        self.is_marked = False
        #: Whether the mark that was left last was gone when the next one was to be left.
        self.has_lost_mark = False

    def begin(self, *, needs_mark: bool = True) -> bool:
        """Leave a mark; False if another data directory has this machine's id.

        Who only reads needs none, and goes on without it where the remote has no room.
        """
        self._writers.look()
        if self.is_shared():
            return False
        machine: int = self._db.get_meta("machine")
        former = self._writers.marks(machine)
        known = self._known()
        self.has_lost_mark = bool(known) and known[-1] not in former
        token = secrets.token_hex(16)
        forgotten = [each for each in known if each not in former]
        tokens = [*forgotten[-_REMEMBERED:], *former, token]
        self._db.set_meta("marks", " ".join(tokens))
        self._db.sync()
        self._note(" ".join(tokens))
        self.is_marked = False
        # A follower may have no right to write; then it can't claim to be the writer either.
        with contextlib.suppress(AccessError):
            if not self._can_put(mark_key(machine, token), needs_mark):
                return True
            self.is_marked = True
            self._writers.look()
            if self.is_shared():
                return False
            for other in former:
                self._remote.delete(mark_key(machine, other))
        return True

    def _can_put(self, key: str, needs_mark: bool) -> bool:
        try:
            self._remote.put(key, b"")
        except TemporaryError:
            if needs_mark:
                raise
            return False
        return True

    def mark(self) -> str | None:
        """The key of the mark that was left last, or None if there is none."""
        known = self._known()
        return mark_key(self._db.get_meta("machine"), known[-1]) if known else None

    def own_keys(self) -> list[str]:
        """What the remote must have of this machine: its mark; and its newest segment, unless a
        checkpoint has made that superfluous."""
        newest: str = self._db.get_meta("parent_segment")
        is_own = newest.startswith(log_folder(self._db.get_meta("machine")))
        is_needed = is_own and self._db.get_meta("published") > self._db.get_meta("checkpoint")
        return [key for key in (self.mark(), newest if is_needed else "") if key]

    def renumber(self, name: str) -> None:
        """See to it that no other machine makes nodes with the same numbers. `name` is what others
        call this one."""
        machine: int = self._db.get_meta("machine")
        if shares_numbers(self._remote, machine):
            machine = new_machine(self._remote)
            self._db.set_meta("machine", machine)
            self._db.set_meta("marks", "")
            self.begin()
            note_machine(self._remote, machine, name, "follower", 0)

    def is_gone(self) -> bool:
        """Whether the last look at the chain has missed the mark.

        Only a remote that goes back to an older state loses it: who else removes it has left
        another.
        """
        known = self._known()
        machine: int = self._db.get_meta("machine")
        return self.is_marked and bool(known) and known[-1] not in self._writers.marks(machine)

    def is_shared(self) -> bool:
        """Whether the last look at the chain has found an unknown mark under this machine's id."""
        return not self._writers.marks(self._db.get_meta("machine")) <= set(self._known())

    def _known(self) -> list[str]:
        return str(self._db.get_meta("marks", "")).split()
