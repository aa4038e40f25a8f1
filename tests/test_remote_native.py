from __future__ import annotations

import importlib
import pkgutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import paramiko
import pytest

from syncer.errors import LoginError, OfflineError, SyncerError
from syncer.remote import Location, parse
from syncer.remote.native import KINDS, ParamikoStream, read_config, translated

MODULES_OF_OTHER_SYSTEMS = {"paramiko._winapi", "paramiko.win_pageant", "paramiko.win_openssh"}


def _exceptions_of_paramiko() -> set[type[Exception]]:
    found = set()
    for module in pkgutil.walk_packages(paramiko.__path__, "paramiko."):
        if module.name in MODULES_OF_OTHER_SYSTEMS:
            continue
        for value in vars(importlib.import_module(module.name)).values():
            ours = isinstance(value, type) and value.__module__.startswith("paramiko")
            if ours and issubclass(value, Exception):
                found.add(value)
    return found


def test_every_exception_of_paramiko_is_mapped() -> None:
    unknown = _exceptions_of_paramiko() - set(KINDS)
    assert not unknown, "decide in native.KINDS what these mean"


@pytest.mark.parametrize("kind", sorted(_exceptions_of_paramiko(), key=str))
def test_no_exception_of_paramiko_gets_out(kind: type[Exception]) -> None:
    # Each has a constructor of its own; none of them matters here, and neither does its text.
    made = type("Made", (kind,), {"__init__": lambda self: None, "__str__": lambda self: "why"})
    with pytest.raises(SyncerError, match="box"), translated(parse("box:")):
        raise made


def test_a_server_that_takes_no_key_and_one_that_is_away_differ() -> None:
    with pytest.raises(LoginError, match="ssh-copy-id"), translated(parse("box:")):
        raise paramiko.AuthenticationException("Authentication failed.")
    with pytest.raises(LoginError), translated(parse("box:")):
        raise paramiko.SSHException("No authentication methods available")
    with pytest.raises(OfflineError, match="refused"), translated(parse("box:")):
        raise ConnectionRefusedError(111, "Connection refused")


@pytest.mark.parametrize(
    "text", ["Authentication failed: transport shut down or saw EOF", "Authentication timeout."]
)
def test_a_line_that_was_cut_during_the_login_refuses_no_key(text: str) -> None:
    with pytest.raises(OfflineError), translated(parse("host:")):
        raise paramiko.AuthenticationException(text)


def test_includes_of_an_ssh_config_are_followed(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(f"Include {tmp_path}/more/*.conf\nHost *\n  User last\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.conf").write_text("Host box\n  HostName box.example\n  User first")
    (tmp_path / "more" / "b.conf").write_text(f"include {tmp_path}/config\nHost box\n  Port 23\n")
    found = read_config(tmp_path / "config").lookup("box")
    assert found["hostname"] == "box.example"
    assert found["user"] == "first"
    assert found["port"] == "23"


def test_paramiko_is_not_loaded_until_it_is_needed() -> None:
    program = "import sys, syncer.remote; sys.exit('paramiko' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_login_that_gets_no_answer_ends_when_the_stream_is_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = ParamikoStream(
            Location("x", "127.0.0.1", port=listener.getsockname()[1]), None, 60
        )
        errors: list[SyncerError] = []

        def open_it() -> None:
            try:
                stream.open()
            except SyncerError as error:
                errors.append(error)

        opening = threading.Thread(target=open_it)
        opening.start()
        accepted, _ = listener.accept()
        with accepted:
            stream.close()
            opening.join(20)
            assert not opening.is_alive()
    assert [type(error) for error in errors] == [OfflineError]
