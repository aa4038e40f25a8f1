"""mkdir(2), rmdir(2), unlink(2) and mknod(2)."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from tests.posix.case import CONTENT, Call, as_user, case, opened, permissions, umask

_NO_PATH = dict.fromkeys(
    ("2", "3", "3 exact"), "the library asks by path, and a removed directory has none"
)


def _mkdir(name: str) -> Call:
    return lambda place: os.mkdir(f"{place}/{name}")


def _rmdir(name: str) -> Call:
    return lambda place: os.rmdir(f"{place}/{name}")


def _unlink(name: str) -> Call:
    return lambda place: os.unlink(f"{place}/{name}")


def _mkdir_mode(place: Path) -> tuple[int, int]:
    with umask(0o027):
        os.mkdir(place / "one", 0o777)
        os.mkdir(place / "two", 0o1777)
    return permissions(place / "one"), permissions(place / "two")


def _link_counts(place: Path) -> list[int]:
    counts = []
    for step in (
        lambda: None,
        lambda: os.mkdir(place / "dir/a"),
        lambda: os.mkdir(place / "dir/b"),
        lambda: (place / "dir/file").touch(),
        lambda: os.rmdir(place / "dir/a"),
        lambda: os.rename(place / "dir/b", place / "full/b"),
    ):
        step()
        counts.append((place / "dir").stat().st_nlink)
    return [*counts, (place / "full").stat().st_nlink]


def _only_the_symlink(place: Path) -> tuple[bool, bytes]:
    os.unlink(place / "link")
    return os.path.lexists(place / "link"), (place / "file").read_bytes()


def _create_in_a_removed_directory(place: Path) -> None:
    with opened(place / "dir") as descriptor:
        os.rmdir(place / "dir")
        os.close(os.open("x", os.O_CREAT, dir_fd=descriptor))


def _list_a_removed_directory(place: Path) -> list[str]:
    with opened(place / "dir") as descriptor:
        os.rmdir(place / "dir")
        return os.listdir(descriptor)


def _status_of_a_removed_directory(place: Path) -> bool:
    with opened(place / "dir") as descriptor:
        os.rmdir(place / "dir")
        return stat.S_ISDIR(os.fstat(descriptor).st_mode)


def _node(kind: int, device: int = 0) -> Call:
    def run(place: Path) -> tuple[bool, int, int]:
        os.mknod(place / "node", kind | 0o640, device)
        found = (place / "node").lstat()
        return stat.S_IFMT(found.st_mode) == kind, found.st_mode & 0o777, found.st_rdev

    return run


def _through_a_fifo(place: Path) -> bytes:
    with opened(place / "fifo", os.O_RDONLY | os.O_NONBLOCK) as reader:
        with opened(place / "fifo", os.O_WRONLY) as writer:
            os.write(writer, CONTENT)
        return os.read(reader, 100)


def _null_device(place: Path) -> bytes:
    os.mknod(place / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (place / "null").write_bytes(CONTENT)
    return (place / "null").read_bytes()


CASES = [
    case("mkdir: EEXIST for a directory", _mkdir("dir"), fails=errno.EEXIST),
    case("mkdir: EEXIST for a file", _mkdir("file"), fails=errno.EEXIST),
    case("mkdir: EEXIST for a dangling symlink", _mkdir("dangling"), fails=errno.EEXIST),
    case("mkdir: EEXIST for the dot", _mkdir("."), fails=errno.EEXIST),
    case("mkdir: ENOENT below what is not there", _mkdir("nothing/x"), fails=errno.ENOENT),
    case("mkdir: ENOTDIR below a file", _mkdir("file/x"), fails=errno.ENOTDIR),
    case("mkdir: ELOOP below a loop", _mkdir("loop/x"), fails=errno.ELOOP),
    case("mkdir: ENAMETOOLONG for 256 bytes", _mkdir("n" * 256), fails=errno.ENAMETOOLONG),
    case("mkdir takes a slash at the end", _mkdir("new/")),
    case("mkdir takes the mode less the umask, and the sticky bit", _mkdir_mode, (0o750, 0o1750)),
    case("a directory's link count is 2 and one for each directory in it", _link_counts,
         [2, 3, 4, 4, 3, 2, 3]),
    case("rmdir removes an empty directory", _rmdir("dir")),
    case("rmdir: ENOTEMPTY", _rmdir("full"), fails=errno.ENOTEMPTY),
    case("rmdir: ENOTDIR for a file", _rmdir("file"), fails=errno.ENOTDIR),
    case("rmdir: ENOTDIR for a symlink to a directory", _rmdir("dirlink"), fails=errno.ENOTDIR),
    case("rmdir: ENOENT", _rmdir("nothing"), fails=errno.ENOENT),
    case("rmdir: EINVAL for a dot", _rmdir("dir/."), fails=errno.EINVAL),
    case("rmdir: ENOTEMPTY for two dots", _rmdir("dir/.."), fails=errno.ENOTEMPTY),
    case("rmdir: ENOENT for what is made in a directory that is removed while open",
         _create_in_a_removed_directory, fails=errno.ENOENT),
    case("rmdir: listing a directory that is removed while open", _list_a_removed_directory, [],
         unless=_NO_PATH),
    case("rmdir: fstat of a directory that is removed while open", _status_of_a_removed_directory,
         True, unless=_NO_PATH),
    case("unlink: EISDIR for a directory", _unlink("dir"), fails=errno.EISDIR),
    case("unlink: ENOENT", _unlink("nothing"), fails=errno.ENOENT),
    case("unlink: ENOTDIR for a file with a slash at its end", _unlink("file/"),
         fails=errno.ENOTDIR),
    case("unlink: ENAMETOOLONG for 256 bytes", _unlink("n" * 256), fails=errno.ENAMETOOLONG),
    case("unlink removes a symlink, not where it leads", _only_the_symlink, (False, CONTENT)),
    case("unlink removes a fifo", _unlink("fifo")),
    case("mknod makes a fifo", _node(stat.S_IFIFO), (True, 0o640, 0)),
    case("mknod makes a socket", _node(stat.S_IFSOCK), (True, 0o640, 0)),
    case("mknod makes a regular file", _node(stat.S_IFREG), (True, 0o640, 0)),
    case("mknod makes a character device", _node(stat.S_IFCHR, os.makedev(1, 5)),
         (True, 0o640, os.makedev(1, 5)), as_root=True),
    case("mknod makes a block device with a large number",
         _node(stat.S_IFBLK, os.makedev(259, 70_000)), (True, 0o640, os.makedev(259, 70_000)),
         as_root=True),
    case("mknod: EEXIST", lambda place: os.mknod(place / "link"), fails=errno.EEXIST),
    case("mknod: EPERM for a device, if not root",
         lambda place: (place.chmod(0o777), as_user(place, _node(stat.S_IFCHR, 259))),
         fails=errno.EPERM, as_root=True),
    case("a fifo passes on what is written", _through_a_fifo, CONTENT),
    case("a device works", _null_device, b"", as_root=True),
]  # fmt: skip
