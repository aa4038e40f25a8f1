"""The connections of one remote: opened when needed, lent to one caller each, a bounded number."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ..errors import OfflineError, SyncerError
from .session import DroppedError, Session

RESERVED = 2
"""Connections that only urgent callers get, so that uploads never keep a reader waiting."""
OPENING_AT_ONCE = 2
"""Servers drop connections when many are not logged in yet (MaxStartups 10:30:100)."""
REOPEN_AFTER_SECONDS = 10.0
"""How long to make do with what is open after a further connection was refused."""
IDLE_SECONDS = 60.0
"""After this time without use a connection is closed, though one is always kept."""
DOUBTFUL_SECONDS = 15.0
"""After this time without use a connection is tried before it is lent: the laptop may have slept,
or a router forgotten it, and a caller should not have to wait out the full time limit."""
PING_SECONDS = 5.0


class Pool:
    """Lends connections. May be used from several threads.

    No wait has a time limit of its own: each borrower's calls on the network have one, so a
    connection comes back, or fails, in which case all who wait are told at once.
    """

    def __init__(self, name: str, connect: Callable[[], Session], limit: int) -> None:
        self._name = name
        self._connect = connect
        self._limit = limit
        self._ordinary_limit = max(1, limit - RESERVED)
        self._changed = threading.Condition()
        # The condition guards everything below.
        self._idle: list[tuple[float, Session]] = []  # since when; the latest is last
        self._busy: set[Session] = set()
        self._opening = 0
        self._ordinary = 0
        self._open_after = 0.0
        self._failures = 0
        self._last_failure: SyncerError = OfflineError("")
        self._closed = False

    @contextmanager
    def session(self, *, urgent: bool) -> Iterator[Session]:
        """Lend a connection; it is dropped if the block ends with an `OfflineError`."""
        self._admit(urgent)
        try:
            session = self._take()
            keep = False
            try:
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
                self._give_back(session, keep)
        finally:
            if not urgent:
                with self._changed:
                    self._ordinary -= 1
                    self._changed.notify_all()

    def _admit(self, urgent: bool) -> None:
        """Wait until this caller may have a connection at all."""
        if urgent:
            return
        with self._changed:
            failures = self._failures
            while self._ordinary >= self._ordinary_limit:
                self._wait(failures)
            self._ordinary += 1

    def _take(self) -> Session:
        with self._changed:
            failures = self._failures
        while True:
            session = self._take_idle_or_slot(failures)
            if session is None:
                session = self._open()
            if session is not None:
                return session

    def _take_idle_or_slot(self, failures: int) -> Session | None:
        """Wait for an idle connection, or (None) for the right to open one."""
        while True:
            with self._changed:
                while True:
                    self._raise_if_closed()
                    if self._idle:
                        since, session = self._idle.pop()
                        self._busy.add(session)
                        break
                    if self._may_open():
                        self._opening += 1
                        return None
                    self._wait(failures)
            if self._is_usable(session, since):
                return session
            self._give_back(session, keep=False)
            self.drop_idle()  # they are as old or older

    def _may_open(self) -> bool:
        others = len(self._busy) + self._opening
        if others >= self._limit or self._opening >= OPENING_AT_ONCE:
            return False
        return not others or time.monotonic() >= self._open_after

    def _is_usable(self, session: Session, since: float) -> bool:
        if not session.is_alive():
            return False
        if time.monotonic() - since > DOUBTFUL_SECONDS:
            with suppress(SyncerError):
                session.ping(PING_SECONDS)
                return True
            return False
        return True

    def _open(self) -> Session | None:
        """Open a connection; None if that failed while others work, so one of them will do."""
        session = None
        try:
            session = self._connect()
        except SyncerError as error:
            with self._changed:
                self._open_after = time.monotonic() + REOPEN_AFTER_SECONDS
                others = self._busy or self._idle or self._opening > 1
                hopeless = not others or not isinstance(error, OfflineError)
            if hopeless:
                self._tell_waiters(error)
                raise
        finally:
            with self._changed:
                self._opening -= 1
                if session:
                    self._busy.add(session)
                self._changed.notify_all()
        return session

    def _give_back(self, session: Session, keep: bool) -> None:
        now = time.monotonic()
        with self._changed:
            self._busy.discard(session)
            unwanted = []
            if keep and not self._closed:
                self._idle.append((now, session))
                while len(self._idle) > 1 and now - self._idle[0][0] > IDLE_SECONDS:
                    unwanted.append(self._idle.pop(0)[1])
            else:
                unwanted.append(session)
            self._changed.notify_all()
        for each in unwanted:
            each.close()

    def _tell_waiters(self, error: SyncerError) -> None:
        with self._changed:
            self._failures += 1
            self._last_failure = error
            self._changed.notify_all()

    def _wait(self, failures: int) -> None:
        self._raise_if_closed()
        self._changed.wait()
        if self._failures != failures:
            # Their own copy: tracebacks of several threads must not mix.
            raise type(self._last_failure)(str(self._last_failure))

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise OfflineError(f"{self._name} was closed")

    def drop_idle(self) -> None:
        """Close all connections that nobody uses."""
        with self._changed:
            idle, self._idle = self._idle, []
        for _, session in idle:
            session.close()

    def close(self) -> None:
        """Close all connections, under the hands of their borrowers as well."""
        with self._changed:
            self._closed = True
            busy = list(self._busy)
            self._changed.notify_all()
        self.drop_idle()
        for session in busy:
            session.close()


def _let_go(session: Session) -> bool:
    """Whether the session is fit for the next borrower. Its own borrower is done in any case."""
    try:
        session.abandon()
    except OfflineError:
        return False
    return True
