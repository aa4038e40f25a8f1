"""The past as folders: each snapshot equals the copy that was taken when it was made."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncer.codec import BLOCK_BYTES
from syncer.config import Config
from syncer.maintain import figures
from syncer.maintain.policy import Policy
from syncer.metadata.history import History
from syncer.process.daemon import commands_of
from syncer.process.engine import Engine
from syncer.process.repository import clone_repository, create_repository
from syncer.vfs.caller import Caller
from tests.mounted import BINDINGS, mounted
from tests.test_timemachine import fill, tree_of

ME = Caller(1000, 1000)
Copy = dict[bytes, tuple[Any, ...]]


class Rig:
    """A data directory without a mount, over a remote in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.config = Config(str(folder / "remote"), 100_000_000, min_free_bytes=0)
        create_repository(folder / "data", self.config, socket.gethostname())
        self.engine = Engine(folder / "data", self.config)
        self.engine.start()

    @property
    def vfs(self) -> Any:
        return self.engine.vfs

    def reopen(self) -> None:
        self.engine.stop()
        self.engine = Engine(self._folder / "data", self.config)
        self.engine.start()

    def clone(self) -> None:
        """Go on with a clone in place of the data directory."""
        self.engine.flush(60, lambda state: None)
        self.engine.stop()
        clone_repository(self._folder / "clone", self.config, socket.gethostname())
        self.engine = Engine(self._folder / "clone", self.config)
        self.engine.start()

    def evict(self) -> None:
        self.engine.flush(60, lambda state: None)
        self.engine.keeping.evict(None)

    def write(self, path: bytes, content: bytes, offset: int = 0) -> None:
        with contextlib.suppress(FileExistsError):
            self.vfs.mknod(path, stat.S_IFREG | 0o644, 0, ME)
        handle = self.vfs.open(path, os.O_RDWR)
        self.vfs.write(handle, memoryview(content), offset)
        self.vfs.files.flush(handle)
        self.vfs.release(handle)

    def read(self, path: bytes) -> bytes:
        handle = self.vfs.open(path, os.O_RDONLY)
        buffer = bytearray(self.vfs.getattr(handle).size)
        assert self.vfs.files.read_into(handle, memoryview(buffer), 0) == len(buffer)
        self.vfs.files.flush(handle)
        self.vfs.release(handle)
        return bytes(buffer)

    def list(self, path: bytes) -> list[bytes]:
        handle = self.vfs.opendir(path)
        found: list[bytes] = []
        while rows := self.vfs.directories.read(handle, len(found), 2):
            names = [name for name, _ in rows]
            # Else the listing itself would be what answers.
            self.vfs._known.clear()
            self.vfs._known_before.clear()
            for name, node in rows:
                assert node == self.vfs.getattr(path + b"/" + name)
            self.vfs.directories.delivered(handle, names)
            found += names
        self.vfs.directories.release(handle)
        return found

    def copy(self, top: bytes = b"") -> Copy:
        """All that is below a path: attributes, contents, and which names are one file."""
        found: Copy = {}
        links: dict[int, bytes] = {}
        waiting = [top]
        while waiting:
            path = waiting.pop()
            for name in self.list(path or b"/"):
                below = path + b"/" + name
                node = self.vfs.getattr(below)
                first = links.setdefault(node.id, below)[len(top) :]
                content = self.read(below) if node.is_file else node.target
                values = {key: self.vfs.getxattr(below, key) for key in self.vfs.listxattr(below)}
                attributes = node._replace(id=0, born=0, atime_ns=0)
                found[below[len(top) :]] = (attributes, content, values, first)
                if node.is_dir:
                    waiting.append(below)
        return found


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.engine.stop()


_PATHS = st.sampled_from([b"/a", b"/b", b"/d", b"/d/a", b"/d/b", b"/d/e"])
_OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), _PATHS, st.sampled_from([b"tiny", b"x" * 9000])),
        st.tuples(st.just("write at"), _PATHS, st.just(b"far")),
        st.tuples(st.just("truncate"), _PATHS, st.sampled_from([0, 3, BLOCK_BYTES + 5])),
        st.tuples(st.just("mkdir"), _PATHS, st.none()),
        st.tuples(st.just("unlink"), _PATHS, st.none()),
        st.tuples(st.just("rmdir"), _PATHS, st.none()),
        st.tuples(st.just("rename"), _PATHS, _PATHS),
        st.tuples(st.just("link"), _PATHS, _PATHS),
        st.tuples(st.just("symlink"), _PATHS, st.just(b"a")),
        st.tuples(st.just("chmod"), _PATHS, st.sampled_from([0o600, 0o755])),
        st.tuples(st.just("xattr"), _PATHS, st.sampled_from([b"1", b"2"])),
        st.tuples(
            st.sampled_from(["snapshot", "snapshot", "evict", "reopen"]), st.none(), st.none()
        ),
    ),
    min_size=15,
    max_size=40,
)


def _apply(rig: Rig, kind: str, path: bytes, value: Any) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "write": lambda: rig.write(path, value),
        "write at": lambda: rig.write(path, value, 2 * BLOCK_BYTES),
        "truncate": lambda: rig.vfs.truncate(path, value),
        "mkdir": lambda: rig.vfs.mkdir(path, 0o755, ME),
        "unlink": lambda: rig.vfs.unlink(path),
        "rmdir": lambda: rig.vfs.rmdir(path),
        "rename": lambda: rig.vfs.rename(path, value),
        "link": lambda: rig.vfs.link(path, value),
        "symlink": lambda: rig.vfs.symlink(value, path, ME),
        "chmod": lambda: rig.vfs.chmod(path, value),
        "xattr": lambda: rig.vfs.setxattr(path, b"user.x", value, 0),
        "evict": rig.evict,
        "reopen": rig.reopen,
    }
    # Most of what is drawn at random is not possible.
    with contextlib.suppress(OSError):
        calls[kind]()


@given(_OPERATIONS)
@settings(max_examples=8, deadline=None)
def test_every_snapshot_equals_its_copy_also_after_eviction_and_in_a_clone(
    operations: list[tuple[str, bytes, Any]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder))
        try:
            copies: dict[str, Copy] = {}
            for kind, path, value in operations:
                if kind == "snapshot":
                    name = f"number {len(copies)}"
                    rig.engine.past.snapshot(name)
                    copies[name] = rig.copy()
                else:
                    _apply(rig, kind, path, value)
            for step in (lambda: None, rig.evict, rig.reopen, rig.clone):
                step()
                for name, copy in copies.items():
                    assert rig.copy(b"/.snapshots/" + name.encode()) == copy
        finally:
            rig.engine.stop()


@pytest.mark.parametrize("command", ["snapshots", "prune"])
def test_who_asks_what_the_past_keeps_is_told_that_it_goes_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    for version in range(4):
        for name in (b"/a", b"/b", b"/c"):
            rig.write(name, bytes([version]) * 100_000)
        rig.engine.flush(60, lambda state: None)
    rig.engine.past.snapshot("last")
    policy = dataclasses.asdict(Policy(within_seconds=0, yearly=1))
    asked = {"snapshots": {}, "prune": {"policy": policy, "dry_run": True}}[command]
    told: list[dict[str, Any]] = []
    # Nine runs are over, and three are of now.
    monkeypatch.setattr(figures, "_TOLD_ROWS", 3)
    commands_of(rig.engine)[command](asked, told.append)
    assert told.count({}) >= 3

    def leave(state: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        commands_of(rig.engine)[command](asked, leave)


@pytest.mark.parametrize("command", ["deleted", "diff"])
def test_who_looks_for_changes_is_told_that_it_goes_on_where_there_are_none(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    for folder in (b"/one", b"/two"):
        rig.vfs.mkdir(folder, 0o755, ME)
        rig.write(folder + b"/file", b"content")
    rig.engine.past.snapshot("then")
    asked = {"path": "/", "first": "then", "second": "latest"}
    told: list[dict[str, Any]] = []
    monkeypatch.setattr("syncer.process.timemachine._LOOKED", 1)
    assert commands_of(rig.engine)[command](asked, told.append) == {"count": 0}
    assert len(told) >= 3 and all(state == {"items": []} for state in told)


def test_other_words_are_symlinks_to_a_time(rig: Rig) -> None:
    rig.write(b"/a", b"1")
    rig.engine.past.snapshot("one")
    first = rig.engine.past.snapshots(lambda state: None)["snapshots"][0]["epoch"]
    rig.write(b"/a", b"2")
    rig.engine.past.snapshot("two")
    target = rig.vfs.readlink(b"/.snapshots/latest")
    assert rig.read(b"/.snapshots/" + target + b"/a") == b"2"
    target = rig.vfs.readlink(b"/.snapshots/%d" % first)
    assert rig.read(b"/.snapshots/" + target + b"/a") == b"1"
    assert stat.S_ISDIR(rig.vfs.getattr(b"/.snapshots/" + target).mode)
    names = rig.list(b"/.snapshots")
    assert names[:3] == [b"latest", b"one", b"two"] and target in names
    assert rig.list(b"/") == [b"a"]
    # A mount that knows it for a folder goes on with it.
    assert rig.read(b"/.snapshots/latest/a") == b"2"


def moments_of(rig: Rig, times_ns: list[int]) -> None:
    """Make further epochs that began at these times, by hand: clocks do not go so fast."""
    db, epochs = rig.engine._db, rig.engine._epochs
    with db.transaction():
        first = epochs.open
        db.execute_many(
            "INSERT INTO epoch VALUES(?, 1, ?, ?)",
            [(first + place, first + place, time) for place, time in enumerate(times_ns)],
        )
    epochs.restart()


def test_each_moment_is_listed_by_its_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        rig.write(b"/a", b"1")
        rig.engine.past.snapshot("mine")
        second = 10**9
        # 2040-10-28 00:30 UTC, an hour before the clocks go back: half past two comes twice.
        base = 2_234_997_000 * second
        times = [base, base + 1, base + 500_000_000]
        times += [base + 3600 * second, base + 3600 * second + 400_000_000]
        moments_of(rig, times)
        rig.engine.vfs._moments._clock_ns = lambda: base + 10_000 * second
        names = rig.list(b"/.snapshots")
        assert names[:2] == [b"latest", b"mine"]
        assert names[-5:] == [
            b"2040-10-28T02-30-00+0200",
            b"2040-10-28T02-30-00.001+0200",
            b"2040-10-28T02-30-01+0200",
            b"2040-10-28T02-30-00+0100",
            b"2040-10-28T02-30-01+0100",
        ]
        # They are what `written` calls them, and lead to them.
        moments = rig.engine.vfs._moments
        latest = moments.latest()
        listed = dict(moments.listed(0, 1000))
        assert list(listed.values()) == list(range(1, latest + 1))
        assert all(moments.find(name) == epoch for name, epoch in listed.items())
        assert all(moments.written(epoch) == name for name, epoch in listed.items())
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_long_history_is_listed_in_steps(rig: Rig) -> None:
    rig.write(b"/a", b"1")
    rig.engine.past.snapshot("mine")
    count = 100_000
    start_ns = time.time_ns() + 10**9
    moments_of(rig, [start_ns + number * 10**9 for number in range(count)])
    rig.engine.vfs._moments._clock_ns = lambda: start_ns + (count + 1) * 10**9
    handle = rig.vfs.opendir(b"/.snapshots")
    asked: list[int] = []
    query = rig.engine._db.query
    rig.engine._db.query = lambda sql, bindings=(): asked.append(1) or query(sql, bindings)
    first = rig.vfs.directories.read(handle, 0, 64)
    rig.vfs.directories.delivered(handle, [name for name, _ in first])
    assert len(first) == 64 and len(asked) < 50
    asked.clear()
    last = os.fsencode(rig.vfs._moments.written(rig.vfs._moments.latest()))
    assert rig.read(b"/.snapshots/" + last + b"/a") == b"1"
    assert len(asked) < 100
    rig.vfs.directories.release(handle)


def test_the_folder_is_listed_where_someone_wants_it(rig: Rig) -> None:
    for name in (b"-first", b"a", b"b"):
        rig.write(b"/" + name, b"1")
    rig.vfs.is_listed = True
    assert rig.list(b"") == [b"-first", b".snapshots", b"a", b"b"]
    rig.engine._tree.create(
        rig.engine._tree.node(1), b".snapshots", stat.S_IFDIR | 0o755, 1000, 1000
    )
    assert rig.list(b"") == [b"-first", b".snapshots", b"a", b"b"]
    assert rig.list(b"/.snapshots") == []


def test_what_is_no_moment_may_become_one(rig: Rig) -> None:
    rig.write(b"/a", b"1")
    for word in (b"soon", b"a year ago", b"2999-01-01x", b"1000000"):
        with pytest.raises(OSError) as error:
            rig.vfs.getattr(b"/.snapshots/" + word)
        assert error.value.errno == errno.EINVAL
    rig.engine.past.snapshot("soon")
    assert rig.read(b"/.snapshots/soon/a") == b"1"
    for path, number in ((b"/b", errno.ENOENT), (b"/a/b", errno.ENOTDIR)):
        with pytest.raises(OSError) as error:
            rig.vfs.getattr(b"/.snapshots/soon" + path)
        assert error.value.errno == number


def test_a_folder_of_that_name_that_is_there_already_counts(rig: Rig) -> None:
    rig.write(b"/a", b"1")
    assert b"latest" in rig.list(b"/.snapshots")
    tree = rig.engine._tree
    root = tree.node(1)
    assert root is not None
    tree.create(root, b".snapshots", stat.S_IFDIR | 0o755, 1000, 1000)
    rig.write(b"/.snapshots/mine", b"1")
    assert rig.list(b"/.snapshots") == [b"mine"]


def test_what_a_listing_told_is_not_searched_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.vfs.mkdir(b"/folder", 0o755, ME)
    rig.write(b"/folder/old", b"1")
    rig.write(b"/folder/kept", b"2")
    rig.engine.past.snapshot("then")
    rig.vfs.unlink(b"/folder/old")
    handle = rig.vfs.opendir(b"/.snapshots/then/folder")
    rows = rig.vfs.directories.read(handle, 0, 10)
    rig.vfs.directories.release(handle)

    def search(*words: object) -> None:
        pytest.fail("it is searched again")

    monkeypatch.setattr(History, "lookup", search)
    monkeypatch.setattr(History, "node", search)
    for name, node in rows:
        assert rig.vfs.getattr(b"/.snapshots/then/folder/" + name) == node
    assert [name for name, _ in rows] == [b"kept", b"old"]


def test_nothing_of_the_past_can_be_changed(rig: Rig) -> None:
    rig.write(b"/a", b"1")
    rig.engine.past.snapshot("then")
    vfs, past = rig.vfs, b"/.snapshots/then/a"
    handle = vfs.open(past, os.O_RDONLY)
    before = rig.copy(b"/.snapshots/then")
    calls: list[Callable[[], Any]] = [
        lambda: vfs.open(past, os.O_RDWR),
        lambda: vfs.open(past, os.O_RDONLY | os.O_TRUNC),
        lambda: vfs.create(past + b"new", 0o644, os.O_RDWR, ME),
        lambda: vfs.chmod(past, 0o600),
        lambda: vfs.chmod(handle, 0o600),
        lambda: vfs.chown(past, 1, 1),
        lambda: vfs.utimens(past, 1, 1),
        lambda: vfs.utimens(handle, 1, 1),
        lambda: vfs.truncate(past, 0),
        lambda: vfs.link(past, b"/b"),
        lambda: vfs.link(b"/a", past + b"new"),
        lambda: vfs.symlink(b"a", past + b"new", ME),
        lambda: vfs.mkdir(b"/.snapshots/yesterday", 0o755, ME),
        lambda: vfs.unlink(past),
        lambda: vfs.rmdir(b"/.snapshots"),
        lambda: vfs.rename(past, b"/b"),
        lambda: vfs.rename(b"/a", past),
        lambda: vfs.setxattr(past, b"user.x", b"1", 0),
        lambda: vfs.removexattr(past, b"user.x"),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(OSError) as error:
            call()
        assert error.value.errno == errno.EROFS, number
    vfs.release(handle)
    assert rig.copy(b"/.snapshots/then") == before
    assert rig.list(b"/") == [b"a"]


@pytest.mark.fuse
@pytest.mark.parametrize("fuse", BINDINGS)
def test_a_mount_shows_the_past_as_it_was(fuse: str, tmp_path: Path) -> None:
    with mounted(tmp_path, fuse) as mount:
        top = mount.path / "top"
        fill(top)
        before = tree_of(top)
        with pytest.raises(OSError):
            os.stat(mount.path / ".snapshots" / "before")
        mount.run("snapshot", mount.path, "before")
        then = mount.path / ".snapshots" / "before" / "top"
        assert tree_of(then) == before
        (top / "tiny").write_bytes(b"another")
        os.unlink(top / "below" / "big")
        mount.evict()
        assert tree_of(then) == before
        assert tree_of(mount.path / ".snapshots" / "latest" / "top") != before
        assert os.listdir(mount.path) == ["top"]
        listed = os.listdir(mount.path / ".snapshots")
        assert {"latest", "before"} < set(listed)
        for name in listed:
            tops = os.listdir(mount.path / ".snapshots" / name)
            assert tops in ([], ["top"])
        for word in ("1 second ago", "today", "latest"):
            assert (mount.path / ".snapshots" / word).is_symlink()
        numbers = [os.stat(path).st_ino for path in (then / "tiny", then / "below" / "twin")]
        assert numbers[0] == numbers[1] != os.stat(top / "tiny").st_ino
        with pytest.raises(OSError) as error:
            (then / "tiny").write_bytes(b"")
        assert error.value.errno == errno.EROFS
        # As `cp` does it; the kernel may share the blocks.
        (top / "back").write_bytes((then / "below" / "big").read_bytes())
        assert (top / "back").read_bytes() == before["below/big"][2][0]  # type: ignore[index]
        mount.umount()
        mount.mount("--show-snapshots")
        assert sorted(os.listdir(mount.path)) == [".snapshots", "top"]
        mount.remount()
        assert sorted(os.listdir(mount.path)) == [".snapshots", "top"]
        mount.umount()
        mount.run("config", mount.data, "show-snapshots", "off")
        mount.mount()
        assert os.listdir(mount.path) == ["top"]
