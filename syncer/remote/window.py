"""How much may be on its way to a server at once, so that a slow link does not look dead.

Nothing shows how far bytes got that were sent and not answered yet: `ssh` and the kernel take
megabytes, which at 1 KB/s are answered after half an hour. Nor does a large answer show before
`ssh` has the whole of a packet. So what is under way in one direction, over all connections to a
server, is kept to what it took in the last few seconds. Answers then come every few seconds however
slow the link is, and their absence means something.

By Little's law the rate is at least what was under way divided by how long it took. On a fast link
the window grows up to 64 times with each round trip, and is soon too large to matter.

A link's round trip is the shortest time that any answer took. What an answer took beyond it, the
link took to carry what was under way. From both follows how far ahead to ask for what a reader will
want, so that the link is busy while requests travel.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

FIRST_BYTES = 4096
"""The window of a link that nothing is known about, and the least; at 1 KB/s it takes 4 s, and
`ssh` may show it as one."""
MOST_BYTES = 256 << 20
SECONDS = 4.0
"""How much is kept under way, measured in the time that the server takes to answer it."""
CHUNKS = 4
"""Into how many requests a window is divided at least, so that answers come now and then."""
GROWTH = 64
"""By how much the window grows at most with each round trip: from nothing to what fills any link in
three."""
TELLING_BYTES = 64 << 10
"""With less under way, how long it took tells of the round trip only, and not of the rate."""
LEAD_ROUND_TRIPS = 4
"""An object takes two to fetch; and as many again, so that the next are asked for in time."""


@dataclass(frozen=True, slots=True)
class Sent:
    """Bytes that are under way."""

    size_bytes: int
    at: float
    under_way_bytes: int
    """All that was under way when they were sent, themselves included."""


class Windows:
    """What is under way to a server, and from it."""

    def __init__(self) -> None:
        self.up = Window()
        self.down = Window()

    @property
    def moved_bytes(self) -> int:
        """What was carried so far, both ways."""
        return self.up.moved_bytes + self.down.moved_bytes


class Window:
    """One direction of all connections to one server. May be used from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        # The condition guards everything below.
        self._size_bytes = FIRST_BYTES
        self._under_way_bytes = 0
        self._moved_bytes = 0
        self._shrunk_at = self._moved_at = float("-inf")
        self._round_trip_seconds = float("inf")
        self._lead_bytes = 0

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def moved_bytes(self) -> int:
        """What the server has answered so far."""
        return self._moved_bytes

    @property
    def lead_bytes(self) -> int:
        """What the link carries while a reader's next objects are asked for; 0: not known yet."""
        return self._lead_bytes

    def chunk_bytes(self, limit_bytes: int) -> int:
        """How much to put into the next request, at most `limit_bytes`."""
        return min(limit_bytes, self._size_bytes // CHUNKS)

    def has_room(self, size_bytes: int) -> bool:
        """Whether so much more may be sent, or asked for, now."""
        with self._changed:
            return self._under_way_bytes + size_bytes <= self._size_bytes

    def wait_for_room(self, size_bytes: int, timeout_seconds: float) -> bool:
        """Wait until so much more may be sent; False if nothing was answered for so long."""
        with self._changed:
            began = self._clock()
            while self._under_way_bytes and self._under_way_bytes + size_bytes > self._size_bytes:
                due = max(began, self._moved_at) + timeout_seconds
                if self._clock() >= due:
                    return False
                self._changed.wait(due - self._clock())
            return True

    def send(self, size_bytes: int) -> Sent:
        """Note that these bytes are on their way; whether there is room or not."""
        with self._changed:
            self._under_way_bytes += size_bytes
            return Sent(size_bytes, self._clock(), self._under_way_bytes)

    def answered(self, sent: Sent, carried_bytes: int) -> None:
        """The server has answered, with so much of what it was asked for: learn from how long it
        took."""
        with self._changed:
            now = self._moved_at = self._clock()
            self._under_way_bytes -= sent.size_bytes
            self._moved_bytes += carried_bytes
            if carried_bytes == sent.size_bytes:
                self._learn(sent, max(now - sent.at, 1e-6))
            self._changed.notify_all()

    def _learn(self, sent: Sent, seconds: float) -> None:
        """What was under way took so long. The caller holds the condition."""
        round_trip_seconds = self._round_trip_seconds = min(self._round_trip_seconds, seconds)
        if sent.under_way_bytes >= TELLING_BYTES:
            # A very short time on the link is not to be told from none.
            on_link_seconds = max(seconds - round_trip_seconds, round_trip_seconds / 16)
            lead_seconds = LEAD_ROUND_TRIPS * round_trip_seconds
            self._lead_bytes = int(sent.under_way_bytes / on_link_seconds * lead_seconds)
        fitting_bytes = int(sent.under_way_bytes / seconds * SECONDS)
        if fitting_bytes > self._size_bytes:
            grown_bytes = self._size_bytes + (GROWTH - 1) * sent.size_bytes
            # Little that came quickly does not tell that much more will.
            told_bytes = max(self._size_bytes, GROWTH * sent.under_way_bytes)
            self._size_bytes = min(grown_bytes, told_bytes, fitting_bytes, MOST_BYTES)
        elif sent.at >= self._shrunk_at and seconds > 2 * round_trip_seconds:
            # What was sent before the last time is the same observation; and what took no longer
            # than a round trip, however little it was, says nothing against the link.
            self._size_bytes = max(fitting_bytes, FIRST_BYTES)
            self._shrunk_at = self._moved_at

    def refused(self, sent: Sent) -> None:
        """The server has answered without taking or giving data, which says nothing."""
        with self._changed:
            self._moved_at = self._clock()
            self._under_way_bytes -= sent.size_bytes
            self._changed.notify_all()

    def lost(self, sent: Sent) -> None:
        """Its connection has ended: whatever was known about the link may have changed."""
        with self._changed:
            self._moved_at = self._clock()
            self._under_way_bytes -= sent.size_bytes
            self._size_bytes = FIRST_BYTES
            self._round_trip_seconds = float("inf")
            self._lead_bytes = 0
            self._changed.notify_all()
