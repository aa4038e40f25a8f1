"""From the remote into a database: follow the writer, reload when that is not enough, clone."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from syncer.codec import split_ids
from syncer.errors import (
    AccessError,
    CorruptError,
    ExistsError,
    MissingError,
    TemporaryError,
)
from syncer.exchange.incoming import Touched, check_touched, check_tree, insert_epochs, insert_rows
from syncer.exchange.rows import TABLES
from syncer.exchange.wire import (
    MAX_OBJECT_BYTES,
    Segment,
    chunk_key,
    decode_chunk,
    decode_manifest,
    decode_part,
    decode_segment,
    log_folder,
    manifest_key,
    parse_epoch,
    parse_span,
    part_key,
    segment_key,
)
from syncer.exchange.writers import (
    Chain,
    Link,
    RepositoryInfo,
    Writers,
    new_machine,
    note_machine,
    read_repository,
    set_up_database,
)
from syncer.metadata.db import FILE_ENDS, Database
from syncer.metadata.pruning import prune
from syncer.remote.base import Remote

#: Called after others' changes were applied, under no lock; None: everything may have changed.
AppliedHook = Callable[[Touched | None], None]

#: Objects fetched at once, and how many may be in memory before they are needed.
_FETCHERS = 4
_FETCHED_AHEAD = 12
#: All parts of one segment together, as stored; they are in memory at once.
_MAX_SEGMENT_BYTES = 512 << 20
#: How often to look again when what was listed is gone before it is read.
_ATTEMPTS = 3
#: Chunks per transaction when a new database is filled, and transactions per copying of the WAL.
_CHUNKS_PER_TRANSACTION = 16


class BehindError(MissingError):
    """What comes next is not in the log any more: a checkpoint has to be loaded."""


class Follower:
    """Applies what the writers have published to a database. Used by one thread at a time.

    Reads the log first and the chain of writers after it: a segment that was there before
    anybody had claimed the next generation is one that the claimant sees as well, so it counts.
    """

    def __init__(
        self, db: Database, remote: Remote, info: RepositoryInfo, writers: Writers
    ) -> None:
        self._db = db
        self._remote = remote
        self._info = info
        self._writers = writers
        self._chain = Chain(None, ())
        #: Segments found that a displaced writer had published too late, by key.
        self.branches: set[str] = set()

    @property
    def last_link(self) -> Link | None:
        """The newest generation that has a start, as of the last look."""
        return self._chain.links[-1] if self._chain.links else None

    @property
    def writer_name(self) -> str:
        """Who may publish, as of the last look; "" if nobody."""
        return self._chain.newest.name if self._chain.newest else ""

    def follow(
        self, on_applied: Callable[[Touched], None] | None = None, *, as_claimant: bool = False
    ) -> bool:
        """Apply all segments that count and are not applied yet; whether there were any.

        With `on_applied`, each step is proved to leave a tree and reported. A claimant reads the
        former generation to its end, others stop while the role changes hands. Raises BehindError.
        """
        applied = False
        while True:
            link = self._chain.link_of(self._position() + 1)
            spans = self._list(link) if link else []
            chain = self._writers.look()
            if chain != self._chain:
                self._chain = chain
                continue
            if link is None:
                return applied
            if link.end is None and chain.is_changing_hands and not as_claimant:
                return applied
            keys = self._next(link, spans)
            if not keys:
                return applied
            self._apply_all(link, keys, on_applied)
            applied = True

    def _position(self) -> int:
        return int(self._db.get_meta("published"))

    def _list(self, link: Link) -> list[tuple[int, int]]:
        names = (entry.name for entry in self._remote.list(log_folder(link.machine)))
        return sorted(span for name in names if (span := parse_span(name)) is not None)

    def _next(self, link: Link, spans: list[tuple[int, int]]) -> list[str]:
        """The keys of the segments to apply, from those that are in a generation's log."""
        position = self._position()
        if position > link.after and self._db.get_meta("generation") != link.generation:
            raise BehindError("a segment is gone from the log")
        keys: list[str] = []
        for first, last in spans:
            key = segment_key(link.machine, first, last)
            if link.end is not None and last > link.end:
                if first > link.after:
                    self.branches.add(key)
            elif first == position + 1:
                keys.append(key)
                position = last
            elif last > position:
                raise BehindError("a segment is gone from the log")
        if link.end is not None and position < link.end:
            raise BehindError("a segment is gone from the log")
        return keys

    def _apply_all(
        self, link: Link, keys: list[str], on_applied: Callable[[Touched], None] | None
    ) -> None:
        try:
            with contextlib.closing(fetch_ahead(self._remote, keys)) as fetched:
                for key, data in fetched:
                    segment = decode_segment(data, self._info.seed, key)
                    parts = self._parts(key, segment)
                    touched = self._apply(link, key, segment, parts, check=on_applied is not None)
                    if on_applied is not None:
                        on_applied(touched)
        except MissingError as error:
            raise BehindError("a segment is gone from the log") from error

    def _parts(self, key: str, segment: Segment) -> list[bytes]:
        parts: list[bytes] = []
        size_bytes = 0
        part_keys = [part_key(key, number) for number in range(1, len(segment.parts) + 1)]
        with contextlib.closing(fetch_ahead(self._remote, part_keys)) as fetched:
            for _key, data in fetched:
                size_bytes += len(data)
                if size_bytes > _MAX_SEGMENT_BYTES:
                    raise CorruptError(f"{key} is damaged: its parts are too large")
                parts.append(data)
        return parts

    def _apply(
        self, link: Link, key: str, segment: Segment, parts: list[bytes], *, check: bool
    ) -> Touched:
        touched = Touched()
        with _naming(key), self._db.transaction():
            self._check_link(link, segment)
            insert_epochs(self._db, segment.epochs)
            insert_rows(self._db, segment.rows)
            touched.add(segment.rows)
            for number, data in enumerate(parts, 1):
                rows = decode_part(data, self._info.seed, segment, number)
                insert_rows(self._db, rows)
                touched.add(rows)
            if check:
                check_touched(self._db, touched)
            set_position(self._db, link, segment.last, key)
        return touched

    def _check_link(self, link: Link, segment: Segment) -> None:
        if segment.uuid != self._info.uuid:
            raise CorruptError("it belongs to another repository")
        if segment.generation != link.generation:
            raise CorruptError("it belongs to another generation")
        if segment.parent != self._db.get_meta("parent_segment"):
            raise CorruptError("it does not continue the segment before it")


def set_position(db: Database, link: Link, epoch: int, key: str) -> None:
    """Note up to where the history is applied. In the transaction that applies it."""
    db.set_meta("published", epoch)
    db.set_meta("parent_segment", key)
    db.set_meta("generation", link.generation)
    db.set_meta("writer", link.machine)


def fetch_ahead(remote: Remote, keys: Iterable[str]) -> Generator[tuple[str, bytes], None, None]:
    """Objects in the order of their keys, the next ones fetched meanwhile.

    Raises CorruptError for one that is longer than any of ours.
    """
    waiting = iter(keys)
    with concurrent.futures.ThreadPoolExecutor(_FETCHERS, "syncer-recover") as pool:
        fetches: deque[tuple[str, concurrent.futures.Future[bytes]]] = deque()
        try:
            while True:
                for key in waiting:
                    fetch = pool.submit(remote.get, key, 0, MAX_OBJECT_BYTES + 1)
                    fetches.append((key, fetch))
                    if len(fetches) >= _FETCHED_AHEAD:
                        break
                if not fetches:
                    return
                key, fetch = fetches.popleft()
                data = fetch.result()
                if len(data) > MAX_OBJECT_BYTES:
                    raise CorruptError(f"{key} is damaged: it is too long")
                yield key, data
        finally:
            for _key, fetch in fetches:
                fetch.cancel()


@contextlib.contextmanager
def _naming(key: str) -> Iterator[None]:
    try:
        yield
    except CorruptError as error:
        text = str(error)
        raise CorruptError(text if key in text else f"{key} is damaged: {text}") from error


def clone(remote: Remote, path: Path, name: str) -> RepositoryInfo:
    """Make at `path` the database of a new machine (called `name`), a follower, from the remote.

    It is built beside `path` and takes its name when complete, so that a crash leaves none.
    Raises ExistsError if `path` exists, and what `build` and `read_repository` raise.
    """
    if path.exists():
        raise ExistsError(f"{path} exists already")
    info = read_repository(remote)
    machine = new_machine(remote)
    build(remote, info, machine, path)
    note_follower(remote, machine, name, 0)
    return info


def note_follower(remote: Remote, machine: int, name: str, published: int) -> None:
    """Tell the other machines that this follower exists, if the remote lets it.

    One that may not write there, or finds no room, is still good for reading.
    """
    with contextlib.suppress(AccessError, TemporaryError):
        note_machine(remote, machine, name, "follower", published)


def build(remote: Remote, info: RepositoryInfo, machine: int, path: Path) -> None:
    """Build the database of a follower at `path`, in one step for whoever looks.

    Raises MissingError if nothing was published yet, CorruptError if neither a checkpoint nor
    the whole log leads to the newest epoch.
    """
    unfinished = path.with_name(f"{path.name}.new")
    try:
        if not build_at(remote, info, machine, unfinished):
            raise MissingError(f"nothing was uploaded to the repository in {remote.name} yet")
        publish_file(unfinished, path)
    finally:
        remove_database(unfinished)


def build_at(
    remote: Remote, info: RepositoryInfo, machine: int, path: Path, until: int | None = None
) -> int:
    """Build a follower's database at `path`, in place of what is there; returns its newest epoch.

    With `until`, of the generations up to that one. Raises CorruptError as `build`.
    """
    for _ in range(_ATTEMPTS - 1):
        # Perhaps the writer has just deleted what was listed, in favour of something newer.
        with contextlib.suppress(MissingError):
            return _build_once(remote, info, machine, path, until)
    try:
        return _build_once(remote, info, machine, path, until)
    except MissingError as error:
        raise CorruptError(f"{remote.name} lacks a part of the history: {error}") from error


def _build_once(
    remote: Remote, info: RepositoryInfo, machine: int, path: Path, until: int | None
) -> int:
    """Try the checkpoints, newest first, and the log from its beginning as the last resort."""
    writers = Writers(remote, info, until)
    found = _find_checkpoints(remote, writers.look())
    # With the checkpoint gone there must still be a way to where it was; or else what is lost
    # would look as if it had never been.
    newest = found[0].epoch if found else 0
    failure: CorruptError | MissingError | None = None
    for checkpoint in (*found, None):
        remove_database(path)
        try:
            with contextlib.closing(Database(path)) as db:
                set_up_database(db, info, machine, "follower")
                if checkpoint is not None:
                    _load(db, remote, info, checkpoint)
                Follower(db, remote, info, writers).follow()
                check_tree(db)
                prune(db)
                published: int = db.get_meta("published")
                if published < newest:
                    raise BehindError("the log ends before a checkpoint that can't be read")
            return published
        except (CorruptError, MissingError) as error:
            # What is wrong with the newest one says the most.
            failure = failure or error
    assert failure is not None
    raise failure


class _Checkpoint(NamedTuple):
    epoch: int
    key: str
    #: Who wrote the epoch, and so made the checkpoint.
    link: Link


def _find_checkpoints(remote: Remote, chain: Chain) -> list[_Checkpoint]:
    """All checkpoints on the chain, newest epoch first."""
    found: list[_Checkpoint] = []
    for machine in {link.machine for link in chain.links}:
        for entry in remote.list(f"checkpoint/{machine:016x}"):
            epoch = parse_epoch(entry.name) or 0
            link = chain.link_of(epoch)
            # One behind the end of its maker's generation is of a branch.
            if link is not None and link.machine == machine:
                found.append(_Checkpoint(epoch, manifest_key(machine, epoch), link))
    return sorted(found, reverse=True)


def _load(db: Database, remote: Remote, info: RepositoryInfo, checkpoint: _Checkpoint) -> None:
    """Fill an empty database from a checkpoint."""
    key, link = checkpoint.key, checkpoint.link
    manifest = decode_manifest(remote.get(key, 0, MAX_OBJECT_BYTES + 1), info.seed, key)
    if (manifest.uuid, manifest.generation) != (info.uuid, link.generation):
        raise CorruptError(f"{key} belongs to another repository or generation")
    wanted = [
        (number, chunk_id)
        for number, ids in sorted(manifest.chunks.items())
        for chunk_id in split_ids(ids)
    ]
    keys = [chunk_key(manifest.machine, chunk_id) for _number, chunk_id in wanted]
    with contextlib.closing(fetch_ahead(remote, keys)) as fetched:
        for start in range(0, len(wanted), _CHUNKS_PER_TRANSACTION):
            with db.transaction():
                batch = wanted[start : start + _CHUNKS_PER_TRANSACTION]
                for (number, chunk_id), (chunk, data) in zip(batch, fetched, strict=False):
                    with _naming(chunk):
                        epochs, rows = decode_chunk(data, info.seed, manifest, number, chunk_id)
                        insert_epochs(db, epochs)
                        insert_rows(db, rows)
            # Otherwise the WAL grows as large as the database.
            db.checkpoint()
    with db.transaction():
        set_position(db, link, manifest.epoch, manifest.parent)


def reload(
    db: Database, remote: Remote, info: RepositoryInfo, also: Callable[[], None] = lambda: None
) -> None:
    """Replace all that a follower's database knows by what the remote has now.

    A database is built beside it and then copied in one transaction, in which `also` is called.
    Raises CorruptError if the remote has less than this database; which then stays as it is.
    """
    fresh = db.path.with_name(f"{db.path.name}.fresh")
    remove_database(fresh)
    build(remote, info, db.get_meta("machine"), fresh)
    try:
        with db.attached(fresh, "fresh"), db.transaction():
            _copy_from_fresh(db)
            also()
    finally:
        remove_database(fresh)


def _copy_from_fresh(db: Database) -> None:
    position = db.query_one("SELECT value FROM fresh.meta WHERE key = 'published'")
    if position is None or position[0] < db.get_meta("published"):
        raise CorruptError("the remote has lost a part of the history that this machine knows")
    for name in ("epoch", *(f"{table.name}{end}" for table in TABLES for end in ("", "_past"))):
        db.execute(f"DELETE FROM main.{name}")
        db.execute(f"INSERT INTO main.{name} SELECT * FROM fresh.{name}")
    db.execute("DELETE FROM main.chunk")
    db.execute(
        "UPDATE main.usage SET (nodes, file_bytes, inline_bytes) ="
        " (SELECT nodes, file_bytes, inline_bytes FROM fresh.usage)"
    )
    db.execute(
        "INSERT OR REPLACE INTO main.meta SELECT key, value FROM fresh.meta"
        " WHERE key IN ('published', 'parent_segment', 'generation', 'writer', 'pruned')"
    )


def remove_database(path: Path) -> None:
    """Remove a database file and what SQLite keeps beside it."""
    for end in FILE_ENDS:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}{end}")


def publish_file(source: Path, target: Path) -> None:
    """Sync a file, and let it take its name for good."""
    _sync(source)
    os.replace(source, target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
