"""What readers will soon ask for, and the work of the threads that fetch it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from syncer.blocks.store import Blocks
from syncer.codec import HOLE
from syncer.errors import SyncerError

log = logging.getLogger(__name__)

#: A worker without work looks up that often; new work wakes it.
_IDLE_SECONDS = 10.0


class Wishes:
    """A bounded queue of blocks to fetch, each in it once. May be used from several threads.

    Of more, the oldest are forgotten: their readers have moved on, or fetch for themselves.

    New ones wake one worker, and that one the next, if it has to wait: most blocks may be local,
    and workers that wake up for nothing keep the interpreter from those who read.
    """

    def __init__(self, blocks: Blocks, limit: int) -> None:
        self._blocks = blocks
        self._limit = limit
        self._added = threading.Condition()
        # The condition guards the queue: a dict, for its order and its look-up. It tells whether
        # the block's beginning will do.
        self._queue: dict[bytes, bool] = {}
        self._has_ended = False

    def add(self, block_ids: Sequence[bytes], heads_only: bool = False) -> None:
        """These, or their beginnings, will soon be read. Never waits, promises nothing."""
        with self._added:
            for key in block_ids:
                if key != HOLE:
                    self._queue[key] = heads_only and self._queue.get(key, True)
            while len(self._queue) > self._limit:
                del self._queue[next(iter(self._queue))]
            self._added.notify()

    def step(self) -> None:
        """Fetch the oldest, or wait for one for a while: what each of the workers does."""
        wish = self.take()
        if wish is None:
            return
        block_id, head_only = wish
        # Before this one waits for the server, another one begins with what else there is.
        try:
            if head_only:
                self._call_another()
                self._blocks.fetch_head(block_id, urgent=False)
            else:
                self._blocks.prefetch(block_id, self._call_another)
        except SyncerError as error:
            # Whoever reads the block learns of it.
            log.debug("block %s is not fetched ahead: %s", block_id.hex(), error)

    def _call_another(self) -> None:
        """The caller can't look after the queue for a while."""
        with self._added:
            if self._queue:
                self._added.notify()

    def take(self) -> tuple[bytes, bool] | None:
        """The oldest, and whether its beginning will do; or None if there is none for a while."""
        with self._added:
            if not self._queue and not self._has_ended:
                self._added.wait(_IDLE_SECONDS)
            if not self._queue:
                return None
            block_id = next(iter(self._queue))
            return block_id, self._queue.pop(block_id)

    def end(self) -> None:
        """Nobody waits from now on."""
        with self._added:
            self._has_ended = True
            self._added.notify_all()
