from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from syncer.errors import AccessError, HostKeyError, LoginError, OfflineError
from syncer.remote import open_remote, parse, ssh
from syncer.remote.child import ChildSocket
from syncer.remote.connection import DroppedError
from syncer.remote.ssh import QUICK_CIPHER, command, explain, with_quick_cipher
from tests.sshd import HOST, Sshd

CHANGED = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
Host key for box has changed and you have requested strict checking.
Host key verification failed.
"""


@pytest.mark.parametrize(
    ("messages", "kind", "text"),
    [
        (CHANGED, HostKeyError, "has changed"),
        (
            "No ED25519 host key is known for box and you have requested strict checking.\r\n",
            HostKeyError,
            "not known",
        ),
        (
            "Host key verification failed.\r\n",
            HostKeyError,
            "not known: run 'ssh box'",
        ),
        ("me@box: Permission denied (publickey).\r\n", LoginError, "Permission denied"),
        ("Received disconnect: Too many authentication failures\n", LoginError, "Too many"),
        ("ssh: Could not resolve hostname box: Name or service not known\r\n", OfflineError, "box"),
        (
            "ssh: connect to host box port 22: Connection refused\r\n",
            OfflineError,
            "can't reach box: connect to host box port 22: Connection refused",
        ),
        ("subsystem request failed on channel 0\r\n", AccessError, "box offers no SFTP"),
        ("Connection to box closed by remote host.\r\n", DroppedError, "ended"),
        ("", DroppedError, "ended"),
    ],
)
def test_what_ssh_says_becomes_our_error(messages: str, kind: type[Exception], text: str) -> None:
    error = explain(messages, parse("box:"))
    assert type(error) is kind
    assert text in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("messages", "advice"),
    [
        ("Host key verification failed.\r\n", "'ssh -p 22922 me@::1' once"),
        ("me@::1: Permission denied (publickey).\r\n", "make 'ssh -p 22922 me@::1' work"),
        (CHANGED, "run 'ssh-keygen -R \"[::1]:22922\"', then 'ssh -p 22922 me@::1' once"),
    ],
)
def test_the_advice_names_the_user_and_the_port(tmp_path: Path, messages: str, advice: str) -> None:
    (tmp_path / "config").touch()
    error = explain(messages, parse("sftp://me@[::1]:22922/x"), tmp_path / "config")
    assert advice in str(error)


def test_the_advice_names_the_host_as_the_list_of_known_ones_does(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host box\nHostName 127.0.0.1\nPort 2222\nHost other\nHostKeyAlias its-key\n")
    assert """-R "[127.0.0.1]:2222\"'""" in str(explain(CHANGED, parse("box:"), config))
    assert "-R its-key'" in str(explain(CHANGED, parse("other:"), config))


def test_the_host_can_not_be_taken_for_an_option() -> None:
    words = command(parse("sftp://me@box:2222/x"), 30.0, Path("/config"))
    assert words[:1] == ["ssh"]
    assert words[-4:] == ["-s", "--", "box", "sftp"]
    assert words[words.index("-p") + 1] == "2222"
    assert words[words.index("-l") + 1] == "me"
    assert words[words.index("-F") + 1] == "/config"
    assert "BatchMode=yes" in words
    assert "ConnectTimeout=30" in words


CHACHA = "chacha20-poly1305@openssh.com"


def offered(words: list[str]) -> list[str]:
    """The ciphers on a command line; none: it leaves them to ssh."""
    found = [word for word in words if word.startswith("Ciphers=")]
    return found[0].removeprefix("Ciphers=").split(",") if found else []


def offer(config: Path) -> list[str]:
    """What is offered to the host "box"."""
    location = parse("sftp://me@box:2222/x")
    return offered(with_quick_cipher(command(location, 30.0, config), location, config))


@pytest.fixture
def _knows_aes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "_knows_aes", lambda: True)


@pytest.mark.usefixtures("_knows_aes")
def test_the_quick_cipher_comes_first_and_no_other_is_lost(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host other\n  Ciphers aes256-ctr\n")
    ciphers = offer(config)
    assert ciphers[0] == QUICK_CIPHER
    assert sorted(ciphers) == sorted(ssh._default_ciphers())
    assert CHACHA in ciphers


@pytest.mark.usefixtures("_knows_aes")
@pytest.mark.parametrize(
    "line", ["Ciphers aes256-ctr", f"Ciphers -{CHACHA}", "Ciphers ^aes256-ctr"]
)
def test_what_a_person_wants_of_ciphers_rules(tmp_path: Path, line: str) -> None:
    config = tmp_path / "config"
    config.write_text(f"Host box\n  {line}\n")
    assert offer(config) == []


def test_without_instructions_for_aes_ssh_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "_knows_aes", lambda: False)
    (tmp_path / "config").touch()
    assert offer(tmp_path / "config") == []


@pytest.mark.usefixtures("_knows_aes")
def test_a_config_that_ssh_refuses_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("Nonsense yes\n")
    assert offer(tmp_path / "config") == []


@pytest.mark.usefixtures("_knows_aes")
@pytest.mark.parametrize("cipher", [QUICK_CIPHER, CHACHA])
def test_a_server_that_takes_one_cipher_is_reached_by_it(tmp_path: Path, cipher: str) -> None:
    with Sshd(f"Ciphers {cipher}") as server:
        remote = open_remote(f"{HOST}:{tmp_path}/there", ssh_config=server.config)
        remote.make_folders()
        remote.close()
        other = CHACHA if cipher == QUICK_CIPHER else QUICK_CIPHER
        server.config.write_text(f"{server.config.read_text()}  Ciphers {other}\n")
        refused = open_remote(f"{HOST}:{tmp_path}/there", ssh_config=server.config)
        with pytest.raises(OfflineError):
            refused.make_folders()
        refused.close()


class _SlowToClose:
    """A file that shows what the real one seldom does: a second closing within the first."""

    def __init__(self) -> None:
        self._closing = threading.Lock()

    def close(self) -> None:
        if not self._closing.acquire(blocking=False):
            raise ValueError("I/O operation on closed file")
        time.sleep(0.1)
        self._closing.release()


def test_a_child_may_be_closed_by_two_at_once() -> None:
    child: Any = ChildSocket(["cat"])
    child._stderr.close()
    child._stderr = _SlowToClose()
    with ThreadPoolExecutor(2) as pool:
        for closing in [pool.submit(child.close) for _ in range(2)]:
            closing.result()
    assert not child.is_running()


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ssh.SshStream]]:
    """Makes streams to what a shell runs in place of `ssh`."""
    streams: list[ssh.SshStream] = []

    def run(script: str) -> ssh.SshStream:
        words = ["/bin/sh", "-c", script]
        monkeypatch.setattr(ssh, "command", lambda *_: words)
        monkeypatch.setattr(ssh, "with_quick_cipher", lambda *_: words)
        streams.append(ssh.SshStream(parse("sftp://box"), None, None, 5.0))
        return streams[-1]

    yield run
    for stream in streams:
        stream.close()


def test_a_large_answer_comes_as_a_whole(child: Callable[[str], ssh.SshStream]) -> None:
    stream = child("for i in 1 2 3; do printf 0123456789; sleep 0.05; done")
    room = memoryview(bytearray(30))
    assert stream.receive_into(room, 30.0, whole=True) == 30
    assert bytes(room) == b"0123456789" * 3
    assert stream.receive_into(room, 30.0, whole=True) == 0, "that was all"


def test_small_ones_come_as_they_are(child: Callable[[str], ssh.SshStream]) -> None:
    stream = child("printf 01234; exec sleep 60")
    assert stream.receive_into(memoryview(bytearray(30)), 30.0, whole=False) == 5


def test_what_has_come_of_an_answer_is_told_in_time(child: Callable[[str], ssh.SshStream]) -> None:
    """Else an answer that takes long would look like a line that is dead."""
    stream = child("printf 01234; exec sleep 60")
    room = memoryview(bytearray(30))
    assert stream.receive_into(room, 0.5, whole=True) == 5
    with pytest.raises(TimeoutError):
        stream.receive_into(room, 0.1, whole=True)
    with pytest.raises(TimeoutError):
        stream.receive_into(room, 0.1, whole=False)


def test_who_takes_nothing_is_not_sent_to_for_ever(child: Callable[[str], ssh.SshStream]) -> None:
    stream = child("exec sleep 60")
    with pytest.raises(TimeoutError):
        stream.send([bytes(10 << 20)], 0.2)


def test_all_buffers_arrive_in_their_order(child: Callable[[str], ssh.SshStream]) -> None:
    stream = child("exec cat")
    parts = [os.urandom(size) for size in (5, 0, 300_000, 1, 4_000_000)]
    with ThreadPoolExecutor(1) as threads:
        sending = threads.submit(stream.send, parts, 30.0)
        room = memoryview(bytearray(sum(map(len, parts))))
        assert stream.receive_into(room, 30.0, whole=True) == len(room)
        sending.result()
    assert room == b"".join(parts)


@pytest.mark.parametrize("whole", [True, False])
def test_closing_wakes_who_receives(child: Callable[[str], ssh.SshStream], whole: bool) -> None:
    stream = child("exec sleep 60")
    with ThreadPoolExecutor(1) as threads:
        received = threads.submit(stream.receive_into, memoryview(bytearray(9)), 60.0, whole=whole)
        time.sleep(0.1)
        stream.close()
        assert received.result(10) == 0
