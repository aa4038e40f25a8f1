"""The connections of one remote: opened when needed, a bounded number, shared by their callers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ..errors import OfflineError, SyncerError
from .base import STARTS_AFTER_SECONDS
from .connection import Connection, DroppedError
from .session import Session

RESERVED = 2
"""Connections that only urgent callers get, so that uploads never keep a reader waiting."""
CALLERS = 8
"""At once on one connection: while one waits for its round trips, the others keep it busy. More
would only queue up behind each other's blocks."""
CROWD = 6
"""With so many callers on each connection for `CROWDED_SECONDS` a further one is opened, unless all
together move more than `QUICK_BYTES_PER_SECOND`. Opening one costs both ends more than a tenth of a
second of work, as much as 40 MB of encrypted data. That pays where round trips, or a slow disk of
the server's, keep them waiting, and not where the processors or the line are busy."""
CROWDED_SECONDS = 0.5
QUICK_BYTES_PER_SECOND = 32 << 20
CHANNEL_BYTES = 2 << 20
"""What OpenSSH has under way on a connection. Over a long line that bounds what one carries."""
FULL_SHARE = 0.75
"""Connections that carry so much of what they can are full, and a further one pays again."""
OPENING_AT_ONCE = 2
"""Servers drop connections when many are not logged in yet (MaxStartups 10:30:100)."""
READY = 4
"""Connections that `prepare` opens to a near server: one for urgent callers, the others for all.
Where they share a login, as many as there may be for ordinary callers, and that one."""
READY_AT_ONCE = 2
"""So many of these at once, since the first reads after a start want the processors; the others
after `LATER_SECONDS` each, unless they share a login. Over a line whose round trip is longer than
`NEAR_SECONDS` all at once: there, opening is waiting, and one connection does not fill it (OpenSSH
has 2 MiB under way)."""
LATER_SECONDS = 5.0
NEAR_SECONDS = 0.01
FIRST_SECONDS = 0.25
"""So long the first connection is waited for before a second one is opened: it tells whether the
server is near, and carries the others then. A login at one that is far takes longer."""
REOPEN_AFTER_SECONDS = 10.0
"""How long to make do with what is open after a further connection was refused."""
QUICK_SECONDS = 2.0
"""A connection that fails within this time was refused; one that takes longer got no answer."""
IDLE_SECONDS = 60.0
"""After this time without use a connection is closed, though one is always kept, and sessions of a
login that is shared are: each of them cost little, but to log in once more does not."""
DOUBTFUL_SECONDS = 15.0
"""After this time without use a connection is tried before it is lent: the laptop may have slept,
or a router forgotten it, and a caller should not have to wait out the full time limit."""
PING_SECONDS = 5.0
SETTLE_SECONDS = 2.0
"""How long the server may take at the end for what nobody waits for."""


@dataclass(eq=False)
class _Line:
    """An open connection with its callers; guarded by the pool's condition."""

    connection: Connection
    urgent: int = 0
    ordinary: int = 0
    idle_since: float = 0.0

    @property
    def callers(self) -> int:
        return self.urgent + self.ordinary

    def count(self, urgent: bool, change: int) -> None:
        if urgent:
            self.urgent += change
        else:
            self.ordinary += change


class Crowd:
    """Tells when those who share connections would be better off with one more."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._moved_bytes = 0

    def needs_more(
        self, callers: int, moved_bytes: int, now: float, full_bytes_per_second: float
    ) -> bool:
        """With so many callers on the emptiest connection, and so much moved by all until now.

        At `full_bytes_per_second` the connections carry as much as they can.
        """
        if callers < CROWD:
            self._since = None
            return False
        if self._since is None:
            self._since, self._moved_bytes = now, moved_bytes
            return False
        seconds = now - self._since
        if seconds <= CROWDED_SECONDS:
            return False
        bytes_per_second = (moved_bytes - self._moved_bytes) / seconds
        self._since, self._moved_bytes = now, moved_bytes
        return not QUICK_BYTES_PER_SECOND <= bytes_per_second < full_bytes_per_second


class Pool:
    """Lends connections. May be used from several threads.

    A caller gets the first of these that there is:

    1. a connection that nobody uses,
    2. the one with the fewest callers; if all stay crowded and slow, a thread opens a further one,
    3. a new one, for which it waits; where there are some, all full, only if they stay slow.

    Ordinary callers together use at most all but `RESERVED` of the connections that there may be,
    and all but one of those that are open. An urgent caller shares one with them only where there
    may be no more, since what they wait for may take long.

    No wait has a time limit of its own: each caller's requests have one, so a place becomes free,
    or a connection fails, in which case all who wait are told at once. What a caller has lost to a
    connection that did not answer any more counts towards that limit.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[float], Connection],
        limit: int,
        *,
        shares_login: bool = False,
        was_far: bool = False,
    ) -> None:
        """`connect` is given the seconds that its caller has lost before. With `shares_login`,
        further connections to a near server cost it little. With `was_far` this server was not
        near when it was used last."""
        self._name = name
        self._connect = connect
        self._limit = limit
        self._shares_login = shares_login
        self._was_far = was_far
        self._ordinary_limit = max(1, limit - RESERVED)
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        #: For who waits for a place: urgent callers (True), and ordinary ones. One that has become
        #: free wakes one of each; if all were woken, all but one would only take up processors.
        self._freed = {urgent: threading.Condition(lock) for urgent in (True, False)}
        # The lock of these guards everything below.
        self._lines: list[_Line] = []  # those that were used last are at the end
        self._opening = 0
        self._opening_since = 0.0
        self._crowd = Crowd()
        self._open_after = 0.0
        self._failures = 0
        self._last_failure: SyncerError = OfflineError("")
        self._closed = False

    @contextmanager
    def session(self, *, urgent: bool) -> Iterator[Session]:
        """Lend a place on a connection, which is dropped if the block ends with OfflineError."""
        line, lost_seconds = self._take(urgent)
        keep = False
        try:
            session = Session(line.connection, lost_seconds)
            yield session
            keep = _let_go(session)
        except OfflineError as error:
            # A connection that merely ended says nothing about the others.
            if not isinstance(error, DroppedError):
                self._tell_waiters(error)
            raise
        except SyncerError:
            keep = _let_go(session)
            raise
        finally:
            self._give_back(line, urgent, keep)

    def _take(self, urgent: bool) -> tuple[_Line, float]:
        """A place on a connection, and the seconds that were lost to one that did not answer."""
        with self._changed:
            failures = self._failures
        lost_seconds = 0.0
        while True:
            line, is_tried = self._find_or_may_open(urgent, failures)
            if line is None:
                # Another caller may have come to it first, or many: then there is a wait again.
                self._open(lost_seconds)
                continue
            began = time.monotonic()
            if is_tried or _is_usable(line):
                return line, lost_seconds
            lost_seconds += time.monotonic() - began
            self._give_back(line, urgent, keep=False)
            self.drop_idle()  # they are as old or older

    def _find_or_may_open(self, urgent: bool, failures: int) -> tuple[_Line | None, bool]:
        """Wait for a place on a connection, or (None) for the right to open one.

        Also tells whether others use the connection, who would notice its end.
        """
        with self._changed:
            while True:
                self._raise_if_closed()
                line = self._find_idle(urgent) or self._find_shared(urgent)
                may_open = self._needs_more(line, urgent) and self._may_open(urgent)
                count = self._how_many_to_open() if may_open else 0
                self._count_opening(count)
                if line is not None or may_open:
                    break
                self._wait(urgent, failures)
            is_tried = line is not None and line.callers > 0
            if line is not None:
                line.count(urgent, 1)
            if line is None or line.callers < CALLERS:
                # The next one may find a place as well.
                self._freed[urgent].notify()
        # Who has found no place opens one of them itself.
        for _ in range(count if line is not None else count - 1):
            self._open_in_background()
        return line, is_tried

    def _how_many_to_open(self) -> int:
        """Where one more is needed. At a far server those that were closed for want of use are
        opened together, since there each takes as long as many."""
        return max(1, self._missing()) if self._is_far() else 1

    @property
    def is_far(self) -> bool:
        """Whether it is known that a round trip takes long."""
        with self._changed:
            return self._is_far()

    @property
    def is_near(self) -> bool:
        """Whether it is known that a round trip takes no time to speak of."""
        with self._changed:
            return bool(self._lines) and not self._is_far()

    def _is_far(self) -> bool:
        return bool(self._lines) and self._round_trip_seconds() >= NEAR_SECONDS

    def _may_use_another(self, urgent: bool) -> bool:
        """Whether a caller may come to a connection that ordinary callers don't use yet."""
        if urgent:
            return True
        used = sum(line.ordinary > 0 for line in self._lines)
        return used < min(self._ordinary_limit, max(1, len(self._lines) - 1))

    def _needs_more(self, best: _Line | None, urgent: bool) -> bool:
        """Whether there are too few connections, if this is the best that there is."""
        if best is not None:
            callers = best.callers
        elif any(bool(line.ordinary) is not urgent for line in self._lines):
            # There are some for such callers, all full.
            callers = CALLERS
        else:
            return True
        moved_bytes = self._lines[0].connection.windows.moved_bytes
        in_a_round_trip_bytes = FULL_SHARE * CHANNEL_BYTES * len(self._lines)
        full_bytes_per_second = in_a_round_trip_bytes / self._round_trip_seconds()
        return self._crowd.needs_more(callers, moved_bytes, time.monotonic(), full_bytes_per_second)

    def _may_open(self, urgent: bool) -> bool:
        count = len(self._lines) + self._opening
        if count >= self._limit or self._opening >= OPENING_AT_ONCE:
            return False
        if not urgent and self._first_needs_seconds() > 0:
            return False
        if not urgent and sum(line.ordinary > 0 for line in self._lines) >= self._ordinary_limit:
            return False
        return not count or time.monotonic() >= self._open_after

    def _count_opening(self, count: int) -> None:
        if count and not self._opening:
            self._opening_since = time.monotonic()
        self._opening += count

    def _first_needs_seconds(self) -> float:
        """How long the first connection may still take, if it is being opened."""
        if not self._opening or self._lines or self._was_far:
            return 0.0
        return self._opening_since + FIRST_SECONDS - time.monotonic()

    def _find_idle(self, urgent: bool) -> _Line | None:
        if not self._may_use_another(urgent):
            return None
        return next((line for line in reversed(self._lines) if not line.callers), None)

    def _find_shared(self, urgent: bool) -> _Line | None:
        # Those who use one notice its end; to ask for it each time would be a system call.
        lines = [
            line
            for line in self._lines
            if line.callers < CALLERS and not line.connection.has_failed
        ]
        if urgent:
            if self._opening or self._may_open(urgent):
                lines = [line for line in lines if not line.ordinary]
            return min(lines, key=lambda line: (line.ordinary, line.urgent), default=None)
        if not self._may_use_another(urgent):
            lines = [line for line in lines if line.ordinary]
        return min(lines, key=lambda line: (line.urgent, line.ordinary), default=None)

    def prepare(self) -> None:
        """Open some connections in the background, so that the first callers find them."""
        threading.Thread(target=self._prepare, name="syncer-connect", daemon=True).start()

    def _prepare(self) -> None:
        is_open = True
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._lines, STARTS_AFTER_SECONDS)
        with suppress(SyncerError):
            while is_open:
                with self._changed:
                    if self._opening and not self._lines:
                        # Another caller's, which tells how many are wanted.
                        self._changed.wait_for(
                            lambda: self._closed or self._lines or not self._opening
                        )
                    is_far = self._is_far()
                    if self._missing() and len(self._lines) >= READY_AT_ONCE and not is_far:
                        self._changed.wait_for(lambda: self._closed, LATER_SECONDS)
                    missing = self._missing()
                    if not missing:
                        return
                    count = missing if is_far else 1
                    self._count_opening(count)
                for _ in range(count - 1):
                    self._open_in_background()
                is_open = self._open()

    def _missing(self) -> int:
        """How many connections there should be beside those that are open or being opened."""
        wanted = READY
        if self._is_far():
            wanted = self._ordinary_limit
        elif self._shares():
            wanted = self._ordinary_limit + 1
        wanted = min(wanted, self._limit)
        return 0 if self._closed else max(0, wanted - len(self._lines) - self._opening)

    def _shares(self) -> bool:
        """Whether further connections cost little."""
        return self._shares_login and bool(self._lines) and not self._is_far()

    def _open_what_costs_little(self) -> None:
        """After the first connection, or one that replaces a dead one."""
        with self._changed:
            count = self._missing() if self._shares() else 0
            self._count_opening(count)
        for _ in range(count):
            self._open_in_background()

    def _round_trip_seconds(self) -> float:
        return min(line.connection.round_trip_seconds for line in self._lines)

    def _open_in_background(self) -> None:
        def open_one() -> None:
            # It matters little if this fails: what is open does the work.
            with suppress(SyncerError):
                self._open()

        threading.Thread(target=open_one, name="syncer-connect", daemon=True).start()

    def _open(self, lost_seconds: float = 0.0) -> bool:
        """Open a connection, which the caller has counted as opening, for whoever takes it first.

        False if that failed while others work, so one of them will do.
        """
        line = None
        began = time.monotonic()
        try:
            line = _Line(self._connect(lost_seconds), idle_since=time.monotonic())
        except SyncerError as error:
            with self._changed:
                self._open_after = time.monotonic() + REOPEN_AFTER_SECONDS
                hopeless = not self._others_work(began) or not isinstance(error, OfflineError)
            if hopeless:
                self._tell_waiters(error)
                raise
        finally:
            with self._changed:
                self._opening -= 1
                if line and not self._closed:
                    self._lines.append(line)
                self._wake_all()
        if line and self._closed:
            line.connection.close()
        if line:
            self._open_what_costs_little()
        return line is not None

    def _others_work(self, since: float) -> bool:
        """Whether there may be a connection that works, after one that was begun then failed."""
        if time.monotonic() - since < QUICK_SECONDS:
            return bool(self._lines) or self._opening > 1
        # It was no refusal but silence. Whoever waited for it must not wait for another's.
        return any(not line.callers or line.connection.heard_at > since for line in self._lines)

    def _give_back(self, line: _Line, urgent: bool, keep: bool) -> None:
        now = time.monotonic()
        unwanted = []
        with self._changed:
            line.count(urgent, -1)
            line.idle_since = now
            if line in self._lines:
                self._lines.remove(line)
                if keep and not self._closed:
                    self._lines.append(line)
                    unwanted = self._expired(now)
                    self._lines = [each for each in self._lines if each not in unwanted]
                else:
                    unwanted = [line]
            for freed in self._freed.values():
                freed.notify()
        for each in unwanted:
            each.connection.close()

    def _expired(self, now: float) -> list[_Line]:
        """Those that nobody has used for long, never all; none where to keep them costs nothing."""
        if self._shares():
            return []
        return [
            line
            for line in self._lines[:-1]
            if not line.callers and now - line.idle_since > IDLE_SECONDS
        ]

    def _tell_waiters(self, error: SyncerError) -> None:
        with self._changed:
            self._failures += 1
            self._last_failure = error
            self._wake_all()

    def _wake_all(self) -> None:
        for condition in (self._changed, *self._freed.values()):
            condition.notify_all()

    def _wait(self, urgent: bool, failures: int) -> None:
        self._raise_if_closed()
        first_needs_seconds = self._first_needs_seconds()
        self._freed[urgent].wait(first_needs_seconds if first_needs_seconds > 0 else None)
        if self._failures != failures:
            # Their own copy: tracebacks of several threads must not mix.
            raise type(self._last_failure)(str(self._last_failure))

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise OfflineError(f"{self._name} was closed")

    def drop_idle(self) -> None:
        """Close all connections that nobody uses."""
        with self._changed:
            idle = [line for line in self._lines if not line.callers]
            self._lines = [line for line in self._lines if line.callers]
        for line in idle:
            line.connection.close()

    def close(self) -> None:
        """Close all connections, under the hands of their callers as well.

        Where nobody waits for anything, the server first does what it was told last: it closes its
        files, and removes what is temporary. Its disk can be unmounted then.
        """
        with self._changed:
            self._closed = True
            lines, self._lines = self._lines, []
            idle = [line for line in lines if not line.callers]
            self._wake_all()
        for line in lines:
            if line not in idle:
                line.connection.close()
        deadline = time.monotonic() + SETTLE_SECONDS
        for line in idle:
            line.connection.settle(deadline - time.monotonic())
            line.connection.close()


def _is_usable(line: _Line) -> bool:
    if not line.connection.is_alive():
        return False
    if time.monotonic() - line.idle_since > DOUBTFUL_SECONDS:
        with suppress(SyncerError):
            line.connection.ping(PING_SECONDS)
            return True
        return False
    return True


def _let_go(session: Session) -> bool:
    """Whether the connection is fit for the next caller. This one is done in any case."""
    try:
        session.flush()
    except OfflineError:
        return False
    return True
