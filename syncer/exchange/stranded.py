"""The changes of a displaced writer, which the repository's history will not have.

The writer of now deletes what its own history does not name from the remote: to it, blocks that
only stranded changes name are garbage, though the remote may have them. So their local copies are
the only ones: they count as dirty from then on, which keeps them from eviction, and nothing is
uploaded any more. One that was evicted before is fetched again, while it is still there.
"""

from __future__ import annotations

import itertools
import logging

from syncer.blocks.store import Blocks
from syncer.codec import HOLE, split_ids
from syncer.errors import CorruptError, MissingError
from syncer.exchange.outgoing import changes
from syncer.exchange.rows import CONTENT, MAX_EPOCH
from syncer.metadata.db import Database

log = logging.getLogger(__name__)

_BATCH_BLOCKS = 256


def count(db: Database) -> int:
    """The changes that are not published: of files and names, and files with small rewrites."""
    row = db.query_one(
        "SELECT (SELECT count(*) FROM outbox) + (SELECT count(DISTINCT node) FROM patch)"
    )
    assert row is not None
    return int(row[0])


def is_whole(db: Database) -> bool:
    """Whether an unclean end has left nothing that is yet to be made whole: that makes changes."""
    return not db.query("SELECT 1 FROM orphan UNION ALL SELECT 1 FROM provisional")


def is_nothing(db: Database) -> bool:
    """Whether nobody would see anything of what is not published, such as writes to a removed file.

    Not while there are such files: their removal is one more change.
    """
    if db.query("SELECT 1 FROM patch UNION ALL SELECT 1 FROM orphan"):
        return False
    with db.snapshot() as reader:
        return next(changes(reader, db.get_meta("published") + 1, MAX_EPOCH), None) is None


def forget(db: Database) -> None:
    """Be a follower from now on. In the caller's transaction."""
    db.execute("DELETE FROM outbox")
    db.set_meta("role", "follower")


def keep_blocks(db: Database, blocks: Blocks) -> None:
    """Have all blocks that only stranded changes name stay here; nothing is uploaded meanwhile.

    Raises what fetching raises, but for what can be had nowhere, which is logged. Do it again then.
    """
    wanted = iter(_only_here(db, blocks))
    lost = 0
    while batch := list(itertools.islice(wanted, _BATCH_BLOCKS)):
        for block_id in blocks.make_dirty(batch):
            try:
                blocks.prefetch(block_id)
            except (MissingError, CorruptError) as error:
                log.debug("%s", error)
            lost += len(blocks.make_dirty([block_id]))
    if lost:
        log.error("%d blocks of changes that are not published can't be kept here", lost)


def _only_here(db: Database, blocks: Blocks) -> set[bytes]:
    """The blocks that stranded changes name and nothing published, as far as they are not dirty."""
    published: int = db.get_meta("published")
    with db.snapshot() as reader:
        found: set[bytes] = set()
        before = {HOLE}
        for table, version in changes(reader, published + 1, MAX_EPOCH):
            if table is CONTENT and version[1] >= 0:
                (found if version[2] > published else before).update(split_ids(version[4]))
        found = {block_id for block_id in found - before if not blocks.is_dirty(block_id)}
        # Most often there are none: then not all contents need be looked at.
        if found:
            for (data,) in reader.query(
                "SELECT data FROM content WHERE run >= 0 AND born <= ?1 UNION ALL"
                " SELECT data FROM content_past WHERE run >= 0 AND born <= ?1",
                (published,),
            ):
                found.difference_update(split_ids(data))
    return found
