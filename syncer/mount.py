"""The operations that libfuse calls: each translates one call to `Vfs` and decides nothing.

One class for both bindings. `binding` turns libfuse's pointers into these calls, and what they
raise into errnos by `error_number`. Strings come and go as Latin-1, so that every byte of a name
survives both bindings' codecs.

An attribute here that bears the name of a FUSE operation *is* that operation: the bindings
register whatever they find.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from syncer.errors import (
    AbandonedError,
    AccessError,
    CorruptError,
    LocalFullError,
    MissingError,
    OfflineError,
    SyncerError,
    TemporaryError,
)
from syncer.metadata.history import PrunedError
from syncer.metadata.node import Node
from syncer.vfs.caller import Caller, Request
from syncer.vfs.calls import Caching, Target, Vfs
from syncer.vfs.paths import NAME_MAX_BYTES

log = logging.getLogger(__name__)

CODEC = "latin-1"
#: What statfs tells where the remote doesn't say how large it is.
_UNKNOWN_CAPACITY_BYTES = 1 << 50
_STATFS_BLOCK_BYTES = 4096


class Host(Protocol):
    """What the mounted process around the file system does for it."""

    def started(self) -> None:
        """libfuse is ready to serve; threads may start now."""

    def sync_metadata(self) -> None:
        """Make every committed change of metadata power-safe."""

    def set_abandoned_probe(self, is_abandoned: Callable[[], bool]) -> None:
        """Called before `started`: what tells, in a thread that serves a call, whether the
        program that made it is being killed, so that nobody waits for the call's end."""

    def remote_capacity(self) -> tuple[int, int] | None:
        """(bytes in all, bytes free) of the remote's disk; None: it doesn't tell."""


class Operations:
    """The FUSE operations; called from many threads of libfuse's."""

    #: Times in ns, both ways.
    use_ns = True
    #: libfuse 2: calls about an open file need no path, and utimens may omit a time.
    flag_nullpath_ok = 1
    flag_nopath = 1
    flag_utime_omit_ok = 1

    def __init__(self, vfs: Vfs, host: Host, caller: Callable[[], Caller]) -> None:
        self._vfs = vfs
        self._host = host
        self._caller = caller

    def error_number(self, error: Exception, operation: str) -> int:
        """The errno that the caller of `operation` gets for an exception."""
        if isinstance(error, OSError) and isinstance(error.errno, int) and error.errno > 0:
            return error.errno
        if isinstance(error, LocalFullError):
            return errno.ENOSPC
        if isinstance(error, AccessError):
            return errno.EACCES
        if isinstance(error, AbandonedError):
            return errno.EINTR
        if isinstance(error, (OfflineError, TemporaryError)):
            log.debug("%s: %s", operation, error)
            return errno.EIO
        if isinstance(error, PrunedError):
            return errno.ESTALE
        if isinstance(error, (CorruptError, MissingError, SyncerError)):
            log.error("%s: %s", operation, error)
            return errno.EIO
        log.error("%s failed in a way that nobody foresaw", operation, exc_info=error)
        return errno.EIO

    # What a binding calls with handles and buffers

    def set_cache_dropper(self, drop: Callable[[list[bytes]], bool]) -> None:
        self._vfs.files.drop_caches = drop

    def set_abandoned_probe(self, is_abandoned: Callable[[], bool]) -> None:
        self._host.set_abandoned_probe(is_abandoned)

    def set_asked(
        self,
        asked: Callable[[], Request],
        thread: Callable[[], int],
        sleeps: Callable[[int], int | None],
    ) -> None:
        self._vfs.hidden.asked = asked
        self._vfs.hidden.sleeps = sleeps
        self._vfs.hidden.replacing.thread = thread

    def start(self) -> None:
        self._host.started()

    def stale_paths(self) -> list[bytes]:
        return self._vfs.take_stale_paths()

    def attributes(self, target: Target) -> Node:
        return self._vfs.getattr(target)

    def read_into(self, handle: int, target: memoryview, offset: int) -> int:
        return self._vfs.files.read_into(handle, target, offset)

    def read_pages(self, handle: int, target: memoryview, offset: int) -> int:
        return self._vfs.files.read_into(handle, target, offset, pages=True)

    def write_from(self, handle: int, data: memoryview, offset: int, appends: bool) -> int:
        return self._vfs.write(handle, data, offset, self._caller, appends=appends)

    def take_pages(self, handle: int, data: memoryview, offset: int) -> int:
        return self._vfs.write(handle, data, offset, self._caller, gathered=True)

    def open_file(self, path: bytes, flags: int) -> tuple[int, Caching]:
        """(handle, what the kernel may cache of the file)."""
        handle = self._vfs.open(path, flags, self._caller())
        try:
            return handle, self._vfs.caching(handle)
        except BaseException:
            self._vfs.release(handle)
            raise

    def create_file(self, path: bytes, mode: int, flags: int) -> int:
        return self._vfs.create(path, mode, flags, self._caller())

    def set_size(self, target: Target, size: int) -> None:
        self._vfs.truncate(target, size, self._caller())

    def set_mode(self, target: Target, mode: int) -> None:
        self._vfs.chmod(target, mode)

    def set_owner(self, target: Target, uid: int, gid: int) -> None:
        self._vfs.chown(target, uid, gid)

    def now_ns(self) -> int:
        return self._vfs.files.now_ns()

    def set_times(self, target: Target, atime_ns: int | None, mtime_ns: int | None) -> None:
        if mtime_ns is not None:
            self._vfs.files.note_time(mtime_ns)
        self._vfs.utimens(target, atime_ns, mtime_ns)

    def move(self, old: bytes, new: bytes, flags: int) -> None:
        self._vfs.rename(old, new, flags)

    def allocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        self._vfs.allocate(handle, mode, offset, length, self._caller())

    def seek(self, handle: int, offset: int, whence: int) -> int:
        return self._vfs.files.seek(handle, offset, whence)

    def copy(self, source: int, offset: int, target: int, position: int, length: int) -> int:
        return self._vfs.copy(source, offset, target, position, length, self._caller())

    def rewind(self, handle: int) -> None:
        self._vfs.directories.rewind(handle)

    def entries(
        self, handle: int, offset: int, limit: int
    ) -> tuple[int, Sequence[tuple[bytes, Node]]]:
        """(number of the first entry, entries that follow the one before number `offset`)."""
        found = self._vfs.directories.read(handle, offset, limit)
        return self._vfs.directories.number(handle), found

    def is_looked_at(self, handle: int, looks: int) -> bool:
        return self._vfs.directories.is_looked_at(handle, looks)

    def delivered(self, handle: int, names: list[bytes]) -> None:
        self._vfs.directories.delivered(handle, names)

    def dot_entries(self, handle: int) -> tuple[Node, Node]:
        return self._vfs.directories.dots(handle)

    # What both bindings call as it is

    def readlink(self, path: str) -> str:
        return self._vfs.readlink(_bytes(path)).decode(CODEC)

    def mknod(self, path: str, mode: int, dev: int) -> None:
        self._vfs.mknod(_bytes(path), mode, dev, self._caller())

    def mkdir(self, path: str, mode: int) -> None:
        self._vfs.mkdir(_bytes(path), mode, self._caller())

    def unlink(self, path: str) -> None:
        self._vfs.unlink(_bytes(path))

    def rmdir(self, path: str) -> None:
        self._vfs.rmdir(_bytes(path))

    def symlink(self, target: str, source: str) -> None:
        self._vfs.symlink(_bytes(source), _bytes(target), self._caller())

    def link(self, target: str, source: str) -> None:
        self._vfs.link(_bytes(source), _bytes(target))

    def opendir(self, path: str) -> int:
        return self._vfs.opendir(_bytes(path))

    def releasedir(self, path: str | None, handle: int) -> None:
        self._vfs.directories.release(handle)

    def flush(self, path: str | None, handle: int) -> None:
        self._vfs.files.flush(handle)

    def release(self, path: str | None, handle: int) -> None:
        self._vfs.release(handle)

    def fsync(self, path: str | None, datasync: int, handle: int) -> None:
        self._vfs.files.fsync(handle, self._host.sync_metadata)

    def fsyncdir(self, path: str | None, datasync: int, handle: int) -> None:
        self._host.sync_metadata()

    def statfs(self, path: str) -> dict[str, int]:
        nodes, file_bytes = self._vfs.totals()
        capacity = self._host.remote_capacity()
        if capacity is None:
            capacity = (_UNKNOWN_CAPACITY_BYTES, _UNKNOWN_CAPACITY_BYTES - file_bytes)
        total, free = (max(0, value) // _STATFS_BLOCK_BYTES for value in capacity)
        return {
            "f_bsize": _STATFS_BLOCK_BYTES,
            "f_frsize": _STATFS_BLOCK_BYTES,
            "f_blocks": total,
            "f_bfree": free,
            "f_bavail": free,
            "f_files": nodes + (1 << 40),
            "f_ffree": 1 << 40,
            "f_favail": 1 << 40,
            "f_namemax": NAME_MAX_BYTES,
        }

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        return self._vfs.getxattr(_bytes(path), _bytes(name))

    def listxattr(self, path: str) -> list[str]:
        names = self._vfs.listxattr(_bytes(path), self._caller())
        return [name.decode(CODEC) for name in names]

    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> None:
        self._vfs.setxattr(_bytes(path), _bytes(name), value, options)

    def removexattr(self, path: str, name: str) -> None:
        self._vfs.removexattr(_bytes(path), _bytes(name))

    # The binding answers these itself, but registers only what it finds here.

    def _answered_by_the_binding(self, *arguments: object) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    init = getattr = open = create = read = write = readdir = _answered_by_the_binding
    truncate = chmod = chown = utimens = rename = _answered_by_the_binding
    # Of libfuse 3 only.
    fallocate = lseek = copy_file_range = _answered_by_the_binding


class Refusal:
    """In place of operations that could not start: each call is an error."""

    def error_number(self, error: Exception, operation: str) -> int:
        return errno.EIO

    def stale_paths(self) -> list[bytes]:
        return []

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *arguments: object, **options: object) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def _bytes(text: str) -> bytes:
    return text.encode(CODEC)
