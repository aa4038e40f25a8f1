"""What the translation of FUSE calls adds by itself."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from syncer.config import Config
from syncer.mount import Operations
from syncer.process.engine import Engine
from syncer.process.repository import create_repository
from syncer.remote.files import FileRemote
from syncer.vfs.caller import SUPERUSER
from tests.vfs_rig import VfsRig

PIB = 1 << 50


class Host:
    """Stands for the mounted process: knows how much room the remote says that it has."""

    def __init__(self, capacity: tuple[int, int] | None) -> None:
        self._capacity = capacity

    def started(self) -> None:
        raise AssertionError("nothing is mounted")

    def sync_metadata(self) -> None:
        raise AssertionError("nothing is to be synced")

    def set_abandoned_probe(self, is_abandoned: Callable[[], bool]) -> None:
        raise AssertionError("nobody waits")

    def remote_capacity(self) -> tuple[int, int] | None:
        return self._capacity


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[VfsRig]:
    rig = VfsRig(tmp_path)
    yield rig
    rig.close()


def told(rig: VfsRig, capacity: tuple[int, int] | None) -> tuple[int, int]:
    """The bytes in all, and those that are free, as `statvfs` gives them."""
    found = Operations(rig.vfs, Host(capacity), lambda: SUPERUSER).statfs("/")
    assert found["f_bfree"] == found["f_bavail"]
    return found["f_blocks"] * found["f_frsize"], found["f_bfree"] * found["f_frsize"]


def test_statfs_tells_what_the_remote_tells(rig: VfsRig) -> None:
    assert told(rig, (10 << 30, 3 << 30)) == (10 << 30, 3 << 30)
    # Other programs may fill a disk beyond what is left to this user.
    assert told(rig, (10 << 30, -4096)) == (10 << 30, 0)


def test_statfs_is_large_where_the_remote_tells_nothing(rig: VfsRig) -> None:
    rig.make(b"/file", b"x" * 8192)
    assert told(rig, None) == (PIB, PIB - 8192)


def test_statfs_logs_in_nowhere_while_the_first_looks_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(str(tmp_path / "remote"), 100_000_000, min_free_bytes=0)
    create_repository(tmp_path / "data", config, socket.gethostname())
    asked = []
    usage = FileRemote.usage
    monkeypatch.setattr(FileRemote, "usage", lambda remote: asked.append(1) or usage(remote))
    for seconds in (3600.0, 0.0):
        monkeypatch.setattr("syncer.process.engine.STARTS_AFTER_SECONDS", seconds)
        engine = Engine(tmp_path / "data", config)
        engine.start()
        try:
            deadline = time.monotonic() + 10.0
            while not seconds and not engine.remote_capacity() and time.monotonic() < deadline:
                time.sleep(0.01)
            told = engine.remote_capacity()
        finally:
            engine.stop()
        assert (len(asked), told is None) == ((0, True) if seconds else (1, False))
