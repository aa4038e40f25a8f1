"""Many processes at once, and locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections import Counter
from pathlib import Path

from tests.posix.case import PROCESSES, Call, case, in_processes, opened

_TIMES = 40


def _appending(place: Path) -> bool:
    def work(number: int) -> None:
        with opened(place / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT) as descriptor:
            for line in range(_TIMES):
                os.write(descriptor, b"%d %d\n" % (number, line))

    in_processes(work)
    lines = (place / "log").read_bytes().splitlines()
    want = [b"%d %d" % (n, line) for n in range(PROCESSES) for line in range(_TIMES)]
    return Counter(lines) == Counter(want)


def _creating(place: Path) -> int:
    """Of all who make one name exclusively, one succeeds."""

    def work(number: int) -> None:
        for name in range(_TIMES):
            try:
                os.close(os.open(place / f"dir/{name}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            (place / f"full/{number}-{name}").touch()

    in_processes(work)
    return len(os.listdir(place / "full")) - 1


def _making_directories(place: Path) -> int:
    """Of all who make one directory, one succeeds, and all see it."""

    def work(number: int) -> None:
        for name in range(_TIMES):
            try:
                os.mkdir(place / f"dir/{name}")
            except FileExistsError:
                assert (place / f"dir/{name}").is_dir()
                continue
            (place / f"full/{number}-{name}").touch()

    in_processes(work)
    return len(os.listdir(place / "full")) - 1


def _counting_under_a_link(place: Path) -> int:
    """The lock of old: who can link a file to its name holds it. The counter is replaced."""
    (place / "counter").write_bytes(b"0")

    def work(number: int) -> None:
        mine, lock, new = place / f"mine-{number}", place / "lock", place / f"new-{number}"
        mine.touch()
        for _ in range(_TIMES // 4):
            while True:
                with contextlib.suppress(FileExistsError):
                    os.link(mine, lock)
                    break
                os.sched_yield()
            assert mine.stat().st_nlink == 2
            new.write_bytes(b"%d" % (int((place / "counter").read_bytes()) + 1))
            os.rename(new, place / "counter")
            os.unlink(lock)

    in_processes(work)
    return int((place / "counter").read_bytes())


def _removing_what_was_closed(place: Path) -> list[str]:
    """The library may not have noticed yet that a file was closed when it is removed."""

    def work(number: int) -> None:
        for step in range(2 * _TIMES):
            path = place / f"dir/{number}-{step}"
            path.touch()
            if step % 2:
                (place / f"dir/{number}").touch()
                os.rename(place / f"dir/{number}", path)
            os.unlink(path)

    in_processes(work)
    return os.listdir(place / "dir")


def _counting(place: Path) -> int:
    """A counter under a lock loses no step."""
    (place / "counter").write_bytes(b"0")

    def work(number: int) -> None:
        with opened(place / "counter", os.O_RDWR) as descriptor:
            for _ in range(_TIMES):
                fcntl.lockf(descriptor, fcntl.LOCK_EX)
                value = int(os.pread(descriptor, 20, 0))
                os.pwrite(descriptor, b"%d" % (value + 1), 0)
                fcntl.lockf(descriptor, fcntl.LOCK_UN)

    in_processes(work)
    return int((place / "counter").read_bytes())


def _replacing(*allowed: int) -> Call:
    """Whoever reads a file while it is replaced by rename has one of its versions, whole.

    Or an error of a number `allowed`.
    """

    def run(place: Path) -> tuple[int, int]:
        def work(number: int) -> None:
            for _ in range(_TIMES):
                if number % 2:
                    try:
                        with opened(place / "file") as descriptor:
                            assert os.fstat(descriptor).st_size == 7
                            assert len(os.read(descriptor, 100)) == 7
                        assert (place / "file").stat().st_size == 7
                    except OSError as error:
                        if error.errno not in allowed:
                            raise
                else:
                    (place / f"new-{number}").write_bytes(b"%07d" % number)
                    os.rename(place / f"new-{number}", place / "file")

        in_processes(work)
        return len((place / "file").read_bytes()), len(list(place.glob("new-*")))

    return run


def _moving_directories(place: Path) -> bool:
    """Directories that are moved into each other never end up in a circle."""
    for name in "abcd":
        (place / name).mkdir()

    def work(number: int) -> None:
        for step in range(_TIMES):
            one, two = "abcd"[number], "abcd"[(number + step) % 4]
            # It may be elsewhere just now, or hold the other one.
            with contextlib.suppress(OSError):
                os.rename(place / one, place / two / one)
                os.rename(place / two / one, place / one)

    in_processes(work)
    found = [name for _, names, _ in os.walk(place) for name in names if name in "abcd"]
    return sorted(found) == list("abcd")


def _flock(place: Path) -> None:
    with opened(place / "file") as one, opened(place / "file") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)


CASES = [
    case("many who append lose nothing", _appending, True),
    case("of many who make a name, one succeeds", _creating, _TIMES),
    case("of many who make a directory, one succeeds", _making_directories, _TIMES),
    case("many who count under a lock file lose nothing", _counting_under_a_link,
         PROCESSES * (_TIMES // 4)),
    case("many who remove what they just closed leave nothing", _removing_what_was_closed, []),
    case("many who count under a lock lose nothing", _counting, PROCESSES * _TIMES),
    case("many who replace a file show its readers a whole one",
         _replacing(errno.ESTALE, errno.ENOENT), (7, 0)),
    case("many who replace a file leave its readers a name that leads to it",
         _replacing(errno.ESTALE), (7, 0),
         at_times={"2": "of a file that is replaced between the kernel's finding and opening it"
                   " this library says ENOENT; libfuse 3 says ESTALE, and the kernel looks again"}),
    case("many who replace a file never leave its readers without", _replacing(), (7, 0),
         at_times=dict.fromkeys(
             ("2", "3", "3 exact"), "the kernel looks again once only")),
    case("many who move directories into each other make no circle", _moving_directories, True),
    case("flock: EWOULDBLOCK while another descriptor holds it", _flock, fails=errno.EWOULDBLOCK),
]  # fmt: skip
