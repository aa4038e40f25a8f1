"""Where a run takes place: a folder, an SSH server on loopback, and perhaps a slow line to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.sshd import HOST, Sshd

ROUND_TRIP_MS = 40
MEGABYTES_PER_SECOND = 100
_CHUNK_BYTES = 1 << 20
#: Of Linux's uapi/linux/fs.h.
_GET_FLAGS, _SET_FLAGS, _TOP_FOLDER = 0x80086601, 0x40086602, 0x00020000


@dataclass(frozen=True)
class Place:
    """What each system is given."""

    folder: Path
    """Empty, on the disk that is measured; removed at the end."""
    ssh_config: Path
    """Names the server as `HOST`."""
    port: int
    """The server's, or that of the line to it."""
    raw_port: int
    """Where `RawServer` listens, or the line to it."""
    user_key: Path
    known_hosts: Path
    link: str
    """``loopback`` or ``wan``."""


@contextlib.contextmanager
def a_place(parent: Path | None, link: str) -> Iterator[Place]:
    """Everything is stopped and removed at the end, whatever happens."""
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="syncer-bench-", dir=parent))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        _keep_apart_what_lies_in(folder)
        # A run keeps many connections, and makes some at once.
        server = stack.enter_context(Sshd("MaxSessions 100", "MaxStartups 100"))
        raw = stack.enter_context(RawServer())
        port, raw_port = server.port, raw.port
        if link == "wan":
            port, raw_port = stack.enter_context(a_line(port, raw_port))
        config, known = folder / "ssh_config", folder / "known_hosts"
        text = server.config.read_text()
        text = text.replace(f"Port {server.port}", f"Port {port}")
        config.write_text(text.replace(str(server.known_hosts), str(known)))
        key = server.known_hosts.read_text()
        known.write_text(key.replace(f":{server.port} ", f":{port} "))
        yield Place(folder, config, port, raw_port, server.user_key, known, link)


def _keep_apart_what_lies_in(folder: Path) -> None:
    """Have ext4 place each folder in this one elsewhere on the disk, as it does at the top of it.

    Else all systems share some groups of inodes, and who makes a file there pays for the thousands
    that another one has just removed: each of these is looked at first, for some minutes. Other
    file systems have no such flag.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            (flags,) = struct.unpack("i", fcntl.ioctl(descriptor, _GET_FLAGS, bytes(4)))
            fcntl.ioctl(descriptor, _SET_FLAGS, struct.pack("i", flags | _TOP_FOLDER))
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def a_line(*targets: int) -> Iterator[list[int]]:
    """A process that runs `tests.bench.link`; yields a port for each of the targets."""
    ports = [free_port() for _ in targets]
    pairs = [f"{port}:{target}" for port, target in zip(ports, targets, strict=True)]
    words = [sys.executable, "-m", "tests.bench.link"]
    words += [str(ROUND_TRIP_MS), str(MEGABYTES_PER_SECOND), *pairs]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        try:
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("the slow line does not start")
            yield ports
        finally:
            process.stdin.close()
            process.terminate()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class RawServer:
    """Sends what is asked for, over plain TCP: what the line itself can do.

    A client sends a number of bytes as text and a line end. ``-N`` means that it sends N bytes
    itself, and gets a single byte when they have arrived.
    """

    def __enter__(self) -> RawServer:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        # Closing alone would not wake the thread.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, connection.makefile("rb", buffering=0) as stream:
                    size = int(stream.readline())
                    if size > 0:
                        send_bytes(connection, size)
                    else:
                        receive_bytes(connection, -size)
                        connection.sendall(b".")


def send_bytes(connection: socket.socket, size: int) -> None:
    chunk = bytes(_CHUNK_BYTES)
    while size > 0:
        connection.sendall(chunk[:size])
        size -= len(chunk)


def receive_bytes(connection: socket.socket, size: int) -> None:
    """Raises EOFError if fewer come."""
    chunk = memoryview(bytearray(_CHUNK_BYTES))
    while size > 0:
        count = connection.recv_into(chunk[: min(size, _CHUNK_BYTES)])
        if not count:
            raise EOFError("the raw connection ended early")
        size -= count


__all__ = ["HOST", "Place", "RawServer", "a_line", "a_place", "receive_bytes", "send_bytes"]
