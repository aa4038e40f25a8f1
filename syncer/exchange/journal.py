"""What is not published yet, once more: local segment files beside the database.

If the database is damaged, a new one is made of what the remote has and of these files
(`maintain.rebuild`). They are written in the committer's round, in the form of segments:

    <folder>/<first>-<last>       what began or ended in these epochs, as in the log
    <folder>/<first>-<last>.1     further parts of it
    <folder>/patches              the rows of table `patch`, as of the newest epochs
    <folder>/marks                the marks that this data directory knows as its own: `identity`
    <folder>/parent               the row of the epoch from which on the files go on, after a
                                  take-over: no file has that

One round, and what a crash after each step leaves:

1. the database is synced, up to the        these epochs are safe in the database; the next start's
   epochs that the files are to have        first round writes their files
2. `patches`, with what goes with the       both; a reader takes those of the epochs that it has
   newest files now, and with the next
3. the parts, then the head, each under     litter that the next start removes
   another name, synced, and renamed
4. the folder is synced                     the database and the files say the same
5. files that are published, or whose       some are left. They say what others say, and readers
   epochs a later one has, are removed      leave out what they know

So the database is never behind the files. If it is, somebody has put an old one in its place.

An epoch is published only after its file is there, and the newest file that is published stays:
it proves later that the remote's history is this machine's, up to its end. A new writer has none
that is published, so the row of the epoch before its first one is kept instead. If files can't be
written, as on a full disk, publishing goes on all the same; the remote is the better copy.

A week without the server makes an epoch every four seconds. So where the newest files are many and
of one size they become one, and each row is written anew but a few times, as in a log-structured
merge tree.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]

from syncer.codec import decode_envelope, encode_envelope
from syncer.errors import CorruptError, FormatError, LocalFullError, PermanentError
from syncer.exchange.outgoing import Identity, segment_objects
from syncer.exchange.rows import MAX_EPOCH, Rows
from syncer.exchange.wire import (
    MAX_OBJECT_BYTES,
    MAX_PAYLOAD_BYTES,
    Epoch,
    Segment,
    check_part,
    decode_part,
    decode_segment,
    parse_span,
    part_key,
    segment_key,
    with_parent,
)
from syncer.metadata.connection import Reader
from syncer.metadata.db import Database

log = logging.getLogger(__name__)

#: So many of the newest files, each no larger than twice the later ones together, become one.
_MERGED_FILES = 16
PATCHES = "patches"
_MARKS = "marks"
_PARENT = "parent"
_LENGTH = struct.Struct("<I")
_SECTION = struct.Struct("<QQ")
"""Of a section in `patches`: the epoch from which on it is right, and its bytes."""

Patch = tuple[int, int, int, bytes, int, int]
"""A row of table `patch`."""


@dataclass(frozen=True)
class _File:
    first: int
    last: int
    stored_bytes: int
    parts: int


class Journal:
    """The files of one data directory. `write` is for one thread at a time."""

    def __init__(self, db: Database, folder: Path) -> None:
        """Make the folder, and remove the litter that a crash left.

        Raises CorruptError if the files know epochs that the database does not.
        """
        self._db = db
        self._folder = folder
        folder.mkdir(mode=0o700, exist_ok=True)
        self._files = _tidy(folder)
        #: None: not known to be that of the newest file, so the next one is written anew.
        self._identity: Identity | None = None
        #: The epoch that `parent` has, as far as this process knows.
        self._parent = 0
        self._patches: dict[int, bytes] = {}
        #: What `patches` holds: those above each of these epochs.
        self._sections: dict[int, bytes] = {}
        with contextlib.suppress(CorruptError):
            self._sections = _read_sections(folder)
        self._has_failed = False
        #: What the last call saw: with the same again there is nothing to do.
        self._state: tuple[object, ...] | None = None
        row = db.query_one("SELECT max(seq) FROM epoch")
        is_ahead = bool(self._files) and self._last() > (row[0] or 0 if row else 0)
        if is_ahead and not self._are_over():
            raise CorruptError(f"the database {db.path} is older than {folder}")

    def _are_over(self) -> bool:
        """Whether the files are of a generation before that of the database, and not needed."""
        identity = self._read_identity()
        return identity is not None and identity.generation < self._db.get_meta("generation")

    def newest(self) -> int:
        """The newest epoch that may be published."""
        return MAX_EPOCH if self._has_failed else self._last()

    def objects(
        self, identity: Identity, first: int, last: int, parent: str
    ) -> list[tuple[str, bytes]]:
        """What `segment_objects` would make of these epochs, where a file has just them; else none.

        Spares reading all their rows once more. By another thread than that of `write`, which may
        remove the file meanwhile.
        """
        seed: int = self._db.get_meta("seed")
        key = segment_key(identity.machine, first, last)
        path = self._folder / _name(first, last)
        with contextlib.suppress(CorruptError, FormatError):
            head, digests = with_parent(_read(path), seed, (*identity, first, last), parent)
            objects = []
            for number, expected in enumerate(digests, 1):
                part = _read(path.with_name(part_key(path.name, number)))
                check_part(part, seed, expected)
                objects.append((part_key(key, number), part))
            return [*objects, (key, head)]
        return []

    def _last(self) -> int:
        return self._files[-1].last if self._files else 0

    def write(self, closed: int) -> None:
        """Have files of all epochs up to `closed` that are not published.

        Raises LocalFullError or PermanentError; the next call makes up for it.
        """
        state = (
            closed,
            self._db.get_meta("published"),
            self._db.query_one("SELECT count(*), total(length(data)), max(mtime_ns) FROM patch"),
        )
        if state == self._state and not self._has_failed:
            return
        try:
            with self._db.snapshot() as reader:
                self._write_patches(reader, closed)
                self._write_epochs(reader, closed)
            self._state = state
            self._has_failed = False
        except OSError as error:
            self._has_failed = True
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            kind = LocalFullError if is_full else PermanentError
            raise kind(f"{self._folder}: {error.strerror}") from error
        except BaseException:
            self._has_failed = True
            raise

    def note_marks(self, tokens: str) -> None:
        """Keep the marks that are known, before a new one is left on the remote.

        By another thread than that of `write`. A failure costs a rebuilt database its machine id.
        """
        try:
            self._put([(_MARKS, tokens.encode())])
        except OSError as error:
            log.warning("%s: %s", self._folder, error.strerror)

    def _write_epochs(self, reader: Reader, closed: int) -> None:
        values: dict[str, Any] = dict(reader.query("SELECT key, value FROM meta"))
        published: int = values["published"]
        identity = Identity(values["uuid"], values["generation"], values["machine"])
        if identity != self._identity and self._files:
            if self._identity is not None or self._read_identity() != identity:
                # What is not published is another machine's now, or another generation's.
                self._remove(self._files)
                self._files = []
        self._identity = identity
        first = max(published, self._last()) + 1
        if first <= closed:
            replaced = self._to_merge(published)
            if replaced:
                first = max(published + 1, replaced[0].first)
            self._note_parent(reader, published, values["seed"])
            objects = segment_objects(reader, identity, first, closed, "", values["seed"])
            self._put(objects)
            kept = self._files[: len(self._files) - len(replaced)]
            size_bytes = sum(len(data) for _key, data in objects)
            self._files = [*kept, _File(first, closed, size_bytes, len(objects) - 1)]
            self._remove(replaced)
        over = [file for file in self._files[:-1] if file.last <= published]
        # The newest published one stays, as the proof that the history is ours.
        self._remove(over[:-1])
        self._files = [file for file in self._files if file not in over[:-1]]

    def _note_parent(self, reader: Reader, epoch: int, seed: int) -> None:
        """Keep the row of the newest published epoch, unless a file has it."""
        if epoch in (0, self._parent) or any(
            file.first <= epoch <= file.last for file in self._files
        ):
            return
        for row in reader.query(
            "SELECT seq, machine, counter, time_ns FROM epoch WHERE seq = ?", (epoch,)
        ):
            self._put([(_PARENT, encode_envelope(b"PRNT", msgpack.packb(row), seed))])
        self._parent = epoch

    def _read_identity(self) -> Identity | None:
        newest = self._files[-1]
        with contextlib.suppress(CorruptError, FormatError, OSError):
            seed: int = self._db.get_meta("seed")
            segment = read_head(self._folder / _name(newest.first, newest.last), seed)
            return Identity(segment.uuid, segment.generation, segment.machine)
        return None

    def _to_merge(self, published: int) -> list[_File]:
        """The newest files that the next one is to replace."""
        found: list[_File] = []
        total = 0
        for file in reversed(self._files):
            if file.last <= published or (found and file.stored_bytes > 2 * total):
                break
            found.insert(0, file)
            total += file.stored_bytes
        return found if len(found) >= _MERGED_FILES else []

    def _put(self, objects: list[tuple[str, bytes]]) -> None:
        for key, data in objects:
            self._write_file(key.rpartition("/")[2], data)
        _sync_folder(self._folder)

    def _write_file(self, name: str, data: bytes) -> None:
        temporary = self._folder / f"{name}.tmp"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, self._folder / name)

    def _remove(self, files: list[_File]) -> None:
        for file in files:
            name = _name(file.first, file.last)
            # The head first: without it nobody looks at the parts.
            for end in ("", *(f".{part}" for part in range(1, file.parts + 1))):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._folder / f"{name}{end}")

    def _write_patches(self, reader: Reader, closed: int) -> None:
        """The patches over what the files have: of what has changed since, those of the last
        round, which are of that state."""
        rows: dict[int, list[Patch]] = {}
        for row in reader.query(
            "SELECT node, seq, offset, data, size, mtime_ns FROM patch ORDER BY node, seq"
        ):
            rows.setdefault(row[0], []).append(row)
        changed = {
            row[0]
            for row in reader.query(
                "SELECT DISTINCT node FROM outbox WHERE epoch > ? AND name = x''", (closed,)
            )
        }
        seed: int = self._db.get_meta("seed")
        kept = {node: data for node, data in self._patches.items() if node in changed}
        fresh = {
            node: encode_envelope(b"PTCH", msgpack.packb(patches), seed)
            for node, patches in rows.items()
            if node not in changed
        }
        self._patches = {**fresh, **kept}
        self._put_patches(
            closed, b"".join(_LENGTH.pack(len(one)) + one for one in self._patches.values())
        )

    def _put_patches(self, closed: int, data: bytes) -> None:
        """Have the patches above epoch `closed` in the file, beside those above the newest file."""
        before = max((epoch for epoch in self._sections if epoch <= self._last()), default=0)
        former = self._sections.get(before, b"")
        sections = {before: former} if former or data else {}
        if data != former:
            sections[closed] = data
        if sections != self._sections:
            parts = (_SECTION.pack(key, len(one)) + one for key, one in sections.items())
            self._put([(PATCHES, b"".join(parts))])
            self._sections = sections


def _name(first: int, last: int) -> str:
    return f"{first:016x}-{last:016x}"


def _tidy(folder: Path) -> list[_File]:
    """The files in the order of their epochs, without those that others contain; litter goes."""
    names = {path.name: path for path in folder.iterdir()}
    spans = sorted(
        (span for name in names if (span := parse_span(name)) is not None),
        key=lambda span: (span[0], -span[1]),
    )
    files: list[_File] = []
    for first, last in spans:
        name = _name(first, last)
        parts = [found for found in names if re.fullmatch(rf"{name}\.[0-9]+", found)]
        if files and last <= files[-1].last:
            for found in (name, *parts):
                names[found].unlink()
            continue
        size_bytes = sum(names[found].stat().st_size for found in (name, *parts))
        files.append(_File(first, last, size_bytes, len(parts)))
    heads = {_name(file.first, file.last) for file in files}
    for name, path in names.items():
        head = name.partition(".")[0]
        if name.endswith(".tmp") or (parse_span(head) is not None and head not in heads):
            path.unlink(missing_ok=True)
    return files


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Reading, for a rebuilding


def spans(folder: Path) -> list[tuple[int, int]]:
    """The (first, last) of all files, those that begin earlier and end later first."""
    if not folder.is_dir():
        return []
    found = (parse_span(path.name) for path in folder.iterdir())
    return sorted((span for span in found if span), key=lambda span: (span[0], -span[1]))


def read_head(path: Path, seed: int) -> Segment:
    """The head of a local segment. Raises CorruptError, FormatError."""
    span = parse_span(path.name)
    data = _read(path)
    if span is None or len(data) < 40:
        raise CorruptError(f"{path} is damaged")
    # Whose it is stands in it, and the key that it is compared with names the machine.
    payload = decode_envelope(b"SEGM", data, seed, MAX_PAYLOAD_BYTES)
    with contextlib.suppress(ValueError, TypeError, IndexError):
        machine = msgpack.unpackb(payload, max_map_len=0, max_ext_len=0)[2]
        if isinstance(machine, int) and machine >= 0:
            return decode_segment(data, seed, segment_key(machine, *span))
    raise CorruptError(f"{path} is damaged")


def read_rows(path: Path, seed: int) -> tuple[Segment, Iterator[Rows]]:
    """A local segment, and its rows: those of the head, then of each part; as `read_head`."""
    segment = read_head(path, seed)

    def rows() -> Iterator[Rows]:
        yield segment.rows
        for number in range(1, len(segment.parts) + 1):
            yield decode_part(_read(path.with_name(f"{path.name}.{number}")), seed, segment, number)

    return segment, rows()


def read_marks(folder: Path) -> list[str]:
    """The marks that were known."""
    try:
        return (folder / _MARKS).read_text(errors="replace").split()
    except OSError:
        return []


def read_parent(folder: Path, seed: int) -> Epoch | None:
    """The epoch from which on the files go on, where none of them has it."""
    with contextlib.suppress(CorruptError, ValueError, TypeError):
        payload = decode_envelope(b"PRNT", _read(folder / _PARENT), seed, MAX_PAYLOAD_BYTES)
        return Epoch(*msgpack.unpackb(payload))
    return None


def read_patches(folder: Path, seed: int, newest: int) -> list[Patch]:
    """All rows of table `patch` above an epoch, the newest one there is; as `read_head`."""
    sections = _read_sections(folder)
    data = sections.get(max((epoch for epoch in sections if epoch <= newest), default=0), b"")
    found: list[Patch] = []
    while data:
        if len(data) < _LENGTH.size:
            raise CorruptError(f"{folder / PATCHES} is damaged")
        end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
        payload = decode_envelope(b"PTCH", data[_LENGTH.size : end], seed, MAX_PAYLOAD_BYTES)
        found += [tuple(row) for row in msgpack.unpackb(payload)]
        data = data[end:]
    return found


def _read_sections(folder: Path) -> dict[int, bytes]:
    path = folder / PATCHES
    data = path.read_bytes() if path.exists() else b""
    found: dict[int, bytes] = {}
    while data:
        if len(data) < _SECTION.size:
            raise CorruptError(f"{path} is damaged")
        epoch, size_bytes = _SECTION.unpack_from(data)
        section = data[_SECTION.size : _SECTION.size + size_bytes]
        if len(section) < size_bytes:
            raise CorruptError(f"{path} is damaged")
        found[epoch] = section
        data = data[_SECTION.size + size_bytes :]
    return found


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_OBJECT_BYTES + 1)
    except OSError as error:
        raise CorruptError(f"{path} can't be read: {error.strerror}") from error
