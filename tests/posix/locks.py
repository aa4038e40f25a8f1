"""flock(2) and fcntl(2): who may hold which lock at once, and when it is free again."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.posix.case import Call, case, elsewhere, opened

_AT_ONCE = fcntl.LOCK_EX | fcntl.LOCK_NB
#: struct flock on 64 bits: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")
_GETLK, _OFD_SETLK = fcntl.F_GETLK, 37

Take = Callable[[int, int], object]


@contextlib.contextmanager
def _held(file: Path, take: Take, kind: int = fcntl.LOCK_EX) -> Iterator[int]:
    """Another process holds a lock, and gives its number; it is killed in the end."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        take(os.open(file, os.O_RDWR), kind)
        os.write(writer, b"held")
        while True:
            signal.pause()
    try:
        os.read(reader, 4)
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)


def _range(descriptor: int, kind: int) -> None:
    """A lock on the file's first three bytes."""
    fcntl.lockf(descriptor, kind, 3, 0)


def _held_by_another(take: Take, held: int, wanted: int) -> Call:
    """A lock is asked for while another process holds one, and must not be waited for."""

    def run(place: Path) -> None:
        with _held(place / "file", take, held), opened(place / "file", os.O_RDWR) as descriptor:
            take(descriptor, wanted | fcntl.LOCK_NB)

    return run


def _free_after_death(take: Take) -> Call:
    """Who waits for a lock gets it when its holder is killed, and not before."""

    def run(place: Path) -> tuple[bool, bool]:
        reader, writer = os.pipe()
        with _held(place / "file", take) as holder:
            pid = os.fork()
            if pid == 0:
                take(os.open(place / "file", os.O_RDWR), fcntl.LOCK_EX)
                os.write(writer, b"got it")
                os._exit(0)
            early = bool(select.select([reader], [], [], 0.05)[0])
            os.kill(holder, signal.SIGKILL)
            late = bool(select.select([reader], [], [], 30)[0])
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)
        return early, late

    return run


def _other_range(place: Path) -> None:
    with _held(place / "file", _range), opened(place / "file", os.O_RDWR) as descriptor:
        fcntl.lockf(descriptor, _AT_ONCE, 3, 3)


def _told(place: Path) -> bool:
    """F_GETLK names the process that holds the lock, and its range."""
    with _held(place / "file", _range) as pid, opened(place / "file", os.O_RDWR) as descriptor:
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 1, 100, 0)
        answer = _FLOCK.unpack(fcntl.fcntl(descriptor, _GETLK, question))
    return answer == (fcntl.F_WRLCK, os.SEEK_SET, 0, 3, pid)


def _closed_by_another_descriptor(place: Path) -> None:
    """A process's lock goes when it closes any of its descriptors of the file."""
    with opened(place / "file", os.O_RDWR) as descriptor:
        fcntl.lockf(descriptor, _AT_ONCE)
        os.close(os.open(place / "file", os.O_RDONLY))
        elsewhere(lambda: _lock_anew(place))


def _lock_anew(place: Path) -> None:
    with opened(place / "file", os.O_RDWR) as descriptor:
        fcntl.lockf(descriptor, _AT_ONCE)
        fcntl.flock(descriptor, _AT_ONCE)


def _after_the_last_duplicate(place: Path) -> bool:
    """flock belongs to the open file, and all duplicates of its descriptor."""
    with opened(place / "file") as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        duplicate = os.dup(descriptor)
    try:
        with contextlib.suppress(BlockingIOError):
            elsewhere(lambda: _lock_anew(place))
            return False
    finally:
        os.close(duplicate)
    elsewhere(lambda: _lock_anew(place))
    return True


def _between_descriptors(place: Path) -> None:
    """Locks of open files hold between two descriptors of one process, too."""
    lock = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with opened(place / "file", os.O_RDWR) as one, opened(place / "file", os.O_RDWR) as two:
        fcntl.fcntl(one, _OFD_SETLK, lock)
        fcntl.fcntl(two, _OFD_SETLK, lock)


def _deadlock(place: Path) -> None:
    """Of two who wait for each other, one is told."""

    def other() -> None:
        descriptor = os.open(place / "file", os.O_RDWR)
        fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, 1)
        os.write(writer, b"x")
        fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, 0)

    reader, writer = os.pipe()
    with opened(place / "file", os.O_RDWR) as descriptor:
        fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, 0)
        pid = os.fork()
        if pid == 0:
            # The one that asks last is told: that may be this process.
            with contextlib.suppress(OSError):
                other()
                os._exit(0)
            os._exit(1)
        os.read(reader, 1)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, 1)
        finally:
            fcntl.lockf(descriptor, fcntl.LOCK_UN)
            status = os.waitpid(pid, 0)[1]
            os.close(reader)
            os.close(writer)
    if status:
        raise OSError(errno.EDEADLK, "the other was told")


def _by_another_name(place: Path) -> None:
    os.link(place / "file", place / "other")
    with _held(place / "file", fcntl.flock), opened(place / "other") as descriptor:
        fcntl.flock(descriptor, _AT_ONCE)


def _needs_writing(place: Path) -> None:
    with opened(place / "file") as descriptor:
        fcntl.lockf(descriptor, _AT_ONCE)


_FLOCK_EX, _FLOCK_SH = fcntl.LOCK_EX, fcntl.LOCK_SH

CASES = [
    case("flock: EWOULDBLOCK while another process holds it",
         _held_by_another(fcntl.flock, _FLOCK_EX, _FLOCK_EX), fails=errno.EWOULDBLOCK),
    case("flock: EWOULDBLOCK for a shared lock beside an exclusive one",
         _held_by_another(fcntl.flock, _FLOCK_EX, _FLOCK_SH), fails=errno.EWOULDBLOCK),
    case("flock: shared locks of several processes",
         _held_by_another(fcntl.flock, _FLOCK_SH, _FLOCK_SH)),
    case("flock: free when its holder is killed", _free_after_death(fcntl.flock), (False, True)),
    case("flock: free with the last duplicate of its descriptor", _after_the_last_duplicate, True),
    case("fcntl: EAGAIN while another process holds the range",
         _held_by_another(_range, _FLOCK_EX, _FLOCK_EX), fails=errno.EAGAIN),
    case("fcntl: shared locks of several processes",
         _held_by_another(_range, _FLOCK_SH, _FLOCK_SH)),
    case("fcntl: other ranges of the file are free", _other_range),
    case("fcntl: free when its holder is killed", _free_after_death(_range), (False, True)),
    case("fcntl: free when its process closes any descriptor of the file",
         _closed_by_another_descriptor),
    case("F_GETLK tells who holds the lock", _told, True),
    case("F_OFD_SETLK: EAGAIN between two descriptors of one process", _between_descriptors,
         fails=errno.EAGAIN),
    case("fcntl: EDEADLK for one of two who wait for each other", _deadlock, fails=errno.EDEADLK),
    case("fcntl: EBADF for an exclusive lock of a descriptor that only reads", _needs_writing,
         fails=errno.EBADF),
    case("a lock by one name holds for another name of the file", _by_another_name,
         fails=errno.EWOULDBLOCK,
         unless=dict.fromkeys(("2", "3", "3 exact"),
                              "the kernel keeps the locks, and to it each name is a file")),
]  # fmt: skip
