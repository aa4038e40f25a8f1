"""The transport that is the person's own `ssh` program, as a child process.

Encryption stays out of this process, and ``~/.ssh/config``, agents, jump hosts, hardware keys
and shared connections work as they do everywhere else.
"""

from __future__ import annotations

import functools
import re
import shlex
import socket
import struct
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import AccessError, HostKeyError, LoginError, OfflineError, SyncerError
from .base import Data
from .child import ChildSocket
from .connection import DroppedError
from .location import Location
from .sharing import Logins

BUFFERS_AT_ONCE = 512
"""Below what sendmsg(2) takes at least (IOV_MAX, 1024)."""
QUICK_CIPHER = "aes128-gcm@openssh.com"
"""Costs half of OpenSSH's first choice, ChaCha20-Poly1305, where the processor knows AES."""
ASKED_SECONDS = 5.0
"""How long `ssh` may take to tell its settings; a person's config may run programs."""
WIDE_SO_RCVTIMEO = 66
"""Linux's SO_RCVTIMEO_NEW (asm-generic/socket.h): of 32-bit machines whose times have 64 bits."""


def command(location: Location, timeout_seconds: float, ssh_config: Path | None) -> list[str]:
    """The command line that connects to the location's SFTP server."""
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": str(max(1, round(timeout_seconds))),
        # Finds out about a dead line while nobody asks; who asks has a limit of his own.
        "ServerAliveInterval": "15",
        "ServerAliveCountMax": "3",
        # Its messages are for us, not for a log.
        "LogLevel": "ERROR",
        # What a person's config may hold for logins, as sftp(1) turns it off.
        "ClearAllForwardings": "yes",
        "PermitLocalCommand": "no",
        "RemoteCommand": "none",
        "ForwardX11": "no",
    }
    words = ["ssh", "-a", "-T", "-e", "none"]
    for name, value in options.items():
        words += ["-o", f"{name}={value}"]
    return [*words, *_whom(location, ssh_config), "-s", "--", location.host, "sftp"]


def _whom(location: Location, ssh_config: Path | None) -> list[str]:
    """The options that decide which part of which configuration is meant."""
    words = []
    if ssh_config is not None:
        words += ["-F", str(ssh_config)]
    if location.port is not None:
        words += ["-p", str(location.port)]
    if location.user is not None:
        words += ["-l", location.user]
    return words


def with_quick_cipher(words: list[str], location: Location, ssh_config: Path | None) -> list[str]:
    """A command line that prefers `QUICK_CIPHER`, if the person's configuration leaves it open.

    It only comes first: a server that lacks it gets the others, in their order.
    """
    if not _knows_aes():
        return words
    configured = _ciphers("-G", *_whom(location, ssh_config), "--", location.host)
    if QUICK_CIPHER not in configured or configured != _default_ciphers():
        return words
    others = [cipher for cipher in configured if cipher != QUICK_CIPHER]
    return [words[0], "-o", f"Ciphers={','.join([QUICK_CIPHER, *others])}", *words[1:]]


@functools.cache
def _knows_aes() -> bool:
    """Whether the processor has instructions for it."""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        return re.search(r"^(flags|Features)\s*:.* aes\b", text, re.MULTILINE) is not None
    return False


@functools.cache
def _default_ciphers() -> tuple[str, ...]:
    """What `ssh` offers where no configuration says anything."""
    return _ciphers("-F", "none", "-G", "--", "localhost")


def shares_logins(location: Location, ssh_config: Path | None) -> bool:
    """Whether the person's configuration has `ssh` share one login among connections."""
    told = _told("-G", *_whom(location, ssh_config), "--", location.host)
    return re.search(r"^controlpath (?!none$)", told, re.MULTILINE) is not None


def _ciphers(*arguments: str) -> tuple[str, ...]:
    """What `ssh` would offer, most wanted first; nothing if it does not tell."""
    found = re.search(r"^ciphers (.+)$", _told(*arguments), re.MULTILINE)
    return tuple(found[1].split(",")) if found else ()


def _told(*arguments: str) -> str:
    """What `ssh` tells about its settings; nothing if it does not."""
    try:
        return subprocess.run(
            ["ssh", "-T", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ASKED_SECONDS,
            start_new_session=True,
            check=False,
        ).stdout
    except subprocess.TimeoutExpired:
        return ""


class SshStream:
    """A connection through `ssh`; see `connection.Stream`."""

    def __init__(
        self,
        location: Location,
        ssh_config: Path | None,
        logins: Logins | None,
        limit_seconds: float,
    ) -> None:
        """With `logins`, connections share one, unless the person has seen to that already."""
        self.name = str(location)
        self._location = location
        self._ssh_config = ssh_config
        login = logins.take() if logins else None
        # What `ssh` tells of its settings takes it as long as all else that a further session does.
        words = login.words if login else None
        if words is None:
            words = command(location, limit_seconds, ssh_config)
            words = with_quick_cipher(words, location, ssh_config)
            if login and shares_logins(location, ssh_config):
                login = None
        self._login = login
        self._child = login.start(words) if login else ChildSocket(words)
        self._limits_seconds = dict.fromkeys((socket.SO_SNDTIMEO, socket.SO_RCVTIMEO), 0.0)

    def open(self) -> None:
        # The child connects by itself. Its first bytes, or its end, tell how that went.
        pass

    def send(self, buffers: Sequence[Data], limit_seconds: float) -> None:
        connection = self._child.socket
        self._limit(socket.SO_SNDTIMEO, limit_seconds)
        waiting = [memoryview(buffer) for buffer in buffers]
        first = 0
        while first < len(waiting):
            try:
                sent = connection.sendmsg(waiting[first : first + BUFFERS_AT_ONCE])
            except BlockingIOError:
                raise TimeoutError from None
            while first < len(waiting) and sent >= len(waiting[first]):
                sent -= len(waiting[first])
                first += 1
            if sent:
                waiting[first] = waiting[first][sent:]

    def receive_into(self, view: memoryview, limit_seconds: float, *, whole: bool) -> int:
        self._limit(socket.SO_RCVTIMEO, limit_seconds)
        try:
            # What `ssh` writes at once is a small part of a large answer, and to return with each
            # part would cost what it takes to get the interpreter back.
            return self._child.socket.recv_into(view, 0, socket.MSG_WAITALL if whole else 0)
        except BlockingIOError:
            raise TimeoutError from None

    def _limit(self, option: int, seconds: float) -> None:
        """Have the kernel end a call that long after its beginning.

        A limit of Python's own would make two more system calls of each.
        """
        if self._limits_seconds[option] != seconds:
            self._child.socket.setsockopt(socket.SOL_SOCKET, option, _timeval(seconds))
            self._limits_seconds[option] = seconds

    def is_alive(self) -> bool:
        return self._child.is_running()

    def ending(self) -> SyncerError:
        return explain(self._child.last_words(), self._location, self._ssh_config)

    def close(self) -> None:
        if self._login:
            self._login.end(self._child)
        else:
            self._child.close()


def _timeval(seconds: float) -> bytes:
    """C's `struct timeval`, as `SO_RCVTIMEO` of this machine wants it."""
    whole, rest = divmod(round(seconds * 1e6), 10**6)
    is_wide = socket.SO_RCVTIMEO == WIDE_SO_RCVTIMEO
    return struct.pack("@qq" if is_wide else "@ll", whole, rest)


def explain(messages: str, location: Location, ssh_config: Path | None = None) -> SyncerError:
    """Make an error of what `ssh` printed before it ended."""
    host = location.host
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    if re.search(r"IDENTIFICATION HAS CHANGED|host key .* has changed", messages, re.IGNORECASE):
        return changed_key(location, known_name(location, ssh_config))
    if re.search(r"Host key verification failed|No .* host key is known", messages):
        return unknown_key(location)
    if re.search(r"Permission denied \(|Too many authentication failures", messages):
        return refused_login(location, lines[-1])
    if "subsystem request failed" in messages:
        return AccessError(f"{host} offers no SFTP; whoever runs it can turn it on")
    if not lines or re.search(r"closed by remote host|client_loop: send disconnect", messages):
        return DroppedError(f"the connection to {host} ended")
    return OfflineError(f"can't reach {host}: {lines[-1].removeprefix('ssh: ')}")


def login_command(location: Location) -> str:
    """How a person logs in there."""
    port = [] if location.port is None else ["-p", str(location.port)]
    user = "" if location.user is None else f"{location.user}@"
    return shlex.join(["ssh", *port, f"{user}{location.host}"])


def known_name(location: Location, ssh_config: Path | None) -> str:
    """What the list of known hosts calls it."""
    told = _told("-G", *_whom(location, ssh_config), "--", location.host)
    settings = dict(line.split(" ", 1) for line in told.splitlines() if " " in line)
    if (alias := settings.get("hostkeyalias", "none")) != "none":
        return alias
    port = int(settings.get("port", location.port or 22))
    return name_with_port(settings.get("hostname", location.host), port)


def name_with_port(host: str, port: int) -> str:
    """A host as the list of known hosts has it."""
    return host if port == 22 else f"[{host}]:{port}"


def unknown_key(location: Location) -> HostKeyError:
    """The error for a host that was never seen before."""
    return HostKeyError(
        f"the host key of {location.host} is not known: run '{login_command(location)}' once,"
        " compare the fingerprint and accept it"
    )


def changed_key(location: Location, known: str) -> HostKeyError:
    """The error for a host that shows another key than it did before, under the name `known`."""
    # A shell would take brackets for a pattern.
    quoted = f'"{known}"' if "[" in known else known
    return HostKeyError(
        f"the host key of {location.host} has changed: someone may be listening in; if the change"
        f" is expected, run 'ssh-keygen -R {quoted}', then"
        f" '{login_command(location)}' once and accept the new key"
    )


def refused_login(location: Location, reason: str) -> LoginError:
    """The error for a server that accepts none of our keys."""
    return LoginError(
        f"{location.host} accepted no key ({reason}): make '{login_command(location)}' work without"
        " a password, for example with ssh-copy-id"
    )
