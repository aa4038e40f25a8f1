"""`syncer mount --at`: a past state beside the present, and without it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from syncer.config import Config
from syncer.process import mounts
from syncer.process.engine import Engine
from syncer.process.repository import create_repository
from syncer.process.view import View
from tests.mounted import BINDINGS, CommandError, Mount, mounted
from tests.processes import wait_for
from tests.test_timemachine import fill, tree_of

pytestmark = pytest.mark.fuse

_SOON_SECONDS = 30.0


@contextlib.contextmanager
def shown(mount: Mount, *words: str) -> Iterator[Path]:
    """A mount of the past of `mount`'s data directory."""
    path = mount.path.with_name("past")
    path.mkdir(exist_ok=True)
    mount.run("mount", "--fuse", mount.fuse, *words, mount.data, path)
    try:
        yield path
    finally:
        if os.path.ismount(path):
            subprocess.run(["fusermount3", "-u", "-z", path], check=True)


@pytest.mark.parametrize("fuse", BINDINGS)
def test_a_past_state_is_mounted_beside_the_present_and_without_it(
    fuse: str, tmp_path: Path
) -> None:
    with mounted(tmp_path, fuse) as mount:
        fill(mount.path / "top")
        before = tree_of(mount.path / "top")
        mount.run("snapshot", mount.path, "before")
        (mount.path / "top" / "tiny").write_bytes(b"another")
        os.unlink(mount.path / "top" / "below" / "big")
        with shown(mount, "--at", "before") as past:
            assert tree_of(past / "top") == before
            assert not os.path.lexists(past / ".snapshots")
            for call in (
                lambda: (past / "new").write_bytes(b""),
                lambda: os.unlink(past / "top" / "tiny"),
                lambda: os.chmod(past / "top" / "tiny", 0o600),
            ):
                with pytest.raises(OSError) as error:
                    call()
                assert error.value.errno == errno.EROFS
            # It does not depend on what the other process keeps locally, nor on that process.
            mount.evict()
            (mount.path / "more").write_bytes(b"x" * 100_000)
            found = mounts.mount_at(past)
            assert found is not None and found.is_ours and found.data == mount.data
            state = json.loads(mount.run("status", "--json", past))
            assert (state["at"], state["mountpoint"]) == (found.at, str(past))
            assert "read-only" in mount.run("status", past)
            with pytest.raises(CommandError) as refused:
                mount.run("pin", past / "top")
            assert refused.value.status == 2 and "shows the past" in str(refused.value)
            mount.umount()
            assert tree_of(past / "top") == before
            mount.mount()
            assert tree_of(past / "top") == before
            process = os.pidfd_open(state["pid"])
            mount.run("umount", past)
            assert not os.path.ismount(past) and os.path.ismount(mount.path)
            assert select.select([process], [], [], 0)[0], "its process is still there"
            os.close(process)
        mount.umount()
        with shown(mount, "--at", "before") as past:
            assert tree_of(past / "top") == before
            mount.run("umount", "--wait", past)


def test_what_was_evicted_is_fetched_and_takes_no_local_room(tmp_path: Path) -> None:
    content = os.urandom(5_000_000)
    with mounted(tmp_path, BINDINGS[-1]) as mount:
        (mount.path / "file").write_bytes(content)
        mount.run("snapshot", mount.path, "then")
        os.unlink(mount.path / "file")
        mount.evict()
        local = mount.block_bytes()
        with shown(mount, "--at", "then", "--subtype", "sshfs") as past:
            assert (past / "file").read_bytes() == content
            assert mount.block_bytes() == local
            found = mounts.mount_at(past)
            assert found is not None and found.type == "fuse.sshfs" and found.at


def test_what_is_not_uploaded_yet_is_shown_as_well(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    with mounted(tmp_path, BINDINGS[-1]) as mount:
        mount.flush()
        (tmp_path / "remote").rename(tmp_path / "away")
        try:
            (mount.path / "file").write_bytes(content)
            with shown(mount, "--at", "latest") as past:
                os.unlink(mount.path / "file")
                assert (past / "file").read_bytes() == content
        finally:
            (tmp_path / "away").rename(tmp_path / "remote")


def test_mistakes_are_told(tmp_path: Path) -> None:
    with mounted(tmp_path, BINDINGS[-1]) as mount:
        past = tmp_path / "past"
        past.mkdir()
        for words, status in (
            (("--at", "someday", mount.data, past), 2),
            (("--at", "2001-01-01", mount.data, past), 3),
            (("--at", "latest", tmp_path / "nothing", past), 3),
            (("--at", "latest", mount.data, mount.path), 13),
            (("--at", "latest", "--take-over", mount.data, past), 2),
            (("--at", "latest", mount.data, past, "100"), 2),
        ):
            with pytest.raises(CommandError) as error:
                mount.run("mount", *words)
            assert error.value.status == status, words
        with shown(mount, "--at", "latest"):
            pid = json.loads(mount.run("status", "--json", past))["pid"]
            os.kill(pid, 9)
            assert "its process is gone" in mount.run("status", past)
            mount.run("umount", past)
            assert mounts.mount_at(past) is None


def test_wishes_of_readers_that_have_moved_on_do_not_pile_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(str(tmp_path / "remote"), 100_000_000)
    create_repository(tmp_path / "data", config, socket.gethostname())
    engine = Engine(tmp_path / "data", config)
    engine.start()
    engine.stop()
    view = View(tmp_path / "data", config, 1, "then", mountpoint="", fuse=3)
    wishes = [number.to_bytes(16, "big") for number in range(1, 1001)]
    fetched: list[bytes] = []
    is_quick = threading.Event()

    def fetch(block_id: bytes, before_wait: Callable[[], None] = lambda: None) -> None:
        before_wait()
        assert is_quick.wait(_SOON_SECONDS)
        fetched.append(block_id)

    monkeypatch.setattr(view._blocks, "prefetch", fetch)
    view.started()
    try:
        for block_id in wishes:
            view.vfs.files._read_ahead([block_id], False)
        is_quick.set()
        wait_for(lambda: wishes[-1] in fetched)
    finally:
        is_quick.set()
        view.stop()
    assert len(fetched) < 100
