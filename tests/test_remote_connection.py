"""Several callers on one connection: what each may expect of the others."""

from __future__ import annotations

import itertools
import os
import random
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from syncer.errors import MissingError, OfflineError, SyncerError, TemporaryError
from syncer.remote import Location, Remote, connection
from syncer.remote import packets as sftp
from syncer.remote.base import Data
from syncer.remote.connection import Connection, DroppedError
from syncer.remote.server import SftpRemote
from syncer.remote.session import Session, open_connection
from tests.odd_sftp import OddServer

CALLERS = 6


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OddServer]:
    server = OddServer(tmp_path)
    yield server
    server.close()


@pytest.fixture
def remote(server: OddServer) -> Iterator[Remote]:
    """A remote with a single connection, so that all callers share it."""
    remote = SftpRemote(Location("repository", "odd"), server.connect, 1, 5.0)
    remote.make_folders()
    yield remote
    remote.close()


def test_calls_at_once_go_over_one_connection(server: OddServer, remote: Remote) -> None:
    contents = {f"machines/{number}": os.urandom(100_000) for number in range(30)}
    with ThreadPoolExecutor(CALLERS) as threads:
        list(threads.map(remote.put, contents, contents.values()))
        assert list(threads.map(remote.get, contents)) == list(contents.values())
    assert server.connections == 1


def test_at_the_end_the_server_has_closed_all_files(server: OddServer, remote: Remote) -> None:
    """So that the disk of an orderly mount can be unmounted, too."""
    remote.put("machines/1", b"content")
    assert remote.get("machines/1") == b"content"
    server.statuses[sftp.WRITE] = [sftp.FAILURE]
    with pytest.raises(TemporaryError):
        remote.put("machines/2", b"content")
    remote.close()
    done = [kind for kind, _ in server.steps]
    assert done.count(sftp.CLOSE) == done.count(sftp.OPEN) == 3
    assert list((server.root / "repository/tmp").iterdir()) == []


def test_a_put_that_fails_harms_no_other(server: OddServer, remote: Remote) -> None:
    server.statuses[sftp.WRITE] = [sftp.OK] * 10 + [sftp.FAILURE]
    contents = {f"machines/{number}": os.urandom(100_000) for number in range(CALLERS)}

    def is_stored(key: str) -> bool:
        try:
            remote.put(key, contents[key])
        except TemporaryError:
            return False
        return True

    with ThreadPoolExecutor(CALLERS) as threads:
        stored = dict(zip(contents, threads.map(is_stored, contents), strict=True))
    assert list(stored.values()).count(False) == 1
    for key, content in contents.items():
        if stored[key]:
            assert remote.get(key) == content
        else:
            with pytest.raises(MissingError):
                remote.get(key)
    assert server.connections == 1


def test_each_object_is_written_and_confirmed_before_it_gets_its_name(
    server: OddServer, remote: Remote
) -> None:
    with ThreadPoolExecutor(CALLERS) as threads:
        list(threads.map(lambda n: remote.put(f"machines/{n}", bytes(100_000)), range(20)))
    steps: dict[str, list[int]] = {}
    for kind, path in server.steps:
        steps.setdefault(path, []).append(kind)
    uploads = [kinds for path, kinds in steps.items() if "/tmp/" in path]
    assert len(uploads) == 20
    in_turn = [sftp.OPEN, sftp.WRITE, sftp.FSTAT, sftp.RENAME]
    # Nobody waits for the CLOSE that follows.
    found = [[kind for kind, _ in itertools.groupby(kinds)][: len(in_turn)] for kinds in uploads]
    assert found == [in_turn] * 20


def test_a_connection_that_ends_fails_all_who_wait_on_it(server: OddServer) -> None:
    connection = open_connection(server.connect(), 5.0)
    server.is_silent = True

    def wait_for_answer() -> None:
        session = Session(connection)
        with pytest.raises(DroppedError):
            session.succeed(session.send(sftp.REMOVE, b"x"))

    threads = [threading.Thread(target=wait_for_answer) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    connection.close()
    for thread in threads:
        thread.join(2)
        assert not thread.is_alive()
    with pytest.raises(OfflineError):
        Session(connection).flush()


@pytest.mark.expects_warnings
def test_who_waits_learns_that_receiving_failed_in_a_way_that_nobody_foresaw(
    server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = open_connection(server.connect(), 5.0)

    def fail(number: int, kind: int, body: memoryview) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(connection, "_deliver", fail)
    session = Session(connection)
    try:
        with pytest.raises(OfflineError, match="see the log"):
            session.succeed(session.send(sftp.REMOVE, b"x"))
    finally:
        connection.close()


class _Torn:
    """A stream whose answers arrive in pieces of any size, wherever one answer ends."""

    name = "torn"

    def __init__(self, answers: bytes, pieces: Iterator[int], requests: int) -> None:
        self._greeting = struct.pack(">IBI", 5, sftp.VERSION, 3)
        self._rest = memoryview(self._greeting + answers)
        self._pieces = pieces
        self._missing = requests
        self._all_sent = threading.Event()
        self._is_closed = threading.Event()

    def open(self) -> None:
        pass

    def send(self, buffers: Sequence[Data], limit_seconds: float) -> None:
        self._missing -= len(buffers)
        if self._missing < 0:
            self._all_sent.set()

    def receive_into(self, view: memoryview, limit_seconds: float, *, whole: bool) -> int:
        if len(self._rest) <= len(self._rest.obj) - len(self._greeting):
            assert self._all_sent.wait(10)
        if not self._rest:
            self._is_closed.wait(10)
            return 0
        count = min(next(self._pieces), len(view), len(self._rest))
        if len(self._rest) > len(self._rest.obj) - len(self._greeting):
            count = min(count, len(self._rest) - len(self._rest.obj) + len(self._greeting))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def is_alive(self) -> bool:
        return True

    def ending(self) -> SyncerError:
        return DroppedError("it hung up")

    def close(self) -> None:
        self._is_closed.set()


@pytest.mark.parametrize("seed", range(20))
def test_answers_may_come_in_any_pieces(seed: int) -> None:
    dice = random.Random(seed)
    sizes = [dice.choice([0, 1, 10, 4090, 4096, 5000, 300_000]) for _ in range(40)]
    contents = [dice.randbytes(size) for size in sizes]
    answers = b"".join(
        struct.pack(">IBII", 9 + len(content), sftp.DATA, number, len(content)) + content
        for number, content in enumerate(contents, start=1)
    )
    pieces = iter(lambda: dice.choice([1, 3, 5, 9, 13, 4096, 1 << 20]), None)
    torn = Connection(_Torn(answers, pieces, len(contents)), 5.0)
    try:
        session = Session(torn)
        requests = [session.read(b"handle", 0, size) for size in sizes]
        session.wait_for(requests[-1])
        assert [bytes(session.data(request)) for request in requests] == contents
    finally:
        torn.close()


class _Slow(_Torn):
    """Its answers come slowly, and without a pause."""

    BYTES_PER_SECOND = 15_000

    def receive_into(self, view: memoryview, limit_seconds: float, *, whole: bool) -> int:
        if whole:
            seconds = min(limit_seconds, len(view) / self.BYTES_PER_SECOND)
            time.sleep(seconds)
            view = view[: max(1, int(seconds * self.BYTES_PER_SECOND))]
        return super().receive_into(view, limit_seconds, whole=whole)


def test_an_answer_that_takes_longer_than_the_limit_but_comes_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "PROGRESS_SECONDS", 0.1)
    size = 4 * _Slow.BYTES_PER_SECOND
    answer = struct.pack(">IBII", 9 + size, sftp.DATA, 1, size) + bytes(size)
    slow = Connection(_Slow(answer, itertools.repeat(1 << 20), 1), 2.0)
    try:
        session = Session(slow)
        assert session.data(session.read(b"handle", 0, size)) == bytes(size)
    finally:
        slow.close()
