"""Publish the epochs of this machine: segments in its own log, each naming the one before it.

A segment holds what began or ended in a run of epochs that are closed and whole, which means that
the remote has every block that they name.

The order of one publication, and what a crash after each step leaves:

1. Read the rows of the longest run of epochs that are closed and whole, from one view of the
   database, and make that view power-safe: what others see must not be lost here. Where the local
   segment files have just these epochs, what they say is taken.
   Crash: nothing has happened.
   Where somebody waits, and the last blocks of these epochs are on their way, their being whole is
   waited for in step 3, behind the head's content and before its name.
2. Look who the writer is. If it is another machine: displaced, nothing is written. This look only
   keeps a machine that was displaced long ago from writing segments that nobody reads, so it may be
   a second old where somebody waits; what counts is decided by step 4, behind the head.
3. Put the segment's parts, if it has any, and then its head. Crash in between: parts that no
   head names; no reader looks at them, and they go with the log's old segments. Crash before the
   head's name: an upload that was cut short. Crash after: the segment is there, and this database
   does not know it: the next start adopts it, before it publishes anything (`_adopt`), so no two
   segments ever overlap.
4. Look for a later claim, and for the own mark (`identity`); and unless there is none, and there is
   one, who the writer is once more. If another machine has claimed the role meanwhile, it may
   have missed the segment: displaced, and the epochs count as unpublished until its start says
   whether they are part of its history (`_settle`).
5. In one transaction: note the epoch and the segment as published, forget the checkpoint chunks
   of what changed, empty the outbox. Crash before: as after step 3.

Segments in the log of its own machine that this database never wrote mean that the data directory
is a copy or a restored backup, and that the other copy is ahead: it must not publish.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from syncer.errors import CorruptError
from syncer.exchange.checkpoint import Backlog, Checkpoints, forget_touched
from syncer.exchange.outgoing import (
    Identity,
    epochs,
    first_unuploaded,
    segment_objects,
)
from syncer.exchange.rows import MAX_EPOCH
from syncer.exchange.settling import Settling
from syncer.exchange.wire import (
    MAX_OBJECT_BYTES,
    decode_segment,
    log_folder,
    parse_span,
    segment_key,
)
from syncer.exchange.writers import RepositoryInfo
from syncer.metadata.connection import Reader
from syncer.metadata.db import Database
from syncer.metadata.epochs import Epochs
from syncer.remote.base import Remote

#: Changed keys per segment, at most (but for a single epoch that has more), and epochs.
_SEGMENT_KEYS = 50_000
_SEGMENT_EPOCHS = 4096


ReadyObjects = Callable[[Identity, int, int, str], list[tuple[str, bytes]]]
"""Of the epochs from one to another, behind a parent: as `segment_objects`, or nothing."""


@dataclass(frozen=True)
class Looks:
    """How to make sure who the writer is; what these raise is raised."""

    first: Callable[[], bool]
    """The look of step 2; false if the log is to be looked at first, since the remote was away."""
    keys: Callable[[], Collection[str]]
    """What step 4 looks for."""
    behind: Callable[[frozenset[str]], None]
    """Is given those that are there, and looks further where that is not clear."""


@dataclass(frozen=True)
class Publication:
    """A segment that is ready to be put: its objects with their keys, in the order of writing."""

    key: str
    first: int
    last: int
    objects: list[tuple[str, bytes]]
    is_whole: bool
    """Whether the remote has all blocks that it names."""

    @property
    def stored_bytes(self) -> int:
        return sum(len(data) for _key, data in self.objects)


class Publisher:
    """Makes one writer's segments. Used by one thread at a time."""

    def __init__(
        self,
        db: Database,
        epochs: Epochs,
        remote: Remote,
        info: RepositoryInfo,
        looks: Looks,
        journaled: Callable[[], int] = lambda: MAX_EPOCH,
        settling: Settling | None = None,
        ready_objects: ReadyObjects = lambda identity, first, last, parent: [],
        wait_uploaded: Callable[[], bool] = lambda: False,
    ) -> None:
        """`journaled` tells the newest epoch that may be published, and `ready_objects` gives a
        segment's objects if they have been made before: see `journal`. `settling` puts the
        objects, and is shared with whoever makes checkpoints. `wait_uploaded` waits until the
        remote has all blocks; false if that takes too long."""
        self._db = db
        self._epochs = epochs
        self._remote = remote
        self._info = info
        self._looks = looks
        self._wait_uploaded = wait_uploaded
        self._journaled = journaled
        self._ready_objects = ready_objects
        self._settling = settling or Settling(remote)
        self._checkpoints = Checkpoints(db, remote, info, self._settling)
        #: What recovery has to read besides the newest checkpoint.
        self.backlog = Backlog()
        #: A dirty block that the next epoch to be published names.
        self._missing_block: bytes | None = None
        #: Whether the remote has lost published segments, as of the last `adopt`.
        self.has_gap = False

    def newest_closed(self) -> int:
        """The newest closed epoch that is power-safe, its local blocks too.

        What others have seen must not be undone by a power cut here.
        """
        closed = self._epochs.open - 1
        durable: int = self._db.get_meta("durable", closed)
        return min(closed, durable)

    def publish(self, *, is_ahead: bool = False) -> bool:
        """Publish what is whole, as one segment; whether there was anything.

        With `is_ahead`, somebody waits for what is whole in a moment: begin with that.
        """
        if self._settling.has_lost():
            self.make_up_for_loss()
        publication = self._prepare(is_ahead)
        if publication is None:
            return False
        self._db.sync()
        if not self._looks.first():
            return False
        there = self._put(publication)
        if there is None:
            return False
        self._looks.behind(there)
        self._commit(publication.key, publication.last)
        self.backlog.add(publication.stored_bytes)
        return True

    def _put(self, publication: Publication) -> frozenset[str] | None:
        """The parts, in any order, then the head that names them; unless it does not get whole."""
        *parts, head = publication.objects
        self._settling.put_all(parts)
        return self._settling.place(
            *head, lambda: publication.is_whole or self._gets_whole(publication), self._looks.keys()
        )

    def _gets_whole(self, publication: Publication) -> bool:
        if not self._wait_uploaded():
            return False
        with self._db.snapshot() as reader:
            return first_unuploaded(reader, publication.first, publication.last) is None

    def _prepare(self, is_ahead: bool) -> Publication | None:
        first: int = self._db.get_meta("published") + 1
        closed = min(self.newest_closed(), self._journaled())
        if closed < first or (self._is_waiting() and not is_ahead):
            return None
        with self._db.snapshot() as reader:
            last = _last_of_segment(reader, first, closed)
            missing = first_unuploaded(reader, first, last)
            if missing is not None and not is_ahead:
                last, self._missing_block = missing[0] - 1, missing[1]
            if last < first:
                return None
            return self._encode(reader, first, last, is_whole=missing is None or not is_ahead)

    def _encode(self, reader: Reader, first: int, last: int, *, is_whole: bool) -> Publication:
        machine: int = self._db.get_meta("machine")
        identity = Identity(self._info.uuid, self._db.get_meta("generation"), machine)
        parent: str = self._db.get_meta("parent_segment")
        # Rows of closed epochs never change, so what was made of them stays right.
        objects = self._ready_objects(identity, first, last, parent) or segment_objects(
            reader, identity, first, last, parent, self._info.seed
        )
        return Publication(segment_key(machine, first, last), first, last, objects, is_whole)

    def _is_waiting(self) -> bool:
        """Whether what stopped the last attempt still does: spares looking at all rows again."""
        if self._missing_block is not None and not self._db.query_one(
            "SELECT 1 FROM block WHERE id = ? AND dirty IS NOT NULL", (self._missing_block,)
        ):
            self._missing_block = None
        return self._missing_block is not None

    def _commit(self, key: str, last: int) -> None:
        with self._db.transaction():
            forget_touched(self._db, self._db.get_meta("published") + 1, last)
            self._db.execute("DELETE FROM outbox WHERE epoch <= ?", (last,))
            self._db.set_meta("published", last)
            self._db.set_meta("parent_segment", key)

    def adopt(self, began_after: int = 0) -> bool:
        """Take note of own segments on the remote that a crash let this database forget.

        And see whether the remote has lost some, as after a restoration of its disk: `has_gap`;
        then a new checkpoint makes up for them. `began_after` is the last epoch before this
        generation. False if there are segments that this database would not have written.
        """
        published: int = self._db.get_meta("published")
        checkpoint: int = self._db.get_meta("checkpoint")
        self.backlog = Backlog(is_void=self.backlog.is_void)
        segments = self._own_segments()
        spans = [span for span, _size_bytes in segments]
        for span, size_bytes in segments:
            if span[1] > checkpoint:
                self.backlog.add(size_bytes)
            if span[1] > published and not self._take(span):
                return False
        self.has_gap = False
        if not _lead_to(published, {0}, spans):
            made = self._checkpoints.epochs()
            self.has_gap = not _lead_to(published, {began_after, *made}, spans)
            if self.has_gap or not _lead_to(published, made, spans):
                self.make_up_for_loss()
        return True

    def make_up_for_loss(self) -> None:
        """Have a new checkpoint made, which trusts nothing of the old ones."""
        self._checkpoints.start_over()
        self.backlog.is_void = True

    def heal(self) -> None:
        """Put anew the own segment that a crash let this database forget, if it is damaged.

        Only for a data directory that is no copy; nobody else could tell what was in it.
        """
        for span, _size_bytes in self._own_segments():
            first, last = span
            if first != self._db.get_meta("published") + 1 or last > self.newest_closed():
                continue
            try:
                self._take(span)
            except CorruptError:
                with self._db.snapshot() as reader:
                    if first_unuploaded(reader, first, last) is not None:
                        continue
                    publication = self._encode(reader, first, last, is_whole=True)
                self._put(publication)
                self._commit(publication.key, last)

    def count_until(self, end: int) -> None:
        """Count own segments up to epoch `end` as published: the next writer has seen them."""
        for span, _size_bytes in self._own_segments():
            if self._db.get_meta("published") < span[1] <= end:
                self._take(span)

    def _own_segments(self) -> list[tuple[tuple[int, int], int]]:
        """The (first, last) and stored bytes of all segments in this machine's log, in order."""
        entries = self._remote.list(log_folder(self._db.get_meta("machine")))
        found = ((parse_span(entry.name), entry.size_bytes) for entry in entries)
        return sorted((span, size_bytes) for span, size_bytes in found if span is not None)

    def _take(self, span: tuple[int, int]) -> bool:
        """Count a segment as published if it is what this database would publish next."""
        key = segment_key(self._db.get_meta("machine"), *span)
        data = self._remote.get(key, 0, MAX_OBJECT_BYTES + 1)
        segment = decode_segment(data, self._info.seed, key)
        with self._db.snapshot() as reader:
            mine = epochs(reader, segment.first, segment.last)
        is_own = (
            segment.uuid == self._info.uuid
            and segment.generation == self._db.get_meta("generation")
            and segment.parent == self._db.get_meta("parent_segment")
            and segment.first == self._db.get_meta("published") + 1
            and segment.last <= self.newest_closed()
            and segment.epochs == mine
        )
        if is_own:
            self._commit(key, segment.last)
        return is_own


def _lead_to(epoch: int, starts: set[int], spans: Sequence[tuple[int, int]]) -> bool:
    """Whether segments, given in order, go on from one of the starts up to an epoch."""
    reached = set(starts)
    for first, last in spans:
        if first - 1 in reached:
            reached.add(last)
    return epoch in reached


def _last_of_segment(reader: Reader, first: int, closed: int) -> int:
    """The last epoch of the next segment, so that it has about _SEGMENT_KEYS keys."""
    keys = 0
    for epoch, count in reader.query(
        "SELECT epoch, count(*) FROM outbox WHERE epoch BETWEEN ? AND ? GROUP BY epoch",
        (first, min(closed, first + _SEGMENT_EPOCHS - 1)),
    ):
        keys += count
        if keys >= _SEGMENT_KEYS:
            return int(epoch)
    return min(closed, first + _SEGMENT_EPOCHS - 1)
