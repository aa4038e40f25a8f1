"""When to call a remote that has failed: its health, shared by all callers.

One caller notices that a remote is away; the others are told at once, without a wait of their
own. After a while that doubles with each failure, one caller may try again (the probe), and its
result decides for all. Callers in the background probe; those that someone waits for do so only
where none of them did, since a probe may take the whole time limit.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from ..errors import (
    AccessError,
    ForeignError,
    HostKeyError,
    LoginError,
    OfflineError,
    RemoteFullError,
    SyncerError,
)

FIRST_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 5.0
"""A server that is back is noticed within seconds, however long it was away."""
LONGEST_LOGIN_DELAY_SECONDS = 30.0
"""Where it answers, and refuses: servers lock out those who try too often."""
OVERDUE_SECONDS = 5.0
"""A probe that nobody in the background has made for so long, anybody may make."""


class State(str, Enum):
    """What `status` shows; the values are stable."""

    ONLINE = "online"
    OFFLINE = "offline"
    FOREIGN = "foreign"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Report:
    """A remote's health at one moment."""

    state: State
    error: str
    """Why it is not online, in words; empty if it is."""
    since_seconds: float
    """For how long it has been in this state."""
    is_reached: bool = True
    """Whether the last call got an answer, if only a refusal."""


class Health:
    """Whether a remote answers, and who may try next. May be used from several threads.

    Every call on the remote runs inside `attempt`. Errors that keep the remote from answering
    (`OfflineError`, `ForeignError`, `LoginError`, `HostKeyError`) shut the gate; any other answer
    opens it. Errors that only keep it from storing (`RemoteFullError`, `AccessError`) are reported
    until something was stored again, and stop nobody.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        # The condition guards everything below.
        self._failure: SyncerError | None = None
        self._refusal: SyncerError | None = None
        self._began = clock()
        self._delay_seconds = FIRST_DELAY_SECONDS
        self._probe_due = 0.0
        self._probing = False

    @contextmanager
    def attempt(
        self, *, forced: bool = False, storing: bool = False, urgent: bool = False
    ) -> Iterator[None]:
        """Run one call on the remote and learn from how it ends.

        While the gate is shut, raises the known error at once, unless the probe is due (for an
        `urgent` caller, whom someone waits for: long overdue) and no other caller is at it.
        `forced` callers are let through always.
        """
        probing = self._enter(forced, OVERDUE_SECONDS if urgent else 0.0)
        try:
            yield
        except (OfflineError, ForeignError, LoginError, HostKeyError) as error:
            self._shut(error)
            raise
        except SyncerError as error:
            refused = storing and isinstance(error, (RemoteFullError, AccessError))
            self._open(refusal=error if refused else self._refusal)
            raise
        else:
            self._open(refusal=None if storing else self._refusal)
        finally:
            if probing:
                with self._changed:
                    self._probing = False
                    self._changed.notify_all()

    def _enter(self, forced: bool, overdue_seconds: float) -> bool:
        with self._changed:
            if self._failure is None or forced:
                return False
            if self._probing or self._clock() < self._probe_due + overdue_seconds:
                raise again(self._failure)
            self._probing = True
            return True

    def _shut(self, error: SyncerError) -> None:
        with self._changed:
            now = self._clock()
            if self._failure is None:
                self._began = now
                self._delay_seconds = FIRST_DELAY_SECONDS
            elif now >= self._probe_due:
                is_login = isinstance(error, (LoginError, HostKeyError))
                longest = LONGEST_LOGIN_DELAY_SECONDS if is_login else LONGEST_DELAY_SECONDS
                self._delay_seconds = min(2 * self._delay_seconds, longest)
            self._failure = error
            # Half of the delay is random, so that machines cut off together don't all come
            # back in the same moment.
            self._probe_due = now + self._delay_seconds * random.uniform(0.5, 1.0)
            self._changed.notify_all()

    def _open(self, refusal: SyncerError | None) -> None:
        with self._changed:
            if self._failure is not None or (refusal is None) != (self._refusal is None):
                self._began = self._clock()
            self._failure = None
            self._refusal = refusal
            self._changed.notify_all()

    def wait_online(self, timeout_seconds: float) -> bool:
        """Wait until a call is worth making: the remote is online, or a probe is due.

        Returns False if neither came to be within `timeout_seconds`. For background callers,
        which loop over this and their call.
        """
        deadline = self._clock() + timeout_seconds
        with self._changed:
            while True:
                now = self._clock()
                if self._failure is None or (not self._probing and now >= self._probe_due):
                    return True
                if now >= deadline:
                    return False
                until = deadline if self._probing else min(deadline, self._probe_due)
                self._changed.wait(until - now)

    @property
    def failure(self) -> SyncerError | None:
        """What the last call ended with that got no answer; None if it got one."""
        with self._changed:
            return self._failure

    def report(self) -> Report:
        """The state for `status`."""
        with self._changed:
            since_seconds = self._clock() - self._began
            error = self._failure or self._refusal
            is_reached = self._failure is None
        if error is None:
            return Report(State.ONLINE, "", since_seconds)
        return Report(_state(error), str(error), since_seconds, is_reached)

    def __str__(self) -> str:
        report = self.report()
        return f"{report.state.value}: {report.error}" if report.error else report.state.value


def _state(error: SyncerError) -> State:
    if isinstance(error, OfflineError):
        return State.OFFLINE
    return State.FOREIGN if isinstance(error, ForeignError) else State.ERROR


def again(error: SyncerError) -> SyncerError:
    """A new exception of the same kind and text: tracebacks of several threads must not mix."""
    return type(error)(str(error))
