"""One SFTP connection: requests out, answers in, many of them under way at once.

Speaks version 3 of the protocol (draft-ietf-secsh-filexfer-02) with OpenSSH's extensions, over
anything that carries bytes (`Stream`). Why not `paramiko.SFTPClient`: it throws the answers of
pipelined writes away, hides which extensions the server has, waits without a limit, and costs
several copies of each byte; none of this can be mended from outside.

    first = session.send(WRITE, handle, offset, data)     # queued
    second = session.send(FSTAT, handle)
    session.succeed(first)                                # both go out; waits for the first
    attributes = session.attributes(second)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import (
    AccessError,
    ExistsError,
    MissingError,
    OfflineError,
    RemoteFullError,
    SyncerError,
    TemporaryError,
)
from .base import Data

INIT, VERSION = 1, 2
OPEN, CLOSE, READ, WRITE = 3, 4, 5, 6
FSTAT, OPENDIR, READDIR, REMOVE, MKDIR, REALPATH, STAT, RENAME = 8, 11, 12, 13, 14, 16, 17, 18
STATUS, HANDLE, DATA, NAME, ATTRS, EXTENDED, EXTENDED_REPLY = 101, 102, 103, 104, 105, 200, 201

OPEN_READ, OPEN_WRITE, OPEN_CREATE, OPEN_EXCLUSIVE = 0x01, 0x02, 0x08, 0x20

OK, END_OF_FILE, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE, BAD_MESSAGE = range(6)
NO_CONNECTION, CONNECTION_LOST, UNSUPPORTED = 6, 7, 8

KINDS: dict[int, type[SyncerError]] = {
    NO_SUCH_FILE: MissingError,
    PERMISSION_DENIED: AccessError,
    NO_CONNECTION: OfflineError,
    CONNECTION_LOST: OfflineError,
    # From later versions of the protocol; some servers send them in version 3 as well.
    11: ExistsError,
    12: AccessError,
    14: RemoteFullError,
    15: RemoteFullError,
}

SAFE_CHUNK_BYTES = 32768
"""What every server takes in one read or write, by the protocol's text."""
LARGEST_PACKET_BYTES = 1 << 20
"""OpenSSH sends at most 256 KiB; more is not SFTP, such as a login script's output."""
SLOWEST_BYTES_PER_SECOND = 16 * 1024
"""What a link must carry, per connection, to count as making progress: bytes that were sent and
not answered yet extend the time limit at this rate, since nothing shows how far they got."""

EXPECTED_OF_OPENSSH = {b"fsync@openssh.com", b"posix-rename@openssh.com", b"limits@openssh.com"}


class DroppedError(OfflineError):
    """The connection ended; another one may work at once."""


class StatusError(TemporaryError):
    """The server failed, for a reason that the protocol has no word for."""

    def __init__(self, text: str, code: int = FAILURE) -> None:
        super().__init__(text)
        self.code = code


class Stream(Protocol):
    """A connected byte stream to an SFTP server."""

    name: str

    def send(self, buffers: Sequence[Data], limit_seconds: float) -> None:
        """Send all; raise TimeoutError after `limit_seconds` without progress."""

    def receive_into(self, view: memoryview, limit_seconds: float) -> int:
        """Receive some bytes; 0 at the end. Raises TimeoutError."""

    def is_alive(self) -> bool:
        """Whether nothing is known against it; does not ask the server."""

    def ending(self) -> SyncerError:
        """Why the stream ended. Called once, after `receive_into` gave 0 or `send` failed."""

    def close(self) -> None:
        """Close it; wakes a thread that waits in it."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a server tells about a file; a field that it left out is 0."""

    size_bytes: int = 0
    mode: int = 0
    mtime_seconds: int = 0


class Session:
    """An SFTP connection. Used by one thread at a time; `close` may come from any.

    The constructor waits for the server's greeting, so it raises what connecting can raise.
    """

    def __init__(self, stream: Stream, timeout_seconds: float) -> None:
        self._stream = stream
        self._timeout_seconds = timeout_seconds
        self._outgoing: list[Data] = []
        self._next_number = 1
        self._sent_bytes: dict[int, int] = {}
        """The requests without an answer yet, with their sizes."""
        self._unwanted: set[int] = set()
        self._answers: dict[int, tuple[int, memoryview]] = {}
        self.unanswered_bytes = 0
        self.read_bytes = self.write_bytes = SAFE_CHUNK_BYTES
        """The most that the server takes in one request."""
        self.extensions = self._greet()
        self.in_order = self.extensions >= EXPECTED_OF_OPENSSH
        """Whether the server handles one request after the other, as OpenSSH's does. Others
        that have some of its extensions may not, so all are asked for."""
        self.can_sync = b"fsync@openssh.com" in self.extensions
        """Whether it can sync a file; set to False when it turns out that its disk can't."""
        if b"limits@openssh.com" in self.extensions:
            self._ask_limits()

    @property
    def name(self) -> str:
        return self._stream.name

    def _greet(self) -> frozenset[bytes]:
        self._outgoing.append(struct.pack(">IBI", 5, INIT, 3))
        self.flush()
        kind, body = self._receive_packet()
        if kind != VERSION:
            raise OfflineError(f"{self.name}: the server does not speak SFTP")
        fields = _Fields(body)
        fields.number()
        names = []
        while fields.left:
            names.append(bytes(fields.string()))
            fields.string()
        return frozenset(names)

    def _ask_limits(self) -> None:
        request = self.send(EXTENDED, b"limits@openssh.com")
        _, read_bytes, write_bytes, _ = struct.unpack(">QQQQ", self.extended(request))
        # 0 means that the server has no limit of its own; then OpenSSH's usual one will do.
        self.read_bytes = read_bytes or 261_120
        self.write_bytes = write_bytes or 261_120

    def send(self, kind: int, *fields: int | bytes, payload: Sequence[Data] = ()) -> int:
        """Queue a request and return its number. `int` fields have 32 bits.

        `payload` is a last string field in several buffers, which are not copied: they must
        stay as they are until the request is answered.
        """
        number = self._next_number
        self._next_number = number % 0xFFFFFFFF + 1
        packed = [_pack(field) for field in fields]
        payload_bytes = sum(len(part) for part in payload)
        if payload:
            packed.append(_pack(payload_bytes))
        body = b"".join(packed)
        size_bytes = len(body) + payload_bytes
        self._outgoing.append(struct.pack(">IBI", 5 + size_bytes, kind, number) + body)
        self._outgoing.extend(payload)
        self._sent_bytes[number] = size_bytes
        self.unanswered_bytes += size_bytes
        return number

    def flush(self) -> None:
        """Put what is queued on its way."""
        outgoing, self._outgoing = self._outgoing, []
        if not outgoing:
            return
        try:
            self._stream.send(outgoing, self._limit_seconds())
        except TimeoutError:
            raise self._stuck() from None
        except OSError as error:
            raise self._stream.ending() from error

    def abandon(self) -> None:
        """Let go of all answers that nobody has asked for; they are dropped as they come."""
        self.flush()
        self._unwanted.update(self._sent_bytes)
        self._answers.clear()

    def succeed(self, request: int) -> None:
        """Wait for a request that is answered by a mere status, and raise if it failed."""
        kind, body = self._answer(request)
        self._expect(STATUS, kind)
        self._raise_for(_Fields(body), OK)

    def handle(self, request: int) -> bytes:
        """The handle that OPEN or OPENDIR gave."""
        return bytes(self._body(request, HANDLE).string())

    def data(self, request: int) -> memoryview:
        """The bytes that READ gave; empty at the end of the file."""
        kind, body = self._answer(request)
        if kind == STATUS:
            self._raise_for(_Fields(body), END_OF_FILE)
            return memoryview(b"")
        self._expect(DATA, kind)
        return _Fields(body).string()

    def attributes(self, request: int) -> Attributes:
        """What STAT or FSTAT gave."""
        return self._body(request, ATTRS).attributes()

    def names(self, request: int) -> list[tuple[bytes, Attributes]]:
        """What READDIR or REALPATH gave; empty at the end of the folder."""
        kind, body = self._answer(request)
        fields = _Fields(body)
        if kind == STATUS:
            self._raise_for(fields, END_OF_FILE)
            return []
        self._expect(NAME, kind)
        found = []
        for _ in range(fields.number()):
            name = bytes(fields.string())
            fields.string()  # the line that `ls -l` would print
            found.append((name, fields.attributes()))
        return found

    def extended(self, request: int) -> memoryview:
        """The body of an extension's own answer."""
        return self._body(request, EXTENDED_REPLY).rest()

    def _body(self, request: int, expected: int) -> _Fields:
        kind, body = self._answer(request)
        fields = _Fields(body)
        if kind == STATUS:
            self._raise_for(fields, None)
        self._expect(expected, kind)
        return fields

    def _raise_for(self, fields: _Fields, harmless: int | None) -> None:
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
            raise self._garbled()

    def _answer(self, request: int) -> tuple[int, memoryview]:
        self.flush()
        while request not in self._answers:
            kind, packet = self._receive_packet()
            number = int.from_bytes(packet[:4], "big")
            if number not in self._sent_bytes:
                raise self._garbled()
            self.unanswered_bytes -= self._sent_bytes.pop(number)
            if number in self._unwanted:
                self._unwanted.remove(number)
            else:
                self._answers[number] = kind, packet[4:]
        return self._answers.pop(request)

    def _receive_packet(self) -> tuple[int, memoryview]:
        head = self._receive(5)
        length = int.from_bytes(head[:4], "big")
        if not 5 <= length <= LARGEST_PACKET_BYTES:
            raise self._garbled()
        return head[4], self._receive(length - 1)

    def _receive(self, length: int) -> memoryview:
        whole = memoryview(bytearray(length))
        missing = whole
        while missing:
            try:
                count = self._stream.receive_into(missing, self._limit_seconds())
            except TimeoutError:
                raise self._stuck() from None
            except OSError as error:
                raise self._stream.ending() from error
            if not count:
                raise self._stream.ending()
            missing = missing[count:]
        return whole

    def _limit_seconds(self) -> float:
        return self._timeout_seconds + self.unanswered_bytes / SLOWEST_BYTES_PER_SECOND

    def _stuck(self) -> OfflineError:
        return OfflineError(f"{self.name} made no progress for {self._limit_seconds():.0f} s")

    def _garbled(self) -> OfflineError:
        return OfflineError(
            f"{self.name}: the server's answer is not SFTP: does a login script print something?"
        )

    def ping(self, limit_seconds: float) -> None:
        """Make sure that the server still answers, after a time in which nobody asked it."""
        usual_seconds, self._timeout_seconds = self._timeout_seconds, limit_seconds
        try:
            self.names(self.send(REALPATH, b"."))
        finally:
            self._timeout_seconds = usual_seconds

    def is_alive(self) -> bool:
        return self._stream.is_alive()

    def close(self) -> None:
        self._stream.close()


def wide(number: int) -> tuple[int, int]:
    """A 64-bit field as the two 32-bit fields that `Session.send` takes."""
    return number >> 32, number & 0xFFFFFFFF


class _Fields:
    """Reads a packet's fields in turn."""

    def __init__(self, body: memoryview) -> None:
        self._body = body
        self._position = 0

    @property
    def left(self) -> int:
        return len(self._body) - self._position

    def _take(self, length: int) -> memoryview:
        if length > self.left:
            raise OfflineError("the server's answer is cut short")
        start, self._position = self._position, self._position + length
        return self._body[start : self._position]

    def number(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def string(self) -> memoryview:
        return self._take(self.number())

    def rest(self) -> memoryview:
        return self._take(self.left)

    def attributes(self) -> Attributes:
        flags = self.number()
        size_bytes = int.from_bytes(self._take(8), "big") if flags & 0x1 else 0
        if flags & 0x2:
            self._take(8)  # user and group
        mode = self.number() if flags & 0x4 else 0
        mtime_seconds = 0
        if flags & 0x8:
            self._take(4)  # time of the last access
            mtime_seconds = self.number()
        if flags & 0x80000000:
            for _ in range(2 * self.number()):
                self.string()
        return Attributes(size_bytes, mode, mtime_seconds)


def _pack(field: int | bytes) -> bytes:
    if isinstance(field, int):
        return struct.pack(">I", field)
    return struct.pack(">I", len(field)) + field
