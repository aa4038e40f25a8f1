"""The remote has gone back to an older state: a backup was restored, or its disk was rolled back.

How a writer notices, whenever the remote may have been away (`Exchange.publish_once`), and behind
each segment:

- the mark of this data directory is gone (`identity`);
- no checkpoint and no segments lead to what it has published (`Publisher.adopt`);
- the claim of its own generation is gone: it does not know who the writer is any more.

What is gone then is here: the history in the database, and the blocks that were not evicted. These
count as clean, so they must not be evicted before it is known which of them are gone as well.

The order, and what a crash after each step leaves:

1. What is noticed is noted, and synced: from now on nothing is evicted. A gap in the history makes
   a new checkpoint due, and nothing is published before it. Crash: the next start goes on here.
2. The remote's blocks are listed, and the clean ones that it lacks become dirty. Crash: once more.
3. What is clean now may be evicted again. Crash: likewise, or with a cut, step 2 once more.
4. When these blocks are uploaded, the checkpoint is made; the note of the gap goes. Crash: another
   checkpoint is made.

Without its claim, a writer can't go on: others may write by now. It keeps all it has, evicts
nothing and says so, and `process/stranded` exports what it has published as well. If the claim
turns up again, as when the right disk is back, it goes on with step 2.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from syncer.blocks.doubt import Doubt
from syncer.metadata.db import Database
from syncer.remote.base import BLOCK_FOLDERS, Remote

log = logging.getLogger(__name__)

RedoBlocks = Callable[[int, dict[str, int]], None]
"""Given the first byte of ids and the names and sizes of all such objects: see `Blocks.redo`."""

GAP = "gap"
LOST_ROLE = "lost role"
_TEXTS = {
    GAP: "the server has gone back to an older state; what it lacks is uploaded again",
    LOST_ROLE: "the server has gone back to a state in which this computer was not the writer; save"
    " what only this one has with syncer export, then make a new clone",
}


class Setback:
    """What a writer does about it. Used by one thread at a time, but for `text`."""

    def __init__(
        self,
        db: Database,
        remote: Remote,
        redo_blocks: RedoBlocks = lambda first_byte, sizes: None,
    ) -> None:
        self._db = db
        self._remote = remote
        self._doubt = Doubt(db)
        self._redo_blocks = redo_blocks

    @property
    def text(self) -> str:
        """What is wrong, for people; "" if nothing is."""
        kind: str = self._db.get_meta("setback", "")
        return _TEXTS[kind or GAP] if kind or self._doubt.is_on() else ""

    @property
    def has_gap(self) -> bool:
        """Whether only a new checkpoint makes the remote's history whole again."""
        return bool(self._db.get_meta("setback", "") == GAP)

    @property
    def has_lost_role(self) -> bool:
        """Whether the remote has lost that this machine is the writer."""
        return bool(self._db.get_meta("setback", "") == LOST_ROLE)

    def note(self, kind: str = "") -> None:
        """Step 1, with GAP, with LOST_ROLE, or where it is not known that history is gone."""
        former: str = self._db.get_meta("setback", "")
        if self._doubt.is_on() and kind in ("", former):
            return
        log.info("%s", _TEXTS[kind or GAP])
        with self._db.transaction():
            self._doubt.begin()
            if kind:
                self._db.set_meta("setback", kind)
        self._db.sync()

    def note_role(self) -> None:
        """This machine's claim is there."""
        if self._db.get_meta("setback", "") == LOST_ROLE:
            self._db.set_meta("setback", GAP)

    def compare(self) -> None:
        """Steps 2 and 3, if they are due. Raises what reaching the remote raises."""
        if not self._doubt.is_on():
            return
        for first_byte, folder in enumerate(BLOCK_FOLDERS):
            sizes = {entry.name: entry.size_bytes for entry in self._remote.list(folder)}
            self._redo_blocks(first_byte, sizes)
        self._doubt.end()

    def may_checkpoint(self) -> bool:
        """Whether the remote has what a checkpoint names, as far as is known."""
        return not self.has_gap or not self._doubt.has_redone()

    def end(self) -> None:
        """Step 4: there is a new checkpoint."""
        if self.has_gap:
            self._db.set_meta("setback", "")
