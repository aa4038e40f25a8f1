"""A mount whose server is reached over a line that a test can break."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.faults.proxy import Proxy
from tests.mounted import Mount, mounted
from tests.sshd import HOST, Sshd


@contextlib.contextmanager
def mounted_over(
    line: Proxy,
    server: Sshd,
    folder: Path,
    fuse: str,
    *,
    limit: str = "100",
    expects_warnings: bool = False,
    **settings: str,
) -> Iterator[Mount]:
    """A mount of a new repository on the server at the other end of the line."""
    with mounted(
        folder,
        fuse,
        limit=limit,
        remote=f"{HOST}:{folder}/remote",
        env=environment(line, server, folder),
        expects_warnings=expects_warnings,
        settings=settings,
    ) as mount:
        yield mount


def environment(line: Proxy, server: Sshd, folder: Path) -> dict[str, str]:
    """In which the server's name leads to the line."""
    config = folder / "line_config"
    text = server.config.read_text().replace(f"Port {server.port}", f"Port {line.port}")
    config.write_text(f"{text}  HostKeyAlias [127.0.0.1]:{server.port}\n")
    return {"SYNCER_SSH_CONFIG": str(config)}


def noise(size_bytes: int, seed: int) -> bytes:
    """Bytes that no two blocks have in common."""
    return random.Random(seed).randbytes(size_bytes)


def forget_pages(path: Path) -> None:
    """Have the kernel drop what it has cached of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


class Reader(threading.Thread):
    """Reads a file, and keeps what came of it."""

    def __init__(self, path: Path, *, direct: bool = False) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._flags = os.O_RDONLY | (os.O_DIRECT if direct else 0)
        self.content: bytes | None = None
        self.error: OSError | None = None
        self.start()

    def run(self) -> None:
        try:
            descriptor = os.open(self._path, self._flags)
            try:
                with open(descriptor, "rb", buffering=0, closefd=False) as file:
                    self.content = file.read()
            finally:
                os.close(descriptor)
        except OSError as error:
            self.error = error
