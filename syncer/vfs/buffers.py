"""The newest bytes of an open file's blocks, and how much those of all files take."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from syncer.codec import BLOCK_BYTES

#: A tiny file may take this part of the room that is left: the smallest find some longest.
_INLINE_SHARE = 512
#: How large a part of a file's buffers go together where room is short.
_LOWEST_OF = 8


@dataclass(slots=True)
class Buffer:
    """If `base` is set, only [start, end) is known so far; the rest is in the block `base`."""

    data: bytearray
    base: bytes | None = None
    start: int = 0
    end: int = 0
    is_new: bool = False
    """There is a hole below it."""

    @property
    def is_whole(self) -> bool:
        """Whether it reaches from the block's beginning to its end."""
        return self.start == 0 and self.end == BLOCK_BYTES

    def covers(self, start: int, end: int) -> bool:
        """Whether the bytes from `start` to `end` are known without the block below."""
        return self.base is None or (self.start <= start and end <= self.end)

    def takes(self, start: int, end: int) -> bool:
        """Whether these bytes can be written without leaving a gap of unknown ones."""
        return self.base is None or (start <= self.end and end >= self.start)

    def known(self, start: int, length: int) -> bytes:
        """What it has in this place; b"" if it is not complete."""
        return b"" if self.base is not None else bytes(self.data[start : start + length])

    def write(self, start: int, data: memoryview) -> int:
        """Write bytes that it takes; returns by how much the buffer has grown."""
        before, end = len(self.data), start + len(data)
        if start > before:
            self.data.extend(bytes(start - before))
        self.data[start:end] = data
        self.start, self.end = min(start, self.start), max(end, self.end)
        return len(self.data) - before

    def complete(self, below: bytearray) -> int:
        """Lay what is known over the content of the block below; returns the growth."""
        before = len(self.data)
        if len(below) < self.end:
            below.extend(bytes(self.end - len(below)))
        below[self.start : self.end] = self.data[self.start : self.end]
        self.data, self.base = below, None
        self.start, self.end = 0, len(below)
        return len(below) - before


@dataclass
class Shared:
    """What all open files share. Safe for use from several threads."""

    inline_limit_bytes: int
    """A file of at most this size lies in the database: no block file, no object of its own."""
    inline_total_bytes: int
    """What all tiny files together may take there before others become blocks."""
    buffered_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Guards `buffered_bytes`."""

    def fits_inline(self, size_bytes: int, lying_bytes: Callable[[], int]) -> bool:
        """Whether a file of that size belongs in the database, where so much lies already."""
        if size_bytes > self.inline_limit_bytes:
            return False
        return size_bytes * _INLINE_SHARE <= self.inline_total_bytes - lying_bytes()

    def count(self, change_bytes: int) -> None:
        """Note that buffers have grown or shrunk."""
        with self.lock:
            self.buffered_bytes += change_bytes


class Buffers(dict[int, Buffer]):
    """The buffers of one open file, by the numbers of their blocks."""

    def __init__(self, shared: Shared) -> None:
        super().__init__()
        self._shared = shared

    def drop(self, index: int) -> None:
        """Forget what one holds, if it is there."""
        buffer = self.pop(index, None)
        if buffer is not None:
            self._shared.count(-len(buffer.data))

    def whole_front(self) -> list[int]:
        """The lowest ones, up to the first that is not whole."""
        return list(itertools.takewhile(lambda index: self[index].is_whole, sorted(self)))

    def lowest(self) -> list[int]:
        """Some of the lowest ones, at least one."""
        return sorted(self)[: len(self) // _LOWEST_OF + 1]
