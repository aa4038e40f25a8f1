"""`flush`: everything that was written so far gets to the server, as soon as may be.

The order, in which the server's disk never names what it does not have:

1. buffers of open files become blocks
2. blocks are uploaded, for some seconds; to a server far away until the last ones are under way
3. a round of the committer: what was written becomes power-safe here, and its epoch ends
4. the epoch is published; far away the segment's content is on its way beside the last blocks, and
   gets its name when all of them have theirs (`exchange.publish`)

What is in the way ends it: at once where a person must act, and where it may pass by itself after
`PATIENCE_SECONDS` in which nothing got through. The error is that of what is in the way.

A crash anywhere leaves what a crash without a flush may leave there.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from syncer.blocks.store import Blocks
from syncer.errors import (
    CorruptError,
    ForeignError,
    HostKeyError,
    LoginError,
    SyncerError,
    TemporaryError,
)
from syncer.exchange.loop import ExchangeLoop
from syncer.exchange.roles import Exchange
from syncer.metadata.epochs import Epochs
from syncer.metadata.outbox import Outbox
from syncer.process.committer import Committer
from syncer.remote.retry import Health
from syncer.transfer.threads import Transfer
from syncer.values import size
from syncer.vfs.files import Files

Status = dict[str, Any]

_POLL_SECONDS = 0.2
#: For so long an outage may last in which nothing gets through: longer than a line is away that is
#: dialled anew, or a server that is started anew.
PATIENCE_SECONDS = 60.0
#: For so long it waits for uploads before its round; as long as an epoch lasts at most.
_UPLOADS_FIRST_SECONDS = 4.0
#: Who waits for a publication, which takes some round trips, is told that often how it goes.
_PUBLICATION_SECONDS = 2.0


class Flusher:
    """Flushes one data directory; may be used from several threads."""

    def __init__(
        self,
        outbox: Outbox,
        epochs: Epochs,
        files: Files,
        blocks: Blocks,
        transfer: Transfer,
        committer: Committer,
        exchange: Exchange,
        loop: ExchangeLoop,
        health: Health,
        status: Callable[[], Status],
    ) -> None:
        """`status` is what `flush` returns and tells meanwhile; see docs/commands.md."""
        self._outbox = outbox
        self._epochs = epochs
        self._files = files
        self._blocks = blocks
        self._transfer = transfer
        self._committer = committer
        self._exchange = exchange
        self._loop = loop
        self._health = health
        self._status = status

    def flush(self, timeout_seconds: float | None, progress: Callable[[Status], None]) -> Status:
        """Wait until everything that was written so far is on the server; returns the status.

        Raises what is in the way: at the end of the time (TemporaryError if that is nothing but
        time), or as soon as waiting won't help. DisplacedError if this machine may not publish any
        more.
        """
        obstacles = _Obstacles(self._health, self._transfer, self._exchange)
        deadline = time.monotonic() + (timeout_seconds if timeout_seconds is not None else 1e9)
        self._files.flush_all(seal=True)
        self._upload_first(min(deadline, time.monotonic() + _UPLOADS_FIRST_SECONDS), progress)
        self._loop.look_ahead()
        self._committer.round(seal=True)
        newest = self._epochs.open - 1
        step = self._loop.begin_step(is_ahead=True)
        published = None
        while True:
            self._transfer.kick()
            is_uploaded = self._transfer.flush(_POLL_SECONDS)
            if is_uploaded:
                remaining_seconds = max(_POLL_SECONDS, deadline - time.monotonic())
                self._loop.wait_for(step, min(_PUBLICATION_SECONDS, remaining_seconds))
            status = self._status()
            progress(status)
            if self._outbox.is_empty_up_to(newest) and not self._exchange.setback:
                return status
            if self._exchange.role == "displaced" or self._exchange.has_lost_role:
                # Of a server that is away, the obstacles tell.
                with contextlib.suppress(TemporaryError):
                    self._exchange.check_writer()
            if obstacle := obstacles.to_give_up_for(status):
                raise _unfinished(status, obstacle)
            if time.monotonic() > deadline:
                raise _unfinished(status, next(iter(obstacles.present(status)), None))
            if published == status["published_epoch"] and not status["dirty_blocks"]:
                # Something is in the way; asking again at once would not help.
                time.sleep(_POLL_SECONDS)
            published = status["published_epoch"]
            if is_uploaded:
                step = self._loop.begin_step()

    def _upload_first(self, until: float, progress: Callable[[Status], None]) -> None:
        """Upload most of what is dirty now, as long as that goes well.

        What the remote has needs no sync here, so the round that follows has little to wait for; at
        first, it would sync all that was just written, and uploads stop meanwhile. What was written
        is power-safe no later for it than the committer makes it by itself.
        """
        newest = self._blocks.newest_dirty
        self._transfer.kick()
        while (left_seconds := until - time.monotonic()) > 0:
            is_sent = self._transfer.send_most(min(_POLL_SECONDS, left_seconds), newest)
            if is_sent or self._health.report().error:
                return
            progress(self._status())


class _Obstacles:
    """What keeps a flush from its end, and for how long. For one flush."""

    def __init__(self, health: Health, transfer: Transfer, exchange: Exchange) -> None:
        self._health = health
        self._transfer = transfer
        self._exchange = exchange
        #: Known from before: each is tried once more.
        self._old = (health.failure, transfer.uploads.failure, exchange.failure)
        self._progress: tuple[int, int] | None = None
        self._since = 0.0

    def present(self, status: Status) -> list[SyncerError]:
        """What is in the way now, as far as that is known; the worst first."""
        if failure := self._health.failure:
            return [failure]
        failures = [self._transfer.uploads.failure] if status["dirty_blocks"] else []
        return [
            failure
            for failure in (*failures, self._exchange.failure)
            # What they were told while the server was out of reach: the health knows better.
            if failure and not isinstance(failure, (ForeignError, LoginError, HostKeyError))
        ]

    def to_give_up_for(self, status: Status) -> SyncerError | None:
        """What is in the way, and not likely to pass soon."""
        if damaged := self._damaged(status):
            return damaged
        now = time.monotonic()
        present = self.present(status)
        progress = (status["uploaded_bytes"], status["published_epoch"])
        if not present or progress != self._progress:
            self._progress, self._since = progress, now
        is_patient = now - self._since <= PATIENCE_SECONDS
        for obstacle in present:
            is_old = any(obstacle is old for old in self._old)
            if not is_old and not (is_patient and isinstance(obstacle, TemporaryError)):
                return obstacle
        return None

    def _damaged(self, status: Status) -> SyncerError | None:
        """Where all that is left to upload are blocks that can't be."""
        damaged = self._transfer.uploads.status().damaged
        if damaged and len(damaged) >= status["dirty_blocks"]:
            return CorruptError(damaged[0][1])
        return None


def _unfinished(status: Status, obstacle: SyncerError | None) -> SyncerError:
    """The error of a flush that ends before its end."""
    left = size(status["dirty_bytes"]) if status["dirty_blocks"] else "names and dates"
    kind = TemporaryError if obstacle is None else type(obstacle)
    return kind(f"{left} are not on the server yet; {obstacle or 'wait, or give it more time'}")
