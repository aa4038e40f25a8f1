"""OpenSSH's real SFTP server, without SSH around it: a process per connection, on a socket.

with SftpProgram() as program:
    remote = SftpRemote(Location(folder, "program"), program.connect, 2, 5.0)
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Sequence
from types import TracebackType

from syncer.remote.base import Data
from tests.odd_sftp import OddStream

_FOLDERS = "/usr/lib/openssh:/usr/libexec/openssh:/usr/lib/ssh:/usr/libexec:/usr/lib/misc"


def find_sftp_server() -> str | None:
    """The path of the program, or None where it is not installed."""
    return shutil.which("sftp-server", path=_FOLDERS)


class SftpProgram:
    """Makes connections; all of its processes end with it."""

    def __init__(self) -> None:
        #: How often something was sent, by all connections together.
        self.sends = 0
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> SftpProgram:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def connect(self, limit_seconds: float = 0.0) -> OddStream:
        program = find_sftp_server()
        assert program is not None, "OpenSSH's SFTP server is not installed"
        ours, theirs = socket.socketpair()
        with theirs:
            self._processes.append(subprocess.Popen([program], stdin=theirs, stdout=theirs))
        return _CountedStream(ours, self)

    def kill(self) -> None:
        """End all processes, as the machine that they are on would end."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        self._processes = []


class _CountedStream(OddStream):
    name = "sftp-server"

    def __init__(self, connection: socket.socket, program: SftpProgram) -> None:
        super().__init__(connection)
        self._program = program

    def send(self, buffers: Sequence[Data], limit_seconds: float) -> None:
        self._program.sends += 1
        super().send(buffers, limit_seconds)
