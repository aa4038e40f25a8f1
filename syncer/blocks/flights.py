"""Downloads under way: each block once however many ask, and no asker kept longer than it wants.

Threads of their own do the downloads, so that whoever waits for one may leave: because its program
was killed, or because so many wait that the mount would answer nobody any more. The kernel hands a
file system only so many reads at once; those that wait for a server that does not move must not
hold all of them, or reading what is local would have to wait as well.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError

from syncer.codec import Buffer
from syncer.errors import AbandonedError, OfflineError, SyncerError

#: Who waits looks that often whether to go on.
_LOOK_SECONDS = 0.2
#: A crowd goes on waiting if within this time some download has ended well.
_STALLED_SECONDS = 3.0
#: A thread without work ends after this time.
_IDLE_SECONDS = 1.0

Work = Callable[[], Buffer]


class Flights:
    """Downloads by block id. May be used from several threads."""

    def __init__(
        self,
        threads: int,
        crowd: int,
        why_away: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`threads` download for those who wait; more than `crowd` may wait only while the
        remote keeps delivering. `why_away` says why it is known not to answer, "" if it does."""
        #: Tells whether the calling thread waits in vain, as for a program that is being killed.
        self.is_abandoned: Callable[[], bool] = lambda: False
        self._why_away = why_away
        self._max_threads = threads
        self._crowd = crowd
        self._clock = clock
        self._changed = threading.Condition()
        # The condition guards everything below.
        self._flights: dict[bytes, Future[Buffer]] = {}
        self._waiting = 0
        self._crowded_at = 0.0
        self._landed_at = float("-inf")
        self._queue: deque[tuple[bytes, Future[Buffer], Work]] = deque()
        self._threads = 0
        self._idle_threads = 0

    def is_under_way(self, block_id: bytes) -> bool:
        """Whether a download has begun, or is about to."""
        with self._changed:
            return block_id in self._flights

    def run_here(self, block_id: bytes, work: Work) -> Buffer:
        """The result of `work`, done in this thread unless the block is under way already."""
        with self._changed:
            flight = self._flights.get(block_id)
            if flight is None:
                own: Future[Buffer] = Future()
                self._flights[block_id] = own
        if flight is None:
            self._fly(block_id, own, work)
            return own.result()
        return _outcome(flight)

    def wait_for(self, block_id: bytes, work: Work) -> Buffer:
        """The result of `work`, done once for all who ask meanwhile; they share its failure.

        Raises what `work` raises; AbandonedError if the caller waits in vain, and OfflineError if
        too many wait and nothing moves, or if the remote is away and the download has not begun.
        It goes on all the same.
        """
        with self._changed:
            self._waiting += 1
            if self._waiting == self._crowd + 1:
                self._crowded_at = self._clock()
            flight = self._flights.get(block_id)
            if flight is None:
                flight = self._flights[block_id] = Future()
                self._queue.append((block_id, flight, work))
                self._call_thread()
        try:
            while not _has_landed(flight):
                self._check_patience(flight)
        finally:
            with self._changed:
                self._waiting -= 1
        return _outcome(flight)

    def _check_patience(self, flight: Future[Buffer]) -> None:
        if self.is_abandoned():
            raise AbandonedError("nobody waits for this block any more")
        if not flight.running() and not flight.done() and (reason := self._why_away()):
            raise OfflineError(reason)
        with self._changed:
            moved_at = max(self._crowded_at, self._landed_at)
            if self._waiting > self._crowd and self._clock() - moved_at > _STALLED_SECONDS:
                raise OfflineError(f"more than {self._crowd} wait for the server, which is slow")

    def _call_thread(self) -> None:
        if self._idle_threads >= len(self._queue):
            self._changed.notify()
        elif self._threads < self._max_threads:
            self._threads += 1
            threading.Thread(target=self._run, name="syncer-download", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._queue:
                    self._idle_threads += 1
                    self._changed.wait(_IDLE_SECONDS)
                    self._idle_threads -= 1
                if not self._queue:
                    self._threads -= 1
                    return
                task = self._queue.popleft()
            self._fly(*task)

    def _fly(self, block_id: bytes, flight: Future[Buffer], work: Work) -> None:
        flight.set_running_or_notify_cancel()
        try:
            content = work()
        except BaseException as error:
            self._land(block_id, is_success=False)
            flight.set_exception(error)
        else:
            self._land(block_id, is_success=True)
            flight.set_result(content)

    def _land(self, block_id: bytes, *, is_success: bool) -> None:
        with self._changed:
            del self._flights[block_id]
            if is_success:
                self._landed_at = self._clock()


def _has_landed(flight: Future[Buffer]) -> bool:
    """Wait for a moment."""
    try:
        flight.exception(_LOOK_SECONDS)
    except FutureTimeoutError:
        return False
    return True


def _outcome(flight: Future[Buffer]) -> Buffer:
    error = flight.exception()
    if isinstance(error, SyncerError):
        # A new one: tracebacks of several threads must not mix.
        raise type(error)(str(error)) from error
    return flight.result()
