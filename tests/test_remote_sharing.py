"""Connections to a near server share one login, and no trouble of one costs another more."""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from syncer.config import Config
from syncer.errors import OfflineError
from syncer.process.engine import Engine
from syncer.process.repository import create_repository
from syncer.remote import DEFAULT_CONNECTIONS, open_remote, parse, pool
from syncer.remote.pool import IDLE_SECONDS, READY_AT_ONCE, RESERVED
from syncer.remote.server import SftpRemote
from syncer.remote.sharing import Logins
from syncer.remote.ssh import SshStream
from tests.mounted import BINDINGS, mounted
from tests.sshd import HOST, Sshd

TIMEOUT_SECONDS = 5.0
SOON_SECONDS = 20.0
READY = DEFAULT_CONNECTIONS - RESERVED + 1

Open = Callable[..., SftpRemote]


@pytest.fixture(autouse=True)
def _every_server_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is."""
    monkeypatch.setattr(pool, "NEAR_SECONDS", 3600.0)


@pytest.fixture
def server() -> Iterator[Sshd]:
    with Sshd("MaxSessions 100") as server:
        yield server


@pytest.fixture
def sockets(tmp_path: Path) -> Path:
    folder = tmp_path / "sockets"
    folder.mkdir()
    return folder


@pytest.fixture
def open_it(tmp_path: Path, sockets: Path) -> Iterator[Open]:
    """Makes a remote on a server, which leaves no process and no socket behind."""
    with ExitStack() as stack:

        def open_it(server: Sshd, **settings: Any) -> SftpRemote:
            settings = {"folder": sockets, "timeout_seconds": TIMEOUT_SECONDS, **settings}
            location = f"{HOST}:{tmp_path}/repository"
            remote = open_remote(location, transport="ssh", ssh_config=server.config, **settings)
            stack.callback(remote.close)
            assert isinstance(remote, SftpRemote)
            remote.make_folders()
            return remote

        yield open_it
    # A thread may be about to close what it was opening.
    assert until(lambda: not processes(tmp_path) and not list(sockets.iterdir()))


def processes(folder: Path) -> list[int]:
    """Those of `ssh` that were begun in a folder below this one, as those of a login are."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            where = os.readlink(f"/proc/{pid}/cwd")
        except OSError:
            continue
        if name == "ssh" and where.startswith(f"{folder}/"):
            found.append(int(pid))
    return found


def until(is_so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SOON_SECONDS
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def fill(remote: SftpRemote, count: int = READY) -> None:
    """Have the pool open so many connections."""
    remote.prepare()
    assert until(lambda: len(remote._pool._lines) == count)


def test_a_near_server_sees_one_login(server: Sshd, open_it: Open) -> None:
    remote = open_it(server)
    fill(remote)
    assert server.connections() == 1
    remote.put("syncer.json", b"{}")
    assert remote.get("syncer.json") == b"{}"


def test_they_stay_when_nobody_uses_them(
    server: Sshd, open_it: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = open_it(server)
    fill(remote)
    now = time.monotonic()
    monkeypatch.setattr(pool.time, "monotonic", lambda: now + 2 * IDLE_SECONDS)
    remote.put("syncer.json", b"{}")
    assert len(remote._pool._lines) == READY
    assert server.connections() == 1


def test_all_are_there_again_after_an_interruption(server: Sshd, open_it: Open) -> None:
    remote = open_it(server)
    fill(remote)
    server.stop()
    server.start()
    remote.put("syncer.json", b"{}")
    assert until(lambda: len(remote._pool._lines) == READY)
    assert server.connections() == 1


def test_a_far_one_gets_connections_of_their_own(
    server: Sshd, open_it: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "NEAR_SECONDS", 0.0)
    remote = open_it(server, connections=5)
    fill(remote, 3)
    assert server.connections() == 3


def test_a_server_that_wants_one_session_on_each_is_reached_all_the_same(open_it: Open) -> None:
    with Sshd("MaxSessions 1") as server:
        remote = open_it(server)
        fill(remote)
        assert server.connections() == READY
        remote.put("syncer.json", b"{}")
        remote.close()


def test_what_a_person_has_shared_is_left_to_them(
    server: Sshd, open_it: Open, tmp_path: Path, sockets: Path
) -> None:
    config = server.config.read_text()
    own = tmp_path / "own"
    server.config.write_text(f"{config}  ControlMaster auto\n  ControlPath {own}\n")
    try:
        remote = open_it(server)
        fill(remote)
        assert own.is_socket() and list(sockets.iterdir()) == []
        remote.close()
    finally:
        server.config.write_text(config)
    assert until(lambda: not own.exists())


class Shared:
    """Streams over one login, without a pool."""

    def __init__(self, server: Sshd, folder: Path) -> None:
        self._server = server
        self.logins = Logins(folder)
        self.streams: list[SshStream] = []

    def stream(self) -> SshStream:
        """One that has greeted the server."""
        location = parse(f"{HOST}:/")
        stream = SshStream(location, self._server.config, self.logins, TIMEOUT_SECONDS)
        self.streams.append(stream)
        assert answers(stream)
        return stream

    def close(self) -> None:
        for stream in self.streams:
            stream.close()


def answers(stream: SshStream) -> bool:
    """Whether the server's SFTP program answers (here always to a greeting)."""
    try:
        stream.send([b"\0\0\0\5\1\0\0\0\3"], TIMEOUT_SECONDS)
        return stream.receive_into(memoryview(bytearray(5)), TIMEOUT_SECONDS, whole=True) == 5
    except OSError:
        return False


@pytest.fixture
def shared(server: Sshd, sockets: Path, tmp_path: Path) -> Iterator[Shared]:
    shared = Shared(server, sockets)
    yield shared
    shared.close()
    assert processes(tmp_path) == [] and list(sockets.iterdir()) == []


def test_the_first_of_them_may_end_first(server: Sshd, shared: Shared, sockets: Path) -> None:
    first, second, third = (shared.stream() for _ in range(3))
    assert server.connections() == 1 and len(list(sockets.iterdir())) == 1
    first.close()
    second.close()
    assert third.is_alive() and answers(third)
    assert server.connections() == 1
    third.close()
    assert until(lambda: server.connections() == 0)


def test_a_login_whose_connections_end_takes_no_more(server: Sshd, shared: Shared) -> None:
    first, second = shared.stream(), shared.stream()
    second.close()
    third = shared.stream()
    assert server.connections() == 2
    first.close()
    assert answers(third)


def test_one_that_is_closed_twice_takes_no_other_with_it(shared: Shared) -> None:
    first, second, third = (shared.stream() for _ in range(3))
    for stream in (first, second, first, second):
        stream.close()
    assert answers(third)


def test_what_stops_answering_is_not_used_again(server: Sshd, open_it: Open) -> None:
    """As when a laptop has moved to another network: the line is dead, and the server is not."""
    remote = open_it(server, timeout_seconds=3.0)
    fill(remote)
    remote.put("syncer.json", b"{}")
    server.freeze_connections()
    with pytest.raises(OfflineError):
        remote.get("syncer.json")
    assert until(lambda: is_there(remote))
    assert server.connections() == 2
    server.thaw()


def is_there(remote: SftpRemote) -> bool:
    with suppress(OfflineError):
        return remote.get("syncer.json") == b"{}"
    return False


def test_a_server_that_was_restarted_is_reached_at_once(server: Sshd, open_it: Open) -> None:
    remote = open_it(server)
    fill(remote)
    remote.put("syncer.json", b"{}")
    server.stop()
    server.start()
    assert remote.get("syncer.json") == b"{}"


def test_where_files_have_one_name_each_connection_logs_in(
    server: Sshd, open_it: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There `ssh` could not name its socket, and would end."""

    def refuse(*names: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    remote = open_it(server)
    # Where each costs a login, no more than two are opened at once.
    fill(remote, READY_AT_ONCE)
    assert server.connections() == READY_AT_ONCE


def test_what_a_killed_process_left_is_removed(sockets: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(sockets / "ssh-0123.sock"))
    (sockets / "other").touch()
    Logins(sockets)
    assert [path.name for path in sockets.iterdir()] == ["other"]
    (sockets / "other").unlink()


def test_a_mount_remembers_how_far_the_server_is(
    server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the first connection is there, nothing else tells whether a second is worth it."""
    monkeypatch.setenv("SYNCER_SSH_CONFIG", str(server.config))
    config = Config(f"{HOST}:{tmp_path}/repository", 100_000_000, min_free_bytes=0)
    data = tmp_path / "data"
    create_repository(data, config, socket.gethostname())
    remembered = []
    # A mount that has learned nothing forgets nothing.
    for near_seconds in (3600.0, 0.0, None, 3600.0, 3600.0):
        engine = Engine(data, config)
        remembered.append(engine._remote._pool._was_far)
        if near_seconds is not None:
            monkeypatch.setattr(pool, "NEAR_SECONDS", near_seconds)
            engine.start()
            assert until(partial(_is_connected, engine))
        engine.stop()
    assert remembered == [False, False, True, True, False]


def _is_connected(engine: Engine) -> bool:
    remote = engine._remote
    assert isinstance(remote, SftpRemote)
    return bool(remote._pool._lines)


@pytest.mark.parametrize("fuse", BINDINGS[-1:])
def test_a_killed_mount_leaves_no_connection(server: Sshd, tmp_path: Path, fuse: str) -> None:
    env = {"SYNCER_SSH_CONFIG": str(server.config)}
    with mounted(tmp_path, fuse, remote=f"{HOST}:{tmp_path}/repository", env=env) as mount:
        (mount.path / "file").write_bytes(b"content")
        mount.flush()
        # On a busy machine the server may be far.
        assert until(lambda: len(processes(mount.data.parent)) > 1)
        shared = next(mount.data.glob("ssh-*"))
        assert stat.S_IMODE(shared.lstat().st_mode) == 0o600
        mount.kill()
        assert until(lambda: not processes(mount.data.parent) and server.connections() == 0)
        mount.mount()
        assert (mount.path / "file").read_bytes() == b"content"
        mount.umount()
        assert not list(mount.data.glob("ssh-*"))
