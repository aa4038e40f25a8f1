"""The bytes of SFTP, version 3 (draft-ietf-secsh-filexfer-02), with OpenSSH's extensions."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ..errors import OfflineError

INIT, VERSION = 1, 2
OPEN, CLOSE, READ, WRITE = 3, 4, 5, 6
FSTAT, OPENDIR, READDIR, REMOVE, MKDIR, REALPATH, STAT, RENAME = 8, 11, 12, 13, 14, 16, 17, 18
STATUS, HANDLE, DATA, NAME, ATTRS, EXTENDED, EXTENDED_REPLY = 101, 102, 103, 104, 105, 200, 201

OPEN_READ, OPEN_WRITE, OPEN_CREATE, OPEN_EXCLUSIVE = 0x01, 0x02, 0x08, 0x20
HAS_MODE = 0x4
"""A flag of attributes."""

OK, END_OF_FILE, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE, BAD_MESSAGE = range(6)
NO_CONNECTION, CONNECTION_LOST, UNSUPPORTED = 6, 7, 8

SAFE_CHUNK_BYTES = 32768
"""What every server takes in one read or write, by the protocol's text."""
USUAL_CHUNK_BYTES = 261_120
"""What OpenSSH takes."""
LEAST_CHUNK_BYTES = 1024
LARGEST_CHUNK_BYTES = 512 << 10
LARGEST_PACKET_BYTES = 1 << 20
"""OpenSSH sends at most 256 KiB; more is not SFTP, such as a login script's output."""
LONGEST_HANDLE_BYTES = 256
"""By the protocol's text."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a server tells about a file; a field that it left out is 0."""

    size_bytes: int = 0
    mode: int = 0
    mtime_seconds: int = 0


class Fields:
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


def pack(field: int | bytes) -> bytes:
    """A 32-bit number or a string, as a request has it."""
    if isinstance(field, int):
        return struct.pack(">I", field)
    return struct.pack(">I", len(field)) + field


def wide(number: int) -> tuple[int, int]:
    """A 64-bit field as two of 32 bits."""
    return number >> 32, number & 0xFFFFFFFF
