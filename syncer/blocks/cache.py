"""Block files in the data directory, and the order in which they were used.

Only files: no rows, no network. `Blocks` decides what is local, clean or evictable; this module
stores, reads, syncs and removes what it is told to.

    <folder>/ab/abcdef...     a block's content as it is; the name is its id, 32 hex digits
    <folder>/incoming/...     being written; emptied at the start
    <folder>/damaged/...      the latest copies that did not match their ids, for a person's eyes

Of verified files a descriptor is kept for the next reading, of so many at most; who evicts the file
drops it, and it is closed when its last user lets go.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import os
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import cachetools

from syncer.blocks.budget import Budget
from syncer.codec import Buffer
from syncer.errors import AccessError, LocalFullError, MissingError, PermanentError, SyncerError

#: Uses that may be remembered before their order has to be written down.
FRONT_BLOCKS = 4096
#: Blocks whose local copies are known to be good; one in 2 GB of memory would be a bad trade.
_VERIFIED_BLOCKS = 1 << 16
#: From so many files on, one syncfs is cheaper than an fsync for each and for its folder.
_SYNCFS_FILES = 16
#: Block files that stay open for the next read; a process may mostly have 1,024.
_OPEN_FILES = 256
#: Damaged copies that are kept; they are outside the limit, so they must stay few.
_DAMAGED_FILES = 8

Stamp = tuple[int, int, int]
"""A file's inode, length and time of change."""

_BLOCK_NAME = re.compile(r"[0-9a-f]{32}")

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenFile:
    """A descriptor that is closed when nobody has it any more: not under a lock, since to close the
    last one of a file that was removed takes the disk's time."""

    __slots__ = ("descriptor",)

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        # Also called where `open` has failed.
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class Cache:
    """The block files. May be used from several threads.

    Two threads may add the same block at once; a reader of a block that is being removed has its
    content or a MissingError. That nobody adds what someone else removes is up to `Blocks`.
    """

    def __init__(
        self,
        folder: Path,
        limit_bytes: int,
        min_free_bytes: int,
        timeout_seconds: float = 30.0,
        *,
        is_owner: bool = True,
    ) -> None:
        """Without `is_owner`, another process may be at work there: nothing is changed."""
        self.folder = folder
        self._base = os.fspath(folder)
        self._lock = threading.Lock()
        # The lock guards everything below. A cachetools cache evicts inside __setitem__, where
        # nobody learns of it; so the front has no maximum of its own.
        self._front: cachetools.LRUCache[bytes, None] = cachetools.LRUCache(math.inf)
        self._uses = 0
        self._verified: cachetools.LRUCache[bytes, Stamp] = cachetools.LRUCache(_VERIFIED_BLOCKS)
        #: Of verified blocks only; the first opened first.
        self._open_files: dict[bytes, _OpenFile] = {}
        if is_owner:
            with _translated(self._base):
                self._make_folders()
        self.budget = Budget(folder, limit_bytes, min_free_bytes, timeout_seconds)

    def _make_folders(self) -> None:
        names = [*(f"{number:02x}" for number in range(256)), "incoming", "damaged"]
        missing = [name for name in names if not os.path.isdir(f"{self._base}/{name}")]
        for name in missing:
            os.makedirs(f"{self._base}/{name}", mode=0o700)
        if missing:
            _fsync(self._base)
        for left_over in os.listdir(f"{self._base}/incoming"):
            os.unlink(f"{self._base}/incoming/{left_over}")

    def _path(self, block_id: bytes) -> str:
        name = block_id.hex()
        return f"{self._base}/{name[:2]}/{name}"

    def add(self, block_id: bytes, data: Buffer) -> None:
        """Store a block's content, in place of what was there. It is not yet power-safe.

        Raises LocalFullError, AccessError, PermanentError; nothing is left behind then.
        """
        temporary = f"{self._base}/incoming/{block_id.hex()}.{threading.get_ident()}"
        with _translated(temporary):
            try:
                descriptor = os.open(
                    temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
                )
                try:
                    rest = memoryview(data)
                    while rest:
                        rest = rest[os.write(descriptor, rest) :]
                finally:
                    os.close(descriptor)
                os.rename(temporary, self._path(block_id))
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise

    def open(self, block_id: bytes) -> int:
        """A descriptor for reading; the caller closes it. Raises MissingError."""
        path = self._path(block_id)
        with _translated(path):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read_verified(self, block_id: bytes, offset: int, buffer: memoryview) -> int | None:
        """Read from a block's file into `buffer`; returns how many bytes.

        None: it is not verified, or not as it was when it was. Raises MissingError.
        """
        with self._lock:
            stamp = self._verified.get(block_id)
            file = self._open_files.get(block_id)
        if stamp is None:
            return None
        # Not `_translated`: to enter and leave it takes 0.9 us, and each read comes by here.
        try:
            if file is None:
                file = self._open(block_id, stamp)
            # One that was opened once stays what it is, unless somebody writes to it.
            if _stamp(os.fstat(file.descriptor)) == stamp:
                return os.preadv(file.descriptor, [buffer], offset)
        except OSError as error:
            raise _translate(self._base, error) from error
        with self._lock:
            if self._open_files.get(block_id) is file:
                del self._open_files[block_id]
        return None

    def _open(self, block_id: bytes, stamp: Stamp) -> _OpenFile:
        file = _OpenFile(self._path(block_id))
        closed: list[_OpenFile | None] = []
        with self._lock:
            # Not if it has been removed meanwhile: it would take room on the disk.
            if self._verified.get(block_id) == stamp:
                if len(self._open_files) >= _OPEN_FILES:
                    closed.append(self._open_files.pop(next(iter(self._open_files))))
                closed.append(self._open_files.get(block_id))
                self._open_files[block_id] = file
        return file

    def read_ahead(self, block_id: bytes) -> bool:
        """A block's file will soon be read: have the kernel bring it from the disk, if it can.

        False: there is no such file.
        """
        with self._lock:
            file = self._open_files.get(block_id)
        try:
            if file is None:
                file = _OpenFile(self._path(block_id))
            os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        except OSError as error:
            return error.errno != errno.ENOENT
        return True

    def read(self, block_id: bytes, max_bytes: int) -> bytes:
        """A block's file, but never more than `max_bytes` of it. Raises MissingError."""
        descriptor = self.open(block_id)
        try:
            with _translated(self._base):
                return os.pread(descriptor, max_bytes, 0)
        finally:
            os.close(descriptor)

    def has(self, block_id: bytes) -> bool:
        """Whether there is a file of that name."""
        return os.path.exists(self._path(block_id))

    def size_bytes(self, block_id: bytes) -> int:
        """The length of a block's file; 0 if there is none."""
        try:
            return os.stat(self._path(block_id)).st_size
        except FileNotFoundError:
            return 0

    def ids(self, first_byte: int) -> list[bytes]:
        """The blocks that have files, of those whose ids begin with this byte."""
        with _translated(self._base):
            names = os.listdir(f"{self._base}/{first_byte:02x}")
        first = f"{first_byte:02x}"
        return [
            bytes.fromhex(name)
            for name in names
            if name[:2] == first and _BLOCK_NAME.fullmatch(name)
        ]

    def foreign(self, first_byte: int) -> list[str]:
        """What lies among the block files and is none."""
        with _translated(self._base):
            names = os.listdir(f"{self._base}/{first_byte:02x}")
        folder = f"{first_byte:02x}"
        return [
            f"{self._base}/{folder}/{name}"
            for name in names
            if not _BLOCK_NAME.fullmatch(name) or name[:2] != folder
        ]

    def remove(self, block_ids: Iterable[bytes]) -> None:
        """Unlink files; one that is not there is no error."""
        for block_id in block_ids:
            path = self._path(block_id)
            with contextlib.suppress(MissingError), _translated(path):
                os.unlink(path)
            self.set_verified(block_id, None)

    def move(self, block_id: bytes, target: Path) -> None:
        """Take a block's file out of the cache, for good."""
        with contextlib.suppress(MissingError), _translated(self._base):
            os.rename(self._path(block_id), target)
        self.set_verified(block_id, None)

    def set_aside(self, block_id: bytes) -> None:
        """Move a damaged file out of the way."""
        with contextlib.suppress(MissingError), _translated(self._base):
            os.rename(self._path(block_id), f"{self._base}/damaged/{block_id.hex()}")
            kept = [entry.path for entry in os.scandir(f"{self._base}/damaged")]
            kept.sort(key=os.path.getmtime)
            for path in kept[:-_DAMAGED_FILES]:
                os.unlink(path)
        self.set_verified(block_id, None)

    def sync(self, block_ids: Iterable[bytes]) -> list[bytes]:
        """Make these files and their names power-safe; returns those that were there.

        Raises PermanentError if the disk fails: then nothing is known to be safe.
        """
        wanted = list(block_ids)
        if len(wanted) > _SYNCFS_FILES:
            there = [block_id for block_id in wanted if self.has(block_id)]
            self.sync_all()
            return there
        synced = []
        for block_id in wanted:
            path = self._path(block_id)
            with contextlib.suppress(MissingError), _translated(path):
                _fsync(path)
                synced.append(block_id)
        with _translated(self._base):
            for folder in {self._path(block_id)[:-33] for block_id in synced}:
                _fsync(folder)
        return synced

    def sync_all(self) -> None:
        """Make all files power-safe. Raises PermanentError if the disk fails."""
        with _translated(self._base):
            descriptor = os.open(self._base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if _libc.syncfs(descriptor):
                    code = ctypes.get_errno()
                    raise OSError(code, os.strerror(code))
            finally:
                os.close(descriptor)

    def stamp(self, block_id: bytes) -> Stamp | None:
        """What tells that a block's file is another one, or was written to; None: there is none."""
        try:
            found = os.stat(self._path(block_id))
        except OSError:
            return None
        return _stamp(found)

    def is_verified(self, block_id: bytes) -> bool:
        """Whether this process has seen that the file, as it is now, matches its id."""
        with self._lock:
            verified = self._verified.get(block_id)
        # Somebody else may have written to it, and the length alone matters: what is missing of a
        # block reads as zeros.
        return verified is not None and verified == self.stamp(block_id)

    def set_verified(self, block_id: bytes, stamp: Stamp | None) -> None:
        """The file matches its id, as it was when it had this stamp; None: it is not known to."""
        closed = None
        with self._lock:
            if stamp is not None:
                self._verified[block_id] = stamp
            else:
                self._verified.pop(block_id, None)
                closed = self._open_files.pop(block_id, None)
        del closed

    def touch(self, block_id: bytes) -> bool:
        """Note that a block was used just now; True when the order ought to be written down."""
        with self._lock:
            self._front[block_id] = None
            self._uses += 1
            return len(self._front) > FRONT_BLOCKS

    @property
    def uses(self) -> int:
        """How often blocks were used since the start."""
        with self._lock:
            return self._uses

    def take_order(self, limit: int) -> list[bytes]:
        """Up to `limit` blocks whose last use isn't written down, oldest first; forgets them."""
        with self._lock:
            count = min(limit, len(self._front))
            return [self._front.popitem()[0] for _ in range(count)]

    def __repr__(self) -> str:
        return f"<Cache {self._base} {self.budget!r}>"


def _stamp(found: os.stat_result) -> Stamp:
    return found.st_ino, found.st_size, found.st_ctime_ns


def _fsync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _translate(path, error) from error


def _translate(path: str, error: OSError) -> SyncerError:
    if error.errno == errno.ENOENT:
        return MissingError(f"{path}: there is no such file")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LocalFullError(f"the disk that holds {path} is full; free some space")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return AccessError(f"{path} can't be used ({error.strerror}); check its permissions")
    return PermanentError(f"the disk that holds {path} fails ({error.strerror})")
