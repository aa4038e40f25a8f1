"""The mounted process's socket: commands for a mount reach its process here.

The socket lies in the data directory and speaks lines of JSON, one command a connection:

    {"command": "flush", "arguments": {"timeout_seconds": 60}}       the client
    {"progress": {...}}                                              the process, any number
    {"result": {...}}  or  {"error": {"exit_code": 4, "message": "..."}}

One command is the socket's own: "end" is answered when the process is at its end, with an error if
not everything could be made safe.

Only the data directory's owner and root are answered. Bytes that are no text, as in file names,
travel as Python's surrogate escapes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from syncer import errors
from syncer.errors import (
    AccessError,
    BusyError,
    MissingError,
    SyncerError,
    TemporaryError,
    UsageError,
)

log = logging.getLogger(__name__)

Progress = Callable[[dict[str, Any]], None]
Handler = Callable[[dict[str, Any], Progress], dict[str, Any]]
"""Runs one command, given its arguments; may tell its progress, at least each few seconds.

An exception that `Progress` raises (the client has gone) must leave the handler.
"""

_MAX_LINE_BYTES = 4 << 20
_MAX_CONNECTIONS = 16
_CLIENT_SECONDS = 10.0
"""How long a client may take to send its command, or to take a line."""
_SILENCE_SECONDS = 300.0
"""How long a command may tell nothing before its client gives up."""
_STOP_SECONDS = 5.0
_END = "end"
_CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid


class NoProcessError(MissingError):
    """No process listens on the control socket: nothing is mounted from its data directory."""


class _GoneError(SyncerError):
    """The client has gone, or the process ends: nobody waits for the command any more."""


class ControlServer:
    """Listens, and runs each command in a thread of its own."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        self._path = path
        self._handlers = handlers
        self._listener: socket.socket | None = None
        self._thread = threading.Thread(target=self._listen, name="syncer-control", daemon=True)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        # The lock guards the threads that serve a client each.
        self._serving: dict[threading.Thread, socket.socket] = {}
        #: Those of clients that wait for the end, when all commands have ended.
        self._waiting: list[socket.socket] = []

    def start(self) -> None:
        """Listen. The caller holds the data directory's lock: a socket that is there is stale.

        Raises AccessError.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Before the socket has a name, so that it never has one with another mode.
            os.fchmod(listener.fileno(), 0o600)
            self._path.unlink(missing_ok=True)
            with _short_address(self._path) as address:
                listener.bind(address)
            listener.listen(_MAX_CONNECTIONS)
        except OSError as error:
            listener.close()
            raise AccessError(f"{self._path}: can't listen there: {error.strerror}") from error
        self._listener = listener
        self._thread.start()

    def stop(self) -> None:
        """Listen no more, and end the commands that still run. Waits for them for some seconds."""
        if self._listener is None:
            return
        self._stopping.set()
        # Wakes the thread that accepts; closing alone would not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(_STOP_SECONDS)
        self._listener.close()
        self._path.unlink(missing_ok=True)
        with self._lock:
            serving = dict(self._serving)
            for connection in serving.values():
                # Who has sent no command yet sends none any more; answers still get through.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)
        for thread in serving:
            thread.join(_STOP_SECONDS)

    def tell_end(self, failure: Exception | None) -> None:
        """After `stop`: tell those who wait for the end how it was."""
        answer: dict[str, Any] = {"result": {}} if failure is None else _error_line(failure)
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for connection in waiting:
            with connection, contextlib.suppress(_GoneError):
                _send(connection, answer)

    def _listen(self) -> None:
        assert self._listener is not None
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if self._stopping.is_set() or error.errno == errno.EINVAL:
                    return
                # No descriptors left, most likely; that may pass.
                log.warning("a command can't be answered: %s", error)
                self._stopping.wait(1)
                continue
            try:
                self._take(connection)
            except Exception:
                connection.close()
                log.exception("a command could not be taken; others can")

    def _take(self, connection: socket.socket) -> None:
        connection.settimeout(_CLIENT_SECONDS)
        with self._lock:
            if is_free := len(self._serving) < _MAX_CONNECTIONS:
                thread = threading.Thread(
                    target=self._serve, args=(connection,), name="syncer-command", daemon=True
                )
                self._serving[thread] = connection
        if is_free:
            try:
                thread.start()
                return
            except RuntimeError as error:
                # No threads left; that may pass.
                log.warning("a command can't be answered: %s", error)
                with self._lock:
                    del self._serving[thread]
        with connection, contextlib.suppress(_GoneError):
            _send(connection, _error_line(BusyError("too many commands at once; try again")))

    def _serve(self, connection: socket.socket) -> None:
        waits = False
        try:
            waits = self._answer(connection)
        except _GoneError as error:
            log.debug("%s", error)
        finally:
            with self._lock:
                del self._serving[threading.current_thread()]
                if waits:
                    self._waiting.append(connection)
            if not waits:
                connection.close()

    def _answer(self, connection: socket.socket) -> bool:
        """Carry out a client's command; returns whether it waits for the end."""

        def progress(state: dict[str, Any]) -> None:
            if self._stopping.is_set():
                raise TemporaryError("the mount ends; the rest goes on with the next mount")
            _send(connection, {"progress": state})

        try:
            _check_user(connection)
            command, arguments = _request(connection)
            if command == _END:
                return self._wait_for_stop(connection)
            if command not in self._handlers:
                raise UsageError(f"the mounted process knows no command {command!r}")
            answer = {"result": self._handlers[command](arguments, progress)}
        except _GoneError:
            raise
        except SyncerError as error:
            answer = _error_line(error)
        except Exception as error:
            log.exception("a command failed in a way that nobody foresaw")
            answer = _error_line(error)
        _send(connection, answer)
        return False

    def _wait_for_stop(self, connection: socket.socket) -> bool:
        """Wait until `stop` ends all commands; False if the client leaves before."""
        _send(connection, {"progress": {}})
        connection.settimeout(None)
        with contextlib.suppress(OSError):
            # A client sends nothing more; `stop` ends this.
            connection.recv(1)
        connection.settimeout(_CLIENT_SECONDS)
        return self._stopping.is_set()


def call(
    path: Path, command: str, arguments: dict[str, Any], on_progress: Progress | None = None
) -> dict[str, Any]:
    """Have the process behind a control socket run a command; returns its result.

    Raises NoProcessError if no process listens there, and what the command raised: the error class
    with the same exit code. What `on_progress` raises passes, and ends the command.
    """
    with _connected(path) as connection:
        connection.settimeout(_SILENCE_SECONDS)
        with contextlib.suppress(_GoneError):
            # Whoever doesn't take it may still have said why.
            _send(connection, {"command": command, "arguments": arguments})
        for line in _answers(connection, path):
            if "progress" in line:
                if on_progress:
                    on_progress(line["progress"])
            elif "error" in line:
                raise _error(line["error"])
            else:
                result: dict[str, Any] = line["result"]
                return result
    raise _ended(path)


def _answers(connection: socket.socket, path: Path) -> Iterator[dict[str, Any]]:
    """What the process tells, until it closes. Raises UsageError, TemporaryError."""
    try:
        yield from _lines(connection)
    except TimeoutError:
        raise TemporaryError(f"the process behind {path} does not answer") from None
    except OSError as error:
        raise _ended(path) from error


def _ended(path: Path) -> TemporaryError:
    return TemporaryError(f"the process behind {path} has ended before it answered")


@contextlib.contextmanager
def watched_end(path: Path) -> Iterator[Callable[[float], None]]:
    """Watch the end of the process behind a control socket, from before it begins.

    What is yielded waits for it, for so many seconds. It raises TimeoutError; what kept the process
    from making everything safe; and TemporaryError if it died and said nothing.

    Raises NoProcessError, and TemporaryError if the process is at its end already.
    """
    with _connected(path) as connection, contextlib.closing(_lines(connection)) as lines:

        def take(timeout_seconds: float) -> dict[str, Any]:
            connection.settimeout(timeout_seconds)
            with contextlib.suppress(ConnectionError):
                if line := next(lines, None):
                    return line
            raise TemporaryError(f"the process behind {path} has ended, and did not say how")

        def wait(timeout_seconds: float) -> None:
            line = take(timeout_seconds)
            if "error" in line:
                raise _error(line["error"])

        with contextlib.suppress(_GoneError):
            _send(connection, {"command": _END, "arguments": {}})
        wait(_CLIENT_SECONDS)
        yield wait


def process_behind(path: Path) -> int:
    """The pid of the process that listens on a control socket. Raises NoProcessError."""
    with _connected(path) as connection:
        return _peer(connection)[0]


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_CLIENT_SECONDS)
        try:
            with _short_address(path) as address:
                connection.connect(address)
        except PermissionError as error:
            raise AccessError(f"{path}: {error.strerror}; it is another user's") from error
        except (OSError, TimeoutError) as error:
            raise NoProcessError(f"{path.parent} is not mounted") from error
        yield connection


@contextlib.contextmanager
def _short_address(path: Path) -> Iterator[str]:
    """An address for a socket's path, which may be longer than the 107 bytes of unix(7)."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _check_user(connection: socket.socket) -> None:
    uid = _peer(connection)[1]
    if uid not in (os.getuid(), 0):
        raise AccessError("only the user who mounted may do this, and root")


def _peer(connection: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process at the other end."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(packed)
    return pid, uid


def _request(connection: socket.socket) -> tuple[str, dict[str, Any]]:
    try:
        line = next(_lines(connection), None)
    except TimeoutError:
        raise _GoneError("a client connected and said nothing") from None
    except OSError as error:
        raise _GoneError(f"a client has gone: {error}") from error
    if line is None:
        raise _GoneError("a client connected and left")
    command, arguments = line.get("command"), line.get("arguments", {})
    if not isinstance(command, str) or not isinstance(arguments, dict):
        raise UsageError('a request is {"command": NAME, "arguments": {...}}')
    return command, arguments


def _lines(connection: socket.socket) -> Generator[dict[str, Any], None, None]:
    """What the other end sends, until it closes. Raises UsageError, OSError, TimeoutError."""
    with connection.makefile("rb") as stream:
        while text := stream.readline(_MAX_LINE_BYTES):
            if not text.endswith(b"\n"):
                raise UsageError("a line on the control socket is too long, or cut off")
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if not isinstance(line, dict):
                raise UsageError("a line on the control socket is no JSON object")
            yield line


def _send(connection: socket.socket, line: dict[str, Any]) -> None:
    try:
        connection.sendall(json.dumps(line).encode() + b"\n")
    except OSError as error:
        raise _GoneError(f"the other end of the control socket has gone: {error}") from error


def _error_line(error: Exception) -> dict[str, Any]:
    if not isinstance(error, SyncerError):
        error = SyncerError(f"{type(error).__name__}: {error}")
    return {"error": {"exit_code": error.exit_code, "message": str(error)}}


def _error(line: dict[str, Any]) -> SyncerError:
    return error_with(line["exit_code"], line["message"])


def error_with(exit_code: int, message: str) -> SyncerError:
    """The error that a command in another process ended with."""
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, SyncerError):
            if kind.exit_code == exit_code:
                return kind(message)
    return SyncerError(message)
