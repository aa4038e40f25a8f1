"""A line to a server that a test can break: between a client and a port on loopback.

    with Proxy(server.port) as line:
        line.freeze()

It carries what both sides send, late, slowly, not at all or until it is cut, as it is told. It
takes little ahead, so that what the client has sent is either delivered or seen to be stuck.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

Result = TypeVar("Result")

BUFFER_BYTES = 16 << 10
"""What the line itself holds, on each side and in each direction."""


class Proxy:
    """The line. Its methods may be called from any thread and take effect at once."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._ready = threading.Event()
        self._end = asyncio.Event()
        # What follows is used by the loop's thread only.
        self._ends: set[asyncio.StreamWriter] = set()
        self._moves = asyncio.Event()
        self._moves.set()
        self._delay_seconds = 0.0
        self._bytes_per_second = 0.0
        self._free_at = [0.0, 0.0]
        self._is_deaf = False
        self._cut_after_bytes: int | None = None

    def __enter__(self) -> Proxy:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self.port: int = listener.getsockname()[1]
        server = await asyncio.start_server(self._connect, sock=listener, limit=BUFFER_BYTES)
        self._ready.set()
        await self._end.wait()
        server.close()
        self._cut_all()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far = socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        far.setblocking(False)
        try:
            await self._loop.sock_connect(far, ("127.0.0.1", self._target))
        except OSError:
            far.close()
            writer.close()
            return
        far_reader, far_writer = await asyncio.open_connection(sock=far, limit=BUFFER_BYTES)
        self._ends |= {writer, far_writer}
        try:
            await asyncio.gather(
                self._carry(reader, far_writer, 0), self._carry(far_reader, writer, 1)
            )
        except (OSError, asyncio.CancelledError):
            # Cut; cancelled at the end. asyncio would log either.
            pass
        finally:
            for end in (writer, far_writer):
                self._ends.discard(end)
                end.transport.abort()

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: int
    ) -> None:
        while True:
            rate = self._bytes_per_second
            chunk = await reader.read(max(64, int(rate / 4)) if rate else BUFFER_BYTES)
            if not chunk:
                break
            await self._moves.wait()
            await asyncio.sleep(self._delay_seconds + self._turn(len(chunk), direction))
            await self._moves.wait()
            if direction and self._is_deaf:
                continue
            if self._cut_after_bytes is not None:
                self._cut_after_bytes -= len(chunk)
                if self._cut_after_bytes <= 0:
                    self._cut_after_bytes = None
                    self._cut_all()
                    return
            writer.write(chunk)
            await writer.drain()
        writer.close()

    def _turn(self, size_bytes: int, direction: int) -> float:
        """How long a chunk waits until the line, which all connections share, has carried it."""
        if not self._bytes_per_second:
            return 0.0
        now = self._loop.time()
        start = max(self._free_at[direction], now)
        self._free_at[direction] = start + size_bytes / self._bytes_per_second
        return self._free_at[direction] - now

    def _cut_all(self) -> None:
        for end in self._ends:
            end.transport.abort()

    def _call(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def heal(self) -> None:
        """Carry everything at once again."""

        async def change() -> None:
            self._delay_seconds = self._bytes_per_second = 0.0
            self._is_deaf = False
            self._cut_after_bytes = None
            self._moves.set()

        self._call(change())

    def freeze(self) -> None:
        """Carry nothing from now on; connections are accepted all the same."""

        async def change() -> None:
            self._moves.clear()

        self._call(change())

    def lose_answers(self) -> None:
        """Half open: the server gets everything, and nothing that it says arrives."""

        async def change() -> None:
            self._is_deaf = True

        self._call(change())

    def delay(self, seconds: float) -> None:
        """Let each chunk arrive so much later."""

        async def change() -> None:
            self._delay_seconds = seconds

        self._call(change())

    def throttle(self, bytes_per_second: float) -> None:
        """Carry so much in each direction, over all connections."""

        async def change() -> None:
            self._bytes_per_second = bytes_per_second

        self._call(change())

    def cut(self) -> None:
        """End all connections that there are; new ones work."""

        async def change() -> None:
            self._cut_all()

        self._call(change())

    def cut_after(self, size_bytes: int) -> None:
        """End all connections when so many more bytes have been carried."""

        async def change() -> None:
            self._cut_after_bytes = size_bytes

        self._call(change())

    def is_cut(self) -> bool:
        """Whether what `cut_after` asked for has happened."""

        async def look() -> bool:
            return self._cut_after_bytes is None

        return self._call(look())
