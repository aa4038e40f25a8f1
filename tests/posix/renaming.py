"""rename(2) and renameat2(2), in all cases."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from tests.posix.case import AT_FDCWD, CONTENT, NOBODY, Call, as_user, case, checked, libc, opened

_NOREPLACE = 1
_EXCHANGE = 2
_NO_FLAGS = {"2": "libfuse 2 has no flags: the kernel answers EINVAL itself"}


def _rename(old: str, new: str) -> Call:
    return lambda place: os.rename(f"{place}/{old}", f"{place}/{new}")


def _rename_with(flags: int, old: str, new: str) -> Call:
    def run(place: Path) -> None:
        words = (os.fsencode(place / name) for name in (old, new))
        checked(libc.renameat2(AT_FDCWD, next(words), AT_FDCWD, next(words), flags))

    return run


def _then(first: Call, look: Call) -> Call:
    def run(place: Path) -> object:
        first(place)
        return look(place)

    return run


def _names(place: Path) -> list[str]:
    return sorted(os.listdir(place))


def _two_names_of_one(place: Path) -> tuple[bool, bool, int]:
    os.link(place / "file", place / "other")
    os.rename(place / "file", place / "other")
    exist = (place / "file").exists(), (place / "other").exists()
    return *exist, (place / "file").stat().st_nlink


def _keeps_its_number(place: Path) -> bool:
    before = (place / "file").stat().st_ino
    (place / "new").write_bytes(b"new")
    os.rename(place / "file", place / "new")
    return (place / "new").stat().st_ino == before


def _open_while_renamed(place: Path) -> bytes:
    with opened(place / "file", os.O_RDWR) as descriptor:
        os.rename(place / "file", place / "dir/moved")
        os.write(descriptor, b"CON")
        os.fchmod(descriptor, 0o600)
        os.ftruncate(descriptor, 5)
    return (place / "dir/moved").read_bytes()


def _directory_with_open_file(place: Path) -> tuple[bytes, bytes]:
    with opened(place / "full/inside", os.O_RDWR) as descriptor:
        os.rename(place / "full", place / "moved")
        os.write(descriptor, b"IN")
        os.mkdir(place / "full")
        (place / "full/inside").write_bytes(b"another")
    return (place / "moved/inside").read_bytes(), (place / "full/inside").read_bytes()


def _to_another_file_system(call: object) -> Call:
    def run(place: Path) -> None:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
            call(place / "file", Path(elsewhere, "new"))  # type: ignore[operator]

    return run


def _exchanged(one: str, two: str, look: Call) -> Call:
    return _then(_rename_with(_EXCHANGE, one, two), look)


def _parent_of_a_moved_directory(place: Path) -> bool:
    os.rename(place / "full", place / "dir/full")
    return (place / "dir/full/..").stat().st_ino == (place / "dir").stat().st_ino


def _from_a_sticky_directory(place: Path) -> None:
    place.chmod(0o1777)
    as_user(place, _rename("file", "new"), NOBODY)


def _exchanged_directories(place: Path) -> tuple[list[str], list[str], bool, int, int]:
    """Two directories of two parents change places, with what they hold."""
    os.mkdir(place / "dir/one")
    os.mkdir(place / "dir/one/below")
    _rename_with(_EXCHANGE, "dir/one", "full")(place)
    return (
        _names(place / "full"),
        _names(place / "dir/one"),
        (place / "dir/one/..").stat().st_ino == (place / "dir").stat().st_ino,
        (place / "full").stat().st_nlink,
        (place / "dir").stat().st_nlink,
    )


def _exchanged_keep_their_numbers(place: Path) -> bool:
    before = [(place / name).lstat().st_ino for name in ("file", "link")]
    _rename_with(_EXCHANGE, "file", "link")(place)
    return before == [(place / name).lstat().st_ino for name in ("link", "file")]


def _exchanged_while_open(place: Path) -> tuple[bytes, bytes]:
    """Both files are open while their names change places; each descriptor keeps its file."""
    one, two = opened(place / "file", os.O_RDWR), opened(place / "full/inside", os.O_RDWR)
    with one as first, two as second:
        _rename_with(_EXCHANGE, "file", "full/inside")(place)
        os.write(first, b"1")
        os.write(second, b"2")
    return (place / "full/inside").read_bytes(), (place / "file").read_bytes()


def _open_directory_moved(place: Path) -> tuple[list[str], bytes]:
    """Who has a directory open, or stands in it, goes on when it is moved."""
    with opened(place / "full") as descriptor:
        os.rename(place / "full", place / "dir/moved")
        with open(os.open("new", os.O_RDWR | os.O_CREAT, dir_fd=descriptor), "wb") as file:
            file.write(CONTENT)
        found = sorted(os.listdir(descriptor))
    return found, (place / "dir/moved/new").read_bytes()


CASES = [
    case("rename moves a file", _then(_rename("file", "new"), lambda p: (p / "new").read_bytes()),
         CONTENT),
    case("rename: the old name is gone",
         _then(_rename("file", "new"), lambda p: (p / "file").exists()), False),
    case("rename replaces a file",
         _then(_rename("full/inside", "file"), lambda p: (p / "file").read_bytes()), b"inside"),
    case("rename: the moved file keeps its number", _keeps_its_number, True),
    case("rename moves a directory with its content",
         _then(_rename("full", "dir/new"), lambda p: (p / "dir/new/inside").read_bytes()),
         b"inside"),
    case("rename replaces an empty directory",
         _then(_rename("full", "dir"), lambda p: _names(p / "dir")), ["inside"]),
    case("rename: two dots of a moved directory lead to its new parent",
         _parent_of_a_moved_directory, True),
    case("rename: ENOTEMPTY over a directory that is not empty", _rename("dir", "full"),
         fails=errno.ENOTEMPTY),
    case("rename: EISDIR for a file over a directory", _rename("file", "dir"), fails=errno.EISDIR),
    case("rename: ENOTDIR for a directory over a file", _rename("dir", "file"),
         fails=errno.ENOTDIR),
    case("rename: ENOTDIR for a directory over a symlink to a directory",
         _rename("full", "dirlink"), fails=errno.ENOTDIR),
    case("rename: EINVAL for a directory into itself", _rename("full", "full/new"),
         fails=errno.EINVAL),
    case("rename: ENOTEMPTY for a directory over what holds it",
         _then(lambda p: os.mkdir(p / "full/deep"), _rename("full/deep", "full")),
         fails=errno.ENOTEMPTY),
    case("rename: ENOENT for what is not there", _rename("nothing", "new"), fails=errno.ENOENT),
    case("rename: ENOENT into what is not there", _rename("file", "nothing/new"),
         fails=errno.ENOENT),
    case("rename: ENOTDIR below a file", _rename("dir", "file/new"), fails=errno.ENOTDIR),
    case("rename: ENOTDIR for a file to a name with a slash at its end", _rename("file", "new/"),
         fails=errno.ENOTDIR),
    case("rename: ENAMETOOLONG for 256 bytes", _rename("file", "n" * 256),
         fails=errno.ENAMETOOLONG),
    case("rename: EBUSY for a dot", _rename("dir/.", "new"), fails=errno.EBUSY),
    case("rename: to the same name changes nothing",
         _then(_rename("file", "file"), lambda p: (p / "file").read_bytes()), CONTENT),
    case("rename: two names of one file both stay", _two_names_of_one, (True, True, 2)),
    case("rename moves a symlink, not where it leads",
         _then(_rename("link", "new"), lambda p: os.readlink(p / "new")), "file"),
    case("rename replaces a symlink, not where it leads",
         _then(_rename("full/inside", "link"), lambda p: (p / "file").read_bytes()), CONTENT),
    case("rename moves a fifo",
         _then(_rename("fifo", "dir/new"), lambda p: (p / "dir/new").is_fifo()), True),
    case("rename: an open file goes on", _open_while_renamed, b"CONte"),
    case("rename: an open file in a moved directory goes on", _directory_with_open_file,
         (b"INside", b"another")),
    case("rename: EXDEV to another file system", _to_another_file_system(os.rename),
         fails=errno.EXDEV),
    case("link: EXDEV to another file system", _to_another_file_system(os.link),
         fails=errno.EXDEV),
    case("rename: EPERM for another's file in a sticky directory", _from_a_sticky_directory,
         fails=errno.EPERM, as_root=True),
    case("RENAME_NOREPLACE: EEXIST", _rename_with(_NOREPLACE, "file", "full/inside"),
         fails=errno.EEXIST),
    case("RENAME_NOREPLACE moves to a free name", _rename_with(_NOREPLACE, "file", "new"),
         unless=_NO_FLAGS),
    case("RENAME_EXCHANGE swaps two files",
         _exchanged("file", "full/inside", lambda p: (p / "full/inside").read_bytes()), CONTENT,
         unless=_NO_FLAGS),
    case("RENAME_EXCHANGE swaps a file and a directory",
         _exchanged("file", "full", lambda p: (p / "file/inside").read_bytes()), b"inside",
         unless=_NO_FLAGS),
    case("RENAME_EXCHANGE keeps the link counts of directories true",
         _exchanged("full/inside", "dir",
                    lambda p: (p.stat().st_nlink, (p / "full").stat().st_nlink)), (3, 3),
         unless=_NO_FLAGS),
    case("RENAME_EXCHANGE swaps two directories of two parents", _exchanged_directories,
         (["below"], ["inside"], True, 3, 3), unless=_NO_FLAGS),
    case("RENAME_EXCHANGE: each file keeps its number", _exchanged_keep_their_numbers, True,
         unless=_NO_FLAGS),
    case("RENAME_EXCHANGE: open files go on", _exchanged_while_open, (b"1ontent", b"2nside"),
         unless=_NO_FLAGS),
    case("RENAME_EXCHANGE of a name with itself",
         _exchanged("file", "file", lambda p: (p / "file").read_bytes()), CONTENT),
    case("RENAME_NOREPLACE moves a directory", _rename_with(_NOREPLACE, "full", "dir/new"),
         unless=_NO_FLAGS),
    case("RENAME_NOREPLACE: EEXIST for a dangling symlink",
         _rename_with(_NOREPLACE, "file", "dangling"), fails=errno.EEXIST),
    case("RENAME_NOREPLACE: EEXIST for an empty directory",
         _rename_with(_NOREPLACE, "full", "dir"), fails=errno.EEXIST),
    case("rename: an open directory goes on", _open_directory_moved, (["inside", "new"], CONTENT)),
    case("RENAME_EXCHANGE: ENOENT", _rename_with(_EXCHANGE, "file", "nothing"),
         fails=errno.ENOENT),
    case("RENAME_EXCHANGE: EINVAL for a directory and what holds it",
         _rename_with(_EXCHANGE, "full", "full/inside"), fails=errno.EINVAL),
    case("renameat2: EINVAL for both flags",
         _rename_with(_NOREPLACE | _EXCHANGE, "file", "full/inside"), fails=errno.EINVAL),
]  # fmt: skip
