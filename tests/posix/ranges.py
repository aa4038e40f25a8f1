"""fallocate(2), holes, and copies of stretches; at borders of MiB, where holes begin and end."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.posix.case import Call, case, checked, libc, opened

MIB = 1 << 20
_KEEP_SIZE = 1
_PUNCH_HOLE = 2
_ZERO_RANGE = 16
_NOT_CARRIED = {"2": "fusepy's table of calls ends before this one"}
_PATTERN = b"x" * MIB + b"y" * MIB + b"z" * MIB


def _large(call: Callable[[int], object]) -> Call:
    """A call that gets a descriptor of a stored file of 3 MiB."""

    def run(place: Path) -> object:
        (place / "large").write_bytes(_PATTERN)
        with opened(place / "large", os.O_RDWR) as descriptor:
            os.fsync(descriptor)
            return call(descriptor)

    return run


def _fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    words = ctypes.c_int64(offset), ctypes.c_int64(length)
    checked(libc.fallocate64(descriptor, mode, *words))


def _changed(mode: int, offset: int, length: int) -> Call:
    """The file's content after a fallocate, told by its letters and zeros at some places."""

    def change(descriptor: int) -> tuple[int, bytes]:
        _fallocate(descriptor, mode, offset, length)
        size = os.fstat(descriptor).st_size
        places = range(0, size, MIB // 2)
        return size, b"".join(os.pread(descriptor, 1, at) for at in places)

    return _large(change)


def _seek(whence: int, offset: int) -> Call:
    """A seek in a file with data in its first and third MiB, and a hole between them."""

    def run(place: Path) -> int:
        with opened(place / "sparse", os.O_RDWR | os.O_CREAT) as descriptor:
            os.pwrite(descriptor, b"x" * MIB, 0)
            os.pwrite(descriptor, b"z" * MIB, 2 * MIB)
            os.fsync(descriptor)
            return os.lseek(descriptor, offset, whence)

    return run


def _seek_unsynced(place: Path) -> tuple[int, int, int, int]:
    """Data that was only just written, here and through a mapping, is data."""
    with opened(place / "sparse", os.O_RDWR | os.O_CREAT) as descriptor:
        os.ftruncate(descriptor, 4 * MIB)
        os.fsync(descriptor)
        with mmap.mmap(descriptor, 4 * MIB) as mapping:
            mapping[2 * MIB] = 1
            os.pwrite(descriptor, b"x", 4 * MIB)
            first = os.lseek(descriptor, 0, os.SEEK_DATA)
            hole = os.lseek(descriptor, 2 * MIB, os.SEEK_HOLE)
            last = os.lseek(descriptor, 3 * MIB, os.SEEK_DATA)
            end = os.lseek(descriptor, 4 * MIB, os.SEEK_HOLE)
    return first, -(-hole // MIB), last, end


def _blocks(change: Callable[[int], object]) -> Call:
    """By how many MiB a change makes the file's blocks fewer."""

    def run(descriptor: int) -> int:
        before = os.fstat(descriptor).st_blocks
        change(descriptor)
        os.fsync(descriptor)
        return round((before - os.fstat(descriptor).st_blocks) * 512 / MIB)

    return _large(run)


def _stored(change: Callable[[int], object]) -> Call:
    """The MiB that a file takes which has data in its first of 5 MiB, after a change."""

    def run(place: Path) -> int:
        with opened(place / "sparse", os.O_RDWR | os.O_CREAT) as descriptor:
            os.pwrite(descriptor, b"x" * MIB, 0)
            os.ftruncate(descriptor, 5 * MIB)
            change(descriptor)
        return round(os.stat(place / "sparse").st_blocks * 512 / MIB)

    return run


def _only_a_hole(place: Path) -> int:
    (place / "new").touch()
    os.truncate(place / "new", 5000)
    return os.stat(place / "new").st_blocks


def _copy(place: Path) -> tuple[int, bool]:
    (place / "large").write_bytes(_PATTERN)
    with opened(place / "large") as source, opened(place / "copy", os.O_RDWR | os.O_CREAT) as copy:
        done = 0
        while count := os.copy_file_range(source, copy, 3 * MIB, done, done):
            done += count
        return done, os.pread(copy, 3 * MIB + 1, 0) == _PATTERN


def _copy_within(descriptor: int) -> bytes:
    os.copy_file_range(descriptor, descriptor, MIB, 0, 2 * MIB)
    return b"".join(os.pread(descriptor, 1, at) for at in range(0, 3 * MIB, MIB))


def _copy_between(source_flags: int, target_flags: int, name: str = "copy") -> Call:
    def run(place: Path) -> int:
        (place / "copy").touch()
        one, other = opened(place / "file", source_flags), opened(place / name, target_flags)
        with one as source, other as target:
            return os.copy_file_range(source, target, 100, 3, 0)

    return run


def _copy_overlapping(descriptor: int) -> None:
    os.copy_file_range(descriptor, descriptor, MIB, 0, MIB // 2)


def _copy_from_behind_the_end(descriptor: int) -> int:
    return os.copy_file_range(descriptor, descriptor, MIB, 4 * MIB, 8 * MIB)


def _copy_to_another_file_system(place: Path) -> None:
    with tempfile.TemporaryFile(dir="/dev/shm") as elsewhere, opened(place / "file") as source:
        os.copy_file_range(source, elsewhere.fileno(), 5)


CASES = [
    case("fallocate makes the file longer", _changed(0, 3 * MIB, MIB),
         (4 * MIB, b"xxyyzz\0\0"), unless=_NOT_CARRIED),
    case("fallocate: content stays", _changed(0, 0, MIB), (3 * MIB, b"xxyyzz"),
         unless=_NOT_CARRIED),
    case("FALLOC_FL_KEEP_SIZE keeps the size", _changed(_KEEP_SIZE, 3 * MIB, MIB),
         (3 * MIB, b"xxyyzz"), unless=_NOT_CARRIED),
    case("FALLOC_FL_PUNCH_HOLE leaves zeros", _changed(_PUNCH_HOLE | _KEEP_SIZE, MIB, MIB),
         (3 * MIB, b"xx\0\0zz"), unless=_NOT_CARRIED),
    case("FALLOC_FL_PUNCH_HOLE across borders",
         _changed(_PUNCH_HOLE | _KEEP_SIZE, MIB // 2, 2 * MIB), (3 * MIB, b"x\0\0\0\0z"),
         unless=_NOT_CARRIED),
    case("FALLOC_FL_PUNCH_HOLE behind the end", _changed(_PUNCH_HOLE | _KEEP_SIZE, 5 * MIB, MIB),
         (3 * MIB, b"xxyyzz"), unless=_NOT_CARRIED),
    case("FALLOC_FL_ZERO_RANGE leaves zeros, and may make the file longer",
         _changed(_ZERO_RANGE, 2 * MIB, 2 * MIB), (4 * MIB, b"xxyy\0\0\0\0"),
         unless=_NOT_CARRIED),
    case("fallocate: EINVAL for no length", _changed(0, 0, 0), fails=errno.EINVAL),
    case("fallocate: EOPNOTSUPP for punching that changes the size",
         _changed(_PUNCH_HOLE, 0, MIB), fails=errno.EOPNOTSUPP),
    case("a punched hole takes no room",
         _blocks(lambda fd: _fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, MIB, MIB)), 1,
         unless=_NOT_CARRIED),
    case("a hole that was never written takes no room", _stored(lambda fd: None), 1),
    case("what is written into a hole takes room at once",
         _stored(lambda fd: os.pwrite(fd, b"y" * MIB, 2 * MIB)), 2),
    case("a file that is only a hole takes no room", _only_a_hole, 0),
    case("truncating gives room back", _blocks(lambda fd: os.ftruncate(fd, MIB)), 2),
    case("SEEK_DATA in a hole finds the next data", _seek(os.SEEK_DATA, MIB + 5), 2 * MIB,
         unless=_NOT_CARRIED),
    case("SEEK_DATA in data stays", _seek(os.SEEK_DATA, 5), 5),
    case("SEEK_HOLE finds the next hole", _seek(os.SEEK_HOLE, 5), MIB, unless=_NOT_CARRIED),
    case("SEEK_HOLE finds the end", _seek(os.SEEK_HOLE, 2 * MIB), 3 * MIB),
    case("SEEK_DATA finds what was only just written", _seek_unsynced,
         (2 * MIB, 3, 4 * MIB, 4 * MIB + 1), unless=_NOT_CARRIED),
    case("SEEK_DATA: ENXIO behind the end", _seek(os.SEEK_DATA, 4 * MIB), fails=errno.ENXIO),
    case("copy_file_range of blocks", _copy, (3 * MIB, True)),
    case("copy_file_range within a file", _large(_copy_within), b"xyx"),
    case("copy_file_range copies what is there", _copy_between(os.O_RDONLY, os.O_WRONLY), 4),
    case("copy_file_range: nothing from behind the end", _large(_copy_from_behind_the_end), 0),
    case("copy_file_range: EINVAL for stretches of one file that overlap",
         _large(_copy_overlapping), fails=errno.EINVAL),
    case("copy_file_range: EBADF to a descriptor that only reads",
         _copy_between(os.O_RDONLY, os.O_RDONLY), fails=errno.EBADF),
    case("copy_file_range: EBADF from a descriptor that only writes",
         _copy_between(os.O_WRONLY, os.O_WRONLY), fails=errno.EBADF),
    case("copy_file_range: EBADF to a descriptor that appends",
         _copy_between(os.O_RDONLY, os.O_WRONLY | os.O_APPEND), fails=errno.EBADF),
    case("copy_file_range: EISDIR to a directory",
         _copy_between(os.O_RDONLY, os.O_RDONLY, "dir"), fails=errno.EISDIR),
    case("copy_file_range: EXDEV to another file system", _copy_to_another_file_system,
         fails=errno.EXDEV),
]  # fmt: skip
