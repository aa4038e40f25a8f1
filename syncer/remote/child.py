"""A child process that a transport talks to by a socket."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

BUFFER_BYTES = 1 << 20
"""Asked for in each direction between us and the child; the kernel may give less."""
EXIT_SECONDS = 2.0
"""How long a child may take to say its last words, or to end when told to."""
STDERR_BYTES = 8192
"""How much of a child's messages is read to find out why it ended."""


class ChildSocket:
    """A child process with a socket as its standard input and output.

    The child has a session of its own, so Ctrl-C on our terminal doesn't reach it and it can't
    ask there; it ends when our end of the socket closes, also if we are killed.
    """

    def __init__(self, words: Sequence[str], folder: Path | None = None) -> None:
        """With `folder`, the child begins there."""
        self._closing = threading.Lock()
        self.socket, theirs = socket.socketpair()
        with ExitStack() as on_error, theirs:
            on_error.callback(self.socket.close)
            for end in (self.socket, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            # A file, not a pipe: nobody has to read along, and a master connection that `ssh`
            # leaves in the background (ControlPersist) may keep it open.
            self._stderr = on_error.enter_context(tempfile.TemporaryFile())
            self._process = subprocess.Popen(
                words,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._stderr,
                start_new_session=True,
                cwd=folder,
            )
            on_error.pop_all()

    def is_running(self) -> bool:
        return self._process.poll() is None

    def last_words(self) -> str:
        """Wait for the end of the child, for a moment, and return what it said."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_SECONDS)
        with suppress(ValueError, OSError):  # closed by another thread
            end = os.fstat(self._stderr.fileno()).st_size
            start = max(0, end - STDERR_BYTES)
            text = os.pread(self._stderr.fileno(), STDERR_BYTES, start)
            return text.decode("utf-8", "replace")
        return ""

    def hang_up(self) -> None:
        """Close the connection; wakes a thread that waits in the socket. The child may go on."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the child and reap it; wakes a thread that waits in the socket."""
        self.hang_up()
        # Who gives up a greeting may meet who ends everything; no file can be closed twice at once.
        with self._closing:
            self._process.terminate()
            try:
                self._process.wait(EXIT_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self.socket.close()
            self._stderr.close()
