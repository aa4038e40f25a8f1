"""What moves blocks in the background: uploads, eviction, and fetching ahead of readers.

syncer-upload-N      bring dirty blocks to the remote; see `uploads`
syncer-evict         keeps room between two marks, so that writers seldom wait
syncer-readahead-N   fetch what readers will soon ask for
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from syncer.blocks.store import Blocks
from syncer.config import Config
from syncer.remote.base import Remote
from syncer.transfer.giveway import GiveWay
from syncer.transfer.uploads import Uploads, UploadStatus
from syncer.transfer.wishes import Wishes
from syncer.transfer.workers import Crew

#: The evictor looks after room that often even if nobody asks.
_EVICT_SECONDS = 0.5
#: With nothing to evict, it looks again after this time.
_REST_SECONDS = 0.05
#: Blocks that wait to be fetched ahead.
_READ_AHEAD_BLOCKS = 256
#: Blocks fetched at once. Each spends two round trips, so a link of 100 MB/s and 40 ms takes a
#: dozen, and as many again while answers are checked and stored.
_READ_AHEAD_WORKERS = 24
_STOP_SECONDS = 5.0


@dataclass(frozen=True)
class TransferStatus:
    """What is under way at one moment. Totals count from the start."""

    uploads: UploadStatus
    dirty_blocks: int
    dirty_bytes: int
    local_blocks: int
    used_bytes: int
    """What counts against the limit: blocks, inline contents and reservations."""
    limit_bytes: int
    uses: int
    """How often blocks were read."""
    misses: int
    """How many of them had to be fetched while someone waited."""
    fetched_blocks: int
    fetched_bytes: int
    evicted_blocks: int
    waiting: str
    """Why writers wait, or would; empty while there is room."""
    worker_failures: int
    last_worker_failure: str


class Transfer:
    """The background threads around one `Blocks`. May be used from several threads."""

    def __init__(
        self, blocks: Blocks, remote: Remote, config: Config, *, settle_seconds: float = 30.0
    ) -> None:
        self._blocks = blocks
        self._remote = remote
        #: Called when only what is dirty, held or pinned is left to evict.
        self.on_short: Callable[[], None] = lambda: None
        self._crew = Crew()
        self.uploads = Uploads(
            blocks,
            remote,
            self._crew.stopping,
            at_once=config.upload_workers,
            bytes_per_second=config.upload_bytes_per_second,
            settle_seconds=settle_seconds,
            gives_way=GiveWay(lambda: blocks.newest_dirty, self._may_wait),
        )
        self._wishes = Wishes(blocks, _READ_AHEAD_BLOCKS)
        for number in range(self.uploads.most_at_once):
            self._crew.add(f"upload-{number + 1}", self.uploads.step)
        for number in range(_READ_AHEAD_WORKERS):
            self._crew.add(f"readahead-{number + 1}", self._wishes.step)
        self._crew.add("evict", self._keep_room)

    def start(self) -> None:
        """Start the threads; not before a fork."""
        self._crew.start()

    def stop(self) -> bool:
        """End the threads, and every wait for room. False if some did not end in time.

        An upload under way is finished first: close the remote to break it off.
        """
        self._crew.stopping.set()
        self._blocks.cache.budget.close()
        self._blocks.cache.budget.wanted.set()
        self._wishes.end()
        self.uploads.wake()
        return self._crew.stop(_STOP_SECONDS)

    def kick(self) -> None:
        """There are new dirty blocks; cheap, never waits for long."""
        self.uploads.kick()

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until the remote has every block that is dirty; False if the time was too short."""
        self.uploads.retry()
        return self._wait(timeout_seconds, lambda: not self._blocks.usage().dirty_blocks)

    def send_most(self, timeout_seconds: float, newest: int) -> bool:
        """Wait until the remote has all blocks that were dirty when `newest` was
        `Blocks.newest_dirty`; far away, until the last blocks are under way. What comes then works
        while these wait for their round trips; near by it would have them wait.

        False if the time was too short.
        """
        self.uploads.retry()
        return self._wait(
            timeout_seconds, lambda: not self._has_dirty(newest) or self._are_last_under_way()
        )

    def wait_uploaded(self, timeout_seconds: float) -> bool:
        """Wait until the remote has every block that is dirty now; False if that does not go well,
        or the time was too short."""
        newest = self._blocks.newest_dirty

        def is_in_trouble() -> bool:
            status = self.uploads.status()
            return bool(status.error or status.settling)

        return self._wait(timeout_seconds, lambda: not self._has_dirty(newest), is_in_trouble)

    def _wait(
        self,
        timeout_seconds: float,
        is_over: Callable[[], bool],
        is_hopeless: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Wait until something holds, which may come with a block that becomes clean."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            changes = self.uploads.changes()
            if is_over():
                return True
            remaining = deadline - time.monotonic()
            if remaining <= 0 or self._crew.stopping.is_set() or is_hopeless():
                return False
            self.uploads.wait_changed(changes, min(remaining, _EVICT_SECONDS))

    def _are_last_under_way(self) -> bool:
        return self._remote.is_far and self._blocks.usage().dirty_blocks <= len(
            self.uploads.under_way()
        )

    def _has_dirty(self, newest: int) -> bool:
        return any(place <= newest for _, place in self._blocks.dirty_queue(1))

    def _may_wait(self) -> bool:
        """Whether uploads may leave the processors to others for a moment."""
        budget = self._blocks.cache.budget
        return not self._remote.is_far and 2 * budget.used_bytes < budget.limit_bytes

    def read_ahead(self, block_ids: Sequence[bytes], heads_only: bool = False) -> None:
        """These, or their beginnings, will soon be read. Never waits, promises nothing."""
        self._wishes.add(block_ids, heads_only)

    def status(self) -> TransferStatus:
        usage, budget = self._blocks.usage(), self._blocks.cache.budget
        fetched, uses = self._blocks.fetcher.fetched, self._blocks.cache.uses
        failures, last_failure = self._crew.failures
        return TransferStatus(
            uploads=self.uploads.status(),
            dirty_blocks=usage.dirty_blocks,
            dirty_bytes=usage.dirty_bytes,
            local_blocks=usage.local_blocks,
            used_bytes=budget.used_bytes,
            limit_bytes=budget.limit_bytes,
            uses=uses,
            misses=fetched.urgent_blocks,
            fetched_blocks=fetched.blocks,
            fetched_bytes=fetched.content_bytes,
            evicted_blocks=self._blocks.evicted_blocks,
            waiting=budget.shortage(),
            worker_failures=failures,
            last_worker_failure=last_failure,
        )

    def _keep_room(self) -> None:
        budget = self._blocks.cache.budget
        budget.wanted.wait(_EVICT_SECONDS)
        budget.wanted.clear()
        budget.set_inline(self._blocks.usage().inline_bytes)
        if self.uploads.is_hopeful():
            budget.progress()
        excess_bytes = budget.excess_bytes()
        if not excess_bytes or self._blocks.evict(excess_bytes) >= excess_bytes:
            return
        # Only what is dirty, held or pinned is left.
        self.on_short()
        if budget.waiting:
            self._blocks.collect()
            self.uploads.kick()
        self._crew.stopping.wait(_REST_SECONDS)
