"""When to ask for blocks that a reader has not asked for yet. Pure; one object per open handle."""

from __future__ import annotations

from syncer.codec import BLOCK_BYTES

#: The first wish, in blocks; every further one doubles the window.
_FIRST_WINDOW_BLOCKS = 2
#: The least that the kernel asks for at once, when it reads ahead.
_REQUEST_BYTES = 128 << 10
#: How far from its turn a request of a sequence may come.
_REORDERED_BYTES = 4 << 20


class ReadAhead:
    """Notices that a reader is sequential and says which blocks to fetch next.

    The kernel's own read-ahead sends requests that are served out of order, so "sequential" means
    near the expected place, not at it. Who leaps is asked for nothing before the next read goes on
    from there; what lies before the expected place was asked for already. Reads of the file's very
    beginning count as the start of a sequence only with their second block, so that a look at a
    photo's header fetches no more.
    """

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._next_offset = 0
        self._window_blocks = 0
        self._asked_block = 0

    def wanted(self, offset: int, size: int, lead_bytes: int = 0) -> tuple[int, int] | None:
        """The blocks (first, last) to ask for after this read, or None.

        With `lead_bytes`, a long line is idle unless so much is asked for at once. Then the window
        is as large from the first read on that goes on where the last one ended.
        """
        block = offset // BLOCK_BYTES
        end = offset + size
        goes_on = 0 < self._next_offset and abs(offset - self._next_offset) <= _REQUEST_BYTES
        lead_blocks = min(lead_bytes // BLOCK_BYTES, self._max_blocks) if goes_on else 0
        near_bytes = _REORDERED_BYTES if self._window_blocks else BLOCK_BYTES
        if abs(offset - self._next_offset) > near_bytes:
            self._window_blocks = 0
            self._next_offset = end
            return None
        if self._window_blocks and end <= self._next_offset:
            return None
        self._next_offset = max(self._next_offset, end)
        if not self._window_blocks:
            if end < BLOCK_BYTES and not lead_blocks:
                return None
            self._window_blocks = _FIRST_WINDOW_BLOCKS
            self._asked_block = block
        self._window_blocks = max(self._window_blocks, lead_blocks)
        last = block + self._window_blocks
        # Wishes come in halves of a window, so that they are few and large.
        if last - self._asked_block < max(1, self._window_blocks // 2):
            return None
        first = max(block, self._asked_block) + 1
        self._asked_block = last
        self._window_blocks = min(2 * self._window_blocks, self._max_blocks)
        return first, last
