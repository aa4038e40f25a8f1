"""Reading the blocks of a data directory that another process may be at work in.

Nothing of it is changed, neither files nor rows. What is local is read and verified as ever; a file
that goes meanwhile, because the other process evicts it, is a miss. What has to be fetched is kept
in memory only: the room on the disk is the other process's to give.
"""

from __future__ import annotations

import cachetools

from syncer.blocks.cache import Cache
from syncer.blocks.fetch import Fetcher
from syncer.blocks.store import Blocks
from syncer.codec import Buffer
from syncer.metadata.db import Database

#: What is fetched lies in memory, but for the beginnings of blocks.
KEPT_BLOCKS = 64


class BlockReader(Blocks):
    """Blocks for who only reads. May be used from several threads."""

    def __init__(self, db: Database, cache: Cache, fetcher: Fetcher, seed: int) -> None:
        super().__init__(db, cache, fetcher, seed)
        self._unkept = cachetools.LRUCache(KEPT_BLOCKS)

    def _keep(self, block_id: bytes, content: Buffer) -> Buffer:
        with self._unkept_lock:
            self._unkept[block_id] = content
        return content

    def set_aside(self, block_id: bytes, *, is_lost: bool = False) -> None:
        """Its owner does so when it comes across the damage."""

    def _touch(self, block_id: bytes) -> None:
        """The order of use is that of its owner."""
