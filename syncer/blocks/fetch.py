"""Fetching blocks from the remote: once however many ask, verified, within a rate.

What is to happen with a fetched block is `blocks`' business.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from syncer import codec
from syncer.codec import Buffer
from syncer.errors import MissingError, OfflineError, SyncerError
from syncer.rates import RateLimit
from syncer.remote.base import Remote
from syncer.remote.retry import State

# Who waits for a place among the waiting looks that often whether waiting makes sense.
_LOOK_SECONDS = 0.5


def block_key(block_id: bytes) -> str:
    """Where a block's object lies on the remote."""
    name = block_id.hex()
    return f"blocks/{name[:2]}/{name}"


def trash_key(block_id: bytes) -> str:
    """Where it lies once nothing names the block, until it is deleted: see `maintain/sweep`."""
    return f"trash/{block_id.hex()}"


@dataclass(frozen=True)
class Fetched:
    """What was downloaded since the start."""

    blocks: int
    """Whole ones, and beginnings."""
    content_bytes: int
    urgent_blocks: int
    """Those that someone waited for; the others were fetched ahead of a reader."""


class Fetcher:
    """Downloads from one remote. May be used from several threads."""

    def __init__(
        self, remote: Remote, seed: int, *, bytes_per_second: int = 0, max_waiting: int = 48
    ) -> None:
        """At most `max_waiting` urgent callers wait for the remote at once; others queue up."""
        self.limit = RateLimit(bytes_per_second)
        self._remote = remote
        self._seed = seed
        self._places = threading.BoundedSemaphore(max_waiting)
        self._lock = threading.Lock()
        # The lock guards everything below.
        self._flights: dict[bytes, Future[Buffer]] = {}
        self._fetched = Fetched(0, 0, 0)

    @property
    def fetched(self) -> Fetched:
        with self._lock:
            return self._fetched

    def once(self, block_id: bytes, work: Callable[[], Buffer], *, urgent: bool = True) -> Buffer:
        """The result of `work`, which the first caller does and the others wait for.

        They share its failure as well. Raises what `work` raises, and OfflineError if the remote
        is away and too many wait for it already.
        """
        if not urgent:
            return self._once(block_id, work)
        self._wait_for_place()
        try:
            return self._once(block_id, work)
        finally:
            self._places.release()

    def _wait_for_place(self) -> None:
        while not self._places.acquire(timeout=_LOOK_SECONDS):
            report = self._remote.health.report()
            if report.state is not State.ONLINE:
                raise OfflineError(report.error)

    def _once(self, block_id: bytes, work: Callable[[], Buffer]) -> Buffer:
        with self._lock:
            flight = self._flights.get(block_id)
            if flight is None:
                own = self._flights[block_id] = Future()
        if flight is not None:
            return _outcome(flight)
        try:
            content = work()
        except BaseException as error:
            self._land(block_id)
            own.set_exception(error)
            raise
        self._land(block_id)
        own.set_result(content)
        return content

    def _land(self, block_id: bytes) -> None:
        with self._lock:
            del self._flights[block_id]

    def is_under_way(self, block_id: bytes) -> bool:
        """Whether somebody does the work for this block at present."""
        with self._lock:
            return block_id in self._flights

    def download(self, block_id: bytes, *, urgent: bool) -> Buffer:
        """A block's content from the remote, verified.

        Raises CorruptError if the remote's copy is damaged, and what `Remote.get` raises.
        """
        stored = self._get(block_id, urgent)
        time.sleep(self.limit.take(len(stored)))
        content = codec.decode_block(stored, block_id, self._seed)
        self._count(len(content), urgent)
        return content

    def download_head(self, block_id: bytes, pieces: int, *, urgent: bool) -> bytes:
        """The first pieces of a block from the remote, verified; raises as `download`.

        The header proves itself against the id, and each piece against the header.
        """
        asked_bytes = codec.MAX_HEADER_BYTES + pieces * codec.PIECE_BYTES
        stored = memoryview(self._get(block_id, urgent, asked_bytes))
        time.sleep(self.limit.take(len(stored)))
        header = codec.decode_header(stored, block_id, self._seed)
        found = []
        for piece in range(min(pieces, len(header.digests))):
            start, length = header.piece_span(piece)
            part = stored[start : start + length]
            found.append(codec.decode_piece(header, piece, part, self._seed))
        content = b"".join(found)
        self._count(len(content), urgent)
        return content

    def _count(self, content_bytes: int, urgent: bool) -> None:
        with self._lock:
            was = self._fetched
            self._fetched = Fetched(
                was.blocks + 1, was.content_bytes + content_bytes, was.urgent_blocks + urgent
            )

    def _get(self, block_id: bytes, urgent: bool, length: int | None = None) -> bytes:
        """A block's object, or its first bytes."""
        try:
            return self._remote.get(block_key(block_id), 0, length, urgent=urgent)
        except MissingError as error:
            # The past that this machine knows may be pruned elsewhere; and what is named anew may
            # still wait there to be moved back.
            try:
                return self._remote.get(trash_key(block_id), 0, length, urgent=urgent)
            except MissingError:
                raise error from None


def _outcome(flight: Future[Buffer]) -> Buffer:
    error = flight.exception()
    if isinstance(error, SyncerError):
        # A new one: tracebacks of several threads must not mix.
        raise type(error)(str(error)) from error
    return flight.result()
