"""The committer: every few seconds, what was written becomes power-safe and an epoch ends.

One round, and what a power cut after each step leaves:

1. buffers of open files are sealed     their blocks may be lost: rows that name them are marked
                                        (block.synced = 0) and checked after an unclean start
2. the epoch is closed                  nothing new; changes from here on belong to the next one
3. block files are synced, marked so    the rows of this epoch may still be lost, not mixed up
4. the database is synced               everything up to the closed epoch is safe
5. the epoch is in a local segment      a round that lacks it is made up for by the next one;
   file, see `exchange.journal`         only the rebuilding of a damaged database needs it
6. what is superseded is unlinked       a file without a row, which the next sweep removes

fsync takes steps 1, 3 and 4 for one file, at once.

Step 5 reads all rows of the epoch once more, and packs them: as much work as a program's own calls
that made them. So the thread's rounds take the steps from there on when programs have become quiet,
or some seconds later.

A file whose buffers can't be sealed at once, because that needs a block from the server, or room,
or because one of its writers waits for these, is left to a later round: it must not keep the others
from becoming power-safe.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable

from syncer.blocks.store import Blocks
from syncer.errors import SyncerError
from syncer.metadata.db import Database
from syncer.metadata.epochs import Epochs
from syncer.transfer.giveway import GiveWay
from syncer.vfs.calls import Vfs

log = logging.getLogger(__name__)

#: The WAL is copied into the database when it is larger than this.
_WAL_BYTES = 16 << 20
#: A round waits no longer than that for what open files need.
_PATIENCE_SECONDS = 1.0
#: While programs are busy, one looks that often whether they still are.
_LOOK_SECONDS = 0.05
#: The part of the time between two rounds for which programs are left alone.
_LONGEST_PART = 0.75


class Committer:
    """The thread `syncer-committer`. `round` may also be called by others, one at a time."""

    def __init__(
        self,
        db: Database,
        epochs: Epochs,
        blocks: Blocks,
        vfs: Vfs,
        interval_seconds: float,
        on_closed: Callable[[], None],
        journal: Callable[[int], None] = lambda closed: None,
    ) -> None:
        """`journal` writes the local segment files up to a closed epoch."""
        self._db = db
        self._epochs = epochs
        self._blocks = blocks
        self._vfs = vfs
        self._interval_seconds = interval_seconds
        self._on_closed = on_closed
        self._journal = journal
        self._stopping = threading.Event()
        self._round_lock = threading.Lock()
        self._gives_way = GiveWay(lambda: db.ended, lambda: True)
        #: Of the thread that holds the lock: when it leaves what does not go on.
        self._patience = threading.local()
        self._thread = threading.Thread(target=self._run, name="syncer-committer", daemon=True)
        #: The error of the last round in words, "" if it went well; `status` shows it.
        self.error = ""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and take one last round.

        Raises what kept that from its end, or some files from being saved: what was written to
        these since they were last saved is lost then.
        """
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()
        # What needs neither room nor the server is safe before that is waited for. If this fails,
        # the round most likely tells why.
        with self._round_lock, contextlib.suppress(SyncerError):
            self._make_safe()
        unsaved = self.round()
        paths = {number: self._vfs.files.path_of(number) for number in unsaved}
        for number, path in paths.items():
            if path is not None:
                count = sum(other is not None for other in paths.values())
                raise type(unsaved[number])(
                    f"{count} {'file' if count == 1 else 'files'} could not be saved"
                    f" ({os.fsdecode(path)}: {unsaved[number]})"
                )

    def _run(self) -> None:
        due = time.monotonic() + self._interval_seconds
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            is_safe = self._has_done(self._begin)
            due = time.monotonic() + self._interval_seconds
            if is_safe:
                self._has_done(self._end)

    def _begin(self) -> None:
        with self._round_lock:
            self._make_safe()

    def _end(self) -> None:
        self._let_pass()
        with self._round_lock:
            self._finish()
        self._on_closed()

    def _has_done(self, step: Callable[[], object]) -> bool:
        """Take a part of a round; False if it failed, of which `error` tells then."""
        try:
            step()
            return True
        except SyncerError as error:
            # The next round tries again; status shows it meanwhile.
            self.error = str(error)
            log.warning("changes could not be made power-safe: %s", error)
        except Exception:
            self.error = "changes could not be made power-safe; see the log"
            log.exception("the committer's round failed")
        return False

    def _let_pass(self) -> None:
        """Wait while programs are busy, but not for long."""
        if self._db.query_one("SELECT 1 FROM patch LIMIT 1"):
            # Small rewrites have no history: those that go with the epoch that has just ended may
            # be gone in a moment.
            return
        until = time.monotonic() + _LONGEST_PART * self._interval_seconds
        while (now := time.monotonic()) < until and self._gives_way.waits(now):
            if self._stopping.wait(_LOOK_SECONDS):
                return

    def is_out_of_patience(self) -> bool:
        """Whether the calling thread is at a round, and has waited long enough for open files."""
        return time.monotonic() > getattr(self._patience, "until", float("inf"))

    def _flush_what_goes_on(self, *, seal: bool) -> dict[int, SyncerError]:
        self._patience.until = time.monotonic() + _PATIENCE_SECONDS
        try:
            return self._vfs.files.flush_all(seal=seal)
        finally:
            del self._patience.until

    def round(self, *, seal: bool = False) -> dict[int, SyncerError]:
        """Make everything that was written so far power-safe, and close the epoch.

        With `seal`, small rewrites become blocks as well, to be uploaded. Waits for what open
        files need first, and holds up no other round by that. Returns why the files that could
        not be saved were not, by their nodes.
        """
        reasons = self._vfs.files.flush_all(seal=seal)
        with self._round_lock:
            left = self._make_safe(seal=seal)
            self._finish()
        self._on_closed()
        # The second try was but a short one.
        return {number: reasons.get(number, error) for number, error in left.items()}

    def _make_safe(self, *, seal: bool = False) -> dict[int, SyncerError]:
        """Steps 1 to 4. Returns what `flush_all` does."""
        self._vfs.hidden.let_go()
        left = self._flush_what_goes_on(seal=seal)
        # What was saved now shows since it was written; nobody has to be told again.
        self._vfs.take_stale_paths()
        newest = self._epochs.close()
        self._blocks.sync_all()
        if newest != self._db.get_meta("durable"):
            self._db.set_meta("durable", newest)
        self._db.sync()
        return left

    def _finish(self) -> None:
        """The other steps. Where another round has taken them meanwhile, little is left to do."""
        try:
            self._journal(self._db.get_meta("durable"))
        finally:
            self._blocks.collect()
            self._blocks.save_order()
            self._vfs.files.save_readings()
            if self._db.wal_bytes() > _WAL_BYTES:
                self._db.checkpoint()
        self.error = ""
