"""Calls about stretches of open files: holes, allocation, and copies that share blocks."""

from __future__ import annotations

import contextlib
import errno
import os

from syncer.codec import BLOCK_BYTES, HOLE
from syncer.vfs.openfile import OpenFile

#: Modes of fallocate(2).
_KEEP_SIZE = 1
_PUNCH_HOLE = 2
_ZERO_RANGE = 16
#: Blocks that change hands in one transaction.
_BATCH_BLOCKS = 256
#: What one call copies at most where blocks can't be shared; callers ask again for the rest.
_COPY_BYTES = 8 << 20


def allocate(file: OpenFile, mode: int, offset: int, length: int) -> None:
    """fallocate: extend, punch or zero. Room is not set aside: what is all zeros takes none.

    EINVAL for an impossible range, EOPNOTSUPP for modes that move content.
    """
    if offset < 0 or length <= 0:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if mode not in (0, _KEEP_SIZE, _PUNCH_HOLE | _KEEP_SIZE, _ZERO_RANGE, _ZERO_RANGE | _KEEP_SIZE):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    with file.lock:
        if mode & (_PUNCH_HOLE | _ZERO_RANGE):
            _zero(file, offset, min(offset + length, file.size))
        if not mode & _KEEP_SIZE and offset + length > file.size:
            file.truncate(offset + length)


def _zero(file: OpenFile, offset: int, end: int) -> None:
    """Make a stretch within the file read as zeros: whole blocks as holes, the rest as bytes."""
    if end <= offset:
        return
    first, last = -(-offset // BLOCK_BYTES), end // BLOCK_BYTES
    if first > last:
        file.write(memoryview(bytes(end - offset)), offset)
        return
    if first * BLOCK_BYTES > offset:
        file.write(memoryview(bytes(first * BLOCK_BYTES - offset)), offset)
    if end > last * BLOCK_BYTES:
        file.write(memoryview(bytes(end - last * BLOCK_BYTES)), last * BLOCK_BYTES)
    while (index := file.next_data(first)) is not None and index < last:
        batch = range(index, min(index + _BATCH_BLOCKS, last))
        file.replace_blocks(dict.fromkeys(batch, HOLE), file.size, None)
        first = batch.stop


def seek(file: OpenFile, offset: int, whence: int) -> int:
    """lseek with SEEK_DATA and SEEK_HOLE, to a block; ENXIO behind the end."""
    with file.lock:
        if not 0 <= offset < file.size:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        index = offset // BLOCK_BYTES
        if whence == os.SEEK_DATA:
            found = file.next_data(index)
            if found is None:
                raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
            return max(offset, found * BLOCK_BYTES)
        if whence == os.SEEK_HOLE:
            while file.next_data(index) == index:
                index += 1
            return min(max(offset, index * BLOCK_BYTES), file.size)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def copy(source: OpenFile, offset: int, target: OpenFile, position: int, length: int) -> int:
    """copy_file_range: returns how many bytes were copied, 0 at the end of the source.

    Whole blocks at the same place within their files' blocks are shared: nothing is read,
    fetched or uploaded. The kernel has seen to it that ranges of one file do not overlap.
    """
    with contextlib.ExitStack() as locks:
        # Both, in one order for all: what is shared must not lose its place meanwhile.
        for file in sorted({source, target}, key=lambda file: file.node_id):
            locks.enter_context(file.lock)
        source.flush(seal=True)
        length = min(length, source.size - offset)
        start = offset % BLOCK_BYTES
        if length <= 0:
            return 0
        if start != position % BLOCK_BYTES:
            return _copy_bytes(source, offset, target, position, min(length, _COPY_BYTES))
        if start:
            return _copy_bytes(source, offset, target, position, min(length, BLOCK_BYTES - start))
        return _share(source, offset, target, position, length)


def _share(source: OpenFile, offset: int, target: OpenFile, position: int, length: int) -> int:
    """Copy from and to the beginning of a block."""
    length = min(length, _BATCH_BLOCKS * BLOCK_BYTES)
    count, rest = divmod(length, BLOCK_BYTES)
    # The last block may be shared only where it is the last in both.
    ends_both = offset + length == source.size and position + length >= target.size
    if rest and ends_both and not source.is_inline:
        count += 1
    elif count:
        length = count * BLOCK_BYTES
    else:
        return _copy_bytes(source, offset, target, position, length)
    first, place = offset // BLOCK_BYTES, position // BLOCK_BYTES
    blocks = {place + number: source.block_id(first + number) for number in range(count)}
    target.replace_blocks(blocks, max(target.size, position + length), source)
    return length


def _copy_bytes(source: OpenFile, offset: int, target: OpenFile, position: int, length: int) -> int:
    buffer = bytearray(length)
    count = source.read_into(memoryview(buffer), offset)
    target.write(memoryview(buffer)[:count], position)
    return count
