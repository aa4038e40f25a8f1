"""A small SFTP server in this process that is as odd as the protocol allows, or odder.

It has no extensions unless told, handles the requests that arrive together in reverse, answers a
READ with fewer bytes than asked for, and fails where a test wants it to.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from syncer.errors import SyncerError
from syncer.remote import packets as sftp
from syncer.remote.base import Data
from syncer.remote.connection import DroppedError

Answer = bytes
TOGETHER_SECONDS = 0.002
"""Requests that come within this time count as sent together."""


class OddServer:
    """Serves `root`; each `connect` gives a new stream to it."""

    def __init__(
        self, root: Path, *, extensions: Sequence[bytes] = (), most_read_bytes: int = 10_000
    ) -> None:
        self.root = root
        self.extensions = list(extensions)
        self.most_read_bytes = most_read_bytes
        self.statuses: dict[int, list[int]] = {}
        """By kind of request, the statuses to answer the next ones with; 0 lets one pass."""
        self.room = (4096, 4096, 1000, 500, 500, 100, 50, 50, 1, 0, 255)
        """The answer of statvfs@openssh.com."""
        self.requests: list[int] = []
        """The kinds of all requests so far."""
        self.steps: list[tuple[int, str]] = []
        """The kinds of those that succeeded, with the file that each was about."""
        self.opens_folders = True
        """Whether folders can be opened as files are, as on OpenSSH."""
        self.open_handles = 0
        """How many files and folders are open now."""
        self.is_silent = False
        """Whether it answers nothing any more."""
        self.hangs_up_at = 0
        """The kind of request at which it ends the connection, once."""
        self._threads: list[threading.Thread] = []
        self._ends: list[socket.socket] = []

    @property
    def connections(self) -> int:
        """How many there have been."""
        return len(self._threads)

    def connect(self, limit_seconds: float = 0.0) -> OddStream:
        ours, theirs = socket.socketpair()
        self._ends.append(theirs)
        thread = threading.Thread(target=_Connection(self, theirs).serve, daemon=True)
        thread.start()
        self._threads.append(thread)
        return OddStream(ours)

    def close(self) -> None:
        for end in self._ends:
            end.close()
        for thread in self._threads:
            thread.join(5)


class OddStream:
    """A `Stream` to the server."""

    name = "odd"

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def open(self) -> None:
        pass

    def send(self, buffers: Sequence[Data], limit_seconds: float) -> None:
        self._connection.settimeout(limit_seconds)
        self._connection.sendall(b"".join(buffers))

    def receive_into(self, view: memoryview, limit_seconds: float, *, whole: bool) -> int:
        self._connection.settimeout(limit_seconds)
        return self._connection.recv_into(view)

    def is_alive(self) -> bool:
        return True

    def ending(self) -> SyncerError:
        return DroppedError("the odd server hung up")

    def close(self) -> None:
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._connection.close()


class _Connection:
    def __init__(self, server: OddServer, connection: socket.socket) -> None:
        self._server = server
        self._connection = connection
        self._handles: dict[bytes, int | list[Path]] = {}
        self._opened: dict[bytes, str] = {}
        self._about = ""
        self._handlers: dict[int, Callable[[sftp.Fields], Answer]] = {
            sftp.OPEN: self._open,
            sftp.CLOSE: self._close,
            sftp.READ: self._read,
            sftp.WRITE: self._write,
            sftp.FSTAT: lambda fields: _attributes(os.fstat(self._file(fields))),
            sftp.STAT: lambda fields: _attributes(os.stat(self._path(fields))),
            sftp.OPENDIR: self._opendir,
            sftp.READDIR: self._readdir,
            sftp.REMOVE: self._remove,
            sftp.MKDIR: self._mkdir,
            sftp.RENAME: self._rename,
            sftp.EXTENDED: self._extended,
        }

    def serve(self) -> None:
        try:
            self._receive_packet()
            names = b"".join(_string(name) + _string(b"1") for name in self._server.extensions)
            self._send(struct.pack(">BI", sftp.VERSION, 3) + names)
            while True:
                together = [self._receive_packet()]
                while select.select([self._connection], [], [], TOGETHER_SECONDS)[0]:
                    together.append(self._receive_packet())
                for packet in reversed(together):
                    self._answer(packet)
        except (OSError, ValueError, EOFError):
            pass
        finally:
            for handle in self._handles.values():
                if isinstance(handle, int):
                    os.close(handle)
            self._connection.close()

    def _answer(self, packet: bytes) -> None:
        kind, number = packet[0], packet[1:5]
        self._server.requests.append(kind)
        if self._server.is_silent:
            return
        if kind == self._server.hangs_up_at:
            self._server.hangs_up_at = 0
            raise EOFError
        told = self._server.statuses.get(kind)
        status = told.pop(0) if told else sftp.OK
        if status:
            answer = _status(status)
        else:
            try:
                answer = self._handlers[kind](sftp.Fields(memoryview(packet)[5:]))
                self._server.steps.append((kind, self._about))
            except FileNotFoundError:
                answer = _status(sftp.NO_SUCH_FILE)
            except OSError:
                answer = _status(sftp.FAILURE)
        self._send(answer[:1] + number + answer[1:])

    def _send(self, packet: bytes) -> None:
        self._connection.sendall(struct.pack(">I", len(packet)) + packet)

    def _receive_packet(self) -> bytes:
        return self._receive(int.from_bytes(self._receive(4), "big"))

    def _receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self._connection.recv(length - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def _path(self, fields: sftp.Fields) -> Path:
        self._about = bytes(fields.string()).decode()
        return self._server.root / self._about

    def _file(self, fields: sftp.Fields) -> int:
        name = bytes(fields.string())
        self._about = self._opened[name]
        handle = self._handles[name]
        assert isinstance(handle, int)
        return handle

    def _new_handle(self, what: int | list[Path]) -> Answer:
        name = str(len(self._server.requests)).encode()
        self._handles[name] = what
        self._server.open_handles += 1
        self._opened[name] = self._about
        return bytes([sftp.HANDLE]) + _string(name)

    def _open(self, fields: sftp.Fields) -> Answer:
        path, flags = self._path(fields), fields.number()
        if path.is_dir() and not self._server.opens_folders:
            return _status(sftp.FAILURE)
        exclusive = os.O_RDWR | os.O_CREAT | os.O_EXCL
        return self._new_handle(os.open(path, exclusive if flags & 8 else os.O_RDONLY, 0o666))

    def _close(self, fields: sftp.Fields) -> Answer:
        name = bytes(fields.string())
        self._about = self._opened.pop(name)
        handle = self._handles.pop(name)
        self._server.open_handles -= 1
        if isinstance(handle, int):
            os.close(handle)
        return _status(sftp.OK)

    def _read(self, fields: sftp.Fields) -> Answer:
        file = self._file(fields)
        offset, length = _wide(fields), fields.number()
        data = os.pread(file, min(length, self._server.most_read_bytes), offset)
        return bytes([sftp.DATA]) + _string(data) if data else _status(sftp.END_OF_FILE)

    def _write(self, fields: sftp.Fields) -> Answer:
        file, offset = self._file(fields), _wide(fields)
        os.pwrite(file, fields.string(), offset)
        return _status(sftp.OK)

    def _opendir(self, fields: sftp.Fields) -> Answer:
        folder = self._path(fields)
        return self._new_handle([folder / "..", *folder.iterdir()])

    def _readdir(self, fields: sftp.Fields) -> Answer:
        names = self._handles[bytes(fields.string())]
        assert isinstance(names, list)
        if not names:
            return _status(sftp.END_OF_FILE)
        some = [names.pop() for _ in range(min(7, len(names)))]
        entries = (
            _string(path.name.encode()) + _string(b"-rw-r--r--") + _attributes(path.lstat())[1:]
            for path in some
        )
        return struct.pack(">BI", sftp.NAME, len(some)) + b"".join(entries)

    def _remove(self, fields: sftp.Fields) -> Answer:
        self._path(fields).unlink()
        return _status(sftp.OK)

    def _mkdir(self, fields: sftp.Fields) -> Answer:
        self._path(fields).mkdir()
        return _status(sftp.OK)

    def _rename(self, fields: sftp.Fields) -> Answer:
        old = self._path(fields)
        about = self._about
        new = self._path(fields)
        self._about = about
        os.link(old, new)
        os.unlink(old)
        return _status(sftp.OK)

    def _extended(self, fields: sftp.Fields) -> Answer:
        name = bytes(fields.string())
        if name == b"statvfs@openssh.com":
            return bytes([sftp.EXTENDED_REPLY]) + struct.pack(">11Q", *self._server.room)
        if name == b"fsync@openssh.com":
            os.fsync(self._file(fields))
            return _status(sftp.OK)
        return _status(sftp.UNSUPPORTED)


def _wide(fields: sftp.Fields) -> int:
    return fields.number() << 32 | fields.number()


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _status(code: int) -> Answer:
    return struct.pack(">BI", sftp.STATUS, code) + _string(b"the text") + _string(b"en")


def _attributes(found: os.stat_result) -> Answer:
    fields = (0xD, found.st_size, found.st_mode, int(found.st_atime), int(found.st_mtime))
    return struct.pack(">BIQIII", sftp.ATTRS, *fields)
