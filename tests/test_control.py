from __future__ import annotations

import contextlib
import json
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from syncer.errors import (
    AccessError,
    BusyError,
    LocalFullError,
    OfflineError,
    SyncerError,
    TemporaryError,
)
from syncer.process import control
from syncer.process.control import ControlServer, NoProcessError, Progress, call
from tests.processes import wait_for


class Commands:
    """Some commands as a mounted process has them, and what became of them."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.handlers = {
            "echo": lambda arguments, progress: arguments,
            "count": self.count,
            "offline": self.offline,
            "break": lambda arguments, progress: {"never": 1 // 0},
            "long": self.long,
        }

    def count(self, arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
        for number in range(3):
            progress({"number": number})
        return {"last": number}

    def offline(self, arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
        raise OfflineError("the server is away")

    def long(self, arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
        try:
            while True:
                progress({})
                self.ended.wait(0.01)
        finally:
            self.ended.set()


@contextlib.contextmanager
def listening(path: Path) -> Iterator[Commands]:
    commands = Commands()
    server = ControlServer(path, commands.handlers)
    server.start()
    try:
        yield commands
    finally:
        server.stop()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def commands(path: Path) -> Iterator[Commands]:
    with listening(path) as commands:
        yield commands


def say(path: Path, line: bytes) -> dict[str, Any]:
    """Send bytes as they are; returns the answer, {} if there is none."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(line)
        with client.makefile("rb") as stream:
            answer = stream.readline()
    parsed: dict[str, Any] = json.loads(answer) if answer else {}
    return parsed


@pytest.mark.usefixtures("commands")
def test_a_command_brings_its_progress_and_its_result(path: Path) -> None:
    seen: list[dict[str, Any]] = []
    assert call(path, "count", {}, seen.append) == {"last": 2}
    assert seen == [{"number": 0}, {"number": 1}, {"number": 2}]


@pytest.mark.usefixtures("commands")
def test_names_of_any_bytes_arrive_as_they_are(path: Path) -> None:
    arguments = {
        "paths": ["größer 写真", "new\nline", b"\xff\xfe".decode(errors="surrogateescape")]
    }
    assert call(path, "echo", arguments) == arguments


@pytest.mark.usefixtures("commands")
def test_an_error_keeps_its_text_and_exit_code(path: Path) -> None:
    with pytest.raises(TemporaryError, match="the server is away") as caught:
        call(path, "offline", {})
    assert caught.value.exit_code == OfflineError.exit_code


@pytest.mark.expects_warnings
@pytest.mark.usefixtures("commands")
def test_an_unforeseen_error_is_told_and_the_server_lives_on(path: Path) -> None:
    with pytest.raises(SyncerError, match="ZeroDivisionError"):
        call(path, "break", {})
    assert call(path, "echo", {"a": 1}) == {"a": 1}


@pytest.mark.usefixtures("commands")
def test_an_unknown_command_is_an_error(path: Path) -> None:
    with pytest.raises(SyncerError, match="knows no command 'dance'"):
        call(path, "dance", {})


@pytest.mark.parametrize(
    "line",
    [b"hello\n", b"[1]\n", b"{}\n", b'{"command": 3}\n', b'{"command": "echo", "arguments": 1}\n'],
)
@pytest.mark.usefixtures("commands")
def test_a_line_that_is_no_request_is_refused(path: Path, line: bytes) -> None:
    assert say(path, line)["error"]["exit_code"] == 2


@pytest.mark.usefixtures("commands")
def test_a_line_without_end_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_MAX_LINE_BYTES", 1000)
    assert "too long" in say(path, b"x" * 1000)["error"]["message"]


@pytest.mark.usefixtures("commands")
def test_a_client_that_says_nothing_is_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_CLIENT_SECONDS", 0.1)
    assert say(path, b"") == {}


@pytest.mark.parametrize("error", [BrokenPipeError(), TimeoutError("of a terminal")])
@pytest.mark.usefixtures("commands")
def test_an_error_of_who_takes_the_progress_is_not_one_of_the_process(
    path: Path, error: OSError
) -> None:
    def show(state: dict[str, Any]) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        call(path, "count", {}, show)
    assert caught.value is error


def test_a_client_that_goes_away_ends_its_command(path: Path, commands: Commands) -> None:
    def leave(state: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(path, "long", {}, leave)
    assert commands.ended.wait(10)


def test_the_servers_end_ends_its_commands(path: Path) -> None:
    with listening(path) as commands:
        errors: list[SyncerError] = []

        def ask() -> None:
            try:
                call(path, "long", {})
            except SyncerError as error:
                errors.append(error)

        client = threading.Thread(target=ask)
        client.start()
        wait_for(lambda: any(t.name == "syncer-command" for t in threading.enumerate()))
    client.join(10)
    assert commands.ended.is_set()
    assert [str(error) for error in errors] == [
        "the mount ends; the rest goes on with the next mount"
    ]
    assert not path.exists()


def test_without_a_process_it_is_said_so(path: Path) -> None:
    with pytest.raises(NoProcessError, match="is not mounted"):
        call(path, "echo", {})
    with pytest.raises(NoProcessError):
        call(path.parent / "no" / "such", "echo", {})


def test_a_socket_that_a_crash_left_behind_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with pytest.raises(NoProcessError):
        call(path, "echo", {})
    with listening(path):
        assert call(path, "echo", {}) == {}


def test_a_path_may_be_longer_than_socket_addresses_are(tmp_path: Path) -> None:
    folder = tmp_path / ("long " * 20) / ("longer " * 20)
    folder.mkdir(parents=True)
    with listening(folder / "control.sock"):
        assert call(folder / "control.sock", "echo", {}) == {}


@pytest.mark.usefixtures("commands")
def test_only_the_owner_may_open_it(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.usefixtures("commands")
def test_another_user_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_peer", lambda connection: (1, 65534))
    with pytest.raises(AccessError, match="only the user who mounted"):
        call(path, "echo", {})


@pytest.mark.expects_warnings
@pytest.mark.usefixtures("commands")
def test_a_command_that_gets_no_thread_is_refused_and_the_server_lives_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(control, "_MAX_CONNECTIONS", 2)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        for _ in range(3):
            with pytest.raises(BusyError, match="try again"):
                call(path, "echo", {})
    assert call(path, "echo", {"a": 1}) == {"a": 1}


@pytest.mark.expects_warnings
@pytest.mark.usefixtures("commands")
def test_the_server_lives_on_whatever_happens_to_a_client(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(server: ControlServer, connection: socket.socket) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(ControlServer, "_take", fail)
        with pytest.raises(TemporaryError, match="ended before it answered"):
            call(path, "echo", {})
    assert call(path, "echo", {"a": 1}) == {"a": 1}


@pytest.mark.usefixtures("commands")
def test_too_many_commands_at_once_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_MAX_CONNECTIONS", 1)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(path))
        wait_for(lambda: any(t.name == "syncer-command" for t in threading.enumerate()))
        with pytest.raises(BusyError):
            call(path, "echo", {})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ControlServer]:
    server = ControlServer(tmp_path / "socket", {})
    server.start()
    try:
        yield server
    finally:
        server.stop()
        server.tell_end(None)


@pytest.mark.parametrize("failure", [None, LocalFullError("no room"), ValueError("odd")])
def test_who_waits_for_the_end_is_told_how_it_was(
    server: ControlServer, tmp_path: Path, failure: Exception | None
) -> None:
    with control.watched_end(tmp_path / "socket") as wait:
        server.stop()
        server.tell_end(failure)
        if failure is None:
            wait(10)
        else:
            with pytest.raises(SyncerError, match=str(failure)) as caught:
                wait(10)
            assert isinstance(caught.value, type(failure)) == isinstance(failure, SyncerError)


def test_an_end_without_a_word_is_an_error(server: ControlServer, tmp_path: Path) -> None:
    with control.watched_end(tmp_path / "socket") as wait:
        server.stop()
        # As the death of the process does.
        for connection in server._waiting:
            connection.close()
        with pytest.raises(TemporaryError, match="did not say how"):
            wait(10)


def test_who_waits_for_the_end_may_leave(server: ControlServer, tmp_path: Path) -> None:
    for _ in range(40):
        with control.watched_end(tmp_path / "socket"):
            assert server._serving
    wait_for(lambda: not server._serving)
    assert not server._waiting
