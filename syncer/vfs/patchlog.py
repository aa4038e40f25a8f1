"""Small rewrites of large blocks: when it pays to note the bytes instead of the whole block.

A program that changes 128 bytes in a block of 1 MiB and calls fsync, fifty times (a database, a
log), would write 50 MiB if each change made a new block. Instead the changed bytes become rows of
table `patch`, which one sync of the database makes power-safe; the open file keeps its buffers, and
the block is sealed once, when the file has been quiet for a while or the rows have become many.
After a crash the rows are laid over the file again.

Pure: it counts and decides; `openfile` acts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from syncer.codec import BLOCK_BYTES

#: More unlogged bytes than this are sealed.
MAX_PATCH_BYTES = 64 << 10
#: So much of one file is kept as patches before it is sealed.
_MAX_LOGGED_BYTES = 256 << 10
#: A patch must be this much smaller than the blocks that it saves.
_LEAST_SAVING = 8
_STEP_BYTES = 64


@dataclass
class PatchLog:
    """What has been written to one open file since its blocks were sealed."""

    logged_bytes: int = 0
    """In rows of table `patch` already."""
    logged_since_ns: int = 0
    """When the first of these rows was made."""
    unlogged: list[tuple[int, bytes]] = field(default_factory=list)
    """(offset, data) of writes that lie in buffers only, in order."""
    _unlogged_bytes: int = 0
    _is_complete: bool = True

    def note(self, offset: int, data: memoryview, before: bytes) -> None:
        """Remember a write into a buffer, unless it is too much to be worth it.

        `before` is what the buffer had in this place, b"" if that is not known. The kernel sends
        whole pages of which a few bytes have changed: only those are kept.
        """
        if not self._is_complete:
            return
        start, end = _changed(before, data)
        self._unlogged_bytes += end - start
        if self._unlogged_bytes > MAX_PATCH_BYTES:
            self._is_complete = False
            self.unlogged.clear()
        elif end > start:
            self.unlogged.append((offset + start, bytes(data[start:end])))

    def forget_block(self, index: int) -> None:
        """Block `index` was sealed: its bytes are safe."""
        kept = [(at, data) for at, data in self.unlogged if at // BLOCK_BYTES != index]
        self._unlogged_bytes -= sum(len(data) for _, data in self.unlogged)
        self._unlogged_bytes += sum(len(data) for _, data in kept)
        self.unlogged = kept

    def pays(self, blocks_bytes: int) -> bool:
        """Whether noting the bytes beats sealing blocks of `blocks_bytes` altogether."""
        return (
            self._is_complete
            and self._unlogged_bytes * _LEAST_SAVING <= blocks_bytes
            and self.logged_bytes + self._unlogged_bytes <= _MAX_LOGGED_BYTES
        )

    def is_older_than(self, age_ns: int, now_ns: int) -> bool:
        """Whether the oldest row is; so it is as well if the clock was set back, or it might stay
        for years."""
        return self.logged_bytes > 0 and not 0 <= now_ns - self.logged_since_ns <= age_ns

    def logged(self, now_ns: int) -> None:
        """The unlogged writes have become rows."""
        if not self.logged_bytes:
            self.logged_since_ns = now_ns
        self.logged_bytes += self._unlogged_bytes
        self._unlogged_bytes = 0
        self.unlogged.clear()


def _changed(before: bytes, after: memoryview) -> tuple[int, int]:
    """The span of `after` outside of which it is as before, to some 64 bytes."""
    start, end = 0, len(after)
    if len(before) != end:
        return start, end
    while start < end:
        high = min(end, start + _STEP_BYTES)
        if before[start:high] != after[start:high]:
            break
        start = high
    while end > start:
        low = max(start, end - _STEP_BYTES)
        if before[low:end] != after[low:end]:
            break
        end = low
    return start, end
