"""Which times a call moves, and how times are set."""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Sequence
from pathlib import Path

from tests.posix.case import AT_FDCWD, Call, as_user, case, checked, libc, moved_times, opened

_NOW = (1 << 30) - 1
_OMIT = (1 << 30) - 2
_FULL = {"full mtime", "full ctime"}
_DIR = {"dir mtime", "dir ctime"}


def _moves(call: Call, watched: Sequence[str] = ("file", ".", "dir", "full")) -> Call:
    return lambda place: moved_times(place, watched, call)


def _write(place: Path) -> None:
    with opened(place / "file", os.O_WRONLY) as descriptor:
        os.write(descriptor, b"x")


def _allocate(place: Path) -> None:
    with opened(place / "file", os.O_WRONLY) as descriptor:
        checked(libc.fallocate64(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(1)))


def _read(place: Path) -> None:
    (place / "file").read_bytes()


def _set(name: str, atime_ns: int, mtime_ns: int, *, follow: bool = True, look: str = "") -> Call:
    def run(place: Path) -> tuple[int, int]:
        os.utime(place / name, ns=(atime_ns, mtime_ns), follow_symlinks=follow)
        found = (place / (look or name)).lstat()
        return found.st_atime_ns, found.st_mtime_ns

    return run


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _utimensat(place: Path, atime: int, mtime: int) -> None:
    """Set the times of `file` to now or leave them, each by its special number."""
    times = (_Timespec * 2)(_Timespec(0, atime), _Timespec(0, mtime))
    checked(libc.utimensat(AT_FDCWD, os.fsencode(place / "file"), times, 0))


def _omit(place: Path) -> tuple[bool, int]:
    os.utime(place / "file", ns=(10, 20))
    _utimensat(place, _NOW, _OMIT)
    found = (place / "file").stat()
    return abs(found.st_atime - time.time()) < 5, found.st_mtime_ns


def _omit_both(place: Path) -> set[str]:
    """Nothing is to be set, so nothing moves."""
    return moved_times(place, ["file"], lambda here: _utimensat(here, _OMIT, _OMIT))


def _of_a_reader(place: Path) -> int:
    """The owner may set times by a descriptor that only reads."""
    with opened(place / "file") as descriptor:
        os.utime(descriptor, ns=(1, 2))
    return (place / "file").stat().st_mtime_ns


def _while_dirty(place: Path) -> int:
    """The time that is set by hand stays, though buffered writes come to be stored later."""
    with opened(place / "file", os.O_WRONLY) as descriptor:
        os.write(descriptor, b"x" * 100_000)
        os.utime(descriptor, ns=(1, 2))
        os.fsync(descriptor)
    return (place / "file").stat().st_mtime_ns


def _far_away(place: Path) -> bool:
    os.utime(place / "file", ns=(1, 10**19))
    return (place / "file").stat().st_mtime_ns > 9 * 10**18


def _accessed(place: Path) -> bool:
    """relatime: reading after a change moves the time of reading."""
    os.utime(place / "file", ns=(10**18, 2 * 10**18 // 2))
    before = (place / "file").stat().st_atime_ns
    _read(place)
    return (place / "file").stat().st_atime_ns > before


def _now_in_between(place: Path) -> bool:
    before = time.time_ns() - 50_000_000
    (place / "new").touch()
    found = (place / "new").stat()
    times = (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)
    return all(before <= moment <= time.time_ns() + 50_000_000 for moment in times)


def _others_file(call: Call) -> Call:
    def run(place: Path) -> object:
        (place / "file").chmod(0o666)
        return as_user(place, call)

    return run


def _in_turn(place: Path) -> list[str]:
    """Changes of which a later one leaves an earlier time."""
    changes: dict[str, Call] = {
        "make": lambda place: (place / "new").touch(),
        "touch": lambda place: os.utime(place / "new"),
        "write": lambda place: (place / "new").write_bytes(b"new"),
        "touch again": lambda place: os.utime(place / "new"),
        "make another": lambda place: (place / "dir/new").mkdir(),
    }
    wrong = []
    latest_ns = 0
    for _ in range(10):
        for name, change in changes.items():
            change(place)
            path = place / ("dir/new" if name == "make another" else "new")
            time_ns = path.stat().st_mtime_ns
            if time_ns < latest_ns:
                wrong.append(name)
            latest_ns = time_ns
        (place / "new").unlink()
        (place / "dir/new").rmdir()
    return wrong


def _exchange(place: Path) -> None:
    """Twice, so that each name is of the same file as before."""
    for _ in range(2):
        words = [os.fsencode(place / name) for name in ("file", "full/inside")]
        checked(libc.renameat2(AT_FDCWD, words[0], AT_FDCWD, words[1], 2))


_NO_EXCHANGE = {"2": "libfuse 2 has no flags: the kernel answers EINVAL itself"}

CASES = [
    case("what changes later has no earlier time", _in_turn, []),
    case("creating moves the directory's times", _moves(lambda p: (p / "dir/new").touch()), _DIR),
    case("mkdir moves the directory's times", _moves(lambda p: (p / "dir/new").mkdir()), _DIR),
    case("symlink moves the directory's times",
         _moves(lambda p: (p / "dir/new").symlink_to("x")), _DIR),
    case("mknod moves the directory's times", _moves(lambda p: os.mkfifo(p / "dir/new")), _DIR),
    case("link moves the directory's times and the file's ctime",
         _moves(lambda p: os.link(p / "file", p / "dir/new")), _DIR | {"file ctime"}),
    case("unlink moves the directory's times",
         _moves(lambda p: os.unlink(p / "full/inside")), _FULL),
    case("unlink of one name of two moves the file's ctime",
         _moves(lambda p: [os.link(p / "file", p / "x"), os.unlink(p / "x")]),
         {". mtime", ". ctime", "file ctime"}),
    case("rmdir moves the directory's times", _moves(lambda p: os.rmdir(p / "dir")),
         {". mtime", ". ctime"}),
    case("rename moves both directories' times",
         _moves(lambda p: os.rename(p / "full/inside", p / "dir/x")), _DIR | _FULL),
    case("rename moves the file's ctime",
         _moves(lambda p: [os.rename(p / "file", p / "x"), os.rename(p / "x", p / "file")]),
         {". mtime", ". ctime", "file ctime"}),
    case("write moves mtime and ctime", _moves(_write), {"file mtime", "file ctime"}),
    case("read moves neither", _moves(_read), set()),
    case("truncate to another size moves mtime and ctime",
         _moves(lambda p: os.truncate(p / "file", 3)), {"file mtime", "file ctime"}),
    case("truncate to the same size moves mtime and ctime",
         _moves(lambda p: os.truncate(p / "file", 7)), {"file mtime", "file ctime"},
         unless={"3": "under the writeback cache the kernel sets these times itself, and leaves"
                 " them where the size stays"}),
    case("O_TRUNC moves mtime and ctime", _moves(lambda p: (p / "file").write_bytes(b"")),
         {"file mtime", "file ctime"}),
    case("fallocate of what is there moves mtime and ctime", _moves(_allocate),
         {"file mtime", "file ctime"},
         unless={"2": "fusepy's table of calls ends before this one"}),
    case("chmod moves ctime", _moves(lambda p: (p / "file").chmod(0o600)), {"file ctime"}),
    case("chown moves ctime", _moves(lambda p: os.chown(p / "file", os.getuid(), os.getgid())),
         {"file ctime"}),
    case("setxattr moves ctime", _moves(lambda p: os.setxattr(p / "file", "user.x", b"x")),
         {"file ctime"}),
    case("utimens moves ctime, and mtime back", _moves(lambda p: os.utime(p / "file", (1, 1))),
         {"file ctime"}),
    case("what fails moves nothing",
         _moves(lambda p: [os.access(p / "nothing", 0), os.path.exists(p / "dir/x")]), set()),
    case("new files have the time of now", _now_in_between, True),
    case("reading moves atime after a change", _accessed, True,
         unless={"3": "the kernel has what was just written, and reads it without a word"}),
    case("utimens keeps nanoseconds", _set("file", 1_234_567_891, 987_654_321_000_000_001),
         (1_234_567_891, 987_654_321_000_000_001)),
    case("utimens: before 1970", _set("file", -1, -1_500_000_001), (-1, -1_500_000_001)),
    case("utimens: after 2106", _set("file", 5 * 10**18, 6 * 10**18), (5 * 10**18, 6 * 10**18)),
    case("utimens: a time that is too late to be kept becomes a late one", _far_away, True),
    case("utimens of a directory", _set("dir", 10, 20), (10, 20)),
    case("utimens follows symlinks", _set("link", 10, 20, look="file"), (10, 20)),
    case("utimens of a symlink itself", _set("link", 10, 20, follow=False), (10, 20)),
    case("utimens: UTIME_NOW and UTIME_OMIT", _omit, (True, 20)),
    case("utimens: UTIME_OMIT for both moves nothing", _omit_both, set()),
    case("utimens: EINVAL for a thousand million nanoseconds",
         lambda place: _utimensat(place, 10**9, 0), fails=errno.EINVAL),
    case("futimens of a descriptor that only reads", _of_a_reader, 2),
    case("exchanging two names moves both directories' times and both files' ctime",
         _moves(_exchange, ("file", ".", "dir", "full", "full/inside")),
         {". mtime", ". ctime", "file ctime", "full/inside ctime", *_FULL}, unless=_NO_EXCHANGE),
    case("utimens: ENOENT", _set("nothing", 1, 1), fails=errno.ENOENT),
    case("utimens of a file with writes under way stays", _while_dirty, 2),
    case("utimens: EPERM for another's file",
         _others_file(lambda p: os.utime(p / "file", (1, 1))), fails=errno.EPERM, as_root=True),
    case("utimens: who may write may set the time of now",
         _others_file(lambda p: os.utime(p / "file")), as_root=True),
]  # fmt: skip
