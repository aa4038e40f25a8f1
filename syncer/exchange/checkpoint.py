"""Checkpoints: the whole metadata at an epoch, so that recovery need not replay all of history.

A checkpoint is a manifest that names chunks; a chunk holds all rows, now and past, of the nodes
of one range of numbers (or the epochs of one range), or a part of them if they are many. Table
`chunk` knows the chunks of each range; publishing forgets those of the ranges that it touches, so
a checkpoint costs what changed since the last one. Rows of closed epochs do not change, so a
chunk that was made at an earlier epoch is as good as new as long as its range was not touched; and
pruning (`metadata/pruning`), which removes some, forgets the chunks that had them.

Work is done in steps, so that publishing goes on in between. The order of one checkpoint, and
what a crash after each step leaves:

1. Each range without chunks: put its chunks, then note them in table `chunk`. Crash: chunks that
   nothing names, which step 4 of a later checkpoint deletes, or that this table knows already.
2. Once few ranges are left: the same for all of them, and then put the manifest, with no
   publication in between. Crash: a good checkpoint that is not noted; another one is made.
3. Note its epoch in the database.
4. Delete manifests that it made superfluous, then chunks that no manifest names, then segments
   that all manifests contain. Crash: some are left; the next checkpoint deletes them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from syncer.codec import split_ids
from syncer.errors import CorruptError
from syncer.exchange.outgoing import batches, epoch_ranges, epochs_in_range, in_range, node_ranges
from syncer.exchange.rows import Rows
from syncer.exchange.settling import Settling
from syncer.exchange.wire import (
    MAX_OBJECT_BYTES,
    RANGE_NODES,
    Manifest,
    chunk_key,
    decode_manifest,
    encode_chunk,
    encode_manifest,
    log_folder,
    manifest_key,
    parse_epoch,
    parse_span,
    range_of_epoch,
    range_of_node,
)
from syncer.exchange.writers import RepositoryInfo
from syncer.metadata.db import Database
from syncer.remote.base import Entry, Remote

#: A checkpoint is due when recovery would have to read so much besides the last one.
_DUE_BYTES = 16 << 20
_DUE_SEGMENTS = 500
#: Ranges per step: what one publication may have to wait for.
_STEP_RANGES = 64
#: How long a superseded checkpoint stays, for those who are reading it.
_GRACE_SECONDS = 3600.0
_KEPT = 2


@dataclass
class Backlog:
    """What recovery has to read besides the newest checkpoint."""

    segments: int = 0
    stored_bytes: int = 0
    #: The remote has lost segments or checkpoints: recovery can't work until there is a new one.
    is_void: bool = False

    def add(self, stored_bytes: int) -> None:
        self.segments += 1
        self.stored_bytes += stored_bytes

    @property
    def is_due(self) -> bool:
        return self.is_void or self.segments >= _DUE_SEGMENTS or self.stored_bytes >= _DUE_BYTES


def forget_touched(db: Database, first: int, last: int) -> None:
    """Forget the chunks of all ranges that epochs `first` to `last` touched.

    In the transaction that empties the outbox, and before it does.
    """
    db.execute(
        f"INSERT OR REPLACE INTO chunk SELECT DISTINCT node / {RANGE_NODES}, NULL FROM outbox"
        " WHERE epoch <= ?",
        (last,),
    )
    numbers = range(range_of_epoch(last), range_of_epoch(first) + 1)
    db.execute_many("INSERT OR REPLACE INTO chunk VALUES(?, NULL)", [(n,) for n in numbers])


def forget_nodes(db: Database, first: int, last: int) -> None:
    """Forget the chunks of all nodes from `first` to `last`: rows of the past are removed."""
    _forget(db, range_of_node(first), range_of_node(last))


def forget_epochs(db: Database, first: int, last: int) -> None:
    """As `forget_nodes`, of the rows of epochs."""
    _forget(db, range_of_epoch(last), range_of_epoch(first))


def _forget(db: Database, first: int, last: int) -> None:
    db.execute("UPDATE chunk SET object = NULL WHERE range BETWEEN ? AND ?", (first, last))


class Checkpoints:
    """Makes the checkpoints of one writer. Used by the publisher's thread."""

    def __init__(
        self, db: Database, remote: Remote, info: RepositoryInfo, settling: Settling
    ) -> None:
        """`settling` puts the objects."""
        self._db = db
        self._remote = remote
        self._info = info
        self._settling = settling

    def epochs(self) -> set[int]:
        """The epochs of which the remote has a checkpoint of this machine."""
        folder = f"checkpoint/{self._db.get_meta('machine'):016x}"
        found = (parse_epoch(entry.name) for entry in self._remote.list(folder))
        return {epoch for epoch in found if epoch is not None}

    def start_over(self) -> None:
        """Trust none of the chunks that were put so far: the remote has lost something."""
        with self._db.transaction():
            self._db.execute("DELETE FROM chunk")

    def step(self) -> bool:
        """Do a part of a checkpoint of what is published; whether it is complete."""
        epoch: int = self._db.get_meta("published")
        chunks = self._known_chunks(epoch)
        stale = [number for number, ids in chunks.items() if ids is None]
        for number in stale[:_STEP_RANGES]:
            chunks[number] = self._make_chunks(number, epoch)
        if len(stale) > _STEP_RANGES:
            return False
        manifest = Manifest(
            self._info.uuid,
            self._db.get_meta("generation"),
            self._db.get_meta("machine"),
            epoch,
            self._db.get_meta("parent_segment"),
            {number: ids for number, ids in chunks.items() if ids is not None},
        )
        key = manifest_key(manifest.machine, epoch)
        self._settling.put(key, encode_manifest(manifest, self._info.seed))
        self._db.set_meta("checkpoint", epoch)
        return True

    def _known_chunks(self, epoch: int) -> dict[int, bytes | None]:
        """All ranges that there are, with the ids of their chunks, or None."""
        with self._db.snapshot() as reader:
            known: dict[int, bytes | None] = dict(reader.query("SELECT range, object FROM chunk"))
            numbers = itertools.chain(epoch_ranges(epoch), node_ranges(reader))
            return {number: known.get(number) for number in numbers}

    def _make_chunks(self, number: int, epoch: int) -> bytes:
        with self._db.snapshot() as reader:
            if number < 0:
                epochs = epochs_in_range(reader, number, epoch)
                made = [encode_chunk(number, epochs, Rows(), self._info.seed)]
            else:
                made = [
                    encode_chunk(number, (), rows, self._info.seed)
                    for rows in batches(in_range(reader, number, epoch), first=1)
                ]
        machine = self._db.get_meta("machine")
        for chunk_id, data in made:
            self._settling.put(chunk_key(machine, chunk_id), data)
        ids = b"".join(chunk_id for chunk_id, _data in made)
        with self._db.transaction():
            self._db.execute("INSERT OR REPLACE INTO chunk VALUES(?, ?)", (number, ids))
        return ids

    def clean_up(self, *, thoroughly: bool = False) -> None:
        """Delete what the newest checkpoints made superfluous, of this machine's own objects.

        A displaced writer must not call this. With `thoroughly`, also checkpoints that can't be
        read; the newest one was made just now.
        """
        machine: int = self._db.get_meta("machine")
        folder = f"checkpoint/{machine:016x}"
        found = [
            (epoch, entry)
            for entry in self._remote.list(folder)
            if (epoch := parse_epoch(entry.name)) is not None
        ]
        found.sort(key=lambda item: item[0], reverse=True)
        kept, superfluous = _superfluous(found)
        if thoroughly:
            unreadable = [epoch for epoch in kept[1:] if not self._is_readable(machine, epoch)]
            kept = [epoch for epoch in kept if epoch not in unreadable]
            superfluous += unreadable
        if not superfluous:
            return
        named = {
            chunk_id
            for (ids,) in self._db.query("SELECT object FROM chunk WHERE object IS NOT NULL")
            for chunk_id in split_ids(ids)
        }
        for epoch in kept:
            named |= self._chunks_of(manifest_key(machine, epoch))
        for epoch in superfluous:
            self._remote.delete(manifest_key(machine, epoch))
        names = {chunk_id.hex() for chunk_id in named}
        for entry in self._remote.list(f"{folder}/chunks"):
            if entry.name not in names:
                self._remote.delete(f"{folder}/chunks/{entry.name}")
        for entry in self._remote.list(log_folder(machine)):
            # A part's name is its segment's, with a number behind a dot.
            span = parse_span(entry.name.partition(".")[0])
            if span is not None and span[1] <= kept[-1]:
                self._remote.delete(f"{log_folder(machine)}/{entry.name}")

    def _is_readable(self, machine: int, epoch: int) -> bool:
        key = manifest_key(machine, epoch)
        try:
            named = self._chunks_of(key)
        except CorruptError:
            return False
        folder = f"checkpoint/{machine:016x}/chunks"
        listed = {entry.name for entry in self._remote.list(folder)}
        return all(chunk_id.hex() in listed for chunk_id in named)

    def _chunks_of(self, key: str) -> set[bytes]:
        data = self._remote.get(key, 0, MAX_OBJECT_BYTES + 1)
        manifest = decode_manifest(data, self._info.seed, key)
        return {chunk_id for ids in manifest.chunks.values() for chunk_id in split_ids(ids)}


def _superfluous(found: list[tuple[int, Entry]]) -> tuple[list[int], list[int]]:
    """The epochs of checkpoints, newest first, parted into those that stay and those that go.

    A reader takes the newest one there is, so a checkpoint is needed for as long as a reader may
    take that began before the next one came. All times are the server's.
    """
    kept: list[int] = []
    superfluous: list[int] = []
    for index, (epoch, _entry) in enumerate(found):
        age = found[0][1].mtime_seconds - found[index - 1][1].mtime_seconds
        if index < _KEPT or age < _GRACE_SECONDS:
            kept.append(epoch)
        else:
            superfluous.append(epoch)
    return kept, superfluous
