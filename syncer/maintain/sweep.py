"""Throwing away the objects of blocks that nothing names, and why that loses nothing.

The server has no list of what is named, and the metadata no list of what the server has. So a sweep
compares: it reads all ids that the metadata names, now and in the moments that are kept, lists the
folders of the server, and what is only in the latter is garbage, whatever left it there: a prune, a
crash, an upload of what was removed at once. What one sweep leaves behind the next one finds.

**What must not happen**: that an object goes which something names, now or later. An object goes in
two steps, a move to `trash/` and, after a grace, its deletion; between a look and the step that
rests on it anything may happen. So:

1. *Somebody names the block after the look, on this machine*, most likely by writing the same
   content again. Each transaction that names blocks tells `Garbage`. A block is condemned in a
   transaction of its own, only if nobody told so since the look began; and who names one that is
   condemned makes it dirty in that same transaction, so it is uploaded anew. An upload and a move
   or deletion that cross each other leave one of these: the object in its place; the object in
   `trash/`, named, where readers find it and from where the next sweep moves it back. Not: no
   object. For a deletion touches only `trash/`, and what lies there was moved at least the grace
   before, so it is not what was uploaded now.
2. *A block counts as clean because it is local*, so naming it uploads nothing. A condemned block
   loses its row in table `block` in the same transaction. Should a reader of an old state bring it
   back before the object is gone, its row in `garbage` still makes the next naming dirty; and that
   row stays until the object has been gone for a while and no clean copy is left.
3. *An upload is under way* of a block that was dropped meanwhile. Such blocks are passed over:
   else its end might count for a later naming of the same block.
4. *Someone is about to name it*, having put it (`Ledger`, holds). Passed over as well; and would
   be safe if not, by 1.
5. *Another machine has become the writer* and names it. It has followed the log to its end before,
   so it knows of the prune: the decision is published before anything is moved. It removes what
   nobody may see any more, forgets local copies of what nothing names then
   (`Blocks.forget_unnamed`), and so it uploads what it names. This
   machine looks at the chain of writers before each batch, and stops. A single batch may come
   late, even by days, if the machine slept in the middle of it: a late move is 1 again, mended by
   the new writer's own sweep; a late deletion touches only what was in `trash/` for the grace.
6. *A follower is behind*, or a program reads a moment that is pruned just now. It finds the object
   in `trash/` during the grace, and then an error, never other content.
7. *The machine's disk forgets.* The database is synced after blocks were condemned and before
   anything is moved, so a power cut can't bring back a clean row of a block that is thrown away.
8. *The server forgets* a move: then it is garbage again.

Of the metadata that is looked at, none is missing: what a power cut would bring back (`undo`) is
read, open files without a name have rows, and what is not published yet has, too. What a displaced
writer had uploaded and not published is garbage to all others; the grace is its time to be copied
out of there.

The looks are long and hold no lock, and each transaction is short, so the mount is in use
meanwhile.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from syncer.blocks.fetch import block_key, trash_key
from syncer.blocks.store import Blocks
from syncer.errors import MissingError, TemporaryError
from syncer.exchange.roles import Exchange
from syncer.metadata import naming
from syncer.metadata.db import Database
from syncer.remote.base import Entry, Remote
from syncer.transfer.uploads import Uploads

log = logging.getLogger(__name__)

#: Objects between two looks at the chain of writers, and how many are under way at once.
_BATCH = 64
_WORKERS = 8
#: How long a row stays in table `garbage` when its object is gone, for readers that still have it.
_MEMORY_SECONDS = 3600
_SECOND_NS = 10**9

_BLOCK_NAME = re.compile(r"[0-9a-f]{32}")


@dataclass
class Swept:
    """What a sweep has done."""

    trashed_blocks: int = 0
    trashed_bytes: int = 0
    """Of objects that were moved to `trash/`."""
    deleted_blocks: int = 0
    deleted_bytes: int = 0
    """Of objects that were deleted from there."""
    returned_blocks: int = 0
    """Objects that were moved back."""
    waiting_since_ns: int | None = None
    """Of what is left in `trash/`: since when the oldest is garbage."""

    def note_waiting(self, since_ns: int) -> None:
        self.waiting_since_ns = min(since_ns, self.waiting_since_ns or since_ns)


class Sweeper:
    """Sweeps for one writer. `sweep` is called by one thread at a time."""

    def __init__(
        self,
        db: Database,
        blocks: Blocks,
        uploads: Uploads,
        exchange: Exchange,
        remote: Remote,
        stopping: threading.Event,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._db = db
        self._blocks = blocks
        self._uploads = uploads
        self._exchange = exchange
        self._remote = remote
        self._stopping = stopping
        self._clock_ns = clock_ns

    def sweep(self, grace_seconds: float) -> Swept:
        """Look through all of the server once.

        The database is in line with what was decided about kept moments, and that is published.
        Raises DisplacedError, TemporaryError if it is to stop, and what the remote raises; what was
        done until then stays done.
        """
        done = Swept()
        with self._db.snapshot() as reader:
            passes = naming.passes(reader)
        with ThreadPoolExecutor(_WORKERS, thread_name_prefix="syncer-trash") as pool:
            for first_bytes in passes:
                with self._blocks.garbage.watch():
                    _Pass(self, pool, first_bytes, grace_seconds, done).run()
        return done


class _Pass:
    """The part of a sweep for the blocks with some first bytes, while naming is watched."""

    def __init__(
        self,
        sweeper: Sweeper,
        pool: ThreadPoolExecutor,
        first_bytes: range,
        grace_seconds: float,
        done: Swept,
    ) -> None:
        self._s = sweeper
        self._pool = pool
        self._first_bytes = first_bytes
        self._grace_ns = int(grace_seconds * _SECOND_NS)
        self._done = done
        self._named: set[bytes] = set()

    def run(self) -> None:
        with self._s._db.snapshot() as reader:
            self._named = naming.named(reader, self._first_bytes)
        # Before anything is added to it, so that nothing is deleted in the sweep that moved it.
        trashed = self._list("trash")
        seen = set(trashed)
        for byte in self._first_bytes:
            found = self._list(f"blocks/{byte:02x}")
            seen |= found.keys()
            self._move_out({key: found[key] for key in found.keys() - self._named})
        self._move_back([key for key in trashed if self._is_named(key)])
        self._delete({key: trashed[key] for key in trashed if not self._is_named(key)})
        self._forget(seen)

    def _list(self, folder: str) -> dict[bytes, Entry]:
        self._check_stop()
        entries = self._s._remote.list(folder)
        found = {
            bytes.fromhex(entry.name): entry
            for entry in entries
            if _BLOCK_NAME.fullmatch(entry.name)
        }
        return {key: entry for key, entry in found.items() if key[0] in self._first_bytes}

    def _check_stop(self) -> None:
        if self._s._stopping.is_set():
            raise TemporaryError("the mount ends; the rest goes on with the next mount")

    def _is_named(self, block_id: bytes) -> bool:
        with self._s._db.lock:
            return block_id in self._named or self._s._blocks.garbage.is_named_since(block_id)

    def _condemn(self, block_ids: Iterable[bytes]) -> list[bytes]:
        under_way = self._s._uploads.under_way()
        condemned = self._s._blocks.condemn(block_ids, under_way, self._s._clock_ns())
        self._s._db.sync()
        return condemned

    def _each(self, block_ids: Sequence[bytes], act: Callable[[bytes], bool]) -> Iterator[bytes]:
        """Do something to objects, several at once, while this machine is the writer.

        Yields those for which it was done.
        """
        if not block_ids:
            return
        self._check_stop()
        self._s._exchange.check_writer()
        for block_id, is_done in zip(block_ids, self._pool.map(act, block_ids), strict=True):
            if is_done:
                yield block_id

    def _move_out(self, found: dict[bytes, Entry]) -> None:
        def move(block_id: bytes) -> bool:
            with suppress(MissingError):
                self._s._remote.move(block_key(block_id), trash_key(block_id))
                return True
            return False

        for batch in _batches(found):
            for block_id in self._each(self._condemn(batch), move):
                self._done.trashed_blocks += 1
                self._done.trashed_bytes += found[block_id].size_bytes
                self._done.note_waiting(self._s._clock_ns())

    def _move_back(self, named: list[bytes]) -> None:
        def move(block_id: bytes) -> bool:
            with suppress(MissingError):
                self._s._remote.move(trash_key(block_id), block_key(block_id))
                return True
            return False

        for batch in _batches(named):
            self._done.returned_blocks += sum(1 for _ in self._each(batch, move))

    def _delete(self, found: dict[bytes, Entry]) -> None:
        def delete(block_id: bytes) -> bool:
            self._s._remote.delete(trash_key(block_id))
            return True

        for batch in _batches(found):
            # Those that this database knew nothing of: their grace begins now.
            self._condemn(batch)
            since = self._s._blocks.garbage.since(batch)
            limit_ns = self._s._clock_ns() - self._grace_ns
            due = [block_id for block_id in since if since[block_id] <= limit_ns]
            for block_id in since.keys() - set(due):
                self._done.note_waiting(since[block_id])
            for block_id in self._each(due, delete):
                self._done.deleted_blocks += 1
                self._done.deleted_bytes += found[block_id].size_bytes

    def _forget(self, seen: set[bytes]) -> None:
        """Drop the rows of what the server had nothing of when this pass began."""
        limit_ns = self._s._clock_ns() - self._grace_ns - _MEMORY_SECONDS * _SECOND_NS
        garbage = self._s._blocks.garbage
        gone = [
            block_id
            for block_id, since_ns in garbage.within(self._first_bytes).items()
            if block_id not in seen and since_ns <= limit_ns
        ]
        for batch in _batches(gone):
            self._s._blocks.evict_these(batch)
            garbage.forget(batch)


def _batches(block_ids: Iterable[bytes]) -> Iterator[list[bytes]]:
    iterator = iter(block_ids)
    while batch := list(islice(iterator, _BATCH)):
        yield batch
