from __future__ import annotations

from pathlib import Path

import pytest

from syncer.errors import HostKeyError, LoginError, OfflineError
from syncer.remote import parse
from syncer.remote.connection import DroppedError
from syncer.remote.ssh import command, explain

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
        ("subsystem request failed on channel 0\r\n", OfflineError, "subsystem request failed"),
        ("Connection to box closed by remote host.\r\n", DroppedError, "ended"),
        ("", DroppedError, "ended"),
    ],
)
def test_what_ssh_says_becomes_our_error(messages: str, kind: type[Exception], text: str) -> None:
    error = explain(messages, "box")
    assert type(error) is kind
    assert text in str(error)
    assert "\n" not in str(error)


def test_the_host_can_not_be_taken_for_an_option() -> None:
    words = command(parse("sftp://me@box:2222/x"), 30.0, Path("/config"))
    assert words[:1] == ["ssh"]
    assert words[-4:] == ["-s", "--", "box", "sftp"]
    assert words[words.index("-p") + 1] == "2222"
    assert words[words.index("-l") + 1] == "me"
    assert words[words.index("-F") + 1] == "/config"
    assert "BatchMode=yes" in words
    assert "ConnectTimeout=30" in words
