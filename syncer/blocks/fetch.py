"""Fetching blocks from the remote: once however many ask, verified, within a rate.

What is to happen with a fetched block is `blocks`' business.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from syncer import codec
from syncer.blocks.flights import Flights
from syncer.codec import Buffer
from syncer.errors import MissingError
from syncer.rates import RateLimit
from syncer.remote.base import Remote

#: At once for those who wait; what is beyond queues up.
_DOWNLOADS = 48
#: How many may wait for a remote that does not move. Less than the requests that the kernel has
#: under way at once, and than libfuse's threads: both limits are in `binding`.
_CROWD = 80


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
    content_bytes: int
    """Of blocks, and of their beginnings."""
    urgent_blocks: int
    """Those that someone waited for; the others were fetched ahead of a reader."""


class Fetcher:
    """Downloads from one remote. May be used from several threads."""

    def __init__(
        self, remote: Remote, seed: int, *, bytes_per_second: int = 0, crowd: int = _CROWD
    ) -> None:
        """More than `crowd` wait for the remote at once only while it delivers; see `Flights`."""
        self.limit = RateLimit(bytes_per_second)
        self.flights = Flights(_DOWNLOADS, crowd, self._why_away)
        self._remote = remote
        self._seed = seed
        self._lock = threading.Lock()
        # The lock guards what is below.
        self._fetched = Fetched(0, 0, 0)

    def _why_away(self) -> str:
        report = self._remote.health.report()
        return "" if report.is_reached else report.error

    @property
    def lead_bytes(self) -> int:
        """How much to ask for at once ahead of a reader; see `Remote.lead_bytes`."""
        return self._remote.lead_bytes

    @property
    def fetched(self) -> Fetched:
        with self._lock:
            return self._fetched

    def once(self, block_id: bytes, work: Callable[[], Buffer], *, urgent: bool = True) -> Buffer:
        """The result of `work`, done once for all who ask for the block meanwhile.

        They share its failure as well. Raises what `work` raises; for an `urgent` caller, whom a
        program waits for, also what `Flights.wait_for` raises.
        """
        if urgent:
            return self.flights.wait_for(block_id, work)
        return self.flights.run_here(block_id, work)

    def is_under_way(self, block_id: bytes) -> bool:
        """Whether somebody does the work for this block at present."""
        return self.flights.is_under_way(block_id)

    def download(self, block_id: bytes, *, urgent: bool) -> Buffer:
        """A block's content from the remote, verified.

        Raises CorruptError if the remote's copy is damaged, and what `Remote.get` raises.
        """
        # One byte more than any block has, so that a longer object is noticed and not read.
        stored = self._get(block_id, urgent, codec.MAX_OBJECT_BYTES + 1)
        self.limit.wait(len(stored))
        content = codec.decode_block(stored, block_id, self._seed)
        self._count(len(content), blocks=1, urgent_blocks=int(urgent))
        return content

    def download_head(self, block_id: bytes, pieces: int, *, urgent: bool) -> bytes:
        """The first pieces of a block from the remote, verified; raises as `download`.

        The header proves itself against the id, and each piece against the header.
        """
        asked_bytes = codec.MAX_HEADER_BYTES + pieces * codec.PIECE_BYTES
        stored = memoryview(self._get(block_id, urgent, asked_bytes))
        self.limit.wait(len(stored))
        header = codec.decode_header(stored, block_id, self._seed)
        found = []
        for piece in range(min(pieces, len(header.digests))):
            start, length = header.piece_span(piece)
            part = stored[start : start + length]
            found.append(codec.decode_piece(header, piece, part, self._seed))
        content = b"".join(found)
        # No block has come by it, and whoever reads on will fetch this one.
        self._count(len(content))
        return content

    def _count(self, content_bytes: int, *, blocks: int = 0, urgent_blocks: int = 0) -> None:
        with self._lock:
            was = self._fetched
            self._fetched = Fetched(
                was.blocks + blocks,
                was.content_bytes + content_bytes,
                was.urgent_blocks + urgent_blocks,
            )

    def _get(self, block_id: bytes, urgent: bool, length: int) -> bytes:
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
