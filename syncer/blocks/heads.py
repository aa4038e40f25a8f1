"""The first pieces of blocks that are not local: what a look at a photo's header needs.

They are kept in memory only, up to a limit, and never outlive the process: on the disk there are
whole blocks and nothing else. A block's content never changes, so a head is never out of date.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import cachetools

from syncer.blocks.fetch import Fetcher
from syncer.codec import PIECE_BYTES, Buffer

#: What is fetched of a block: as much as the kernel asks for at once when a program begins to read.
HEAD_BYTES = 2 * PIECE_BYTES
#: All heads together.
_MAX_BYTES = 24 << 20


class Heads:
    """Beginnings of blocks, verified. May be used from several threads."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self._lock = threading.Lock()
        # Guarded by the lock.
        self._heads: cachetools.LRUCache[bytes, Buffer] = cachetools.LRUCache(_MAX_BYTES, len)

    def read_into(self, block_id: bytes, offset: int, buffer: memoryview) -> bool:
        """Fill `buffer` from the block's content at `offset`; False if not all of it is here."""
        with self._lock:
            head = self._heads.get(block_id)
        end = offset + len(buffer)
        if head is None or end > len(head):
            return False
        buffer[:] = memoryview(head)[offset:end]
        return True

    def fetch(self, block_id: bytes, is_local: Callable[[], bool], *, urgent: bool) -> None:
        """Have the head of a block here, unless the block is local or on its way as a whole.

        Raises what `Fetcher.download_head` raises.
        """

        def work() -> Buffer:
            head = self._fetcher.download_head(block_id, HEAD_BYTES // PIECE_BYTES, urgent=urgent)
            with self._lock:
                self._heads[block_id] = head
            return head

        if self._find(block_id) is not None or is_local() or self._fetcher.is_under_way(block_id):
            return
        # Not the block's own name: who wants all of it must not get this.
        self._fetcher.once(b"head" + block_id, work, urgent=urgent)

    def _find(self, block_id: bytes) -> Buffer | None:
        with self._lock:
            return self._heads.get(block_id)

    def drop(self, block_id: bytes) -> None:
        """The whole block is local now."""
        with self._lock:
            self._heads.pop(block_id, None)
