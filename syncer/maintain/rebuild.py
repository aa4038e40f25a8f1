"""A new database in place of a damaged one, from the remote and the local segment files.

What the remote has published is the base: the newest checkpoint and the segments after it, as for
a clone. The local segment files (`exchange.journal`) go on from there, and their changes wait for
publication again. Local block files find their rows: dirty, where only unpublished epochs name
them, else clean.

**Whose it is.** The newest segment file says which machine of which generation wrote it. It is the
writer still if four things are so: the newest claim on the role is that machine's in that
generation; all marks of that machine on the remote (`exchange.identity`) are known here; a local
file has the epoch with which the remote's history ends, or after a take-over the one that says
where the files go on; and both say the same of this epoch. Then the remote's history is a beginning
of what is here. If another machine has claimed the role since, what is not published is a branch
that stays here: the base ends where the own generation does, and the role is "displaced". In every
other case (no files, or a remote that knows more of this machine than its files do, as with a
copied data directory), the database is that of a new machine, a follower; files of changes that do
not fit are kept in `segments/unfit-N`, and told as damage that is left.

**What is lost**: what was done in the seconds since the last round of the committer. Block files
that nothing names are given names in `lost+found` (`mending`).

The order, and what a crash after each step leaves:

1. a database is built beside the damaged one      litter, which the next attempt removes
2. it is whole, closed and synced                  likewise
3. the damaged one is renamed, it and its WAL      no database; the next attempt begins anew
4. the new one takes its name                      done
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from syncer import codec
from syncer.blocks.cache import Cache
from syncer.blocks.fetch import block_key
from syncer.codec import BLOCK_BYTES
from syncer.errors import CorruptError, FormatError, MissingError, SyncerError
from syncer.exchange.incoming import Touched, check_touched, insert_epochs, insert_rows
from syncer.exchange.journal import (
    PATCHES,
    read_head,
    read_marks,
    read_parent,
    read_patches,
    read_rows,
    spans,
)
from syncer.exchange.outgoing import Identity
from syncer.exchange.recover import build_at, note_follower, publish_file, remove_database
from syncer.exchange.rows import MAX_EPOCH, changed_keys, trim
from syncer.exchange.writers import (
    Chain,
    RepositoryInfo,
    Writers,
    new_machine,
    read_repository,
)
from syncer.maintain.findings import Progress
from syncer.maintain.named import named_with, note_named
from syncer.maintain.totals import recount
from syncer.metadata.connection import Reader, Row
from syncer.metadata.db import FILE_ENDS, Database
from syncer.metadata.node import node_base
from syncer.metadata.schema import REBUILT
from syncer.remote.base import Remote

_NODES_PER_MACHINE = 1 << 40


@dataclass
class Rebuilt:
    """What became of a data directory."""

    role: str = "follower"
    published: int = 0
    """The newest epoch that came from the remote."""
    newest: int = 0
    """The newest one of all."""
    dirty_blocks: int = 0
    unnamed_blocks: list[bytes] = field(default_factory=list)
    """Whole block files that nothing names."""
    problems: list[str] = field(default_factory=list)
    """What could not be used, in words."""
    kept: str = ""
    """Where the damaged database is."""
    set_aside: str = ""
    """Where changes are that do not fit the history, and that nobody else may have."""


@dataclass(frozen=True)
class Place:
    """The parts of a data directory."""

    database: Path
    segments: Path
    cache: Cache


def rebuild(
    place: Place, remote: Remote, name: str, progress: Progress, role: str | None = None
) -> Rebuilt | None:
    """Build the database anew, and put it in the place of the old one, which is kept.

    With `role`, only if it has that role, and everything fits; else None, and nothing is changed.
    `name` is what others call this machine. The caller holds the data directory's lock. Raises
    what reaching and reading the remote raises; then nothing is changed.
    """
    remote.check()
    info = read_repository(remote)
    path = place.database.with_name(f"{place.database.name}.rebuilt")
    done = Rebuilt()
    local = _Local(place.segments, info, done)
    writers = Writers(remote, info)
    chain = writers.look()
    if local.identity is not None:
        local.is_only = writers.marks(local.identity.machine) <= set(local.marks)
    progress("rebuilding: the server's history", 0, 0)
    try:
        _build(path, remote, info, local, chain, name, done)
        with contextlib.closing(Database(path)) as db:
            local.apply(db, done, progress)
            _finish(db, done)
            _take_pins(db, place.database, done)
            _adopt_blocks(db, place.cache, remote, info.seed, done, progress)
            with db.transaction():
                recount(db)
            db.sync()
        if role is not None and (done.role != role or done.problems):
            return None
        done.kept = put_in_place(path, place.database)
        _set_aside(place, local.unfit, done)
    finally:
        remove_database(path)
    return done


# Whose it is


def _build(
    path: Path,
    remote: Remote,
    info: RepositoryInfo,
    local: _Local,
    chain: Chain,
    name: str,
    done: Rebuilt,
) -> None:
    """The base at `path`, with machine, generation and role."""
    identity = local.identity
    if identity is not None:
        newest = chain.newest
        is_writer = (
            newest is not None
            and (newest.generation, newest.machine) == identity[1:]
            and local.is_only
        )
        until = None if is_writer else identity.generation
        is_known = any(
            link.generation == identity.generation and link.machine == identity.machine
            for link in chain.links
        )
        # Displaced, with nothing that only this machine has: a follower like any other.
        if is_known and (is_writer or local.goes_beyond(_end_of(chain, identity))):
            try:
                done.published = build_at(remote, info, identity.machine, path, until)
            except CorruptError as error:
                if is_writer:
                    raise
                done.problems.append(f"the history before the other writer is gone ({error})")
            else:
                if _continues(path, local, done.published):
                    done.role = "writer" if is_writer else "displaced"
                    with contextlib.closing(Database(path)) as db, db.transaction():
                        db.set_meta("generation", identity.generation)
                        db.set_meta("writer", identity.machine)
                        db.set_meta("role", done.role)
                        db.set_meta("marks", " ".join(local.marks))
                    return
                done.problems.append(
                    "the server's history is not that of the local segment files: this data"
                    " directory may be a copy, or an old one"
                )
    machine = new_machine(remote)
    done.published = build_at(remote, info, machine, path)
    if not done.published:
        raise MissingError(f"neither {remote.name} nor this computer has the collection's history")
    note_follower(remote, machine, name, 0)


def _end_of(chain: Chain, identity: Identity) -> int:
    for link in chain.links:
        if link.generation == identity.generation and link.end is not None:
            return link.end
    return 0


def _continues(path: Path, local: _Local, position: int) -> bool:
    """Whether the base ends with an epoch that the local files have, too, and just so."""
    with contextlib.closing(Database(path)) as db:
        row = epoch_row(db, position)
    return not position or (row is not None and row == local.epoch(position))


def epoch_row(db: Database, seq: int) -> Row | None:
    """An epoch's (machine, counter, time_ns); None if there is none."""
    return db.query_one("SELECT machine, counter, time_ns FROM epoch WHERE seq = ?", (seq,))


class _Local:
    """The local segment files."""

    def __init__(self, folder: Path, info: RepositoryInfo, done: Rebuilt) -> None:
        self._folder = folder
        self._seed = info.seed
        self._paths: list[tuple[int, int, Path]] = []
        #: Those that could not be used.
        self.unfit: list[Path] = []
        #: Of the newest file.
        self.identity: Identity | None = None
        self.marks = read_marks(folder)
        self._parent = read_parent(folder, info.seed)
        #: No other data directory has left a mark under the same machine id.
        self.is_only = True
        for first, last in spans(folder):
            path = folder / f"{first:016x}-{last:016x}"
            try:
                head = read_head(path, info.seed)
            except (CorruptError, FormatError) as error:
                done.problems.append(str(error))
                self.unfit.append(path)
                continue
            if head.uuid == info.uuid:
                self._paths.append((first, last, path))
                self.identity = Identity(head.uuid, head.generation, head.machine)

    def goes_beyond(self, epoch: int) -> bool:
        """Whether there is anything that no epoch up to this one has."""
        return any(last > epoch for _first, last, _path in self._paths) or self._has_patches()

    def _has_patches(self) -> bool:
        with contextlib.suppress(CorruptError):
            return bool(read_patches(self._folder, self._seed, MAX_EPOCH))
        return False

    def epoch(self, seq: int) -> tuple[int, int, int] | None:
        """The row of an epoch: (machine, counter, time_ns)."""
        for first, last, path in self._paths:
            if first <= seq <= last:
                found = read_head(path, self._seed).epochs[seq - first]
                return found.machine, found.counter, found.time_ns
        if self._parent is not None and self._parent.seq == seq:
            return self._parent.machine, self._parent.counter, self._parent.time_ns
        return None

    def apply(self, db: Database, done: Rebuilt, progress: Progress) -> None:
        """Add what is not published. A file that does not fit ends it, and is kept."""
        position = done.published
        for first, last, path in self._paths:
            if done.role == "follower":
                if self.epoch(last) != epoch_row(db, last):
                    self.unfit.append(path)
                continue
            if last <= position:
                continue
            if first > position + 1 or self.unfit_from(first):
                self.unfit.append(path)
                continue
            progress("rebuilding: what is not published", last, self._paths[-1][1])
            try:
                with db.transaction():
                    self._apply_one(db, path, position)
            except (CorruptError, FormatError) as error:
                done.problems.append(f"{path}: {error}")
                self.unfit.append(path)
                continue
            position = last
        done.newest = position
        if done.role != "follower":
            self._apply_patches(db, done)
        elif self._has_patches():
            self.unfit.append(self._folder / PATCHES)

    def unfit_from(self, first: int) -> bool:
        """Whether a file of an epoch at or before this one could not be used."""
        return any(int(path.name[:16], 16) <= first for path in self.unfit)

    def _apply_one(self, db: Database, path: Path, position: int) -> None:
        segment, parts = read_rows(path, self._seed)
        insert_epochs(db, [epoch for epoch in segment.epochs if epoch.seq > position])
        touched = Touched()
        for part in parts:
            rows = trim(part, position)
            insert_rows(db, rows)
            touched.add(rows)
            db.execute_many(
                "INSERT OR IGNORE INTO outbox VALUES(?, ?, ?)",
                (key for key in changed_keys(rows) if key[0] > position),
            )
        check_touched(db, touched)

    def _apply_patches(self, db: Database, done: Rebuilt) -> None:
        try:
            patches = read_patches(self._folder, self._seed, done.newest)
        except (CorruptError, FormatError) as error:
            done.problems.append(str(error))
            return
        with db.transaction():
            for patch in patches:
                if db.query_one(
                    "SELECT 1 FROM node WHERE id = ? AND mode & 61440 = 32768", (patch[0],)
                ):
                    db.execute("INSERT OR IGNORE INTO patch VALUES(?, ?, ?, ?, ?, ?)", patch)


def _finish(db: Database, done: Rebuilt) -> None:
    with db.transaction():
        machine: int = db.get_meta("machine")
        base = node_base(machine)
        newest = base
        for table in ("node", "node_past"):
            row = db.query_one(
                f"SELECT max(id) FROM {table} WHERE id BETWEEN ? AND ?",
                (base, base + _NODES_PER_MACHINE - 1),
            )
            newest = max(newest, row[0] or 0 if row else 0)
        db.set_meta("next_node", newest + 1)
        db.set_meta("durable", done.newest)
        db.set_meta("boot", REBUILT)


def _take_pins(db: Database, damaged: Path, done: Rebuilt) -> None:
    """Pins are nowhere else: take them from the damaged database, if it has them still."""
    try:
        with contextlib.closing(Database(damaged, must_exist=True)) as old:
            pins = old.query("SELECT seq, node FROM pin")
    except SyncerError:
        done.problems.append("pins, if there were any, are lost: pin again")
        return
    with db.transaction():
        db.execute_many("INSERT OR IGNORE INTO pin VALUES(?, ?)", pins)
        db.execute("DELETE FROM pin WHERE node NOT IN (SELECT id FROM node)")
        db.set_meta("pins_stale", 1)


# Block files


def _adopt_blocks(
    db: Database, cache: Cache, remote: Remote, seed: int, done: Rebuilt, progress: Progress
) -> None:
    """Give rows to the block files that contents name."""
    published = done.published if done.role != "follower" else done.newest
    with db.snapshot(spills=True) as reader:
        note_named(reader, published, lambda count: progress("rebuilding: contents", count, 0))
        for first_byte in range(256):
            progress("rebuilding: block files", first_byte, 256)
            rows = list(_rows_for(reader, cache, seed, first_byte, done))
            with db.transaction():
                db.execute_many(
                    "INSERT INTO block(id, size, dirty, refs, synced, used)"
                    " VALUES(?1, ?2, iif(?3, (SELECT 1 + coalesce(max(dirty), 0)"
                    " FROM block WHERE dirty IS NOT NULL), NULL), ?3, 1, 0)",
                    rows,
                )
            done.dirty_blocks += sum(row[2] for row in rows)
        missing = _missing(reader, cache, remote)
    for block_id in missing:
        done.problems.append(f"block {block_id.hex()} is neither here nor on the server")
    cache.sync_all()


def _rows_for(
    reader: Reader, cache: Cache, seed: int, first_byte: int, done: Rebuilt
) -> Iterator[tuple[bytes, int, int]]:
    """(id, bytes, whether the remote may lack it) of the files that are of use."""
    named = named_with(reader, first_byte)
    for block_id in cache.ids(first_byte):
        is_recent, _length = named.get(block_id, (True, 0))
        if not is_recent:
            # It is verified when it is first used.
            if 0 < (size_bytes := cache.size_bytes(block_id)) <= BLOCK_BYTES:
                yield block_id, size_bytes, 0
            continue
        content = cache.read(block_id, BLOCK_BYTES + 1)
        is_whole = 0 < len(content) <= BLOCK_BYTES and codec.block_id(content, seed) == block_id
        if not is_whole:
            done.problems.append(f"the local copy of block {block_id.hex()} is damaged")
        elif block_id in named:
            yield block_id, len(content), 1
        else:
            done.unnamed_blocks.append(block_id)


def _missing(reader: Reader, cache: Cache, remote: Remote) -> Iterator[bytes]:
    """Blocks that only unpublished epochs name, and that are nowhere."""
    found = []
    for (block_id,) in reader.query("SELECT id FROM named WHERE recent"):
        if not cache.has(block_id):
            try:
                remote.stat(block_key(block_id))
            except MissingError:
                found.append(block_id)
    return iter(found)


# Into its place


def put_in_place(source: Path, target: Path) -> str:
    """Let a database take the place of another, which is kept; returns what that is called now."""
    number = 1
    while os.path.lexists(kept := f"{target}.damaged-{number}"):
        number += 1
    _sync_file(source)
    # Its WAL must not be taken for the new one's; and without it, the file must not be found.
    for end in FILE_ENDS:
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{target}{end}", f"{kept}{end}")
    publish_file(source, target)
    return kept if os.path.lexists(kept) else ""


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _set_aside(place: Place, paths: list[Path], done: Rebuilt) -> None:
    """Move what has no place in this history to where neither journal nor cache look."""
    blocks = [] if done.role == "writer" else done.unnamed_blocks
    if not paths and not blocks:
        return
    number = 1
    while (aside := place.segments / f"unfit-{number}").exists():
        number += 1
    aside.mkdir(mode=0o700, parents=True)
    for path in paths:
        for found in place.segments.glob(f"{path.name}*"):
            os.rename(found, aside / found.name)
    for block_id in blocks:
        place.cache.move(block_id, aside / f"block-{block_id.hex()}")
    if paths:
        done.set_aside = str(aside)
    else:
        done.problems.append(f"blocks that nothing names are kept in {aside}")
