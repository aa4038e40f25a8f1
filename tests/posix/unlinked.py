"""Files that are removed, or replaced, while they are open."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from tests.posix.case import AT_FDCWD, CONTENT, Call, case, checked, libc, opened

_AT_SYMLINK_FOLLOW = 0x400


def _unlinked(call: Callable[[Path, int], object]) -> Call:
    """A call that gets the folder and a descriptor of `file`, which has lost its name."""

    def run(place: Path) -> object:
        with opened(place / "file", os.O_RDWR) as descriptor:
            os.unlink(place / "file")
            return call(place, descriptor)

    return run


def _write(place: Path, descriptor: int) -> tuple[bytes, int]:
    os.pwrite(descriptor, b"!", 7)
    os.ftruncate(descriptor, 9)
    return os.pread(descriptor, 100, 0), os.fstat(descriptor).st_size


def _attributes(place: Path, descriptor: int) -> tuple[int, int, int]:
    os.fchmod(descriptor, 0o600)
    os.utime(descriptor, ns=(1, 2))
    found = os.fstat(descriptor)
    return found.st_nlink, stat.S_IMODE(found.st_mode), found.st_mtime_ns


def _namesake(place: Path, descriptor: int) -> tuple[int, bytes, bytes]:
    (place / "file").write_bytes(b"new")
    return os.fstat(descriptor).st_size, os.read(descriptor, 100), (place / "file").read_bytes()


def _listed(place: Path, descriptor: int) -> list[str]:
    os.rename(place / "full", place / "dir")
    return sorted(name for name in os.listdir(place) if "f" in name and name != "fifo")


def _in_its_directory(place: Path) -> bytes:
    with opened(place / "full/inside") as descriptor:
        os.unlink(place / "full/inside")
        os.rmdir(place / "full")
        return os.read(descriptor, 100)


def _all_below_removed(place: Path) -> bytes:
    with opened(place / "full/inside") as descriptor:
        os.unlink(place / "full/inside")
        os.rename(place / "dir", place / "full")
        return os.read(descriptor, 100)


def _replaced(place: Path) -> tuple[bytes, bytes, int]:
    with opened(place / "file") as descriptor:
        (place / "new").write_bytes(b"new")
        os.rename(place / "new", place / "file")
        nlink = os.fstat(descriptor).st_nlink
        return os.read(descriptor, 100), (place / "file").read_bytes(), nlink


def _with_another_name(place: Path) -> tuple[int, bytes]:
    os.link(place / "file", place / "other")
    with opened(place / "file", os.O_RDWR) as descriptor:
        os.unlink(place / "file")
        os.write(descriptor, b"CON")
        nlink = os.fstat(descriptor).st_nlink
    return nlink, (place / "other").read_bytes()


def _twice(place: Path) -> bytes:
    with opened(place / "file") as one:
        os.unlink(place / "file")
        (place / "file").write_bytes(b"second")
        with opened(place / "file") as two:
            os.unlink(place / "file")
            return os.read(one, 100) + os.read(two, 100)


def _closed_in_turn(place: Path) -> bytes:
    with opened(place / "file") as kept:
        with opened(place / "file", os.O_WRONLY) as writer:
            os.unlink(place / "file")
            os.write(writer, b"CON")
        return os.read(kept, 100)


def _linked_again(place: Path, descriptor: int) -> None:
    old, new = os.fsencode(f"/proc/self/fd/{descriptor}"), os.fsencode(place / "again")
    checked(libc.linkat(AT_FDCWD, old, AT_FDCWD, new, _AT_SYMLINK_FOLLOW))


def _made_and_removed(place: Path) -> bytes:
    with opened(place / "new", os.O_RDWR | os.O_CREAT | os.O_EXCL) as descriptor:
        os.unlink(place / "new")
        os.write(descriptor, CONTENT)
        os.fsync(descriptor)
        return os.pread(descriptor, 100, 0)


CASES = [
    case("unlinked: reading goes on", _unlinked(lambda _, fd: os.read(fd, 100)), CONTENT),
    case("unlinked: writing and truncating go on", _unlinked(_write), (CONTENT + b"!\0", 9)),
    case("unlinked: no links, and attributes can be set", _unlinked(_attributes), (0, 0o600, 2)),
    case("unlinked: fsync", _unlinked(lambda _, fd: os.fsync(fd))),
    case("unlinked: a new file of that name is another one", _unlinked(_namesake),
         (7, CONTENT, b"new")),
    case("unlinked: it is not listed", _unlinked(_listed), []),
    case("unlinked: the name is not there",
         _unlinked(lambda place, fd: os.stat(place / "file")), fails=errno.ENOENT),
    case("unlinked: its directory can be removed", _in_its_directory, b"inside"),
    case("unlinked: its directory can be replaced", _all_below_removed, b"inside"),
    case("unlinked: it can't be linked again", _unlinked(_linked_again), fails=errno.ENOENT),
    case("unlinked: another name stays", _with_another_name, (1, b"CONtent")),
    case("unlinked: the same name twice", _twice, CONTENT + b"second"),
    case("unlinked: one descriptor of two is closed", _closed_in_turn, b"CONtent"),
    case("unlinked: a temporary file without a name", _made_and_removed, CONTENT),
    case("replaced by rename: reading goes on", _replaced, (CONTENT, b"new", 0)),
]  # fmt: skip
