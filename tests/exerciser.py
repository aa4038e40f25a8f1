"""Random operations on a few files, against a copy of them in memory; in the manner of fsx.

    python -m tests.exerciser FOLDER --seed 5 --operations 100000

Every way in which a program changes or sees a file's bytes, in a random order: reads, writes,
appends, truncations, maps, holes, copies of stretches, several handles on one file, second names,
files that are removed or replaced while they are open, closing and opening again; at offsets around
the edges of what syncer handles differently. What is read must be what was written last.

A seed and a number of operations determine a run. With `--begin N` the operations before number N
happen in memory only; then the files are made as they must be by then, and the run goes on from
there: so a long run can be resumed, and a failure be reached without all that came before it.

It knows nothing of syncer: run it on any file system to see that it is right about POSIX.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import errno
import mmap
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KIB, MIB = 1 << 10, 1 << 20
MAX_BYTES = 3 * MIB + 70 * KIB
"""No file grows beyond this."""
_MAX_FILES = 3
_NAMES = ("a", "b", "c", "d", "e")
#: Where something else begins in syncer: inline files, pages, pieces, patches, blocks.
_EDGES = (0, 4 * KIB, 64 * KIB, 128 * KIB, MIB - 64 * KIB, MIB, MIB + 4 * KIB, 2 * MIB, 3 * MIB)
_LENGTHS = (1, 7, 128, 512, 4 * KIB, 5000, 64 * KIB, 64 * KIB + 1, 200_000, MIB, MIB + 5000)
_SHOWN_OPERATIONS = 40
_REMEMBERED_OPERATIONS = 2000

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16
_RENAME_EXCHANGE = 2
_WRITE_AND_WAIT = 1 | 2 | 4
_AT_FDCWD = -100
_PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)


class MismatchError(AssertionError):
    """The file system gave something else than what was written; the text says all about it."""


@dataclass(eq=False)
class File:
    """What a file must be."""

    number: int
    content: bytearray = field(default_factory=bytearray)
    names: list[str] = field(default_factory=list)
    was_linked: bool = False
    """It has had several names since it was mounted."""
    has_mapped_changes: bool = False
    """Changed by a map, and perhaps not written back yet."""

    def write(self, offset: int, data: bytes) -> None:
        self.content.extend(bytes(max(0, offset - len(self.content))))
        self.content[offset : offset + len(data)] = data

    def resize(self, size: int) -> None:
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))


@dataclass(eq=False)
class Handle:
    """One open descriptor, and perhaps a map of the file."""

    number: int
    file: File
    flags: int
    was_linked: bool
    """The file had several names when it was opened."""
    descriptor: int = -1
    map: mmap.mmap | None = None
    map_start: int = 0

    @property
    def reads(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writes(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    @property
    def appends(self) -> bool:
        return bool(self.flags & os.O_APPEND)

    def unmap(self) -> None:
        if self.map is not None:
            self.map.close()
            self.map = None

    def close(self) -> None:
        self.unmap()
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


@dataclass(frozen=True)
class Place:
    """The file system under test, and what it can't do."""

    folder: Path
    has_ranges: bool = True
    """fallocate, and renameat2 with flags."""
    has_direct: bool = True
    """O_DIRECT at any offset."""
    links_are_one: bool = True
    """All names of a file are one to the kernel: maps and `copy_file_range` too see the size."""
    copies_linked: bool = True
    """`copy_file_range` from a file that has had several names reads nothing that is too old."""
    joins_links: bool = True
    """Handles from before a file got a second name see what is changed by that name."""
    shows_linked_size: bool = True
    """`stat` by one name shows at once how a change by another one has moved the end."""
    keeps_grown_pages: bool = True
    """A page that is changed by a map and grown by write(2) is whole, though it is written back
    meanwhile."""
    drop_caches: Callable[[], None] | None = None
    """Empties the file system's local copies."""
    remount: Callable[[], None] | None = None


class Exerciser:
    """One run. Use `run`; `close` at the end."""

    def __init__(self, place: Place, seed: int, *, begin: int = 0) -> None:
        self.place = place
        self.seed = seed
        self.done = 0
        self._begin = begin
        self._random = random.Random(seed)
        self._names: dict[str, File] = {}
        self._handles: list[Handle] = []
        self._numbers = 0
        self._stamp = 0
        #: (number, text, file's number, first byte, byte behind the last)
        self._log: collections.deque[tuple[int, str, int, int, int]] = collections.deque(
            maxlen=_REMEMBERED_OPERATIONS
        )
        self._is_real = begin == 0
        self._operations, self._weights = self._choices()

    def _choices(self) -> tuple[list[Callable[[], None]], list[float]]:
        table: dict[Callable[[], None], float] = {
            self._read: 20,
            self._write: 20,
            self._append: 3,
            self._truncate: 6,
            self._read_map: 4,
            self._write_map: 6,
            self._sync_map: 2,
            self._copy: 6,
            self._sync: 2,
            self._open: 6,
            self._close: 5,
            self._look: 6,
            self._read_whole: 2,
            self._create: 2,
            self._unlink: 1,
            self._rename: 2,
            self._link: 1,
        }
        if self.place.has_ranges:
            table |= {self._punch: 5, self._zero: 4, self._allocate: 3, self._exchange: 1}
        if self.place.drop_caches:
            table[self._drop_caches] = 0.1
        if self.place.remount:
            table[self._remount] = 0.02
        return list(table), list(table.values())

    # Running

    def run(self, operations: int) -> None:
        """Do so many operations more, and compare all at the end. Raises MismatchError."""
        for _ in range(operations):
            self.step()
        self.check_all()

    def step(self) -> None:
        """One operation."""
        if not self._is_real and self.done >= self._begin:
            self._make_real()
        operation = self._random.choices(self._operations, self._weights)[0]
        try:
            operation()
        except MismatchError:
            raise
        except Exception as error:
            self._fail(f"{type(error).__name__}: {error}")
        self.done += 1

    def check_anew(self) -> None:
        """Compare everything once more, when nothing of it is in a memory or on a local disk."""
        self._remount()
        self._drop_caches()
        self.check_all()

    def check_all(self) -> None:
        """Compare every file with what it must be."""
        if self._is_real:
            for name, file in self._names.items():
                self._check_whole(name, file)
            for handle in self._handles:
                if handle.reads:
                    self._check(handle, 0, self._pread(handle, MAX_BYTES + MIB, 0))

    def close(self) -> None:
        """Close all handles."""
        for handle in self._handles:
            handle.close()

    def _make_real(self) -> None:
        """Make the files and handles as they are in memory by now."""
        self._is_real = True
        numbers = {handle.file: handle.file for handle in self._handles}
        for file in {**numbers, **{file: file for file in self._names.values()}}:
            names = [self._path(name) for name in file.names]
            temporary = [] if names else [self._path(f"resumed-{file.number}")]
            first, *others = names or temporary
            first.write_bytes(file.content)
            mine = [handle for handle in self._handles if handle.file is file]
            for handle in mine:
                if not handle.was_linked:
                    handle.descriptor = os.open(first, handle.flags)
            if file.was_linked and not others:
                temporary.append(self._path(f"resumed-{file.number}-link"))
            for other in (*others, *temporary[len(names) == 0 :]):
                os.link(first, other)
            for handle in mine:
                if handle.was_linked:
                    handle.descriptor = os.open(first, handle.flags)
            for path in temporary:
                path.unlink()

    def _path(self, name: str) -> Path:
        return self.place.folder / name

    # Reports

    def _note(self, text: str, file: File, first: int = 0, end: int = 0) -> None:
        self._log.append((self.done, f"{text}  [file {file.number}]", file.number, first, end))

    def _fail(self, what: str, file: File | None = None, offset: int = -1) -> None:
        log = list(self._log)
        shown = set(log[-_SHOWN_OPERATIONS:])
        if file is not None:
            touching = [
                entry for entry in log if entry[2] == file.number and entry[3] <= offset < entry[4]
            ]
            shown |= set(touching[-_SHOWN_OPERATIONS // 2 :])
        lines = []
        for entry in log:
            if entry in shown:
                mark = "*" if file is not None and entry[3] <= offset < entry[4] else " "
                lines.append(f"  {mark} {entry[0]:8} {entry[1]}")
        raise MismatchError(
            f"{what}\nin operation {self.done} of seed {self.seed} in {self.place.folder};"
            " the last operations, and (*) those before that touched the place:\n"
            + "\n".join(lines)
        )

    def _check(self, handle: Handle, offset: int, got: bytes, limit: int = -1) -> None:
        """What was read at an offset, up to the end of the file or `limit` bytes."""
        end = len(handle.file.content) if limit < 0 else offset + limit
        self._compare(handle.file, offset, got, bytes(handle.file.content[offset:end]))

    def _compare(self, file: File, offset: int, got: bytes, expected: bytes) -> None:
        if got == expected:
            return
        place = next(
            (at for at, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b),
            min(len(got), len(expected)),
        )
        wrong = sum(a != b for a, b in zip(got, expected, strict=False))
        self._fail(
            f"file {file.number} {file.names} of {len(file.content)} bytes is wrong at offset"
            f" {offset + place} (0x{offset + place:x}): expected {expected[place : place + 24]!r},"
            f" got {got[place : place + 24]!r}; {wrong} bytes differ, and {len(got)} bytes were"
            f" read of {len(expected)}",
            file,
            offset + place,
        )

    # Choices

    def _offset(self, limit: int = MAX_BYTES) -> int:
        """A place in a file, most often near an edge."""
        if self._random.random() < 0.5:
            near = self._random.choice((0, 0, 0, -1, 1, -8, 8, 100, -100))
            return max(0, min(self._random.choice(_EDGES) + near, limit))
        return self._random.randint(0, limit)

    def _length(self, limit: int) -> int:
        if self._random.random() < 0.7:
            length = self._random.choice(_LENGTHS)
        else:
            length = self._random.randint(1, 20_000)
        return max(1, min(length, limit))

    def _data(self, length: int) -> bytes:
        """Bytes that tell which operation wrote them; now and then zeros, or what was there."""
        kind = self._random.random()
        self._stamp += 1
        if kind < 0.08:
            return bytes(length)
        stamp = (
            self._stamp
            if kind < 0.9
            else self._random.randint(max(1, self._stamp - 20), self._stamp)
        )
        data = b"%07d|" % stamp * (length // 8 + 1)
        return data[:length]

    def _handle(self, reads: bool = False, writes: bool = False) -> Handle | None:
        fitting = [
            handle
            for handle in self._handles
            if (handle.reads or not reads) and (handle.writes or not writes)
        ]
        return self._random.choice(fitting) if fitting else None

    def _name(self) -> str | None:
        return self._random.choice(sorted(self._names)) if self._names else None

    def _free_name(self) -> str:
        return self._random.choice([name for name in _NAMES if name not in self._names] or ["z"])

    # Bytes

    def _pread(self, handle: Handle, length: int, offset: int) -> bytes:
        return os.pread(handle.descriptor, length, offset)

    def _read(self) -> None:
        if (handle := self._handle(reads=True)) is None:
            return
        offset = self._offset()
        length = self._length(MAX_BYTES)
        self._note(f"read {offset} +{length} by {handle.number}", handle.file)
        if self._is_real:
            self._check(handle, offset, self._pread(handle, length, offset), length)

    def _write(self) -> None:
        if (handle := self._handle(writes=True)) is None:
            return
        offset = self._offset(MAX_BYTES - 1)
        data = self._data(self._length(MAX_BYTES - offset))
        if handle.appends:
            offset = len(handle.file.content)
            data = data[: MAX_BYTES - offset]
        self._put(handle, offset, data, "write")

    def _append(self) -> None:
        handle = self._handle(writes=True)
        if handle is None or len(handle.file.content) >= MAX_BYTES:
            return
        offset = len(handle.file.content)
        self._put(handle, offset, self._data(self._length(MAX_BYTES - offset)), "append")

    def _put(self, handle: Handle, offset: int, data: bytes, word: str) -> None:
        text = f"{word} {offset} +{len(data)} {data[:8]!r} by {handle.number}"
        self._note(text, handle.file, offset, offset + len(data))
        if self._is_real and data:
            if offset + len(data) > len(handle.file.content):
                self._before_growth(handle)
            done = os.pwrite(handle.descriptor, data, offset)
            if done != len(data):
                self._fail(f"{done} bytes were written of {len(data)}")
        if data:
            handle.file.write(offset, data)

    def _before_growth(self, handle: Handle) -> None:
        if handle.file.has_mapped_changes and not self.place.keeps_grown_pages:
            words = handle.descriptor, ctypes.c_int64(0), ctypes.c_int64(0), _WRITE_AND_WAIT
            if _libc.sync_file_range(*words):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            handle.file.has_mapped_changes = False

    def _truncate(self) -> None:
        handle, size = self._handle(writes=True), self._offset()
        if handle is None:
            return
        file, name = handle.file, None
        if file.names and self._random.random() < 0.3:
            name = self._random.choice(file.names)
        old = len(file.content)
        self._note(
            f"truncate {old} to {size} by {name or handle.number}", file, min(old, size), MAX_BYTES
        )
        if self._is_real:
            os.truncate(self._path(name) if name else handle.descriptor, size)
        file.resize(size)

    def _copy(self) -> None:
        source, target = self._handle(reads=True), self._handle(writes=True)
        if source is None or target is None or target.appends:
            return
        if source.file.was_linked and not self.place.copies_linked:
            return
        offset = self._offset()
        same_phase = self._random.random() < 0.5
        position = self._offset()
        if same_phase:
            position = min(position // MIB * MIB + offset % MIB, MAX_BYTES)
        length = self._length(MAX_BYTES - max(offset, position)) if offset < MAX_BYTES else 1
        length = min(length, MAX_BYTES - position)
        length = min(length, max(0, len(source.file.content) - offset))
        if length <= 0 or (source.file is target.file and abs(offset - position) < length):
            return
        self._note(
            f"copy {offset} +{length} of file {source.file.number} to {position}"
            f" by {source.number} and {target.number}",
            target.file, position, position + length,
        )  # fmt: skip
        if self._is_real:
            done = 0
            while done < length:
                count = os.copy_file_range(
                    source.descriptor, target.descriptor, length - done, offset + done,
                    position + done,
                )  # fmt: skip
                if not count and source.file.was_linked and not self.place.links_are_one:
                    # The kernel takes the size that it knows of this name.
                    count = os.pwrite(
                        target.descriptor,
                        os.pread(source.descriptor, length - done, offset + done),
                        position + done,
                    )
                if not count:
                    self._fail(f"{done} bytes were copied of {length}")
                done += count
        target.file.write(position, bytes(source.file.content[offset : offset + length]))

    # Stretches

    def _punch(self) -> None:
        self._fallocate("punch", _PUNCH_HOLE | _KEEP_SIZE)

    def _zero(self) -> None:
        keep = _KEEP_SIZE if self._random.random() < 0.5 else 0
        self._fallocate("zero", _ZERO_RANGE | keep)

    def _allocate(self) -> None:
        self._fallocate("allocate", _KEEP_SIZE if self._random.random() < 0.5 else 0)

    def _fallocate(self, word: str, mode: int) -> None:
        if (handle := self._handle(writes=True)) is None:
            return
        offset = self._offset(MAX_BYTES - 1)
        length = self._length(MAX_BYTES - offset)
        end = offset + length
        self._note(
            f"{word} {offset} +{length} mode {mode} by {handle.number}", handle.file, offset, end
        )
        if self._is_real:
            words = ctypes.c_int64(offset), ctypes.c_int64(length)
            if _libc.fallocate64(handle.descriptor, mode, *words):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
        content = handle.file.content
        if not mode & _KEEP_SIZE and end > len(content):
            handle.file.resize(end)
        if mode & (_PUNCH_HOLE | _ZERO_RANGE) and offset < len(content):
            end = min(end, len(content))
            content[offset:end] = bytes(end - offset)

    # Maps

    def _stretch(self, handle: Handle) -> tuple[int, int]:
        """Some bytes within the file."""
        size = len(handle.file.content)
        offset = self._offset(size - 1)
        return offset, min(offset + self._length(MAX_BYTES), size)

    def _mapped(self, handle: Handle, offset: int, end: int) -> mmap.mmap | None:
        """A map that holds these bytes; None where the file system says that it has none."""
        if handle.map is not None and not (
            handle.map_start <= offset and end <= handle.map_start + len(handle.map)
        ):
            handle.unmap()
        if handle.map is None:
            start = offset // _PAGE * _PAGE
            protection = mmap.PROT_READ | (mmap.PROT_WRITE if handle.writes else 0)
            length = len(handle.file.content) - start
            try:
                handle.map = mmap.mmap(
                    handle.descriptor, length, mmap.MAP_SHARED, protection, offset=start
                )
            except OSError as error:
                if error.errno != errno.ENODEV or self._can_map(handle):
                    raise
                return None
            handle.map_start = start
        return handle.map

    def _can_map(self, handle: Handle) -> bool:
        return self.place.links_are_one or not handle.was_linked

    def _has_true_size(self, file: File) -> bool:
        return self.place.shows_linked_size or not file.was_linked

    def _read_map(self) -> None:
        handle = self._handle(reads=True)
        if handle is None or not handle.file.content or not self._has_true_size(handle.file):
            return
        offset, end = self._stretch(handle)
        self._note(f"read map {offset} +{end - offset} by {handle.number}", handle.file)
        if self._is_real and (found := self._mapped(handle, offset, end)) is not None:
            at = handle.map_start
            self._check(handle, offset, found[offset - at : end - at], end - offset)

    def _write_map(self) -> None:
        handle = self._handle(reads=True, writes=True)
        if handle is None or not handle.file.content or not self._can_map(handle):
            return
        if not self._has_true_size(handle.file):
            return
        offset, end = self._stretch(handle)
        data = self._data(end - offset)
        self._note(f"write map {offset} +{end - offset} {data[:8]!r} by {handle.number}",
                   handle.file, offset, end)  # fmt: skip
        if self._is_real:
            found = self._mapped(handle, offset, end)
            assert found is not None
            found[offset - handle.map_start : end - handle.map_start] = data
            handle.file.has_mapped_changes = True
        handle.file.write(offset, data)

    def _sync_map(self) -> None:
        mapped = [handle for handle in self._handles if handle.writes and handle.reads]
        if not mapped:
            return
        handle, unmaps = self._random.choice(mapped), self._random.random() < 0.5
        self._note(f"msync {'and unmap ' if unmaps else ''}by {handle.number}", handle.file)
        if handle.map is not None:
            handle.map.flush()
            if unmaps:
                handle.unmap()

    # Handles

    def _sync(self) -> None:
        handle, whole = self._handle(), self._random.random() < 0.5
        if handle is None:
            return
        self._note(f"fsync by {handle.number}", handle.file)
        if self._is_real:
            (os.fsync if whole else os.fdatasync)(handle.descriptor)

    def _open(self) -> None:
        name = self._name()
        access = self._random.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR))
        direct = os.O_DIRECT if self.place.has_direct else 0
        more = self._random.choice((0, 0, 0, os.O_APPEND, direct, os.O_SYNC, os.O_TRUNC))
        if name is None or len(self._handles) >= 8:
            return
        if more == os.O_TRUNC and access == os.O_RDONLY:
            more = 0
        file = self._names[name]
        self._numbers += 1
        handle = Handle(self._numbers, file, access | more, file.was_linked)
        self._note(f"open {name} flags {access | more:#o} as {handle.number}", file,
                   0, MAX_BYTES if more == os.O_TRUNC else 0)  # fmt: skip
        if self._is_real:
            handle.descriptor = os.open(self._path(name), handle.flags)
        handle.flags &= ~os.O_TRUNC
        self._handles.append(handle)
        if more == os.O_TRUNC:
            file.content.clear()

    def _close(self) -> None:
        if not self._handles:
            return
        handle = self._random.choice(self._handles)
        self._note(f"close {handle.number}", handle.file)
        handle.close()
        self._handles.remove(handle)

    def _look(self) -> None:
        """The size, by a handle or by a name."""
        handle, name = self._handle(), self._name()
        by_name = self._random.random() < 0.5
        file = self._names[name] if by_name and name else handle.file if handle else None
        if file is None or not self._is_real:
            return
        if not self._has_true_size(file):
            return
        if by_name and name:
            found = os.stat(self._path(name))
        else:
            assert handle is not None
            found = os.fstat(handle.descriptor)
        if found.st_size != len(file.content):
            self._note(f"look at {name if by_name else handle and handle.number}", file)
            self._fail(f"the size is {found.st_size}, and must be {len(file.content)}", file)

    def _read_whole(self) -> None:
        name = self._name()
        if name is not None and self._is_real:
            self._note(f"read all of {name}", self._names[name])
            self._check_whole(name, self._names[name])

    def _check_whole(self, name: str, file: File) -> None:
        self._compare(file, 0, self._path(name).read_bytes(), bytes(file.content))

    # Names

    def _create(self) -> None:
        if len(set(self._names.values())) >= _MAX_FILES:
            return
        name = self._free_name()
        self._numbers += 2
        file = File(self._numbers - 1, names=[name])
        handle = Handle(self._numbers, file, os.O_RDWR, False)
        self._note(f"create {name} as {handle.number}", file)
        if self._is_real:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
            handle.descriptor = os.open(self._path(name), flags, 0o644)
        self._names[name] = file
        self._handles.append(handle)

    def _forget(self, name: str) -> None:
        self._names.pop(name).names.remove(name)

    def _unlink(self) -> None:
        if (name := self._name()) is None:
            return
        self._note(f"unlink {name}", self._names[name])
        if self._is_real:
            os.unlink(self._path(name))
        self._forget(name)

    def _rename(self) -> None:
        """Mostly to a new name, else over another file, which may be open."""
        old, other = self._name(), self._name()
        new = self._free_name() if self._random.random() < 0.6 else other
        if old is None or new is None or self._names.get(new) is self._names[old]:
            return
        file = self._names[old]
        self._note(f"rename {old} to {new}", file)
        if self._is_real:
            os.rename(self._path(old), self._path(new))
        if new in self._names:
            self._forget(new)
        self._forget(old)
        self._names[new] = file
        file.names.append(new)

    def _exchange(self) -> None:
        a, b = self._name(), self._name()
        if a is None or b is None or self._names[a] is self._names[b]:
            return
        self._note(f"exchange {a} and {b}", self._names[a])
        if self._is_real:
            paths = (os.fsencode(self._path(name)) for name in (a, b))
            if _libc.renameat2(_AT_FDCWD, next(paths), _AT_FDCWD, next(paths), _RENAME_EXCHANGE):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
        first, second = self._names[a], self._names[b]
        self._names[a], self._names[b] = second, first
        first.names[first.names.index(a)] = b
        second.names[second.names.index(b)] = a

    def _link(self) -> None:
        old, new = self._name(), self._free_name()
        if old is None or len(self._names[old].names) > 1:
            return
        file = self._names[old]
        if not self.place.joins_links:
            for handle in [handle for handle in self._handles if handle.file is file]:
                handle.close()
                self._handles.remove(handle)
        self._note(f"link {old} to {new}", file)
        if self._is_real:
            os.link(self._path(old), self._path(new))
        self._names[new] = file
        file.names.append(new)
        file.was_linked = True

    # The file system as a whole

    def _drop_caches(self) -> None:
        for handle in self._handles:
            self._note("drop caches", handle.file)
            break
        if self._is_real and self.place.drop_caches:
            self.place.drop_caches()

    def _remount(self) -> None:
        """Handles of files without a name can't outlive it."""
        self._note("remount", File(0))
        for handle in self._handles:
            handle.close()
        self._handles = [handle for handle in self._handles if handle.file.names]
        if self._is_real and self.place.remount:
            self.place.remount()
        for handle in self._handles:
            handle.was_linked = len(handle.file.names) > 1
            handle.file.was_linked = len(handle.file.names) > 1
            if self._is_real:
                handle.descriptor = os.open(self._path(handle.file.names[0]), handle.flags)


@contextlib.contextmanager
def exerciser(place: Place, seed: int, *, begin: int = 0) -> Iterator[Exerciser]:
    """A run whose handles are closed in the end."""
    run = Exerciser(place, seed, begin=begin)
    try:
        yield run
    finally:
        run.close()


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.exerciser", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--operations", type=int, default=100_000)
    parser.add_argument("--begin", type=int, default=0, help="do those before in memory only")
    parser.add_argument("--no-direct", action="store_true", help="as ext4 asks for alignment")
    arguments: Any = parser.parse_args(words)
    place = Place(arguments.folder, has_direct=not arguments.no_direct)
    print(f"seed {arguments.seed}", flush=True)
    with exerciser(place, arguments.seed, begin=arguments.begin) as run:
        run.run(arguments.operations)
    print(f"{run.done} operations, no mismatch")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
