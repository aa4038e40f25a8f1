"""Bringing dirty blocks to the remote, oldest first, by several workers.

A block is clean once its object is on the remote to stay: at once where the remote syncs what it
stores, with its name; else after a settling time, if the object is still there then. Until that, a
crash of this process or of the server costs no more than another upload.

What a failure leads to depends on its kind. While the remote can't be reached, or another one is
in its place, all workers wait for its `Health`. Where it can, but does not store (full, read-only),
all pause, for longer each time, much longer where a person must act. A block whose local copy is
damaged is put aside, so that the others go on, and is tried again now and then: writing the same
content again repairs it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from syncer import codec
from syncer.blocks.fetch import block_key
from syncer.blocks.store import Blocks
from syncer.codec import BLOCK_BYTES
from syncer.errors import CorruptError, ForeignError, OfflineError, PermanentError, SyncerError
from syncer.rates import MovingRate, RateLimit
from syncer.remote.base import Remote
from syncer.remote.retry import again
from syncer.transfer.giveway import GiveWay

log = logging.getLogger(__name__)

#: How many blocks are asked of the database at once.
_BATCH_BLOCKS = 128
#: One idle worker looks for work that often, for all; a new dirty block makes it look at once, and
#: so does `kick`.
_IDLE_SECONDS = 0.2
#: The others are woken when there is some.
_REST_SECONDS = 10.0
#: How long a worker waits for the remote before it looks whether it should stop.
_WAIT_SECONDS = 0.5
#: What was passed over, for whatever reason, is found again after this time.
_REWIND_SECONDS = 1.0
#: Damaged blocks are tried again after this time.
_ASIDE_SECONDS = 60.0
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
#: Errors that a person must act on.
_PERMANENT_PAUSE_SECONDS = 30.0
_LONGEST_PERMANENT_PAUSE_SECONDS = 300.0


@dataclass(frozen=True)
class UploadStatus:
    """What the uploads do at one moment; totals count from the start."""

    in_flight: int
    settling: int
    uploaded_blocks: int
    uploaded_bytes: int
    bytes_per_second: float
    blocks_per_second: float
    error: str
    """Why uploads fail now; empty while they don't."""
    damaged: tuple[tuple[bytes, str], ...]
    """Blocks that can't be uploaded, and why."""


class Uploads:
    """The queue that the upload workers share; each of them calls `step` again and again."""

    def __init__(
        self,
        blocks: Blocks,
        remote: Remote,
        stopping: threading.Event,
        *,
        at_once: int,
        bytes_per_second: int = 0,
        settle_seconds: float = 30.0,
        gives_way: GiveWay,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`at_once` blocks are under way, and `most_at_once` where the line carries so much in the
        round trips that an object takes: begun together, they also wait for these together. At a
        near server half as many keep processors and disks busy, and each takes memory."""
        self.limit = RateLimit(bytes_per_second)
        self.most_at_once = at_once + at_once // 2
        self._at_once = at_once
        self._blocks = blocks
        self._remote = remote
        self._stopping = stopping
        self._settle_seconds = settle_seconds
        self._clock = clock
        self._bytes_rate = MovingRate()
        self._blocks_rate = MovingRate()
        # One marks for all who finish meanwhile: many completions per commit.
        self._marking = threading.Lock()
        self._is_allowed = True
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        self._work = threading.Condition(lock)
        # The lock, which both share, guards everything below. It comes before db.lock.
        self._gives_way = gives_way
        self._is_watched = False
        self._queue: deque[bytes] = deque()
        self._place = 0
        self._looked_at = self._rewound_at = float("-inf")
        self._busy: set[bytes] = set()  # in flight, settling, or about to be marked
        self._in_flight = 0
        self._settling: deque[tuple[float, bytes, int]] = deque()  # due, id, bytes of the object
        self._done: list[bytes] = []
        self._aside: dict[bytes, str] = {}
        self._aside_since = 0.0
        self._failure: SyncerError | None = None
        self._resume_at = float("-inf")
        self._pause_seconds = 0.0
        self._uploaded_blocks = 0
        self._uploaded_bytes = 0
        self._changes = 0

    def step(self) -> None:
        """Upload one block, or wait a moment for one."""
        if self._settle_one():
            return
        block_id = self._next()
        if block_id is None:
            return
        try:
            object_bytes, is_safe = self._upload(block_id)
        except CorruptError as error:
            self._put_aside(block_id, error)
        except SyncerError as error:
            self._fail(block_id, error)
        except BaseException as error:
            # Whatever is wrong with this one must not keep the others from the remote.
            self._put_aside(block_id, error)
            raise
        else:
            self._finish(block_id, object_bytes, is_safe)

    def kick(self) -> None:
        """There is work: look at once."""
        with self._changed:
            self._looked_at = float("-inf")
            # Who finds a block wakes the next one.
            self._work.notify()
        self._blocks.has_new_dirty.set()

    def wake(self) -> None:
        """Have all workers return from their waits, to see that they shall stop."""
        with self._changed:
            self._work.notify_all()
        self._blocks.has_new_dirty.set()

    def allow(self, is_allowed: bool) -> None:
        """Whether to upload anything, and to let anything become clean, from now on.

        What is under way may get to the remote all the same.
        """
        with self._marking:
            self._is_allowed = is_allowed

    def retry(self) -> None:
        """Somebody waits, or an obstacle may be gone: end every pause, and try damaged blocks
        again."""
        with self._changed:
            self._gives_way.hurry(self._clock())
            self._looked_at = self._resume_at = self._rewound_at = float("-inf")
            self._aside.clear()
            self._work.notify_all()
        self._blocks.has_new_dirty.set()

    def is_hopeful(self) -> bool:
        """Whether uploads are under way, and nothing says that they will fail."""
        with self._changed:
            return bool(self._in_flight or self._settling) and self._failure is None

    @property
    def failure(self) -> SyncerError | None:
        """What the last upload ended with, another one each time; None if it went well."""
        with self._changed:
            return self._failure

    def under_way(self) -> frozenset[bytes]:
        """The blocks whose objects may come to be on the remote at any moment."""
        with self._changed:
            return frozenset(self._busy)

    def changes(self) -> int:
        """How often blocks have become clean, or the last of them has begun to be uploaded; for
        `wait_changed`."""
        with self._changed:
            return self._changes

    def _note_change(self) -> None:
        self._changes += 1
        self._changed.notify_all()

    def wait_changed(self, changes: int, timeout_seconds: float) -> None:
        """Wait until that has happened more often than `changes`, or for the time given."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes > changes, timeout_seconds)

    def status(self) -> UploadStatus:
        with self._changed:
            return UploadStatus(
                in_flight=self._in_flight,
                settling=len(self._settling),
                uploaded_blocks=self._uploaded_blocks,
                uploaded_bytes=self._uploaded_bytes,
                bytes_per_second=self._bytes_rate.per_second(),
                blocks_per_second=self._blocks_rate.per_second(),
                error=str(self._failure or ""),
                damaged=tuple(self._aside.items()),
            )

    # Which block is next

    def _next(self) -> bytes | None:
        if not self._is_allowed:
            self._stopping.wait(_REST_SECONDS)
            return None
        if self._failure and not self._remote.health.wait_online(_WAIT_SECONDS):
            return None
        with self._changed:
            now = self._clock()
            if now < self._resume_at:
                self._work.wait(min(_WAIT_SECONDS, self._resume_at - now))
                return None
            if not self._queue:
                self._refill(now)
            if self._queue and not self._gives_way.waits(now) and not self._are_enough():
                block_id = self._queue.popleft()
                # For the next block, or to keep watch.
                self._work.notify()
                self._busy.add(block_id)
                self._in_flight += 1
                if not self._queue:
                    self._note_change()
                return block_id
            if self._queue or self._is_watched or self._stopping.is_set():
                self._rest()
                return None
            self._is_watched = True
        self._watch()
        return None

    def _watch(self) -> None:
        """Wait for a block to become dirty. Without the lock: who makes one so has db.lock."""
        self._blocks.has_new_dirty.wait(_IDLE_SECONDS)
        with self._changed:
            self._is_watched = False

    def _are_enough(self) -> bool:
        """Whether more blocks under way would only wait for each other."""
        if self._remote.is_near:
            return self._in_flight >= -(-self._at_once // 2)
        lead_blocks = min(self._remote.sending_lead_bytes // BLOCK_BYTES, self.most_at_once)
        return self._in_flight >= max(self._at_once, lead_blocks)

    def _rest(self) -> None:
        """Wait for work. One of those who do is the watch; the others sleep for longer."""
        if self._stopping.is_set():
            return  # `wake` may have been called before this wait
        if self._is_watched:
            self._work.wait(_REST_SECONDS)
            return
        self._is_watched = True
        try:
            self._work.wait(_IDLE_SECONDS)
        finally:
            self._is_watched = False

    def _refill(self, now: float) -> None:
        if now - self._looked_at < _IDLE_SECONDS and not self._blocks.has_new_dirty.is_set():
            return
        self._blocks.has_new_dirty.clear()
        if self._aside and now - self._aside_since > _ASIDE_SECONDS:
            self._aside.clear()
        rows = self._blocks.dirty_queue(_BATCH_BLOCKS, self._place)
        if rows:
            self._place = rows[-1][1]
            self._queue.extend(
                block_id
                for block_id, _ in rows
                if block_id not in self._busy and block_id not in self._aside
            )
        elif now - self._rewound_at > _REWIND_SECONDS:
            self._place = 0
            self._rewound_at = now
        if len(rows) < _BATCH_BLOCKS:
            self._looked_at = now

    # One upload, and how it ends

    def _upload(self, block_id: bytes) -> tuple[int, bool]:
        """The bytes of the object, 0 if the block was dropped meanwhile; and whether it is safe
        from a power cut of the remote."""
        content = self._blocks.local(block_id)
        if content is None:
            if self._blocks.is_dirty(block_id):
                raise CorruptError(f"the local copy of block {block_id.hex()} is damaged or gone")
            return 0, True
        try:
            header, body = codec.encode_block(content, self._blocks.seed, block_id)
        except CorruptError:
            self._blocks.distrust(block_id)
            raise
        object_bytes = len(header) + len(body)
        self.limit.wait(object_bytes, self._stopping.is_set)
        return object_bytes, self._remote.put(block_key(block_id), (header, body))

    def _finish(self, block_id: bytes, object_bytes: int, is_safe: bool) -> None:
        if not object_bytes:
            with self._changed:
                self._in_flight -= 1
                self._busy.discard(block_id)
            return
        self._bytes_rate.add(object_bytes)
        self._blocks_rate.add(1)
        with self._changed:
            self._in_flight -= 1
            self._failure = None
            self._pause_seconds = 0.0
            self._uploaded_blocks += 1
            self._uploaded_bytes += object_bytes
            if not is_safe:
                due = self._clock() + self._settle_seconds
                self._settling.append((due, block_id, object_bytes))
                return
            self._done.append(block_id)
        self._mark_done()

    def _mark_done(self) -> None:
        # Who does not get the lock leaves its block to the one who has it, and who looks once
        # more after giving it back.
        while self._done and self._marking.acquire(blocking=False):
            try:
                with self._changed:
                    batch, self._done = self._done, []
                try:
                    if self._is_allowed:
                        self._blocks.mark_clean(batch)
                finally:
                    # If that failed they are still dirty, and will be found again.
                    with self._changed:
                        self._busy.difference_update(batch)
                        self._note_change()
            finally:
                self._marking.release()

    def _settle_one(self) -> bool:
        """Look after one object that has had its time to settle; False if there is none."""
        with self._changed:
            if not self._settling or self._settling[0][0] > self._clock():
                return False
            _, block_id, object_bytes = self._settling.popleft()
        try:
            there = self._remote.stat(block_key(block_id)).size_bytes == object_bytes
        except SyncerError as error:
            log.info("block %s is uploaded again: %s", block_id.hex(), error)
            there = False
        with self._changed:
            if not there:
                self._busy.discard(block_id)
                return True
            self._done.append(block_id)
        self._mark_done()
        return True

    def _put_aside(self, block_id: bytes, error: BaseException) -> None:
        log.error("block %s can't be uploaded: %s", block_id.hex(), error)
        with self._changed:
            self._in_flight -= 1
            self._busy.discard(block_id)
            self._aside[block_id] = str(error)
            self._aside_since = self._clock()

    def _fail(self, block_id: bytes, error: SyncerError) -> None:
        with self._changed:
            if str(error) != str(self._failure or ""):
                log.info("uploads pause: %s", error)
            self._in_flight -= 1
            self._busy.discard(block_id)
            self._queue.appendleft(block_id)
            # Without the frames that it came through, which hold a block.
            self._failure = again(error)
            now = self._clock()
            if isinstance(error, (ForeignError, OfflineError)) or now < self._resume_at:
                return
            # The first of the workers that failed together sets the pause for all.
            first, longest = _FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS
            if isinstance(error, PermanentError):
                first, longest = _PERMANENT_PAUSE_SECONDS, _LONGEST_PERMANENT_PAUSE_SECONDS
            self._pause_seconds = min(longest, max(first, 2 * self._pause_seconds))
            self._resume_at = now + self._pause_seconds
