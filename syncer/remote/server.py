"""An SFTP server as a remote: the pool of connections under the object logic."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..errors import MissingError, OfflineError, UsageError
from . import packets as sftp
from .connection import Connection, DroppedError, Stream
from .files import FileRemote, Files, Result
from .location import Location
from .pool import Pool
from .session import Session, StatusError, open_connection
from .sftp import SftpFiles
from .sharing import Logins, takes_links
from .ssh import SshStream
from .window import Windows

TRANSPORTS = ("auto", "ssh", "paramiko")


class SftpRemote(FileRemote):
    """Objects in a folder on a server; `make_stream` makes one to it, to be opened in a time."""

    _has_connections = True

    def __init__(
        self,
        location: Location,
        make_stream: Callable[[float], Stream],
        connections: int,
        timeout_seconds: float,
        *,
        logins: Logins | None = None,
        was_far: bool = False,
    ) -> None:
        """With `logins`, streams to a near server share one. For `was_far` see `Pool`."""
        super().__init__(str(location))
        self._location = location
        self._make_stream = make_stream
        self._timeout_seconds = timeout_seconds
        self._windows = Windows()
        self._pool = Pool(
            self.name,
            self._connect,
            connections,
            shares_login=logins is not None,
            was_far=was_far,
        )
        if logins is not None:
            logins.stay_apart = lambda: self._pool.is_far
        self._lock = threading.Lock()
        # The lock guards the next two.
        self._greeting: set[Stream] = set()
        self._closed = False

    def _connect(self, lost_seconds: float) -> Connection:
        """Open a connection. Its end, here, is no reason to try another at once."""
        timeout_seconds = self._timeout_seconds
        if lost_seconds:
            # The computer may have slept for a day.
            self._forget_places()
        # A ping takes half of it at most.
        limit_seconds = max(timeout_seconds - lost_seconds, timeout_seconds / 2)
        try:
            stream = self._make_stream(limit_seconds)
            with self._lock:
                self._greeting.add(stream)
                closed = self._closed
            try:
                if closed:
                    stream.close()
                stream.open()
                return open_connection(stream, timeout_seconds, self._windows, lost_seconds)
            finally:
                with self._lock:
                    self._greeting.discard(stream)
        except DroppedError as error:
            raise OfflineError(str(error)) from error
        except OSError as error:
            raise OfflineError(f"can't connect to {self.name}: {error.strerror}") from error

    def _perform(
        self, action: Callable[[Files], Result], *, urgent: bool, repeatable: bool
    ) -> Result:
        try:
            return self._perform_once(action, urgent)
        except DroppedError:
            # The server may have been restarted: then all connections are gone, and a new one
            # works at once.
            self._pool.drop_idle()
            self._forget_places()
            if not repeatable:
                raise
        return self._perform_once(action, urgent)

    def _perform_once(self, action: Callable[[Files], Result], urgent: bool) -> Result:
        with self._pool.session(urgent=urgent) as session:
            return action(SftpFiles(session, self._root(session)))

    def _root(self, session: Session) -> bytes:
        path = self._location.path.encode("utf-8", "surrogateescape")
        if not path.startswith(b"~"):
            return path
        if b"expand-path@openssh.com" not in session.server.extensions:
            raise OfflineError(
                f"{self.name}: this server can't tell where ~user is; use the whole path"
            )
        request = session.send(sftp.EXTENDED, b"expand-path@openssh.com", path)
        try:
            names = session.names(request)
            if len(names) != 1:
                raise session.garbled()
            return names[0][0]
        except (MissingError, StatusError) as error:
            raise OfflineError(f"{self.name}: no such user on the server") from error

    def prepare(self) -> None:
        self._pool.prepare()

    @property
    def lead_bytes(self) -> int:
        return self._windows.down.lead_bytes

    @property
    def sending_lead_bytes(self) -> int:
        return self._windows.up.lead_bytes

    @property
    def is_far(self) -> bool:
        return self._pool.is_far

    @property
    def is_near(self) -> bool:
        return self._pool.is_near

    def close(self) -> None:
        with self._lock:
            self._closed = True
            greeting = list(self._greeting)
        self._pool.close()
        for stream in greeting:
            stream.close()


def open_server(
    location: Location,
    transport: str,
    connections: int,
    timeout_seconds: float,
    ssh_config: Path | None,
    folder: Path | None,
    *,
    was_far: bool = False,
) -> SftpRemote:
    """Make the remote for a server, without connecting to it yet.

    With `folder`, for sockets, connections share a login where that is cheaper. With `was_far`,
    more than one is opened before it is known whether that is so.

    Raises:
        UsageError: there is no such transport, or its program is missing.
    """
    if transport not in TRANSPORTS:
        raise UsageError(f"no transport {transport!r}; there are {', '.join(TRANSPORTS)}")
    has_ssh = shutil.which("ssh") is not None
    if transport == "ssh" and not has_ssh:
        raise UsageError(
            "there is no ssh program: install openssh-client, or use the transport paramiko"
        )
    logins = None
    if has_ssh and transport != "paramiko":
        logins = Logins(folder) if folder and takes_links(folder) else None
        make_stream: Callable[[float], Stream] = partial(SshStream, location, ssh_config, logins)
    else:
        make_stream = partial(_paramiko_stream, location, ssh_config)
    return SftpRemote(
        location, make_stream, connections, timeout_seconds, logins=logins, was_far=was_far
    )


def _paramiko_stream(location: Location, ssh_config: Path | None, limit_seconds: float) -> Stream:
    from .native import ParamikoStream

    return ParamikoStream(location, ssh_config, limit_seconds)
