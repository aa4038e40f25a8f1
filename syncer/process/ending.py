"""An end in steps, each of which is taken however those before it went."""

from __future__ import annotations

import logging
from collections.abc import Callable

from syncer.errors import SyncerError

log = logging.getLogger(__name__)


class Ending:
    """Takes the steps; for one thread."""

    def __init__(self) -> None:
        #: What the first step that failed did so with.
        self.failure: Exception | None = None

    def take(self, step: Callable[[], object]) -> None:
        """Take a step. What it raises is logged."""
        try:
            step()
        except SyncerError as error:
            log.error("the end: %s", error)
            self.failure = self.failure or error
        except Exception as error:
            log.exception("a step of the end failed in a way that nobody foresaw")
            self.failure = self.failure or error
