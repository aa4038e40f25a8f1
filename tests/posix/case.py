"""The table's form: one case is a rule, a call in a fresh folder, and what the call must give.

The folder that a call gets holds the same things each time:

    file        a file of 7 bytes, mode 0644        dir        an empty directory
    link        a symlink to file                   full       a directory that holds `inside`
    dangling    a symlink to nothing                dirlink    a symlink to dir
    loop        a symlink to itself                 fifo       a fifo
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CONTENT = b"content"
NOBODY = 65534
STRANGER = 4321
"""A user and a group that own nothing yet."""

PROCESSES = 4
"""How many work at once in a case about that."""

_TICK_SECONDS = 0.012
"""Longer than the steps of the kernel's clock for file times."""

libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
"""In place of a directory's descriptor: the current one."""

Call = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    rule: str
    call: Call
    expected: object
    """What the call must return, or the `errno_name` of how it must fail."""
    as_root: bool = False
    """Only root can make this call."""
    unless: Mapping[str, str] = field(default_factory=dict)
    """Where the rule can't hold, and why: by a variant's name."""
    at_times: Mapping[str, str] = field(default_factory=dict)
    """Where it holds but at unlucky times, and why."""


def errno_name(number: int | None) -> str:
    """How a call's failure stands in the table: no call returns such a text."""
    return f"fails: {errno.errorcode.get(number or 0, number)}"


def case(
    rule: str,
    call: Call,
    returns: object = None,
    *,
    fails: int = 0,
    as_root: bool = False,
    unless: Mapping[str, str] | None = None,
    at_times: Mapping[str, str] | None = None,
) -> Case:
    """A case whose call returns a value, or fails."""
    expected = errno_name(fails) if fails else returns
    return Case(rule, call, expected, as_root, unless or {}, at_times or {})


def populate(place: Path) -> None:
    """Make what each case finds."""
    place.mkdir(mode=0o755)
    (place / "file").write_bytes(CONTENT)
    (place / "file").chmod(0o644)
    (place / "dir").mkdir()
    (place / "full").mkdir()
    (place / "full/inside").write_bytes(b"inside")
    (place / "link").symlink_to("file")
    (place / "dangling").symlink_to("nothing")
    (place / "dirlink").symlink_to("dir")
    (place / "loop").symlink_to("loop")
    os.mkfifo(place / "fifo")


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDONLY, mode: int = 0o644) -> Iterator[int]:
    """A descriptor."""
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    """The process's umask, for a while."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def permissions(path: Path) -> int:
    """All twelve bits."""
    return path.lstat().st_mode & 0o7777


def moved_times(place: Path, watched: Sequence[str], call: Call) -> set[str]:
    """Which times of which files a call moves: "file mtime" and so on. "." is the folder."""

    def times() -> dict[str, int]:
        found = {}
        for name in watched:
            with contextlib.suppress(FileNotFoundError):
                status = (place / name).lstat()
                found[f"{name} mtime"] = status.st_mtime_ns
                found[f"{name} ctime"] = status.st_ctime_ns
        return found

    before = times()
    time.sleep(_TICK_SECONDS)
    call(place)
    return {name for name, time_ns in times().items() if time_ns > before.get(name, time_ns)}


def elsewhere(call: Callable[[], object]) -> object:
    """What a call gives in another process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            result: object = call()
        except BaseException as error:
            result = error
        os.write(writer, pickle.dumps(result))
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        result = pickle.load(stream)
    os.waitpid(pid, 0)
    if isinstance(result, BaseException):
        raise result
    return result


def as_user(place: Path, call: Call, uid: int = NOBODY, groups: Sequence[int] = ()) -> object:
    """What a call gives in a process of another user, whose place is the current directory."""

    def run() -> object:
        os.chdir(place)
        os.setgroups(groups)
        os.setgid(groups[0] if groups else uid)
        os.setuid(uid)
        return call(Path())

    return elsewhere(run)


def checked(result: int) -> int:
    """The result of a function of the C library. Raises OSError."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def in_processes(work: Callable[[int], None]) -> None:
    """Run `work` in processes at once, each with a number; each must end well."""
    pids = []
    for number in range(PROCESSES):
        pid = os.fork()
        if pid == 0:
            try:
                work(number)
            except BaseException:
                os._exit(1)
            os._exit(0)
        pids.append(pid)
    statuses = [os.waitpid(pid, 0)[1] for pid in pids]
    assert statuses == [0] * PROCESSES
