"""open(2): its flags, what it creates, and its errors."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.posix.case import (
    CONTENT,
    Call,
    as_user,
    case,
    opened,
    permissions,
    umask,
)


def _open(name: str, flags: int) -> object:
    def call(place: Path) -> None:
        # Not Path: that would drop a slash at the end.
        os.close(os.open(f"{place}/{name}", flags, 0o644))

    return call


def _exists(name: str, call: object) -> object:
    def check(place: Path) -> bool:
        call(place)
        return (place / name).is_file()

    return check


def _append(place: Path) -> bytes:
    with opened(place / "file", os.O_RDWR | os.O_APPEND) as one:
        with opened(place / "file", os.O_WRONLY | os.O_APPEND) as two:
            os.lseek(one, 0, os.SEEK_SET)
            os.write(one, b"1")
            os.write(two, b"2")
            os.write(one, b"3")
        return os.pread(one, 100, 0)


def _truncating(place: Path) -> tuple[int, bytes]:
    with opened(place / "file", os.O_RDWR | os.O_TRUNC) as descriptor:
        size = os.fstat(descriptor).st_size
        os.write(descriptor, b"x")
    return size, (place / "file").read_bytes()


def _mode(place: Path) -> int:
    with umask(0o027), opened(place / "new", os.O_WRONLY | os.O_CREAT, 0o666):
        pass
    return permissions(place / "new")


def _unwritable_by_its_mode(place: Path) -> bytes:
    with opened(place / "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400) as descriptor:
        os.write(descriptor, b"written")
    return (place / "new").read_bytes()


def _execute_while_open(place: Path) -> None:
    shutil.copy("/bin/true", place / "program")
    with opened(place / "program", os.O_RDWR):
        subprocess.run([place / "program"], check=True)


def _change_running(call: Callable[[Path], object]) -> Call:
    """The errno of a call on a running program, and whether the program is still whole."""

    def check(place: Path) -> tuple[int | None, bool]:
        program = place / "program"
        shutil.copy("/bin/cat", program)
        with subprocess.Popen([program], stdin=subprocess.PIPE):
            try:
                call(program)
                number = None
            except OSError as error:
                number = error.errno
            return number, program.read_bytes() == Path("/bin/cat").read_bytes()

    return check


def _execute(place: Path) -> int:
    shutil.copy("/bin/true", place / "program")
    return subprocess.run([place / "program"], check=False).returncode


def _read_of_write_only(place: Path) -> None:
    with opened(place / "file", os.O_WRONLY) as descriptor:
        os.read(descriptor, 1)


def _write_of_read_only(place: Path) -> None:
    with opened(place / "file") as descriptor:
        os.write(descriptor, b"x")


def _append_by_pwrite(place: Path) -> bytes:
    """Linux appends whatever offset pwrite names."""
    with opened(place / "file", os.O_RDWR | os.O_APPEND) as descriptor:
        os.pwrite(descriptor, b"!", 0)
        return os.pread(descriptor, 100, 0)


def _append_from_now_on(place: Path) -> bytes:
    """fcntl(2) sets the flag of an open file, and takes it away."""
    with opened(place / "file", os.O_RDWR) as descriptor:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_APPEND)
        os.write(descriptor, b"!")
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
        os.pwrite(descriptor, b"C", 0)
        return os.pread(descriptor, 100, 0)


def _direct(place: Path) -> bool:
    """Reads and writes past the kernel's memory, from where ext4 takes them: whole pages."""
    with mmap.mmap(-1, 8192) as page:
        page[:] = b"d" * 8192
        with opened(place / "new", os.O_RDWR | os.O_CREAT | os.O_DIRECT) as descriptor:
            os.pwrite(descriptor, page, 4096)
            page[:] = bytes(8192)
            count = os.preadv(descriptor, [page], 4096)
            return count == 8192 and page[:] == b"d" * 8192


def _synced(flag: int) -> Call:
    def run(place: Path) -> bytes:
        with opened(place / "file", os.O_RDWR | flag) as descriptor:
            os.write(descriptor, b"CON")
        return (place / "file").read_bytes()

    return run


def _others_without_atime(place: Path) -> None:
    as_user(place, _open("file", os.O_RDONLY | os.O_NOATIME))


def _symlinks(count: int) -> Call:
    """A file behind a row of symlinks."""

    def run(place: Path) -> bytes:
        os.rename(place / "file", place / "dir/0")
        for number in range(count):
            os.symlink(f"{number}", place / f"dir/{number + 1}")
        return (place / f"dir/{count}").read_bytes()

    return run


def _long_path(place: Path) -> tuple[int, bytes]:
    """The longest path that a call can have."""
    path = os.fsencode(place / "deep")
    os.mkdir(path)
    while len(path) < 4095 - 256:
        path += b"/" + b"n" * 200
        os.mkdir(path)
    path += b"/" + b"f" * (4095 - len(path) - 1)
    with open(path, "wb") as file:
        file.write(CONTENT)
    with open(path, "rb") as file:
        return len(path), file.read()


def _below_the_longest_path(place: Path) -> tuple[bytes, int, bool]:
    """Directories go deeper than a path can say: whoever stands in one reaches the next."""
    name, depth = "n" * 250, 40
    folder = os.open(place / "dir", os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=folder)
        below = os.open(name, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    with open(os.open("file", os.O_RDWR | os.O_CREAT, dir_fd=folder), "wb") as file:
        file.write(CONTENT)
    os.rename("file", "moved", src_dir_fd=folder, dst_dir_fd=folder)
    with open(os.open("moved", os.O_RDONLY, dir_fd=folder), "rb") as file:
        found = file.read(), os.fstat(folder).st_nlink
    os.close(folder)
    shutil.rmtree(place / "dir")
    return *found, (place / "dir").exists()


def _path_only(place: Path) -> int:
    with opened(place / "file", os.O_PATH) as descriptor:
        return os.fstat(descriptor).st_size


CASES = [
    case("open: ENOENT for a name that is not there", _open("nothing", os.O_RDONLY),
         fails=errno.ENOENT),
    case("open: ENOENT below a directory that is not there", _open("nothing/x", os.O_CREAT),
         fails=errno.ENOENT),
    case("open: ENOTDIR below a file", _open("file/x", os.O_CREAT), fails=errno.ENOTDIR),
    case("open: ENOTDIR for a file with a slash at its end", _open("file/", os.O_RDONLY),
         fails=errno.ENOTDIR),
    case("open: ELOOP for symlinks that lead to themselves", _open("loop", os.O_RDONLY),
         fails=errno.ELOOP),
    case("open: ENAMETOOLONG for a name of 256 bytes", _open("n" * 256, os.O_CREAT),
         fails=errno.ENAMETOOLONG),
    case("open: ENAMETOOLONG for a missing name of 256 bytes", _open("n" * 256, os.O_RDONLY),
         fails=errno.ENAMETOOLONG),
    case("open: ENAMETOOLONG for a path of 4096 bytes", _open("./" * 2048 + "x", os.O_RDONLY),
         fails=errno.ENAMETOOLONG),
    case("O_CREAT makes a file", _exists("new", _open("new", os.O_CREAT)), True),
    case("O_CREAT opens a file that is there", _exists("file", _open("file", os.O_CREAT)), True),
    case("O_CREAT makes the file that a dangling symlink leads to",
         _exists("nothing", _open("dangling", os.O_CREAT | os.O_WRONLY)), True),
    case("O_CREAT: EISDIR for a directory", _open("dir", os.O_CREAT), fails=errno.EISDIR),
    case("O_CREAT takes the mode less the umask", _mode, 0o640),
    case("O_CREAT: the descriptor writes whatever the mode says", _unwritable_by_its_mode,
         b"written"),
    case("O_EXCL: EEXIST for a file", _open("file", os.O_CREAT | os.O_EXCL), fails=errno.EEXIST),
    case("O_EXCL: EEXIST for a dangling symlink", _open("dangling", os.O_CREAT | os.O_EXCL),
         fails=errno.EEXIST),
    case("O_TRUNC empties a file", _truncating, (0, b"x")),
    case("O_APPEND writes at the end, wherever that is by now", _append, CONTENT + b"123"),
    case("O_NOFOLLOW: ELOOP for a symlink", _open("link", os.O_NOFOLLOW), fails=errno.ELOOP),
    case("O_NOFOLLOW opens a file", _open("file", os.O_NOFOLLOW)),
    case("O_DIRECTORY: ENOTDIR for a file", _open("file", os.O_DIRECTORY), fails=errno.ENOTDIR),
    case("O_DIRECTORY opens a directory through a symlink", _open("dirlink", os.O_DIRECTORY)),
    case("O_PATH opens without reading", _path_only, len(CONTENT)),
    case("O_APPEND: pwrite appends, too", _append_by_pwrite, CONTENT + b"!"),
    case("O_APPEND can be set and taken away", _append_from_now_on, b"Content!"),
    case("O_DIRECT reads and writes pages", _direct, True),
    case("O_SYNC writes", _synced(os.O_SYNC), b"CONtent"),
    case("O_DSYNC writes", _synced(os.O_DSYNC), b"CONtent"),
    case("O_NOATIME: EPERM for another's file", _others_without_atime, fails=errno.EPERM,
         as_root=True),
    case("O_TMPFILE: EOPNOTSUPP", _open("dir", os.O_TMPFILE | os.O_RDWR),
         fails=errno.EOPNOTSUPP, unless={"ext4": "it makes files without names"}),
    case("O_EXCL: EEXIST for a directory", _open("dir", os.O_CREAT | os.O_EXCL),
         fails=errno.EEXIST),
    case("open: a file behind 40 symlinks", _symlinks(40), CONTENT),
    case("open: ELOOP for a file behind 41 symlinks", _symlinks(41), fails=errno.ELOOP),
    case("open: a path of 4095 bytes", _long_path, (4095, CONTENT)),
    case("directories go deeper than the longest path", _below_the_longest_path,
         (CONTENT, 2, False)),
    case("O_WRONLY: EISDIR for a directory", _open("dir", os.O_WRONLY), fails=errno.EISDIR),
    case("O_TRUNC: EISDIR for a directory", _open("dir", os.O_TRUNC | os.O_RDWR),
         fails=errno.EISDIR),
    case("O_NONBLOCK: ENXIO for a fifo that nobody reads",
         _open("fifo", os.O_WRONLY | os.O_NONBLOCK), fails=errno.ENXIO),
    case("read: EBADF for a descriptor that only writes", _read_of_write_only, fails=errno.EBADF),
    case("write: EBADF for a descriptor that only reads", _write_of_read_only, fails=errno.EBADF),
    case("execve: a program runs", _execute, 0),
    case("execve: ETXTBSY while the program is open for writing", _execute_while_open,
         fails=errno.ETXTBSY),
    case("open: ETXTBSY for writing to a running program",
         _change_running(lambda path: os.open(path, os.O_WRONLY)), (errno.ETXTBSY, True)),
    case("O_TRUNC: ETXTBSY for a running program, which stays whole",
         _change_running(lambda path: os.open(path, os.O_WRONLY | os.O_TRUNC)),
         (errno.ETXTBSY, True)),
    case("O_TRUNC: ETXTBSY for a running program, which stays whole, though only to be read",
         _change_running(lambda path: os.open(path, os.O_RDONLY | os.O_TRUNC)),
         (errno.ETXTBSY, True)),
    case("truncate: ETXTBSY for a running program, which stays whole",
         _change_running(lambda path: os.truncate(path, 0)), (errno.ETXTBSY, True)),
]  # fmt: skip
