"""Modes, owners, permissions and what stat and statfs tell."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from tests.posix.case import (
    NOBODY,
    STRANGER,
    Call,
    as_user,
    case,
    checked,
    libc,
    opened,
    permissions,
)


def _chmod(name: str, mode: int, look: str = "") -> Call:
    def run(place: Path) -> int:
        os.chmod(place / name, mode)
        return permissions(place / (look or name))

    return run


def _owner(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid


def _chown(name: str, uid: int, gid: int, look: str = "") -> Call:
    def run(place: Path) -> tuple[int, int]:
        os.chown(place / name, uid, gid)
        return _owner(place / (look or name))

    return run


def _owned_by(
    uid: int, gid: int, call: Call, groups: tuple[int, ...] = (), mode: int = 0o644
) -> Call:
    """A call by nobody, in a folder that all may write to, whose `file` belongs to uid and gid."""

    def run(place: Path) -> object:
        place.chmod(0o777)
        os.chown(place / "file", uid, gid)
        (place / "file").chmod(mode)
        return as_user(place, call, NOBODY, groups)

    return run


def _write(place: Path) -> int:
    with opened(place / "file", os.O_WRONLY) as descriptor:
        os.write(descriptor, b"x")
    return permissions(place / "file")


def _changes_again(change: Callable[[int], object]) -> Call:
    """The bits after a change by a descriptor that had written to the file before it had them."""

    def run(place: Path) -> int:
        with opened(place / "file", os.O_RDWR) as descriptor:
            os.write(descriptor, b"xyz")
            os.fchmod(descriptor, 0o6777)
            change(descriptor)
        return permissions(place / "file")

    return _owned_by(NOBODY, NOBODY, run, mode=0o666)


def _allocate(descriptor: int) -> None:
    words = ctypes.c_int64(0), ctypes.c_int64(5000)
    checked(libc.fallocate64(descriptor, 0, *words))


def _chown_clears(place: Path) -> int:
    (place / "file").chmod(0o6755)
    os.chown(place / "file", NOBODY, NOBODY)
    return permissions(place / "file")


def _group_of_directory(make: Call) -> Call:
    """The group and set-group-id bit of what is made in a set-group-id directory."""

    def run(place: Path) -> tuple[int, bool]:
        os.chown(place / "dir", -1, STRANGER)
        (place / "dir").chmod(0o2777)
        make(place / "dir")
        found = (place / "dir/new").lstat()
        return found.st_gid, bool(found.st_mode & stat.S_ISGID)

    return run


def _lchown(place: Path) -> tuple[tuple[int, int], int]:
    os.lchown(place / "link", NOBODY, NOBODY)
    return _owner(place / "link"), (place / "file").stat().st_uid


def _fchmod_and_fchown(place: Path) -> tuple[int, tuple[int, int]]:
    with opened(place / "file") as descriptor:
        os.fchown(descriptor, NOBODY, STRANGER)
        os.fchmod(descriptor, 0o4711)
    return permissions(place / "file"), _owner(place / "file")


def _sticky(place: Path) -> None:
    (place / "full").chmod(0o1777)
    as_user(place, lambda here: os.unlink(here / "full/inside"))


def _own_in_sticky(place: Path) -> None:
    (place / "full").chmod(0o1777)
    as_user(place, lambda here: [(here / "full/own").touch(), os.unlink(here / "full/own")])


def _access(mode: int, kind: int) -> Call:
    def run(place: Path) -> bool:
        (place / "file").chmod(mode)
        return bool(as_user(place, lambda here: os.access(here / "file", kind)))

    return run


def _behind_a_closed_door(place: Path) -> None:
    (place / "full").chmod(0o700)
    as_user(place, lambda here: os.stat(here / "full/inside"))


def _stat(place: Path) -> tuple[int, bool, bool, bool]:
    found = (place / "file").stat()
    same = found.st_dev == place.stat().st_dev
    return found.st_size, same, found.st_blksize > 0, found.st_blocks > 0


def _numbers(place: Path) -> int:
    return len({path.lstat().st_ino for path in place.iterdir()})


def _sizes(place: Path) -> tuple[bool, int]:
    found = os.statvfs(place)
    return 0 <= found.f_bavail <= found.f_blocks, found.f_namemax


def _sizes_everywhere(place: Path) -> bool:
    """The same of each path and descriptor of one file system."""
    with opened(place / "file") as descriptor:
        found = [os.statvfs(path) for path in (place, place / "file", place / "full", descriptor)]
    # Not the number of blocks: the remote may come to tell it meanwhile.
    return len({(one.f_frsize, one.f_namemax) for one in found}) == 1


CASES = [
    case("chmod sets all twelve bits", _chmod("file", 0o7654), 0o7654, as_root=True),
    case("chmod of a directory", _chmod("dir", 0o1750), 0o1750),
    case("chmod follows symlinks", _chmod("link", 0o600, "file"), 0o600),
    case("chmod of a fifo", _chmod("fifo", 0o604), 0o604),
    case("chmod: ENOENT", _chmod("dangling", 0o600), fails=errno.ENOENT),
    case("chmod: EPERM for another's file",
         _owned_by(STRANGER, STRANGER, _chmod("file", 0o600)), fails=errno.EPERM, as_root=True),
    case("chmod drops the set-group-id bit for a group that is not one's own",
         _owned_by(NOBODY, STRANGER, _chmod("file", 0o2755)), 0o755, as_root=True),
    case("chmod keeps the set-group-id bit for a group that is one's own",
         _owned_by(NOBODY, STRANGER, _chmod("file", 0o2755), (STRANGER,)), 0o2755, as_root=True),
    case("chown sets both", _chown("file", NOBODY, STRANGER), (NOBODY, STRANGER), as_root=True),
    case("chown: -1 leaves the owner", _chown("file", -1, STRANGER), (os.geteuid(), STRANGER),
         as_root=True),
    case("chown: -1 leaves the group", _chown("file", STRANGER, -1), (STRANGER, os.getegid()),
         as_root=True),
    case("chown: large numbers", _chown("file", 2**32 - 2, 2**32 - 2), (2**32 - 2, 2**32 - 2),
         as_root=True),
    case("chown follows symlinks", _chown("link", NOBODY, NOBODY, "file"), (NOBODY, NOBODY),
         as_root=True),
    case("lchown changes the symlink alone", _lchown, ((NOBODY, NOBODY), os.geteuid()),
         as_root=True),
    case("chown: ENOENT", _chown("nothing", -1, -1), fails=errno.ENOENT),
    case("chown: EPERM, if not root", _owned_by(NOBODY, NOBODY, _chown("file", STRANGER, -1)),
         fails=errno.EPERM, as_root=True),
    case("chown: the owner may choose among its groups",
         _owned_by(NOBODY, NOBODY, _chown("file", -1, STRANGER), (NOBODY, STRANGER)),
         (NOBODY, STRANGER), as_root=True),
    case("chown clears the bits that lend rights", _chown_clears, 0o755, as_root=True),
    case("writing by another clears the bits that lend rights",
         _owned_by(STRANGER, STRANGER, _write, mode=0o6777), 0o777, as_root=True),
    case("writing on clears the bits that lend rights",
         _changes_again(lambda fd: os.write(fd, b"x")), 0o777, as_root=True),
    case("ftruncate clears the bits that lend rights",
         _changes_again(lambda fd: os.ftruncate(fd, 1)), 0o777, as_root=True),
    case("copy_file_range clears the bits that lend rights",
         _changes_again(lambda fd: os.copy_file_range(fd, fd, 1, 0, 2)), 0o777, as_root=True),
    case("fallocate clears the bits that lend rights", _changes_again(_allocate), 0o777,
         as_root=True, unless={"2": "fusepy's table of calls ends before this one"}),
    case("fchmod and fchown", _fchmod_and_fchown, (0o4711, (NOBODY, STRANGER)), as_root=True),
    case("a set-group-id directory hands its group to a file",
         _group_of_directory(lambda p: (p / "new").touch()), (STRANGER, False), as_root=True),
    case("a set-group-id directory hands its group and bit to a directory",
         _group_of_directory(lambda p: (p / "new").mkdir()), (STRANGER, True), as_root=True),
    case("a set-group-id directory hands its group to a symlink",
         _group_of_directory(lambda p: (p / "new").symlink_to("x")), (STRANGER, False),
         as_root=True),
    case("a sticky directory: EPERM for removing another's file", _sticky, fails=errno.EPERM,
         as_root=True),
    case("a sticky directory: one's own file can be removed", _own_in_sticky, as_root=True),
    case("open: EACCES for what may not be read",
         _owned_by(STRANGER, STRANGER, lambda p: (p / "file").read_bytes(), mode=0o600),
         fails=errno.EACCES, as_root=True),
    case("open: a group's right counts",
         _owned_by(STRANGER, STRANGER, lambda p: (p / "file").read_bytes(), (STRANGER,), 0o640),
         b"content", as_root=True),
    case("mkdir: EACCES where one may not write",
         lambda place: as_user(place, lambda p: (p / "dir/new").mkdir()), fails=errno.EACCES,
         as_root=True),
    case("stat: EACCES behind a directory that may not be searched", _behind_a_closed_door,
         fails=errno.EACCES, as_root=True),
    case("access: a right that is there", _access(0o604, os.R_OK), True, as_root=True),
    case("access: a right that is not there", _access(0o640, os.R_OK), False, as_root=True),
    case("stat: size, device, block size and blocks", _stat, (7, True, True, True)),
    case("statvfs: the same of each file", _sizes_everywhere, True),
    case("stat: each file has a number of its own", _numbers, 8),
    case("statvfs: free room lies within the whole, names have 255 bytes", _sizes, (True, 255)),
]  # fmt: skip
