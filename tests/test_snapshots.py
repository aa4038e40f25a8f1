"""The past as folders: each snapshot equals the copy that was taken when it was made."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncer.codec import BLOCK_BYTES
from syncer.config import Config
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


def test_other_words_are_symlinks_to_a_time(rig: Rig) -> None:
    rig.write(b"/a", b"1")
    rig.engine.past.snapshot("one")
    first = rig.engine.past.snapshots()["snapshots"][0]["epoch"]
    rig.write(b"/a", b"2")
    rig.engine.past.snapshot("two")
    target = rig.vfs.readlink(b"/.snapshots/latest")
    assert rig.read(b"/.snapshots/" + target + b"/a") == b"2"
    target = rig.vfs.readlink(b"/.snapshots/%d" % first)
    assert rig.read(b"/.snapshots/" + target + b"/a") == b"1"
    assert stat.S_ISDIR(rig.vfs.getattr(b"/.snapshots/" + target).mode)
    assert rig.list(b"/.snapshots") == [b"latest", b"one", b"two"]
    assert rig.list(b"/") == [b"a"]
    # A mount that knows it for a folder goes on with it.
    assert rig.read(b"/.snapshots/latest/a") == b"2"


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
    tree = rig.engine._tree
    root = tree.node(1)
    assert root is not None
    tree.create(root, b".snapshots", stat.S_IFDIR | 0o755, 1000, 1000)
    rig.write(b"/.snapshots/mine", b"1")
    assert rig.list(b"/.snapshots") == [b"mine"]


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
        numbers = [os.stat(path).st_ino for path in (then / "tiny", then / "below" / "twin")]
        assert numbers[0] == numbers[1] != os.stat(top / "tiny").st_ino
        with pytest.raises(OSError) as error:
            (then / "tiny").write_bytes(b"")
        assert error.value.errno == errno.EROFS
        # As `cp` does it; the kernel may share the blocks.
        (top / "back").write_bytes((then / "below" / "big").read_bytes())
        assert (top / "back").read_bytes() == before["below/big"][2][0]  # type: ignore[index]
