"""A slow line on loopback: connections through it share a bandwidth and have a round trip.

    python -m tests.bench.link 40 100 LISTEN:TARGET LISTEN:TARGET...

forwards each port LISTEN to TARGET, both on 127.0.0.1, with a round trip of 40 ms and 100 MB/s in
each direction, until its standard input ends. Says ``ready`` when it listens.

The line is ideal: no loss, no jitter, a full window from the first byte. Each chunk leaves when
the bandwidth is free, in the order of arrival over all connections, and arrives half a round trip
later.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass

HOST = "127.0.0.1"
CHUNK_BYTES = 64 << 10
WINDOW_ROUND_TRIPS = 2.0
"""How much a connection may have under way, in products of bandwidth and round trip."""


@dataclass
class Direction:
    """One direction of the line, which all connections share."""

    bytes_per_second: float
    free_at: float = 0.0

    def take(self, size: int, now: float) -> float:
        """When a chunk that arrives now has been sent."""
        self.free_at = max(self.free_at, now) + size / self.bytes_per_second
        return self.free_at


class Line:
    """Both directions, and the connections."""

    def __init__(self, round_trip_seconds: float, bytes_per_second: float) -> None:
        self._delay = round_trip_seconds / 2
        self._window = int(bytes_per_second * round_trip_seconds * WINDOW_ROUND_TRIPS)
        self._there = Direction(bytes_per_second)
        self._back = Direction(bytes_per_second)

    async def listen(self, port: int, target: int) -> None:
        """Accept connections at `port` for `target`."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # What the handshake of TCP would take.
            await asyncio.sleep(2 * self._delay)
            try:
                far_reader, far_writer = await asyncio.open_connection(HOST, target)
            except OSError:
                writer.close()
                return
            await asyncio.gather(
                self._carry(reader, far_writer, self._there),
                self._carry(far_reader, writer, self._back),
            )

        await asyncio.start_server(serve, HOST, port, limit=4 * CHUNK_BYTES)

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction
    ) -> None:
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(self._window // CHUNK_BYTES)
        delivery = asyncio.create_task(deliver(under_way, writer))
        try:
            while chunk := await reader.read(CHUNK_BYTES):
                sent_at = direction.take(len(chunk), loop.time())
                await under_way.put((sent_at + self._delay, chunk))
        except OSError:
            pass
        await under_way.put((loop.time() + self._delay, b""))
        await delivery


async def deliver(
    under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
) -> None:
    """Hand on each chunk when it is due; an empty one is the end."""
    loop = asyncio.get_running_loop()
    alive = True
    while True:
        due, chunk = await under_way.get()
        if (wait := due - loop.time()) > 0:
            await asyncio.sleep(wait)
        if not chunk:
            break
        if alive:
            try:
                writer.write(chunk)
                await writer.drain()
            except OSError:
                # The other side is gone: what is still under way is lost with it.
                alive = False
    writer.close()


async def run(round_trip_ms: str, megabytes_per_second: str, *pairs: str) -> None:
    """Serve until standard input ends."""
    line = Line(float(round_trip_ms) / 1e3, float(megabytes_per_second) * 1e6)
    for pair in pairs:
        port, target = pair.split(":")
        await line.listen(int(port), int(target))
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:]))
