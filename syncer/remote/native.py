"""The transport that is paramiko's own, for machines without an `ssh` program.

Reads ``~/.ssh/config``, known hosts, keys and agent as `ssh` does, as far as paramiko can. It
encrypts in this process, which costs several times the processor time of the `ssh` transport.
This is the only module that imports paramiko, and is itself imported only when it is used: with
the `ssh` transport paramiko's 20 MB stay out of memory.
"""

from __future__ import annotations

import glob
import logging
import os
import re
import shlex
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import paramiko
from paramiko import auth_strategy, ber, ssh_exception

from ..errors import HostKeyError, LoginError, OfflineError, SyncerError
from .base import Data
from .child import ChildSocket
from .connection import DroppedError
from .location import Location, parse
from .ssh import changed_key, name_with_port, refused_login, unknown_key

CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
"""Preferred to paramiko's order: they need no separate checksum, at a third less processor time."""
WINDOW_BYTES = 16 << 20
"""How much the server may send ahead; paramiko's 2 MiB slow down links with a long delay."""
KEEPALIVE_SECONDS = 15
PIECE_BYTES = 32768
"""What paramiko puts into one packet."""
MOST_LOGINS = 8
"""The server and its jump hosts; against a config that sends us in circles."""
CONFIG_FILES = ("~/.ssh/config", "/etc/ssh/ssh_config")
USER_KNOWN_HOSTS = "~/.ssh/known_hosts ~/.ssh/known_hosts2"
GLOBAL_KNOWN_HOSTS = "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"

# paramiko logs what it raises as well, with tracebacks; here all of it becomes our own errors.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)


class ParamikoStream:
    """A connection through paramiko; see `connection.Stream`."""

    def __init__(self, location: Location, ssh_config: Path | None, limit_seconds: float) -> None:
        self.name = str(location)
        self._location = location
        self._ssh_config = ssh_config
        self._limit_seconds = limit_seconds
        self._opened = _Opened()

    def open(self) -> None:
        try:
            with translated(self._location):
                self._log_in()
        except BaseException:
            self._opened.close()
            raise

    def _log_in(self) -> None:
        limit_seconds = self._limit_seconds
        dialer = _Dialer(read_config(self._ssh_config), limit_seconds, self._opened)
        client = dialer.login(self._location)
        self._transport = client.get_transport()
        with _time_limit(self._transport, limit_seconds):
            self._channel = self._transport.open_session(
                window_size=WINDOW_BYTES, timeout=limit_seconds
            )
            self._channel.invoke_subsystem("sftp")

    def send(self, buffers: Sequence[Data], limit_seconds: float) -> None:
        self._channel.settimeout(limit_seconds)
        data = b"".join(buffers)
        position = 0
        with _as_os_errors():
            while position < len(data):
                count = self._channel.send(data[position : position + PIECE_BYTES])
                if not count:
                    raise BrokenPipeError("the channel was closed")
                position += count

    def receive_into(self, view: memoryview, limit_seconds: float, *, whole: bool) -> int:
        self._channel.settimeout(limit_seconds)
        with _as_os_errors():
            data = self._channel.recv(len(view))
        view[: len(data)] = data
        return len(data)

    def is_alive(self) -> bool:
        return bool(self._transport.is_active()) and not self._channel.closed

    def ending(self) -> SyncerError:
        return DroppedError(f"the connection to {self._location.host} ended")

    def close(self) -> None:
        self._opened.close()


def read_config(ssh_config: Path | None) -> Any:
    """Read `ssh_config`, or the files that `ssh` reads if there is none given."""
    files = CONFIG_FILES if ssh_config is None else (str(ssh_config),)
    # Of two values for one option the first counts, so the person's file goes before the system's.
    # "Host *" ends the last block of the one before.
    text = "\nHost *\n".join("".join(_lines(os.path.expanduser(file))) for file in files)
    return paramiko.SSHConfig.from_file(StringIO(text))


def _lines(file: str, depth: int = 0) -> Iterator[str]:
    """The lines of a config with its Includes, which paramiko does not know."""
    if depth > 16 or not os.path.isfile(file):
        return
    base = "/etc/ssh" if file.startswith("/etc/ssh/") else os.path.expanduser("~/.ssh")
    with open(file, encoding="utf-8", errors="surrogateescape") as config:
        for line in config:
            include = re.match(r"\s*include[\s=]+(.+)", line, re.IGNORECASE)
            if not include:
                yield line if line.endswith("\n") else line + "\n"
                continue
            for pattern in shlex.split(include[1]):
                where = os.path.join(base, os.path.expanduser(pattern))
                for found in sorted(glob.glob(where)):
                    yield from _lines(found, depth + 1)


class _Opened:
    """What must be closed with a stream, even while another thread still connects."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # The lock guards what is below.
        self._closers: list[Callable[[], None]] = []
        self._is_closed = False

    def add(self, close: Callable[[], None]) -> None:
        """Have it closed in time: at once, if that is over."""
        with self._lock:
            if not self._is_closed:
                self._closers.append(close)
                return
        close()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            closers, self._closers = self._closers, []
        for close in reversed(closers):
            close()


class _Dialer:
    """Opens connections as an ssh config says; what must be closed later goes to `opened`."""

    def __init__(self, config: Any, timeout_seconds: float, opened: _Opened) -> None:
        self._config = config
        self._timeout_seconds = timeout_seconds
        self._opened = opened
        self._logins = 0

    def login(self, location: Location, jumps: str | None = None) -> Any:
        """Connect to a host, through `jumps` or what the config says, and log in."""
        self._logins += 1
        if self._logins > MOST_LOGINS:
            raise OfflineError(f"{location.host}: the ssh config has too many jump hosts")
        options: Mapping[str, Any] = self._config.lookup(location.host)
        host = options["hostname"]
        port = location.port or int(options.get("port", 22))
        alias = options.get("hostkeyalias")
        keys = [os.path.expanduser(file) for file in options.get("identityfile", ())]
        only_these = options.get("identitiesonly", "no") == "yes"
        client: Any = paramiko.SSHClient()  # its type stubs know of one key file only
        self._opened.add(client.close)
        _load_known_hosts(client, options)
        client.set_missing_host_key_policy(_RefuseUnknown(location))
        try:
            client.connect(
                # With a connection at hand, name and port only serve to look up the host's key.
                alias or host,
                22 if alias else port,
                location.user or options.get("user"),
                sock=self._connection(host, port, options, jumps),
                key_filename=[key for key in keys if os.path.isfile(key)],
                look_for_keys=not keys,
                allow_agent=not only_these and options.get("identityagent") != "none",
                timeout=self._timeout_seconds,
                banner_timeout=self._timeout_seconds,
                auth_timeout=self._timeout_seconds,
                channel_timeout=self._timeout_seconds,
                transport_factory=_transport,
            )
        except ssh_exception.BadHostKeyException as error:
            raise changed_key(location, alias or name_with_port(host, port)) from error
        client.get_transport().set_keepalive(KEEPALIVE_SECONDS)
        return client

    def _connection(
        self, host: str, port: int, options: Mapping[str, Any], jumps: str | None
    ) -> Any:
        """The way to the server's port: jump hosts, a command, or straight."""
        jumps = jumps or options.get("proxyjump", "none")
        if jumps != "none":
            # "a,b" means: to b through a, and from b to the server.
            before, _, last = jumps.rpartition(",")
            client = self.login(_jump_location(last), before or None)
            return client.get_transport().open_channel(
                "direct-tcpip", (host, port), ("127.0.0.1", 0), timeout=self._timeout_seconds
            )
        if options.get("proxycommand"):
            child = ChildSocket(["/bin/sh", "-c", f"exec {options['proxycommand']}"])
            self._opened.add(child.close)
            return child.socket
        connection = socket.create_connection((host, port), self._timeout_seconds)
        self._opened.add(connection.close)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # paramiko repeats a blocked send for ever; this makes the kernel give up.
            limit_milliseconds = int(2 * self._timeout_seconds * 1000)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_milliseconds)
        return connection


def _jump_location(text: str) -> Location:
    text = text.strip().removeprefix("ssh://")
    return parse(f"sftp://{text}")


def _load_known_hosts(client: Any, options: Mapping[str, Any]) -> None:
    for name, usual in (
        ("userknownhostsfile", USER_KNOWN_HOSTS),
        ("globalknownhostsfile", GLOBAL_KNOWN_HOSTS),
    ):
        for file in shlex.split(options.get(name, usual)):
            path = os.path.expanduser(file)
            if os.path.isfile(path):
                client.load_system_host_keys(path)


def _transport(connection: Any, **options: Any) -> Any:
    transport = paramiko.Transport(connection, **options)
    security = transport.get_security_options()
    security.ciphers = CIPHERS + tuple(c for c in security.ciphers if c not in CIPHERS)
    return transport


class _RefuseUnknown(paramiko.MissingHostKeyPolicy):
    """The policy for hosts without a known key: as `ssh` in batch mode does it."""

    def __init__(self, location: Location) -> None:
        self._location = location

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        raise unknown_key(self._location)


@contextmanager
def _time_limit(transport: Any, seconds: float) -> Iterator[None]:
    """Close the transport if the block takes longer: paramiko's waits there have no limit."""
    timer = threading.Timer(seconds, transport.close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


KINDS: dict[type[Exception], type[SyncerError]] = {
    ssh_exception.BadHostKeyException: HostKeyError,
    ssh_exception.AuthenticationException: LoginError,
    ssh_exception.BadAuthenticationType: LoginError,
    ssh_exception.PasswordRequiredException: LoginError,
    ssh_exception.PartialAuthentication: LoginError,
    ssh_exception.UnableToAuthenticate: LoginError,
    auth_strategy.AuthFailure: LoginError,
    ssh_exception.SSHException: OfflineError,
    ssh_exception.ChannelException: OfflineError,
    ssh_exception.ProxyCommandFailure: OfflineError,
    ssh_exception.ConfigParseError: OfflineError,
    ssh_exception.CouldNotCanonicalize: OfflineError,
    ssh_exception.IncompatiblePeer: OfflineError,
    ssh_exception.MessageOrderError: OfflineError,
    ssh_exception.NoValidConnectionsError: OfflineError,
    paramiko.SFTPError: OfflineError,
    paramiko.buffered_pipe.PipeTimeout: OfflineError,
    paramiko.packet.NeedRekeyException: OfflineError,
    paramiko.hostkeys.InvalidHostKey: HostKeyError,
    paramiko.pkey.UnknownKeyType: LoginError,
    ber.BERException: LoginError,
    OSError: OfflineError,
    EOFError: OfflineError,
    # From key files and configs that paramiko can't read.
    ValueError: LoginError,
}
"""What comes out of paramiko while it connects; a test holds it against paramiko's classes."""


@contextmanager
def translated(location: Location) -> Iterator[None]:
    """Turn what paramiko raises while it connects into our errors."""
    try:
        yield
    except tuple(KINDS) as error:
        kind = next(KINDS[known] for known in type(error).__mro__ if known in KINDS)
        reason = str(error) or type(error).__name__
        if kind is LoginError and re.search("transport shut down|Authentication timeout", reason):
            # The server has refused nothing: the line was cut in the middle of it.
            kind = OfflineError
        if kind is LoginError or reason == "No authentication methods available":
            raise refused_login(location, reason) from error
        if kind is HostKeyError:
            # A known one that can't be read; of another one, the login tells.
            raise changed_key(location, location.host) from error
        raise OfflineError(f"can't reach {location.host}: {reason}") from error


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Make paramiko's ways to say that a connection ended one, as a socket has it."""
    try:
        yield
    except (paramiko.SSHException, EOFError) as error:
        raise ConnectionError(str(error)) from error
