"""Random calls by several processes, on the mount and in a native folder; both must give the same.

Three processes of three users work in one folder: what each call returns, or the errno with which
it fails, and in the end all names, attributes and contents are compared; once more when the mount
was made anew and had nothing local. What can't be the same stands in docs/posix.md.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syncer.process.control import call
from syncer.process.folder import DataFolder
from tests.actor import Actor
from tests.mounted import BINDINGS, Mount, mounted

VARIANTS = [*BINDINGS, *(["3 exact"] if "3" in BINDINGS else [])]
EXAMPLES = 40
TORTURE_EXAMPLES = 5_000
MIB = 1 << 20

#: What each example begins with; and each process has the three files open.
_PREPARED: tuple[tuple[Any, ...], ...] = (
    ("mkdir", b"a", 0o777),
    ("mkdir", b"a/b", 0o777),
    ("symlink", b"a", b"caf\xe9"),
    ("open", 0, b"b", os.O_RDWR | os.O_CREAT, 0o666),
    ("write", 0, 0, b"b" * 5000),
    ("open", 1, b"c", os.O_RDWR | os.O_CREAT, 0o666),
    ("write", 1, 0, b"c" * (MIB + 9)),
    ("open", 2, b"a/a", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666),
    ("chmod", b"a", 0o777),
    ("chmod", b"a/b", 0o777),
    *(("chmod", name, 0o666) for name in (b"b", b"c", b"a/a")),
    ("close", 0),
    ("close", 1),
    ("close", 2),
)
_OPENED = (
    ("open", 0, b"b", os.O_RDWR, 0),
    ("open", 1, b"c", os.O_RDWR, 0),
    ("open", 2, b"a/a", os.O_RDWR | os.O_APPEND, 0),
)

Operation = tuple[Any, ...]
"""(number of the process, call, its arguments)"""

#: (user, groups) of the processes, for root; others have only themselves.
_USERS = ((0, (0,)), (4321, (4321, 4400)), (4322, (4322, 4400)))
_RENAME_FLAGS = (0, 0, 0, 0, 1, 2)
_SLOTS = st.integers(0, 2)

_NAMES = st.sampled_from([b"a", b"b", b"c", b"caf\xe9"])
_PATHS = st.one_of(
    _NAMES,
    _NAMES,
    st.builds(lambda a, b: a + b"/" + b, _NAMES, _NAMES),
    st.builds(lambda a, b: a + b"/" + b, _NAMES, _NAMES),
    st.sampled_from([b"a/", b"b/.", b"a/..", b"./a", b"nothing/a", b"x" * 255, b"x" * 256, b""]),
)
_MODES = st.sampled_from((0o644, 0o600, 0o755, 0o777, 0o700, 0, 0o4755, 0o2775, 0o1777, 0o6777))
_SIZES = st.sampled_from((0, 1, 7, 100, 4095, 4096, 4097, 65_536, 70_000, MIB - 1, MIB, MIB + 5))
_OFFSETS = st.one_of(_SIZES, _SIZES, st.just(2 * MIB))
_DATA = st.builds(
    lambda letter, size: letter * size,
    st.sampled_from([b"x", b"y", b"\0"]),
    st.sampled_from((0, 1, 7, 200, 4096, 5000, 70_000, MIB)),
)
_TIMES = st.sampled_from((0, 1, 10**9, 10**18 + 7, -1))
_OWNERS = st.sampled_from((-1, 0, 4321, 4322))
#: Never -1 as well: for another's program with suid rights the kernel refuses that by itself.
_GROUPS = st.sampled_from((0, 4321, 4322, 4400))
_XATTRS = st.sampled_from([b"user.a", b"user.b", b"trusted.c", b"user.", b"other.a"])
_FLAGS = st.builds(
    lambda access, more: access | more,
    st.sampled_from((os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR)),
    st.sampled_from(
        (0, 0, os.O_CREAT, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_TRUNC, os.O_APPEND,
         os.O_CREAT | os.O_APPEND, os.O_CREAT | os.O_TRUNC, os.O_NOFOLLOW, os.O_DIRECTORY)
    ),
)  # fmt: skip


def operations(variant: str) -> st.SearchStrategy[list[Operation]]:
    """Sequences of calls that this variant carries."""
    follow = st.booleans()
    kinds = st.sampled_from((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG, stat.S_IFCHR))
    calls: list[tuple[Any, ...]] = [
        # First what failing sequences are to be filled with.
        ("close", _SLOTS),
        ("mkdir", _PATHS, _MODES),
        ("mkdir", _NAMES, st.just(0o777)),
        ("rmdir", _PATHS),
        ("unlink", _PATHS),
        ("rename", _PATHS, _PATHS, st.sampled_from(_RENAME_FLAGS if variant != "2" else (0,))),
        ("rename", _NAMES, _NAMES, st.just(0)),
        ("link", _PATHS, _PATHS),
        ("symlink", st.sampled_from([b"a", b"../b", b"nothing", b"c/", b"\xff" * 300]), _PATHS),
        ("readlink", _PATHS),
        ("mknod", _PATHS, st.builds(lambda a, b: a | b, kinds, _MODES), st.just(0x103)),
        ("listdir", st.one_of(_PATHS, st.just(b"."))),
        ("scan_begin", _SLOTS, st.one_of(_NAMES, st.just(b"."), st.just(b"."))),
        ("scan_end", _SLOTS),
        ("stat", _PATHS),
        ("lstat", _PATHS),
        ("access", _PATHS, st.integers(0, 7)),
        ("chmod", _PATHS, _MODES),
        ("chown", _PATHS, _OWNERS, _GROUPS, follow),
        ("utimens", _PATHS, _TIMES, follow),
        ("touch", _PATHS),
        ("setxattr", _PATHS, _XATTRS, st.binary(max_size=50), st.integers(0, 2), follow),
        ("getxattr", _PATHS, _XATTRS, follow),
        ("removexattr", _PATHS, _XATTRS, follow),
        ("listxattr", _PATHS),
        ("truncate", _PATHS, _SIZES),
        ("open", _SLOTS, _PATHS, _FLAGS, _MODES),
        ("open", _SLOTS, _NAMES, st.just(os.O_RDWR | os.O_CREAT), st.just(0o666)),
        ("open", _SLOTS, _NAMES, _FLAGS, _MODES),
        ("read", _SLOTS, _OFFSETS, _SIZES),
        ("write", _SLOTS, _OFFSETS, _DATA),
        ("write", _SLOTS, _OFFSETS, _DATA),
        ("read_on", _SLOTS, _SIZES),
        ("write_on", _SLOTS, _DATA),
        ("seek", _SLOTS, _OFFSETS, st.sampled_from((os.SEEK_SET, os.SEEK_CUR, os.SEEK_END))),
        ("ftruncate", _SLOTS, _SIZES),
        ("fsync", _SLOTS),
        ("fstat", _SLOTS),
        ("fchmod", _SLOTS, _MODES),
        ("fchown", _SLOTS, _OWNERS, _GROUPS),
        ("futimens", _SLOTS, _TIMES),
        ("evict",),
    ]
    if variant != "2":
        calls += [
            ("fallocate", _SLOTS, st.sampled_from((0, 1, 3, 16, 17, 2)), _OFFSETS, _SIZES),
            ("copy", _SLOTS, _SLOTS, _OFFSETS, _OFFSETS, _SIZES),
        ]
    processes = st.sampled_from((0, 0, 1, 1, 2))
    one = st.one_of([st.tuples(processes, st.just(name), *words) for name, *words in calls])
    return st.lists(one, min_size=20, max_size=80)


class World:
    """The two folders and the processes that work in them."""

    def __init__(self, mount: Mount, native: Path, variant: str) -> None:
        self._mount = mount
        self._is_exact = variant == "3 exact"
        self._shows_sizes = variant != "3"
        self._roots = mount.path, native
        for root in self._roots:
            root.chmod(0o777)
        self._numbers = itertools.count(1)
        self._done: dict[str, list[Operation]] = {}
        self._start()

    def _start(self) -> None:
        users = _USERS if os.geteuid() == 0 else [(os.geteuid(), (os.getegid(),))] * 3
        self._actors = [Actor(self._roots, uid, groups) for uid, groups in users]

    def close(self) -> None:
        for actor in self._actors:
            actor.close()

    def example(self, calls: list[Operation]) -> None:
        """Make these calls in a fresh folder."""
        name = f"{next(self._numbers)}"
        for root in self._roots:
            (root / name).mkdir()
            (root / name).chmod(0o777)
        #: Files, by their numbers in the native folder, that have had several names.
        self._linked: set[int] = set()
        for actor in self._actors:
            actor.call("begin", name)
        for prepared in _PREPARED:
            self._actors[0].call(*prepared)
        for actor in self._actors:
            for prepared in _OPENED:
                actor.call(*prepared)
        for number, word, *arguments in calls:
            if word == "evict":
                self._evict()
                continue
            if word == "link":
                self._before_link(number, arguments[0])
            ours, native = self._actors[number].call(word, *arguments)
            if isinstance(native, dict):
                ours, native = self._comparable(ours, native)
            assert ours == native, f"{word} {arguments} by process {number}: {ours}, not {native}"
        self._compare(calls)
        for actor in self._actors:
            actor.call("close_all")
        self._compare(calls)
        self._done[name] = calls

    def _before_link(self, number: int, path: bytes) -> None:
        """What was opened before a file got its second name knows less than what is opened then."""
        ours, native = self._actors[number].call("lstat", path)
        if not isinstance(ours, dict) or not isinstance(native, dict):
            return
        self._linked.add(native["ino"])
        for actor in self._actors:
            actor.call("drop", frozenset((ours["ino"], native["ino"])))

    def _comparable(self, ours: Any, native: Any) -> tuple[Any, Any]:
        """Two results of a stat without what can't be the same."""
        if not isinstance(ours, dict) or not isinstance(native, dict):
            return ours, native
        without = {"ino"}
        if native["ino"] in self._linked and not self._shows_sizes:
            without |= {"size", "mtime"}
        return tuple(
            {key: value for key, value in found.items() if key not in without}
            for found in (ours, native)
        )  # type: ignore[return-value]

    def _compare(self, calls: list[Operation]) -> None:
        ours, native = self._actors[0].call("tree")
        assert isinstance(ours, dict) and isinstance(native, dict), (ours, native)
        assert sorted(ours) == sorted(native), calls
        for path, (status, content) in native.items():
            left, right = self._comparable(ours[path][0], status)
            assert left == right, f"{path!r}: {left}, not {right}, after {calls}"
            assert ours[path][1] == content, f"{path!r} holds something else, after {calls}"

    def _evict(self) -> None:
        socket = DataFolder(self._mount.data).socket
        call(socket, "flush", {"timeout_seconds": 120})
        call(socket, "evict", {"paths": None})

    def check_anew(self) -> None:
        """Compare all that was made, by a process that has seen nothing of it."""
        self.close()
        self._actors = []
        self._mount.remount()
        self._evict()
        self._start()
        self._linked = set()
        self._shows_sizes = True
        for name, calls in self._done.items():
            for actor in self._actors:
                actor.call("begin", name)
            self._compare(calls)


def compare(folder: Path, variant: str, examples: int) -> None:
    options = ["allow_other", "suid", "dev"] if os.geteuid() == 0 else []
    writeback = "off" if variant == "3 exact" else "on"
    native = folder / "native"
    native.mkdir()
    with mounted(
        folder, variant[0], limit="64", options=options, settings={"writeback": writeback}
    ) as mount:
        world = World(mount, native, variant)
        try:
            run: Callable[[], None] = settings(
                max_examples=examples,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                print_blob=True,
            )(given(operations(variant))(world.example))
            run()
            world.check_anew()
        finally:
            world.close()


@pytest.mark.fuse
@pytest.mark.timeout(600)
@pytest.mark.parametrize("variant", VARIANTS)
def test_calls_give_what_they_give_in_a_native_folder(variant: str, tmp_path: Path) -> None:
    compare(tmp_path, variant, EXAMPLES)


@pytest.mark.fuse
@pytest.mark.torture
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("variant", VARIANTS)
def test_many_calls_give_what_they_give_in_a_native_folder(variant: str, tmp_path: Path) -> None:
    compare(tmp_path, variant, TORTURE_EXAMPLES)
