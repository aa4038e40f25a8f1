"""The thread that publishes or follows, as the role says."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from syncer.errors import ForeignError, SyncerError, TemporaryError
from syncer.exchange.roles import Exchange
from syncer.remote.base import STARTS_AFTER_SECONDS

log = logging.getLogger(__name__)

#: Between two steps: the least, and after what only a person can set right.
_PAUSE_SECONDS = 0.2
_FAILURE_SECONDS = 60.0


class ExchangeLoop:
    """The thread `syncer-publisher`, which publishes or follows, as the role says."""

    def __init__(
        self,
        exchange: Exchange,
        interval_seconds: float = 2.0,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        """Without a kick it looks every `interval_seconds`; the role may change in each step."""
        self._exchange = exchange
        self._interval_seconds = interval_seconds
        self._after_step = after_step
        self._kicked = threading.Event()
        self._hurried = threading.Event()
        self._looks_ahead = threading.Event()
        self._is_ahead = threading.Event()
        self._stopping = threading.Event()
        self._stepped = threading.Condition()
        # The condition guards the next two.
        self._steps_begun = 0
        self._steps_ended = 0
        self._thread: threading.Thread | None = None
        #: What kept the last step from going on, as it was logged.
        self._told = ""
        #: Of a failure that nobody foresaw, until a step goes well; `status` shows it.
        self.error = ""

    def start(self) -> None:
        thread = threading.Thread(target=self._run, name="syncer-publisher", daemon=True)
        thread.start()
        self._thread = thread

    def kick(self) -> None:
        """An epoch was closed or blocks became clean: look soon."""
        self._kicked.set()

    def look_ahead(self) -> None:
        """What is to be published next is about to be whole: see `Exchange.step`. Does not wait."""
        self._looks_ahead.set()
        self._kicked.set()
        self._hurried.set()

    def begin_step(self, *, is_ahead: bool = False) -> int:
        """Have a step begin as soon as may be; returns its number, for `wait_for`.

        With `is_ahead`, what it publishes is whole in a moment: see `Exchange.step`.
        """
        with self._stepped:
            if is_ahead:
                self._is_ahead.set()
            self._kicked.set()
            self._hurried.set()
            return self._steps_begun + 1

    def wait_for(self, number: int, timeout_seconds: float) -> None:
        """Wait until a step has ended, or for the time given."""
        with self._stepped:
            self._stepped.wait_for(lambda: self._steps_ended >= number, timeout_seconds)

    def stop(self) -> None:
        """End the thread, after the step it is at."""
        self._stopping.set()
        self._kicked.set()
        self._hurried.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        self._hurried.wait(STARTS_AFTER_SECONDS)
        while not self._stopping.is_set():
            # Before the step, so that a kick during it is not lost.
            with self._stepped:
                self._kicked.clear()
                self._hurried.clear()
                self._steps_begun += 1
                looks_ahead, is_ahead = self._looks_ahead.is_set(), self._is_ahead.is_set()
                self._looks_ahead.clear()
                self._is_ahead.clear()
            delay_seconds = self._step(looks_ahead, is_ahead)
            with self._stepped:
                self._steps_ended = self._steps_begun
                self._stepped.notify_all()
            if delay_seconds and not self._stopping.is_set():
                # Kicks come with every block that is uploaded; gather some.
                self._hurried.wait(_PAUSE_SECONDS)
                self._kicked.wait(delay_seconds)

    def _step(self, looks_ahead: bool, is_ahead: bool) -> float:
        """One step; returns the seconds to wait at most until the next one. Raises nothing."""
        previous, self._told = self._told, ""
        try:
            try:
                is_busy = self._exchange.step(looks_ahead=looks_ahead, is_ahead=is_ahead)
            finally:
                self._after_step()
            self.error = ""
            return 0.0 if is_busy else self._interval_seconds
        except (ForeignError, TemporaryError) as error:
            self._told = str(error)
            # Another disk goes as it came. At the end the connections are closed under its hands.
            if self._told != previous and not self._stopping.is_set():
                log.info("the exchange waits: %s", error)
            return self._interval_seconds
        except SyncerError as error:
            self._told = str(error)
            if self._told != previous:
                log.error("the exchange stopped: %s", error)
            return _FAILURE_SECONDS
        except Exception:
            self.error = "changes could not be exchanged with the server; see the log"
            log.exception("the exchange failed; it tries again")
            return _FAILURE_SECONDS
