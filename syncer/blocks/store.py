"""Blocks by id: put content, get content, whatever of it is local and whatever must be fetched.

Adds content to what `Ledger` protects: ids, verification, fetching, the order of use. The block
files hold content as it is, so once a file is verified, reads are served from it directly.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

import cachetools

from syncer import codec
from syncer.blocks.budget import disk_bytes
from syncer.blocks.cache import Cache
from syncer.blocks.doubt import REDONE_REFS
from syncer.blocks.entries import Hold
from syncer.blocks.fetch import Fetcher
from syncer.blocks.heads import Heads
from syncer.blocks.ledger import Ledger
from syncer.codec import BLOCK_BYTES, HOLE, Buffer
from syncer.errors import CorruptError, LocalFullError, MissingError, PermanentError
from syncer.metadata import naming
from syncer.metadata.db import Database

log = logging.getLogger(__name__)

#: Victims of one transaction and one sync.
_EVICT_BLOCKS = 64
#: A reader who finds no room makes so much at once, so that its next blocks find some.
_EVICT_BYTES = 16 << 20
#: Blocks that are looked for in one query.
_ASKED_BLOCKS = 256
#: Uses that are written down in one transaction.
_ORDER_BLOCKS = 512
#: Fetched blocks that found no room on the disk stay in memory, so that the eight reads of
#: 128 KiB which the kernel makes of one block do not fetch it eight times.
_UNKEPT_BLOCKS = 8


class Share(NamedTuple):
    """What of some blocks is local."""

    blocks: int
    content_bytes: int
    dirty_bytes: int
    pinned_bytes: int
    """Of clean blocks that are marked as pinned."""


class Blocks(Ledger):
    """The blocks of a repository on one machine. May be used from several threads."""

    def __init__(self, db: Database, cache: Cache, fetcher: Fetcher, seed: int) -> None:
        super().__init__(db, cache)
        self.fetcher = fetcher
        self._heads = Heads(fetcher)
        self.seed = seed
        #: Since the start; changed only by who holds _evicting.
        self.evicted_blocks = 0
        # One evicts for all who need room. Comes before all other locks.
        self._evicting = threading.RLock()
        self._unkept_lock = threading.Lock()
        # Guarded by _unkept_lock.
        self._unkept: cachetools.LRUCache[bytes, Buffer] = cachetools.LRUCache(_UNKEPT_BLOCKS)

    # Putting --------------------------------------------------------------------------------

    def put(self, data: Buffer) -> bytes:
        """Store content of 1 byte to 1 MiB and return its id: HOLE if it is all zeros.

        The block is held: it stays, though nothing names it, until `unhold`. It is not yet
        power-safe: see `sync`. Content that is local already is not written again. Waits for
        room; not to be called inside a transaction.

        Raises LocalFullError where waiting for room can't help, AccessError, PermanentError.
        """
        if codec.is_zero(data):
            return HOLE
        block_id = codec.block_id(data, self.seed)
        hold = self._hold(block_id, len(data))
        try:
            self._store(block_id, data, hold, self.cache.budget.reserve)
        except BaseException:
            self.unhold([block_id])
            raise
        return block_id

    def _store(
        self, block_id: bytes, data: Buffer, hold: Hold, reserve: Callable[[int], None]
    ) -> None:
        """Make sure that the file of a held block is there, right, and counted once."""
        budget = self.cache.budget
        reserved = 0
        if not self._is_stored(block_id, data):
            was_charged = hold.charged
            if not was_charged:
                reserved = disk_bytes(len(data))
                reserve(reserved)
            try:
                self.cache.add(block_id, data)
            except BaseException:
                budget.cancel(reserved)
                raise
            self.cache.set_verified(block_id, self.cache.stamp(block_id))
            if was_charged:
                self._mark_unsynced(block_id)
        with self._lock:
            if hold.charged:
                budget.cancel(reserved)
            elif reserved:
                budget.keep(reserved)
            else:
                # A file that a crash left behind, or that another holder is about to count.
                budget.adopt(disk_bytes(len(data)))
            hold.charged = True
            hold.stored = True

    def _is_stored(self, block_id: bytes, data: Buffer) -> bool:
        if self.cache.is_verified(block_id):
            return self.cache.has(block_id)
        # Better compared than overwritten: what a durable row names may be this very file, and
        # a new one would not be power-safe.
        stamp = self.cache.stamp(block_id)
        if stamp is None or self._read_file(block_id) != data:
            return False
        self.cache.set_verified(block_id, stamp)
        return True

    def _mark_unsynced(self, block_id: bytes) -> None:
        with self._db.transaction():
            self._db.execute("UPDATE block SET synced = 0 WHERE id = ?", (block_id,))

    # Getting --------------------------------------------------------------------------------

    def read_into(self, block_id: bytes, offset: int, buffer: memoryview) -> int:
        """Read a block's content from `offset` on into `buffer`; returns how many bytes.

        Fewer than asked for only at the block's end. Not for HOLE, which is not a block.

        Raises CorruptError if each copy is damaged; MissingError if there is none at all, as with a
        block that was dropped meanwhile; OfflineError; and what else `Remote.get` raises.
        """
        with contextlib.suppress(MissingError, PermanentError):
            count = self.cache.read_verified(block_id, offset, buffer)
            if count is not None:
                self._touch(block_id)
                return count
        if self._heads.read_into(block_id, offset, buffer):
            return len(buffer)
        part = memoryview(self.get(block_id))[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)

    def get(self, block_id: bytes) -> Buffer:
        """The whole content of a block; as `read_into`."""
        content = self.local(block_id) or self._fetch(block_id, urgent=True)
        self._touch(block_id)
        return content

    def prefetch(self, block_id: bytes, before_wait: Callable[[], None] = lambda: None) -> None:
        """Fetch a block that will soon be read, behind urgent ones; raises as `read_into`.

        `before_wait` is called if it is not local. Of one that is, the kernel brings the file from
        the disk, and nobody waits for that.
        """
        if not self.cache.read_ahead(block_id):
            before_wait()
            self._fetch(block_id, urgent=False)

    def fetch_head(self, block_id: bytes, *, urgent: bool) -> None:
        """Have the first `HEAD_BYTES` of a block here, in memory if it is not local.

        Only for a block that is longer. Raises as `read_into`.
        """
        self._heads.fetch(block_id, lambda: self.is_local(block_id), urgent=urgent)

    def is_local(self, block_id: bytes) -> bool:
        """Whether a block has a local file; that it is damaged shows when it is read."""
        return self.cache.has(block_id)

    def local_share(self, block_ids: Iterable[bytes]) -> Share:
        """What of these blocks, each counted once, is local."""
        found = Share(0, 0, 0, 0)
        for batch in _batches(set(block_ids), _ASKED_BLOCKS):
            marks = ", ".join("?" * len(batch))
            rows = self._db.query(
                "SELECT count(*), total(size), total(iif(dirty IS NOT NULL, size, 0)),"
                " total(iif(dirty IS NULL AND pinned, size, 0)) FROM block"
                f" WHERE id IN ({marks})",
                batch,
            )
            found = Share(*(int(a + b) for a, b in zip(found, rows[0], strict=True)))
        return found

    def local(self, block_id: bytes) -> bytes | None:
        """The whole content from the local file, or None if there is none that is good.

        A file is verified when this process uses it for the first time. A damaged one is set
        aside; but not that of a dirty block, of which it may be the only copy.
        """
        was_verified = self.cache.is_verified(block_id)
        stamp = self.cache.stamp(block_id)
        content = None if stamp is None else self._read_file(block_id)
        # Before and after: while a damaged file is read, another thread may put a good one in its
        # place, and verify that.
        if content is None or (was_verified and self.cache.is_verified(block_id)):
            return content
        if self._matches(block_id, content):
            self.cache.set_verified(block_id, stamp)
            return content
        self.set_aside(block_id)
        return None

    def distrust(self, block_id: bytes) -> None:
        """Have the local file verified anew when it is next used."""
        self.cache.set_verified(block_id, None)

    def _read_file(self, block_id: bytes) -> bytes | None:
        try:
            return self.cache.read(block_id, BLOCK_BYTES + 1)
        except MissingError:
            return None
        except PermanentError as error:
            # A bad sector: as bad as wrong content, but not worse.
            log.warning("%s", error)
            self.distrust(block_id)
            return b""

    def _matches(self, block_id: bytes, content: bytes) -> bool:
        fits = 0 < len(content) <= BLOCK_BYTES
        return fits and codec.block_id(content, self.seed) == block_id

    def set_aside(self, block_id: bytes, *, is_lost: bool = False) -> None:
        """Move a file out of the way if it is damaged, and nobody holds its block.

        It may be all that there is of a dirty block: that of one only if it `is_lost`.
        """
        with self._db.lock:
            is_dirty = self.is_dirty(block_id)
            with self._lock:
                if is_dirty and not is_lost:
                    log.error("the only local copy of block %s is damaged", block_id.hex())
                    return
                if any(block_id in busy for busy in (self._holds, self._doomed, self._removing)):
                    return
                # Until it is out again, nobody can put a good file in this place.
                self._removing[block_id] = 0
        try:
            content = self._read_file(block_id)
            # Someone else may have repaired it meanwhile.
            if content is not None and not self._matches(block_id, content):
                log.info("the local copy of block %s is damaged; it is set aside", block_id.hex())
                self.cache.set_aside(block_id)
        finally:
            self._end_removal([block_id])

    def _fetch(self, block_id: bytes, *, urgent: bool) -> Buffer:
        return self.fetcher.once(
            block_id, lambda: self._fetch_alone(block_id, urgent), urgent=urgent
        )

    def _fetch_alone(self, block_id: bytes, urgent: bool) -> Buffer:
        # It may have come between the caller's look and now.
        content = self.local(block_id) or self._find_unkept(block_id)
        if content is not None:
            return content
        try:
            content = self._keep(block_id, self.fetcher.download(block_id, urgent=urgent))
            self._heads.drop(block_id)
            return content
        except MissingError as error:
            # It may have been put meanwhile; or a dirty block's damaged file is still there.
            content = self._read_file(block_id)
            if content is None:
                raise
            if self._matches(block_id, content):
                return content
            raise CorruptError(f"the only copy of block {block_id.hex()} is damaged") from error

    def _find_unkept(self, block_id: bytes) -> Buffer | None:
        with self._unkept_lock:
            return self._unkept.get(block_id)

    def _keep(self, block_id: bytes, content: Buffer) -> Buffer:
        hold = self._hold(block_id, len(content))
        try:
            self._store(block_id, content, hold, self._reserve_by_evicting)
            self._add_clean(block_id, len(content))
        except (LocalFullError, PermanentError) as error:
            # The reader need not care that the local disk does not take it.
            log.debug("block %s is not kept: %s", block_id.hex(), error)
            with self._unkept_lock:
                self._unkept[block_id] = content
        finally:
            self.unhold([block_id])
        return content

    # The order of use, and eviction ------------------------------------------------------------

    def _touch(self, block_id: bytes) -> None:
        if self.cache.touch(block_id):
            self._save_order()

    def save_order(self) -> None:
        """Write down the order of use: every few seconds, and at the end."""
        while self._save_order():
            pass

    def _save_order(self) -> bool:
        used = self.cache.take_order(_ORDER_BLOCKS)
        if not used:
            return False
        with self._db.transaction():
            first = self._next_used
            self._next_used += len(used)
            self._db.execute_many(
                "UPDATE block SET used = ? WHERE id = ? AND dirty IS NULL",
                [(first + place, block_id) for place, block_id in enumerate(used)],
            )
        return True

    def evict(self, wanted_bytes: int) -> int:
        """Remove the clean blocks that were used longest ago; returns how many bytes this freed.

        That is less than wanted when only dirty and held blocks are left. Not to be called
        inside a transaction.
        """
        freed = 0
        with self._evicting:
            # With the order of the front written down, that of the rows is the whole truth.
            self.save_order()
            while freed < wanted_bytes:
                victims = self._doom_oldest(wanted_bytes - freed, _EVICT_BLOCKS)
                if not victims:
                    break
                freed += self._unlink(victims)
                self.evicted_blocks += len(victims)
        return freed

    def evict_these(self, block_ids: Iterable[bytes]) -> tuple[int, int]:
        """Remove those of these blocks that are clean and not in use; returns (blocks, bytes)."""
        count, freed = 0, 0
        with self._evicting:
            for batch in _batches(block_ids, _EVICT_BLOCKS):
                with self._db.transaction():
                    victims = [] if self.doubt.is_on() else self._doom_these(batch)
                freed += self._unlink(victims)
                count += len(victims)
            self.evicted_blocks += count
        return count, freed

    def _reserve_by_evicting(self, size_bytes: int) -> None:
        """Room for a fetched block: worth an eviction, but not a wait for uploads."""
        budget = self.cache.budget
        if budget.try_reserve(size_bytes):
            return
        with self._evicting:
            if budget.try_reserve(size_bytes):
                return
            self.evict(max(size_bytes, min(_EVICT_BYTES, budget.limit_bytes // 16)))
            if not budget.try_reserve(size_bytes):
                raise LocalFullError("no room for fetched blocks")

    def redo(self, first_byte: int, sizes: dict[str, int]) -> None:
        """Have those clean blocks uploaded again that the remote lacks; see `Doubt.lacking`."""
        with self._db.transaction():
            for block_id, size_bytes in self.doubt.lacking(first_byte, sizes):
                self._make_dirty(block_id, size_bytes, refs=REDONE_REFS)

    # What nothing names -----------------------------------------------------------------------

    def condemn(
        self, block_ids: Iterable[bytes], uploading: Collection[bytes], now_ns: int
    ) -> list[bytes]:
        """Note as garbage those of these blocks that nothing names; their local copies go.

        While `Garbage.watch` is on, for blocks that were not named when it began. Blocks that are
        held are left alone: who holds one is about to name it.
        """
        with self._db.transaction():
            unnamed = [
                block_id
                for block_id in block_ids
                if block_id not in uploading
                and not self.garbage.is_named_since(block_id)
                and not self.is_dirty(block_id)
            ]
            with self._lock:
                unnamed = [block_id for block_id in unnamed if block_id not in self._holds]
            self.garbage.add(unnamed, now_ns)
            self._doom_unnamed(unnamed)
            return unnamed

    def _doom_unnamed(self, block_ids: Iterable[bytes]) -> None:
        # A mark of what was pinned when something named it goes only with the pins' next pass.
        self._db.execute_many(
            "UPDATE block SET pinned = 0 WHERE id = ?", [(block_id,) for block_id in block_ids]
        )
        self._doom_these(block_ids)

    def forget_unnamed(self) -> None:
        """Let go of the clean blocks that nothing names: the remote may not have them any more.

        In the transaction in which this machine begins to write.
        """
        self._doom_unnamed(self._unnamed())

    def _unnamed(self) -> list[bytes]:
        """The clean blocks that nothing names, by a look at all of the metadata."""
        found: list[bytes] = []
        with self._db.snapshot() as reader:
            for first_bytes in naming.passes(reader):
                low, high = bytes([first_bytes[0]]), bytes([first_bytes[-1]]) + b"\xff" * 16
                named = naming.named(reader, first_bytes)
                rows = reader.query(
                    "SELECT id FROM block WHERE id BETWEEN ? AND ? AND dirty IS NULL", (low, high)
                )
                found += [row[0] for row in rows if row[0] not in named]
        return found

    def make_dirty(self, block_ids: Iterable[bytes]) -> list[bytes]:
        """Have the local ones of these blocks stay, as dirty ones do. Returns the others."""
        absent = []
        with self._db.transaction():
            for block_id in block_ids:
                row = self._db.query_one("SELECT size, dirty FROM block WHERE id = ?", (block_id,))
                if row is None:
                    absent.append(block_id)
                elif row[1] is None:
                    self._make_dirty(block_id, row[0])
        return absent

    # After a power cut ---------------------------------------------------------------------------

    def damaged_unsynced(self) -> set[bytes]:
        """The blocks that the remote lacks, and whose files were not synced and are not whole."""
        rows = self._db.query("SELECT id FROM block WHERE synced = 0 AND dirty IS NOT NULL")
        dropped = set(self.undo.dropped())
        suspects = {row[0] for row in rows} | dropped - self._with_rows(dropped)
        return {block_id for block_id in suspects if self.read_whole(block_id) is None}

    def read_whole(self, block_id: bytes) -> bytes | None:
        """The content from the local file, read and verified anew; None if it is not good."""
        content = self._read_file(block_id)
        return content if content is not None and self._matches(block_id, content) else None

    def take_back(self, block_ids: Iterable[bytes]) -> None:
        """Content names these again: those that have a file but no row get one, and are dirty.

        At the start, in the caller's transaction. One without a file is on the remote.
        """
        for block_id in set(block_ids) - self._with_rows(block_ids):
            content = self.read_whole(block_id)
            if content is not None:
                self.garbage.name(block_id)
                self.cache.budget.adopt(disk_bytes(len(content)))
                self._add_dirty(block_id, len(content), synced=False)

    def correct_size(self, block_id: bytes, size_bytes: int) -> None:
        """A row had a wrong size: set it right, and what counts it."""
        with self._db.transaction():
            rows = self._db.query("SELECT size, dirty FROM block WHERE id = ?", (block_id,))
            for old_bytes, dirty in rows:
                more = disk_bytes(size_bytes) - disk_bytes(old_bytes)
                dirty_bytes = 0 if dirty is None else size_bytes - old_bytes
                self._db.execute("UPDATE block SET size = ? WHERE id = ?", (size_bytes, block_id))
                self._db.execute(
                    "UPDATE usage SET local_bytes = local_bytes + ?, dirty_bytes = dirty_bytes + ?",
                    (more, dirty_bytes),
                )
                self.cache.budget.adopt(more)

    def is_gone(self, block_id: bytes) -> bool:
        """Whether a dirty block has no good file, and nobody is about to write one.

        Reads the file. In the transaction that gives it up: who puts the content after this look
        names the block anew.
        """
        with self._db.lock:
            with self._lock:
                is_held = block_id in self._holds
            return not is_held and self.is_dirty(block_id) and self.read_whole(block_id) is None

    def give_up(self, block_ids: Iterable[bytes]) -> None:
        """Drop dirty blocks whose content is gone. In the caller's transaction."""
        for block_id in block_ids:
            self._db.execute("UPDATE block SET refs = 1 WHERE id = ?", (block_id,))
            self.unname([block_id])


def _batches(block_ids: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    iterator = iter(block_ids)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
