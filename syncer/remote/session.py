"""One caller's part of an SFTP connection: its requests, and what the answers mean.

Why not `paramiko.SFTPClient`: it throws the answers of pipelined writes away, hides which
extensions the server has, waits without a limit, and costs several copies of each byte; none of
this can be mended from outside.

    first = session.send(WRITE, handle, offset, data)     # queued
    second = session.send(FSTAT, handle)
    session.succeed(first)                                # both go out; waits for the first
    attributes = session.attributes(second)
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence

from ..errors import (
    AccessError,
    ExistsError,
    MissingError,
    OfflineError,
    RemoteFullError,
    SyncerError,
    TemporaryError,
)
from . import packets
from .base import Data
from .connection import Connection, Stream
from .packets import Attributes, Fields
from .window import Windows

KINDS: dict[int, type[SyncerError]] = {
    packets.NO_SUCH_FILE: MissingError,
    packets.PERMISSION_DENIED: AccessError,
    packets.NO_CONNECTION: OfflineError,
    packets.CONNECTION_LOST: OfflineError,
    # From later versions of the protocol; some servers send them in version 3 as well.
    11: ExistsError,
    12: AccessError,
    14: RemoteFullError,
    15: RemoteFullError,
}


class StatusError(TemporaryError):
    """The server failed, for a reason that the protocol has no word for."""

    def __init__(self, text: str, code: int = packets.FAILURE) -> None:
        super().__init__(text)
        self.code = code


class Session:
    """One caller's requests on a connection that others may use as well. For one thread."""

    def __init__(self, connection: Connection, lost_seconds: float = 0.0) -> None:
        """`lost_seconds`: for how long this caller has waited for the server in vain already."""
        self._connection = connection
        self._inbox = connection.inbox(lost_seconds)
        self.server = connection.server

    @property
    def name(self) -> str:
        return self._connection.name

    @property
    def connection_number(self) -> int:
        """Of all connections of this process, this one has it alone."""
        return self._connection.number

    @property
    def unanswered_bytes(self) -> int:
        """How much of this caller's is under way."""
        return self._inbox.unanswered_bytes

    def send(self, kind: int, *fields: int | bytes, payload: Sequence[Data] = ()) -> int:
        """Queue a request and return its number. `int` fields have 32 bits.

        `payload` is a last string field in several buffers, which are not copied: they must
        stay as they are until the request is answered.
        """
        packed = [packets.pack(field) for field in fields]
        if payload:
            packed.append(packets.pack(sum(len(part) for part in payload)))
        return self._connection.send(self._inbox, kind, b"".join(packed), payload)

    def read(self, handle: bytes, offset: int, size_bytes: int) -> int:
        """Queue a READ and return its number; `data` gives the answer."""
        fields = (handle, *packets.wide(offset), size_bytes)
        body = b"".join(packets.pack(field) for field in fields)
        return self._connection.send(self._inbox, packets.READ, body, (), size_bytes)

    def next_write_bytes(self) -> int:
        """How much to send in the next WRITE, after waiting until so much more may be sent."""
        window = self._connection.windows.up
        size_bytes = window.chunk_bytes(self.server.write_bytes)
        self._connection.wait_for_room(window, size_bytes)
        return size_bytes

    def next_read_bytes(self, *, wait: bool) -> int:
        """How much to ask for in the next READ; without `wait`, 0 if that is nothing now."""
        window = self._connection.windows.down
        size_bytes = window.chunk_bytes(self.server.read_bytes)
        if wait:
            self._connection.wait_for_room(window, size_bytes)
        elif not window.has_room(size_bytes):
            return 0
        return size_bytes

    def flush(self) -> None:
        """Put what is queued on its way."""
        self._connection.flush()

    def wait_for(self, request: int) -> None:
        """Wait until a request is answered. Where the server answers in order, one wait for the
        last of several spares those for the others."""
        self._connection.wait_for(self._inbox, request)

    def succeed(self, request: int) -> None:
        """Wait for a request that is answered by a mere status, and raise if it failed."""
        kind, body = self._connection.answer(self._inbox, request)
        self._expect(packets.STATUS, kind)
        self._raise_for(Fields(body), packets.OK)

    def handle(self, request: int) -> bytes:
        """The handle that OPEN or OPENDIR gave."""
        name = bytes(self._body(request, packets.HANDLE).string())
        if len(name) > packets.LONGEST_HANDLE_BYTES:
            raise self.garbled()
        return name

    def garbled(self) -> OfflineError:
        """The error for an answer that makes no sense; the connection is of no more use."""
        error = self._connection.garbled()
        self._connection.fail(error)
        return error

    def data(self, request: int) -> memoryview:
        """The bytes that READ gave; empty at the end of the file."""
        kind, body = self._connection.answer(self._inbox, request)
        if kind == packets.STATUS:
            self._raise_for(Fields(body), packets.END_OF_FILE)
            return memoryview(b"")
        self._expect(packets.DATA, kind)
        return Fields(body).string()

    def attributes(self, request: int) -> Attributes:
        """What STAT or FSTAT gave."""
        return self._body(request, packets.ATTRS).attributes()

    def names(self, request: int) -> list[tuple[bytes, Attributes]]:
        """What READDIR or REALPATH gave; empty at the end of the folder."""
        kind, body = self._connection.answer(self._inbox, request)
        fields = Fields(body)
        if kind == packets.STATUS:
            self._raise_for(fields, packets.END_OF_FILE)
            return []
        self._expect(packets.NAME, kind)
        found = []
        for _ in range(fields.number()):
            name = bytes(fields.string())
            fields.string()  # the line that `ls -l` would print
            found.append((name, fields.attributes()))
        return found

    def extended(self, request: int) -> memoryview:
        """The body of an extension's own answer."""
        return self._body(request, packets.EXTENDED_REPLY).rest()

    def _body(self, request: int, expected: int) -> Fields:
        kind, body = self._connection.answer(self._inbox, request)
        fields = Fields(body)
        if kind == packets.STATUS:
            self._raise_for(fields, None)
        self._expect(expected, kind)
        return fields

    def _raise_for(self, fields: Fields, harmless: int | None) -> None:
        code = fields.number()
        if code == harmless:
            return
        # Version 3 has a text here; very old servers leave it out.
        text = bytes(fields.string()).decode("utf-8", "replace") if fields.left else ""
        text = text or f"status {code}"
        if kind := KINDS.get(code):
            raise kind(text)
        raise StatusError(text, code)

    def _expect(self, expected: int, kind: int) -> None:
        if kind != expected:
            raise self.garbled()


def open_connection(
    stream: Stream,
    timeout_seconds: float,
    windows: Windows | None = None,
    lost_seconds: float = 0.0,
) -> Connection:
    """Greet the server at a stream, and learn what it takes at once; closes it on an error."""
    connection = Connection(stream, timeout_seconds, windows, lost_seconds)
    try:
        if b"limits@openssh.com" in connection.server.extensions:
            asked_at = time.monotonic()
            _ask_limits(connection)
            connection.round_trip_seconds = time.monotonic() - asked_at
    except BaseException:
        connection.close()
        raise
    return connection


def _ask_limits(connection: Connection) -> None:
    session, server = Session(connection), connection.server
    answer = session.extended(session.send(packets.EXTENDED, b"limits@openssh.com"))
    if len(answer) != 32:
        raise connection.garbled()
    _, read_bytes, write_bytes, _ = struct.unpack(">QQQQ", answer)
    server.read_bytes, server.write_bytes = _chunk_bytes(read_bytes), _chunk_bytes(write_bytes)


def _chunk_bytes(limit_bytes: int) -> int:
    """How much to ask for at once. 0 means that the server has no limit of its own; then OpenSSH's
    usual one will do, as in place of any that would not fit into a packet."""
    if not limit_bytes:
        return packets.USUAL_CHUNK_BYTES
    return max(packets.LEAST_CHUNK_BYTES, min(limit_bytes, packets.LARGEST_CHUNK_BYTES))
