"""A directory on this machine as a remote: an external disk, a network mount, or a trial."""

from __future__ import annotations

import ctypes
import errno
import os
import stat as modes
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import (
    AccessError,
    ExistsError,
    MissingError,
    OfflineError,
    RemoteFullError,
    SyncerError,
    TemporaryError,
)
from .base import CONFIG_KEY, Placed, Usage
from .files import ROOT_MODE, FileRemote, Files, FileStatus, NewFile, Result

NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What link(2) says on file systems that have none, such as exFAT on an external disk."""

NO_EXCLUSIVE_RENAME = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
"""What renameat2(2) says on file systems that can't rename without replacing."""

NO_FOLDER_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
"""What fsync(2) says of folders on file systems that sync files only, as some network mounts."""

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_libc = ctypes.CDLL(None, use_errno=True)

KINDS: dict[int, type[SyncerError]] = {
    errno.ENOENT: MissingError,
    errno.ENOTDIR: MissingError,
    errno.EEXIST: ExistsError,
    errno.EACCES: AccessError,
    errno.EPERM: AccessError,
    errno.EROFS: AccessError,
    errno.ENOSPC: RemoteFullError,
    errno.EDQUOT: RemoteFullError,
    # What a disk that was pulled out and a network mount whose server is away say.
    errno.EIO: OfflineError,
    errno.ENODEV: OfflineError,
    errno.ENXIO: OfflineError,
    errno.ESTALE: OfflineError,
    errno.ENOTCONN: OfflineError,
    errno.EHOSTDOWN: OfflineError,
    errno.ETIMEDOUT: OfflineError,
}


class LocalRemote(FileRemote):
    """Objects in a directory of this machine."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        self._files = LocalFiles(root)
        self._closed = False

    def _perform(
        self, action: Callable[[Files], Result], *, urgent: bool, repeatable: bool
    ) -> Result:
        if self._closed:
            raise OfflineError(f"{self.name} was closed")
        return action(self._files)

    def close(self) -> None:
        self._closed = True


class LocalFiles(Files):
    """The primitives on a directory. Has no state, so several threads may share it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def place(self) -> Hashable:
        # Of two disks with one mount point, device and inodes may well have the same numbers.
        where = self._root / CONFIG_KEY
        with _translated(where):
            found = where.stat()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def read(self, path: str, offset: int, length: int | None) -> bytes:
        where = self._root / path
        with _translated(where), open(where, "rb", buffering=0) as file:
            if offset:
                file.seek(offset)
            if length is None:
                return file.read()
            parts = []
            while length and (part := file.read(length)):
                parts.append(part)
                length -= len(part)
            return b"".join(parts)

    def write(self, path: str, parts: Sequence[memoryview], folders: Sequence[str] = ()) -> NewFile:
        return LocalFile(self._root, path, parts, folders)

    def stat(self, path: str) -> FileStatus:
        where = self._root / path
        with _translated(where):
            return _status(where.name, where.stat())

    def list(self, path: str) -> list[FileStatus]:
        where = self._root / path
        found = []
        with _translated(where), os.scandir(where) as entries:
            for entry in entries:
                try:
                    found.append(_status(entry.name, entry.stat()))
                except FileNotFoundError:
                    continue
        return found

    def remove(self, path: str) -> None:
        where = self._root / path
        with _translated(where):
            where.unlink()

    def move(self, path: str, target: str) -> None:
        where, to = self._root / path, self._root / target
        with _translated(where):
            os.replace(where, to)
        _sync_folder(to.parent)
        _sync_folder(where.parent)

    def make_root(self) -> None:
        with _translated(self._root):
            missing = [one for one in (self._root, *self._root.parents) if not one.exists()]
            self._root.mkdir(mode=ROOT_MODE, parents=True, exist_ok=True)
        for folder in missing:
            _sync_folder(folder.parent)

    def make_folders(self, paths: Sequence[str]) -> None:
        for path in paths:
            where = self._root / path
            with _translated(where):
                where.mkdir(exist_ok=True)
        # Those that are there may have been made a moment ago, by another thread.
        for folder in {(self._root / path).parent for path in paths}:
            _sync_folder(folder)

    def usage(self) -> Usage | None:
        with _translated(self._root):
            room = os.statvfs(self._root)
        return Usage(room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize)


class LocalFile(NewFile):
    """A new file below `root`; see `NewFile`."""

    def __init__(
        self, root: Path, path: str, parts: Sequence[memoryview], folders: Sequence[str]
    ) -> None:
        self._root = root
        self._folders = folders
        self._temporary: Path | None = root / path
        with _translated(self._temporary):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._descriptor = os.open(self._temporary, flags, 0o666)
            try:
                for part in parts:
                    while part:
                        part = part[os.write(self._descriptor, part) :]
                os.fsync(self._descriptor)
                self.size_bytes = os.fstat(self._descriptor).st_size
            except BaseException:
                self.close()
                raise

    def publish(self, path: str, *, replace: bool, look_for: Collection[str] = ()) -> Placed:
        target = self._root / path
        if self._temporary is not None:
            with _translated(target):
                if replace:
                    os.replace(self._temporary, target)
                else:
                    _move_to_free_name(self._temporary, target)
            self._temporary = None
        is_safe = all(_sync_folder(self._root / folder) for folder in self._folders)
        with _translated(target):
            there = frozenset(one for one in look_for if (self._root / one).exists())
        return Placed(is_safe, there)

    def close(self) -> None:
        # What can't be removed now is litter under tmp/, and no reason to fail: nothing was stored.
        with suppress(OSError):
            os.close(self._descriptor)
            if self._temporary is not None:
                self._temporary.unlink(missing_ok=True)


def _move_to_free_name(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        if not _rename_to_free_name(source, target):
            # The third best: claim the name, then replace the claim. A crash in between leaves an
            # empty object, never one of somebody else's replaced.
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
            os.replace(source, target)
    else:
        source.unlink()


def _rename_to_free_name(source: Path, target: Path) -> bool:
    """Rename without replacing; False where kernel, C library or file system can't do that."""
    if not hasattr(_libc, "renameat2"):
        return False
    names = os.fsencode(source), os.fsencode(target)
    if _libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number in NO_EXCLUSIVE_RENAME:
        return False
    raise OSError(number, os.strerror(number))


def _sync_folder(folder: Path) -> bool:
    """Put a folder's names on the disk; False where its file system can't, or we may not."""
    with _translated(folder):
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError:
            return False
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in NO_FOLDER_SYNC:
                raise
            return False
        finally:
            os.close(descriptor)
    return True


def _status(name: str, status: os.stat_result) -> FileStatus:
    return FileStatus(
        name,
        status.st_size,
        status.st_mtime,
        modes.S_ISREG(status.st_mode),
        modes.S_ISDIR(status.st_mode),
    )


@contextmanager
def _translated(where: Path) -> Iterator[None]:
    """Turn an OSError into one of ours that names the path and what the system said."""
    try:
        yield
    except OSError as error:
        kind = KINDS.get(error.errno or 0, TemporaryError)
        raise kind(f"{where}: {error.strerror or error}") from error
