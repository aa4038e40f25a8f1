"""When to ask for blocks that a reader has not asked for yet. Pure; one object per open handle."""

from __future__ import annotations

from syncer.codec import BLOCK_BYTES

#: The first wish, in blocks; every further one doubles the window.
_FIRST_WINDOW_BLOCKS = 2


class ReadAhead:
    """Notices that a reader is sequential and says which blocks to fetch next.

    The kernel's own read-ahead sends requests of 128 KiB out of order, so "sequential" means
    near the expected place, not at it. Reads of the file's very beginning count as the start of
    a sequence only with their second block, so that a look at a photo's header fetches no more.
    """

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._next_offset = 0
        self._window_blocks = 0
        self._asked_block = 0

    def wanted(self, offset: int, size: int) -> tuple[int, int] | None:
        """The blocks (first, last) to ask for after this read, or None."""
        block = offset // BLOCK_BYTES
        end = offset + size
        if abs(offset - self._next_offset) > BLOCK_BYTES:
            self._window_blocks = 0
            self._next_offset = end
        self._next_offset = max(self._next_offset, end)
        if not self._window_blocks:
            if end // BLOCK_BYTES == block and block == 0:
                return None
            self._window_blocks = _FIRST_WINDOW_BLOCKS
            self._asked_block = block
        last = block + self._window_blocks
        # Wishes come in halves of a window, so that they are few and large.
        if last - self._asked_block < max(1, self._window_blocks // 2):
            return None
        first = max(block, self._asked_block) + 1
        self._asked_block = last
        self._window_blocks = min(2 * self._window_blocks, self._max_blocks)
        return first, last
