"""A server that answers anything at all: only errors of ours, in bounded time and memory."""

from __future__ import annotations

import itertools
import random
import struct
import threading
from collections.abc import Callable, Sequence

import pytest

from syncer.errors import SyncerError
from syncer.remote import packets as sftp
from syncer.remote.base import Data, Remote
from syncer.remote.connection import DroppedError
from syncer.remote.location import Location
from syncer.remote.server import SftpRemote

OPENSSH = (
    b"fsync@openssh.com", b"posix-rename@openssh.com", b"limits@openssh.com",
    b"statvfs@openssh.com", b"hardlink@openssh.com", b"expand-path@openssh.com",
)  # fmt: skip
HUGE = (0, 1, 255, 1 << 16, 1 << 20, 1 << 31, (1 << 32) - 1)


def string(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


class HostileStream:
    """The other end makes up its answers as it goes, the same each time for the same seed."""

    name = "hostile"

    def __init__(self, seed: int, *, greets: bool = True) -> None:
        self._random = random.Random(seed)
        self._greets = greets or self._random.random() < 0.5
        self._changed = threading.Condition()
        self._out = bytearray()
        self._in = bytearray()
        self._closed = False

    def send(self, buffers: Sequence[Data], limit_seconds: float) -> None:
        with self._changed:
            if self._closed:
                raise BrokenPipeError
            self._in += b"".join(buffers)
            while len(self._in) >= 4:
                length = int.from_bytes(self._in[:4], "big")
                if len(self._in) < 4 + length:
                    break
                self._answer(bytes(self._in[4 : 4 + length]))
                del self._in[: 4 + length]
            self._changed.notify_all()

    def _answer(self, request: bytes) -> None:
        if request[0] == sftp.INIT:
            names = b"".join(string(name) + string(b"1") for name in OPENSSH)
            body = struct.pack(">BI", sftp.VERSION, 3) + (names if self._greets else self._noise())
            self._out += string(body)
            return
        body = self._body(request[0])
        if self._random.random() < 0.03:
            self._out += self._noise()
        else:
            self._out += string(body[:1] + request[1:5] + body[1:])

    def _body(self, kind: int) -> bytes:
        made = self._random
        expected = {
            sftp.OPEN: self._handle, sftp.OPENDIR: self._handle, sftp.READ: self._data,
            sftp.STAT: self._attributes, sftp.FSTAT: self._attributes, sftp.READDIR: self._names,
            sftp.EXTENDED: self._reply,
        }  # fmt: skip
        if made.random() < 0.9:
            return expected.get(kind, self._status)()
        return made.choice([*expected.values(), self._status])()

    def _noise(self) -> bytes:
        return self._random.randbytes(self._random.randrange(60))

    def _number(self) -> int:
        return self._random.choice([*HUGE, self._random.randrange(1 << 32)])

    def _handle(self) -> bytes:
        long = self._random.random() < 0.1
        return bytes([sftp.HANDLE]) + string(bytes(1 << 18) if long else self._noise())

    def _data(self) -> bytes:
        size_bytes = self._random.choice([0, 1, 100, 1 << 15, 1 << 19])
        return bytes([sftp.DATA]) + string(bytes(size_bytes))

    def _attributes(self) -> bytes:
        return bytes([sftp.ATTRS]) + self._some_attributes()

    def _some_attributes(self) -> bytes:
        flags = self._random.choice([0x5, 0xD, 0xD, 0x8000000D, self._random.randrange(1 << 32)])
        mode = self._random.choice([0o100644, 0o40755, self._number()])
        size = self._random.choice([0, 100, 1 << 20, (1 << 64) - 1])
        return struct.pack(">IQIII", flags, size, mode, 1, 1) + self._noise()

    def _names(self) -> bytes:
        count = self._random.randrange(3)
        said = count if self._random.random() < 0.9 else self._number()
        one = [b"file", b"..", b"a/b", b"../../etc/passwd", b"nul\0", b"", b"\xff" * 300]
        if self._random.random() < 0.7:
            one = [b"file", b".", b".."]
        names = b"".join(
            string(self._random.choice(one)) + string(b"") + struct.pack(">II", 4, 0o100644)
            for _ in range(count)
        )
        return bytes([sftp.NAME]) + struct.pack(">I", said) + names

    def _reply(self) -> bytes:
        if self._random.random() < 0.2:
            return self._status()
        fields = [self._random.choice([0, 1, 100, (1 << 64) - 1]) for _ in range(11)]
        return (
            bytes([sftp.EXTENDED_REPLY])
            + struct.pack(">11Q", *fields)[: self._random.choice([32, 32, 32, 32, 88, 5])]
        )

    def _status(self) -> bytes:
        code = self._random.choice([0] * 20 + [1, 2, 3, 4, 5, 11, 14, self._number()])
        text = self._random.choice([b"", string(b"said"), string(b"\xff\0\n"), self._noise()])
        return bytes([sftp.STATUS]) + struct.pack(">I", code) + text

    def receive_into(self, view: memoryview, limit_seconds: float, *, whole: bool) -> int:
        with self._changed:
            if not self._changed.wait_for(lambda: self._out or self._closed, limit_seconds):
                raise TimeoutError
            count = min(len(view), len(self._out))
            view[:count] = self._out[:count]
            del self._out[:count]
            return count

    def open(self) -> None:
        pass

    def is_alive(self) -> bool:
        return not self._closed

    def ending(self) -> SyncerError:
        return DroppedError("the hostile server has gone")

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


CALLS: list[Callable[[Remote], object]] = [
    lambda remote: remote.get("blocks/ab/abcd", 0, 1 << 20),
    lambda remote: remote.get("syncer.json", 0, 100),
    lambda remote: remote.put("blocks/ab/abcd", bytes(100_000)),
    lambda remote: remote.create("writers/1", b"x"),
    lambda remote: remote.delete("blocks/ab/abcd"),
    lambda remote: remote.move("blocks/ab/abcd", "trash/abcd"),
    lambda remote: [_checked(entry.name) for entry in remote.list("writers")],
    lambda remote: remote.stat("blocks/ab/abcd"),
    lambda remote: remote.make_root(),
    lambda remote: remote.make_folders(),
    lambda remote: remote.usage(),
    lambda remote: remote.is_empty(),
    lambda remote: remote.check(),
]


def _checked(name: str) -> None:
    assert name
    assert "/" not in name
    assert "\0" not in name


def try_seed(seed: int) -> int:
    """All calls on a server that goes by this seed; how many of them succeeded."""
    numbers = itertools.count()
    path = "~someone/repository" if seed % 3 == 0 else "repository"
    remote = SftpRemote(
        Location(path, "host"),
        lambda limit_seconds: HostileStream(seed * 1000 + next(numbers), greets=seed % 5 > 0),
        1,
        0.1,
    )
    succeeded = 0
    try:
        for call in CALLS:
            remote.health._open(None)
            try:
                call(remote)
            except SyncerError:
                continue
            succeeded += 1
    finally:
        remote.close()
    return succeeded


def test_whatever_a_server_answers_only_our_errors_come_out() -> None:
    succeeded = sum(try_seed(seed) for seed in range(500))
    assert succeeded > 200, "what is hostile from the first byte on tests little"


@pytest.mark.torture
def test_whatever_a_server_answers_for_long() -> None:
    for seed in range(500, 100_000):
        try_seed(seed)
