"""Hard links and symlinks."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tests.posix.case import (
    AT_FDCWD,
    CONTENT,
    Call,
    case,
    checked,
    libc,
    moved_times,
    opened,
    permissions,
)

_WRITEBACK = {
    "3": "under the writeback cache the kernel keeps the size and times of a file to itself, and to"
    " it each name is a file of its own"
}


def _link(old: str, new: str) -> Call:
    return lambda place: os.link(place / old, place / new, follow_symlinks=False)


def _linked(look: Call) -> Call:
    """A call in a folder where `file` is also called `other`, and both were looked at."""

    def run(place: Path) -> object:
        os.link(place / "file", place / "other")
        for name in ("file", "other"):
            (place / name).read_bytes()
        return look(place)

    return run


def _counts(place: Path) -> tuple[int, int, bool]:
    one, two = (place / "file").stat(), (place / "other").stat()
    return one.st_nlink, two.st_nlink, one.st_ino == two.st_ino


def _one_removed(place: Path) -> tuple[int, bytes]:
    os.unlink(place / "file")
    return (place / "other").stat().st_nlink, (place / "other").read_bytes()


def _one_replaced(place: Path) -> tuple[int, bytes]:
    os.rename(place / "full/inside", place / "file")
    return (place / "other").stat().st_nlink, (place / "other").read_bytes()


def _changed_in_place(place: Path) -> bytes:
    with opened(place / "file", os.O_WRONLY) as descriptor:
        os.write(descriptor, b"CON")
    return (place / "other").read_bytes()


def _made_longer(place: Path) -> tuple[int, bytes]:
    with opened(place / "file", os.O_WRONLY | os.O_APPEND) as descriptor:
        os.write(descriptor, b"!")
    return (place / "other").stat().st_size, (place / "other").read_bytes()


def _truncated(place: Path) -> int:
    os.truncate(place / "file", 3)
    return (place / "other").stat().st_size


def _mode_and_owner(place: Path) -> int:
    (place / "file").chmod(0o600)
    return permissions(place / "other")


def _times(place: Path) -> int:
    os.utime(place / "file", ns=(1, 2))
    return (place / "other").stat().st_mtime_ns


def _ctime_moves(call: Call) -> Call:
    """Whether a call moves the ctime by the name `other`."""
    return lambda place: moved_times(place, ["other"], call) == {"other ctime"}


def _on_a_fifo(call: Call) -> Call:
    """The same for a fifo of two names."""

    def run(place: Path) -> object:
        for name in ("file", "other"):
            os.unlink(place / name)
        os.mkfifo(place / "file")
        os.link(place / "file", place / "other")
        return call(place)

    return run


_REMOVED = _ctime_moves(lambda place: os.unlink(place / "file"))
_REPLACED = _ctime_moves(lambda place: os.rename(place / "full/inside", place / "file"))


def _while_both_are_open(place: Path) -> bytes:
    with opened(place / "file", os.O_RDWR) as one, opened(place / "other", os.O_RDWR) as two:
        os.pwrite(one, b"C", 0)
        os.pwrite(two, b"T", 6)
        return os.pread(one, 100, 0) + os.pread(two, 100, 0)


def _of_a_symlink(place: Path) -> tuple[bool, str]:
    os.link(place / "link", place / "new", follow_symlinks=False)
    return (place / "new").is_symlink(), os.readlink(place / "new")


def _symlink(target: bytes) -> Call:
    def run(place: Path) -> tuple[bytes, int]:
        path = os.fsencode(place / "new")
        os.symlink(target, path)
        return os.readlink(path), os.lstat(path).st_size

    return run


def _through_a_symlink(place: Path) -> tuple[bool, int]:
    """AT_SYMLINK_FOLLOW: another name of where the symlink leads."""
    words = os.fsencode(place / "link"), os.fsencode(place / "new")
    checked(libc.linkat(AT_FDCWD, words[0], AT_FDCWD, words[1], 0x400))
    return (place / "new").is_symlink(), (place / "file").stat().st_nlink


CASES = [
    case("link: two names, one file", _linked(_counts), (2, 2, True)),
    case("link: EEXIST", _link("file", "full/inside"), fails=errno.EEXIST),
    case("link: ENOENT for what is not there", _link("nothing", "new"), fails=errno.ENOENT),
    case("link: ENOENT into what is not there", _link("file", "nothing/new"), fails=errno.ENOENT),
    case("link: ENOTDIR below a file", _link("fifo", "file/new"), fails=errno.ENOTDIR),
    case("link: EPERM for a directory", _link("dir", "new"), fails=errno.EPERM),
    case("link: ENAMETOOLONG for 256 bytes", _link("file", "n" * 256), fails=errno.ENAMETOOLONG),
    case("link of a symlink is one more name of the symlink", _of_a_symlink, (True, "file")),
    case("AT_SYMLINK_FOLLOW: link of where a symlink leads", _through_a_symlink, (False, 2)),
    case("link of a fifo", _link("fifo", "new")),
    case("links: the file stays when one name is removed", _linked(_one_removed), (1, CONTENT)),
    case("links: the file stays when one name is replaced", _linked(_one_replaced), (1, CONTENT)),
    case("links: content that was changed through one name shows through the other",
         _linked(_changed_in_place), b"CONtent"),
    case("links: so does a file that has become longer", _linked(_made_longer), (8, b"content!"),
         unless=_WRITEBACK),
    case("links: so does a file that was truncated", _linked(_truncated), 3, unless=_WRITEBACK),
    case("links: so does a mode", _linked(_mode_and_owner), 0o600),
    case("links: so do times", _linked(_times), 2, unless=_WRITEBACK),
    case("links: so does the ctime of a file that lost a name", _linked(_REMOVED), True,
         unless=_WRITEBACK),
    case("links: so does the ctime of a file of which a name was replaced", _linked(_REPLACED),
         True, unless=_WRITEBACK),
    case("links: so does the ctime of a fifo that lost a name", _linked(_on_a_fifo(_REMOVED)),
         True),
    case("links: so does the ctime of a fifo of which a name was replaced",
         _linked(_on_a_fifo(_REPLACED)), True),
    case("links: both names open at once", _linked(_while_both_are_open), b"ContenTContenT"),
    case("symlink keeps its target as it is", _symlink(b"../a//b/./c"), (b"../a//b/./c", 11)),
    case("symlink keeps bytes that are no text", _symlink(b"\xff\xe9"), (b"\xff\xe9", 2)),
    case("symlink of 4095 bytes", _symlink(b"t" * 4095), (b"t" * 4095, 4095)),
    case("symlink: ENAMETOOLONG for 4096 bytes", _symlink(b"t" * 4096), fails=errno.ENAMETOOLONG),
    case("symlink: ENOENT for no target", _symlink(b""), fails=errno.ENOENT),
    case("symlink: EEXIST", lambda place: os.symlink("x", place / "dangling"),
         fails=errno.EEXIST),
    case("symlink: ENOTDIR below a file", lambda place: os.symlink("x", place / "file/new"),
         fails=errno.ENOTDIR),
    case("readlink: EINVAL for a file", lambda place: os.readlink(place / "file"),
         fails=errno.EINVAL),
    case("a symlink's mode is 0777", lambda place: permissions(place / "link"), 0o777),
    case("a path through symlinks to directories",
         lambda place: [(place / "dir/x").touch(), os.listdir(place / "dirlink")][1], ["x"]),
]  # fmt: skip
