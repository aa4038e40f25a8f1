"""The SFTP client against servers that are not OpenSSH's."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from syncer.errors import AccessError, MissingError, OfflineError, RemoteFullError, TemporaryError
from syncer.remote import Location, Remote, State
from syncer.remote import packets as sftp
from syncer.remote.server import SftpRemote
from syncer.remote.session import Session, open_connection
from tests.odd_sftp import OddServer, OddStream
from tests.remote_contract import RemoteContract, eventually


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OddServer]:
    server = OddServer(tmp_path)
    yield server
    server.close()


@pytest.fixture
def fresh(server: OddServer) -> Iterator[Remote]:
    remote = SftpRemote(Location("repository", "odd"), server.connect, 8, 5.0)
    yield remote
    remote.close()


@pytest.fixture
def remote(fresh: Remote) -> Remote:
    fresh.make_folders()
    return fresh


class TestOddServer(RemoteContract):
    @pytest.fixture
    def fresh(self, fresh: Remote) -> Remote:
        return fresh


def test_without_the_extension_nothing_counts_as_synced(remote: Remote) -> None:
    assert not remote.put("syncer.json", b"{}")
    assert remote.usage() is None


@pytest.mark.parametrize("code", [sftp.UNSUPPORTED, sftp.BAD_MESSAGE])
def test_a_disk_that_can_not_sync_is_told_from_a_sync_that_failed(
    server: OddServer, remote: Remote, code: int
) -> None:
    server.extensions.append(b"fsync@openssh.com")
    remote = SftpRemote(Location("repository", "odd"), server.connect, 1, 5.0)
    server.statuses[sftp.EXTENDED] = [code]
    assert not remote.put("syncer.json", b"{}")
    remote.close()
    remote = SftpRemote(Location("repository", "odd"), server.connect, 1, 5.0)
    server.statuses[sftp.EXTENDED] = [sftp.FAILURE]
    with pytest.raises(TemporaryError):
        remote.put("syncer.json", b"{}")
    remote.close()


@pytest.mark.parametrize("failing", range(5))
def test_no_failed_write_goes_unnoticed(
    server: OddServer, remote: Remote, tmp_path: Path, failing: int
) -> None:
    remote.put("blocks/ab/abcd", b"the former content")
    server.statuses[sftp.WRITE] = [sftp.OK] * failing + [sftp.FAILURE]
    with pytest.raises(TemporaryError):
        remote.put("blocks/ab/abcd", os.urandom(5 * sftp.SAFE_CHUNK_BYTES))
    assert remote.get("blocks/ab/abcd") == b"the former content"
    eventually(lambda: not list((tmp_path / "repository" / "tmp").iterdir()))
    remote.put("blocks/ab/abcd", b"new")
    assert remote.get("blocks/ab/abcd") == b"new"


def test_a_write_that_was_cut_short_shows_in_the_size(
    server: OddServer, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: whole(file, data[:-1], at))
    with pytest.raises(TemporaryError, match="9 bytes there instead of 10"):
        remote.put("blocks/ab/abcd", b"0123456789")
    with pytest.raises(MissingError):
        remote.stat("blocks/ab/abcd")


@pytest.mark.parametrize(
    ("room", "kind"),
    [
        ((4096, 4096, 1000, 0, 0, 100, 50, 50, 1, 0, 255), RemoteFullError),
        ((4096, 4096, 1000, 500, 500, 100, 0, 0, 1, 0, 255), RemoteFullError),
        ((4096, 4096, 1000, 500, 500, 100, 50, 50, 1, 1, 255), AccessError),
        ((4096, 4096, 1000, 500, 500, 100, 50, 50, 1, 0, 255), TemporaryError),
    ],
)
def test_a_failure_is_explained_by_the_state_of_the_disk(
    server: OddServer, remote: Remote, room: tuple[int, ...], kind: type[Exception]
) -> None:
    server.extensions.append(b"statvfs@openssh.com")
    other = SftpRemote(Location("repository", "odd"), server.connect, 1, 5.0)
    server.room = room  # type: ignore[assignment]
    server.statuses[sftp.WRITE] = [sftp.FAILURE]
    with pytest.raises(kind):
        other.put("blocks/ab/abcd", b"x" * 100)
    other.close()


@pytest.mark.parametrize("code", [14, 15])
def test_later_versions_words_for_a_full_disk_are_understood(
    server: OddServer, remote: Remote, code: int
) -> None:
    server.statuses[sftp.WRITE] = [code]
    with pytest.raises(RemoteFullError):
        remote.put("blocks/ab/abcd", b"x")
    assert remote.health.report().state is State.ERROR


def test_a_lost_connection_is_replaced_unless_that_could_do_harm(
    server: OddServer, remote: Remote
) -> None:
    remote.put("syncer.json", b"{}")
    server.hangs_up_at = sftp.READ
    assert remote.get("syncer.json") == b"{}"
    server.hangs_up_at = sftp.WRITE
    remote.put("syncer.json", b"[]")
    assert remote.get("syncer.json") == b"[]"
    server.hangs_up_at = sftp.WRITE
    with pytest.raises(OfflineError):
        remote.create("writers/000001", b"x")


def test_an_object_is_read_in_two_round_trips(tmp_path: Path) -> None:
    server = OddServer(tmp_path, most_read_bytes=1 << 20)
    remote = SftpRemote(Location("", "odd"), server.connect, 1, 5.0)
    (tmp_path / "x").write_bytes(os.urandom(100_000))
    remote.get("x")
    asked = server.requests[:]
    remote.close()
    server.close()
    assert asked[0] == sftp.OPEN
    assert asked.count(sftp.FSTAT) == 1
    assert asked.count(sftp.STAT) == 0


@contextmanager
def _answering(*packets: bytes) -> Iterator[OddStream]:
    ours, theirs = socket.socketpair()

    def answer() -> None:
        with suppress(ConnectionError):
            for packet in packets:
                theirs.recv(4096)
                theirs.sendall(packet)
            theirs.recv(4096)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    stream = OddStream(ours)
    try:
        yield stream
    finally:
        stream.close()
        thread.join(5)
        theirs.close()


@pytest.mark.parametrize(
    "greeting",
    [
        b"Welcome to this server\r\n",
        b"\0\0\0\5\x65\0\0\0\3",  # a status instead of a version
        b"\0\0\0\x09\2\0\0\0\3\0\0\0\xff",  # an extension's name that is cut short
        b"\0\0\0\0\0\0\0\0",
    ],
)
def test_what_is_not_sftp_is_refused(greeting: bytes) -> None:
    with _answering(greeting) as stream, pytest.raises(OfflineError):
        open_connection(stream, 2.0)


def test_answers_to_what_nobody_asked_end_the_session() -> None:
    with _answering(b"\0\0\0\5\2\0\0\0\3", b"\0\0\0\x09\x65\0\0\0\x63\0\0\0\0") as stream:
        session = Session(open_connection(stream, 2.0))
        with pytest.raises(OfflineError, match="not SFTP"):
            session.succeed(session.send(sftp.REMOVE, b"x"))


def test_no_answer_is_no_progress_however_much_was_sent() -> None:
    with _answering(b"\0\0\0\5\2\0\0\0\3") as stream:
        session = Session(open_connection(stream, 0.2))
        started = time.monotonic()
        with pytest.raises(OfflineError, match="no progress"):
            session.succeed(session.send(sftp.REMOVE, b"x" * 1_000_000))
        assert time.monotonic() - started >= 0.2
