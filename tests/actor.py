"""A process that makes the same calls in two folders, and tells what each gave.

`Actor` starts one, as any user. It works relative to a folder's descriptor, so that a user can be
one who may not enter what lies above. Each method of `_Side` is a call; its result, or the name of
the errno with which it failed, must be the same in both folders.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
#: Times that were set by a call lie before this; what the clock gives is only "now".
_EXPLICIT_NS = 1_200_000_000 * 10**9
_MAX_READ_BYTES = 8 << 20

Status = tuple[Any, ...]


def _checked(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _time(time_ns: int) -> int | str:
    return time_ns if time_ns < _EXPLICIT_NS else "now"


def _status(found: os.stat_result) -> dict[str, Any]:
    is_dir = stat.S_ISDIR(found.st_mode)
    return {
        "mode": oct(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
        "nlink": found.st_nlink,
        "rdev": found.st_rdev,
        "size": None if is_dir else found.st_size,
        "mtime": _time(found.st_mtime_ns),
        "ctime": _time(found.st_ctime_ns),
        # For the caller to know files again; of no meaning in the comparison.
        "ino": found.st_ino,
    }


class _Side:
    """One of the two folders."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._base = root
        self._files: dict[int, int] = {}
        self._scans: dict[int, tuple[bytes, dict[bytes, int], list[bytes], Any]] = {}

    def begin(self, name: str) -> None:
        """Work in the folder of this name from now on."""
        self.close_all()
        if self._base != self._root:
            os.close(self._base)
        self._base = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._root)

    def enter(self) -> None:
        os.fchdir(self._base)

    def close_all(self) -> None:
        for slot in list(self._files):
            self.close(slot)
        for slot in list(self._scans):
            self._end_scan(slot)

    def drop(self, inodes: frozenset[int]) -> None:
        """Close the files of these numbers."""
        for slot, descriptor in list(self._files.items()):
            if os.fstat(descriptor).st_ino in inodes:
                self.close(slot)

    # Names

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(path, mode)

    def rmdir(self, path: bytes) -> None:
        os.rmdir(path)

    def unlink(self, path: bytes) -> None:
        os.unlink(path)

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        _checked(_libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, flags))

    def link(self, old: bytes, new: bytes) -> None:
        os.link(old, new, follow_symlinks=False)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, path)

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(path)

    def mknod(self, path: bytes, mode: int, device: int) -> None:
        os.mknod(path, mode, device)

    def listdir(self, path: bytes) -> list[tuple[bytes, bool, bool]]:
        with os.scandir(path) as found:
            return sorted(
                (entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink())
                for entry in found
            )

    def scan_begin(self, slot: int, path: bytes) -> int:
        """Begin a listing, which goes on while others create and remove; reads one entry."""
        self._end_scan(slot)
        before = self._numbers(path)
        scan = os.scandir(path)
        shown = [entry.name for entry in itertools.islice(scan, 1)]
        self._scans[slot] = path, before, shown, scan
        return len(shown)

    def scan_end(self, slot: int) -> str:
        """Read the rest: what was there all the time is shown, and nothing twice."""
        if slot not in self._scans:
            return "no scan"
        path, before, shown, scan = self._scans.pop(slot)
        with scan:
            shown += [entry.name for entry in scan]
        if len(shown) != len(set(shown)):
            return f"twice: {sorted(shown)}"
        try:
            after = self._numbers(path)
        except OSError:
            return "all"
        stayed = {name for name, number in before.items() if after.get(name) == number}
        return "all" if stayed <= set(shown) else f"missed: {sorted(stayed - set(shown))}"

    def _numbers(self, path: bytes) -> dict[bytes, int]:
        with os.scandir(path) as found:
            return {entry.name: entry.inode() for entry in found}

    def _end_scan(self, slot: int) -> None:
        if slot in self._scans:
            self._scans.pop(slot)[3].close()

    # Attributes

    def stat(self, path: bytes) -> dict[str, Any]:
        return _status(os.stat(path))

    def lstat(self, path: bytes) -> dict[str, Any]:
        return _status(os.lstat(path))

    def access(self, path: bytes, mode: int) -> bool:
        return os.access(path, mode)

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(path, mode)

    def chown(self, path: bytes, uid: int, gid: int, follow: bool) -> None:
        os.chown(path, uid, gid, follow_symlinks=follow)

    def utimens(self, path: bytes, mtime_ns: int, follow: bool) -> None:
        os.utime(path, ns=(mtime_ns + 1, mtime_ns), follow_symlinks=follow)

    def touch(self, path: bytes) -> None:
        os.utime(path)

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int, follow: bool) -> None:
        os.setxattr(path, name, value, flags, follow_symlinks=follow)

    def getxattr(self, path: bytes, name: bytes, follow: bool) -> bytes:
        return os.getxattr(path, name, follow_symlinks=follow)

    def removexattr(self, path: bytes, name: bytes, follow: bool) -> None:
        os.removexattr(path, name, follow_symlinks=follow)

    def listxattr(self, path: bytes) -> list[str]:
        return sorted(os.listxattr(path))

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(path, size)

    # Open files

    def open(self, slot: int, path: bytes, flags: int, mode: int) -> str:
        descriptor = os.open(path, flags | os.O_NONBLOCK, mode)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            return "directory"
        self.close(slot)
        self._files[slot] = descriptor
        return "file"

    def close(self, slot: int) -> None:
        if slot in self._files:
            os.close(self._files.pop(slot))

    def _file(self, slot: int) -> int:
        if slot not in self._files:
            raise OSError(errno.EBADF, "")
        return self._files[slot]

    def read(self, slot: int, offset: int, length: int) -> bytes:
        return os.pread(self._file(slot), length, offset)

    def write(self, slot: int, offset: int, data: bytes) -> int:
        return os.pwrite(self._file(slot), data, offset)

    def read_on(self, slot: int, length: int) -> bytes:
        return os.read(self._file(slot), length)

    def write_on(self, slot: int, data: bytes) -> int:
        return os.write(self._file(slot), data)

    def seek(self, slot: int, offset: int, whence: int) -> int:
        return os.lseek(self._file(slot), offset, whence)

    def ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self._file(slot), size)

    def fallocate(self, slot: int, mode: int, offset: int, length: int) -> None:
        words = ctypes.c_int64(offset), ctypes.c_int64(length)
        _checked(_libc.fallocate64(self._file(slot), mode, *words))

    def copy(self, source: int, target: int, offset: int, position: int, length: int) -> None:
        files = self._file(source), self._file(target)
        while length:
            count = os.copy_file_range(*files, length, offset, position)
            if not count:
                break
            length, offset, position = length - count, offset + count, position + count

    def fsync(self, slot: int) -> None:
        os.fsync(self._file(slot))

    def fstat(self, slot: int) -> dict[str, Any]:
        return _status(os.fstat(self._file(slot)))

    def fchmod(self, slot: int, mode: int) -> None:
        os.fchmod(self._file(slot), mode)

    def fchown(self, slot: int, uid: int, gid: int) -> None:
        os.fchown(self._file(slot), uid, gid)

    def futimens(self, slot: int, mtime_ns: int) -> None:
        os.utime(self._file(slot), ns=(mtime_ns + 1, mtime_ns))

    # All

    def tree(self) -> dict[bytes, tuple[dict[str, Any], Any]]:
        """Everything below: attributes, and content, target or extended attributes."""
        return dict(self._below(b"."))

    def _below(self, folder: bytes) -> Iterator[tuple[bytes, tuple[dict[str, Any], Any]]]:
        for name in sorted(os.listdir(folder)):
            path = folder + b"/" + name
            found = os.lstat(path)
            content: Any = None
            if stat.S_ISREG(found.st_mode):
                content = _read(path)
                found = os.lstat(path)
            elif stat.S_ISLNK(found.st_mode):
                content = os.readlink(path)
            names = os.listxattr(path, follow_symlinks=False)
            values = {key: os.getxattr(path, key, follow_symlinks=False) for key in sorted(names)}
            yield path, (_status(found), (content, values))
            if stat.S_ISDIR(found.st_mode):
                yield from self._below(path)


def _read(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return file.read(_MAX_READ_BYTES)


class Actor:
    """A process of a user's. Its calls return what they gave in either folder."""

    def __init__(self, roots: tuple[Path, Path], uid: int, groups: tuple[int, ...]) -> None:
        words = [*map(str, roots), str(uid), *map(str, groups)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.actor", *words],
            cwd=Path(__file__).resolve().parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def call(self, name: str, *arguments: Any) -> tuple[Any, Any]:
        """Make a call in both folders."""
        assert self._process.stdin is not None and self._process.stdout is not None
        pickle.dump((name, arguments), self._process.stdin)
        self._process.stdin.flush()
        outcomes: tuple[Any, Any] = pickle.load(self._process.stdout)
        return outcomes

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(30)


def _outcome(side: _Side, name: str, arguments: tuple[Any, ...]) -> Any:
    try:
        side.enter()
        return getattr(side, name)(*arguments)
    except OSError as error:
        return f"fails: {errno.errorcode.get(error.errno or 0, error.errno)}"


def _serve(words: list[str]) -> None:
    sides = [_Side(os.open(root, os.O_RDONLY | os.O_DIRECTORY)) for root in words[:2]]
    uid, *groups = map(int, words[2:])
    os.umask(0o022)
    if os.geteuid() == 0:
        os.setgroups(groups)
        os.setgid(groups[0])
        os.setuid(uid)
    with contextlib.suppress(EOFError):
        while True:
            name, arguments = pickle.load(sys.stdin.buffer)
            pickle.dump(tuple(_outcome(side, name, arguments) for side in sides), sys.stdout.buffer)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve(sys.argv[1:])
