"""What an unclean end left behind is made whole, before anything is served.

After kill -9 all files are as they were written, and only have to be synced. After a power cut,
which shows in the boot id, the blocks that were not synced are read and compared with their ids,
and files that lost some go back to what they were (`metadata.undo` has the protocol). The cost is
that of a few seconds' writes, whatever the size of the collection.

A crash during it leaves the database as it was, and the next start does it again.
"""

from __future__ import annotations

import logging

from syncer.blocks.store import Blocks
from syncer.metadata.contents import recount_blocks
from syncer.metadata.db import Database
from syncer.metadata.tree import Tree

log = logging.getLogger(__name__)


def recover(db: Database, blocks: Blocks, tree: Tree, *, power_was_cut: bool) -> None:
    """Bring every file back to a state that is whole, and make all that is left power-safe.

    Before any thread is started and any file opened.
    """
    damaged = blocks.damaged_unsynced() if power_was_cut else set()
    if damaged:
        with db.transaction():
            restored = blocks.undo.restore(damaged)
            recount_blocks(db, restored.files)
            blocks.take_back(restored.needed)
            blocks.give_up(restored.unneeded)
        tree.forget()
        log.info("the last seconds before a power cut: %d files went back", len(restored.files))
        for node_id in restored.lost:
            log.error("node %d, %r, has lost blocks", node_id, tree.path_of(node_id))
    blocks.sync_all()
    db.sync()
