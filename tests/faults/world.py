"""Random work on a file system without FUSE, and what a power cut may leave of it.

Names are those of one moment since the last sync of the database, all of them: a commit is there
with all that came before it. Each block of a file is as it was at some moment since the file was
synced.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from syncer.blocks.entries import FileSync
from syncer.codec import BLOCK_BYTES
from syncer.metadata.history import History
from syncer.metadata.moments import Moments
from syncer.process.timemachine import TimeMachine
from tests.vfs_rig import ME, VfsRig

_SIZES = (100, 5_000, 20_000, BLOCK_BYTES + 5_000)
_PATCH_BYTES = 100
_PUNCH_HOLE = 3
"""fallocate's flags: a hole, and the size stays."""
_EXCHANGE = 2
_RESTORED = b".syncer-restored-"


@dataclass
class File:
    """What a file may hold after a cut: contents that it had, from the one that was safe last."""

    versions: list[bytes] = field(default_factory=lambda: [b""])
    forgotten: int = 0
    """How many versions there were before these."""

    @property
    def now(self) -> bytes:
        return self.versions[-1]

    @property
    def newest(self) -> int:
        """The number of the version that it has now."""
        return self.forgotten + len(self.versions) - 1

    def write(self, data: bytes, offset: int) -> None:
        before = self.now.ljust(offset, b"\0")
        self.versions.append(before[:offset] + data + before[offset + len(data) :])

    def truncate(self, size: int) -> None:
        self.versions.append(self.now[:size].ljust(size, b"\0"))

    def safe(self, version: int | None = None) -> None:
        """A version, or that of now, is on the disk."""
        count = (self.newest if version is None else version) - self.forgotten
        self.forgotten += max(0, count)
        del self.versions[: max(0, count)]

    def fits(self, found: bytes, since: int) -> bool:
        """Each block is that of a version from `since` on, and the whole as long as one was."""
        versions = self.versions[max(0, since - self.forgotten) :]
        lengths = [len(version) for version in versions]
        return min(lengths) <= len(found) <= max(lengths) and all(
            any(
                version[start:].startswith(found[start : start + BLOCK_BYTES])
                for version in versions
            )
            for start in range(0, len(found), BLOCK_BYTES)
        )


@dataclass(frozen=True)
class Entry:
    """What a name leads to: a directory, or a file from one of its versions on."""

    file: File | None = None
    since: int = 0


Names = dict[bytes, Entry]
"""By path; that of a directory ends in a slash."""


class World:
    """The file system as it is, and as it may be after a cut."""

    def __init__(self, rig: VfsRig, seed: int, *, is_alone: bool = True) -> None:
        """`is_alone`: this thread also does what others do in the background."""
        self.rig = rig
        self._is_alone = is_alone
        self.random = random.Random(seed)
        #: After each change, from the state that was safe last.
        self.names: list[Names] = [_found(rig)]
        #: Snapshots, and what files held in them.
        self._snapshots: dict[str, dict[bytes, bytes]] = {}

    @property
    def now(self) -> Names:
        return self.names[-1]

    def run(self, steps: int) -> None:
        """So many random calls, one after the other."""
        often = [self.create, self.overwrite, self.patch, self.fsync, self.sync_and_overwrite]
        work: list[Callable[[], None]] = [
            *often, *often, self.rewrite, self.truncate, self.punch, self.copy, self.rename,
            self.rename, self.exchange, self.link, self.unlink, self.mkdir, self.rmdir,
            self.sync_folder, self.replace, self.write_while_syncing, self.snapshot, self.restore,
            self.round,
        ]  # fmt: skip
        if self._is_alone:
            work += [self.upload, self.collect, self.kill]
        for _ in range(steps):
            self.random.choice(work)()

    # Choosing

    def _paths(self) -> list[bytes]:
        return sorted(path for path, entry in self.now.items() if entry.file)

    def _some(self) -> tuple[bytes, File] | None:
        paths = self._paths()
        if not paths:
            return None
        path = self.random.choice(paths)
        return path, self._file(path)

    def _file(self, path: bytes) -> File:
        file = self.now[path].file
        assert file is not None
        return file

    def _new_path(self) -> bytes:
        folders = [path for path in self.now if path.endswith(b"/")]
        return self.random.choice([b"/", b"/", *sorted(folders)]) + self._new_name()

    def _new_name(self) -> bytes:
        return b"%d" % self.random.randrange(10**12)

    def _noise(self) -> bytes:
        return self.random.randbytes(self.random.choice(_SIZES))

    def _offset(self, file: File) -> int:
        return self.random.randrange(len(file.now) + 1)

    def _changes(self, change: Callable[[Names], object]) -> None:
        """Before the call itself, which the cut may interrupt: both are possible then."""
        names = dict(self.now)
        change(names)
        self.names.append(names)

    def _names_are_safe(self) -> None:
        del self.names[:-1]

    def _all_is_safe(self) -> None:
        self._names_are_safe()
        for entry in self.now.values():
            if entry.file:
                entry.file.safe()

    # Contents

    def create(self) -> None:
        path, file = self._new_path(), File()
        self._changes(lambda names: names.update({path: Entry(file)}))
        handle = self.rig.vfs.create(path, 0o644, os.O_RDWR, ME)
        self._write(handle, file, self._noise(), 0)
        self._close(handle)

    def _write(self, handle: int, file: File, data: bytes, offset: int) -> None:
        file.write(data, offset)
        self.rig.vfs.write(handle, memoryview(data), offset)

    def _close(self, handle: int) -> None:
        self.rig.vfs.files.flush(handle)
        self.rig.vfs.release(handle)

    def overwrite(self) -> None:
        if found := self._some():
            self._overwrite(*found, self._noise())

    def _overwrite(self, path: bytes, file: File, data: bytes) -> None:
        handle = self.rig.vfs.open(path, os.O_RDWR)
        self._write(handle, file, data, self._offset(file))
        self._close(handle)

    def patch(self) -> None:
        """A few bytes of a large file, which do not make a block."""
        large = [path for path in self._paths() if len(self._file(path).now) > 2 * _PATCH_BYTES]
        if large:
            path = self.random.choice(large)
            file = self._file(path)
            handle = self.rig.vfs.open(path, os.O_RDWR)
            data = self.random.randbytes(_PATCH_BYTES)
            self._write(handle, file, data, self.random.randrange(len(file.now) - _PATCH_BYTES))
            self._close(handle)
            if self.random.random() < 0.5:
                self._fsync(path, file)

    def rewrite(self) -> None:
        if found := self._some():
            path, file = found
            file.truncate(0)
            handle = self.rig.vfs.open(path, os.O_RDWR | os.O_TRUNC)
            self._write(handle, file, self._noise(), 0)
            self._close(handle)

    def truncate(self) -> None:
        """Shorter, and then often longer again: no old bytes come back."""
        if found := self._some():
            path, file = found
            for size in (self._offset(file), len(file.now) + self.random.choice(_SIZES)):
                file.truncate(size)
                self.rig.vfs.truncate(path, size)
                if self.random.random() < 0.5:
                    break

    def punch(self) -> None:
        if (found := self._some()) and found[1].now:
            path, file = found
            start = self.random.randrange(len(file.now))
            length = self.random.randrange(1, len(file.now) - start + 1)
            file.write(bytes(length), start)
            handle = self.rig.vfs.open(path, os.O_RDWR)
            self.rig.vfs.allocate(handle, _PUNCH_HOLE, start, length)
            self._close(handle)

    def copy(self) -> None:
        """Whole blocks are shared between the two files."""
        source, target = self._some(), self._some()
        if source is None or target is None or source[1] is target[1] or not source[1].now:
            return
        content, file = source[1].now, target[1]
        handles = [self.rig.vfs.open(path, os.O_RDWR) for path, _ in (source, target)]
        before = file.now
        file.write(content, 0)
        count = self.rig.vfs.copy(handles[0], 0, handles[1], 0, len(content), ME)
        # It may copy less than it was asked for, in whole blocks.
        file.versions.append(before)
        file.write(content[:count], 0)
        for handle in handles:
            self._close(handle)

    # Syncing

    def fsync(self) -> None:
        if found := self._some():
            self._fsync(*found)

    def _fsync(self, path: bytes, file: File) -> None:
        handle = self.rig.vfs.open(path, os.O_RDWR)
        self.rig.vfs.files.fsync(handle, self.rig.db.sync)
        file.safe()
        self._names_are_safe()
        self._close(handle)

    def sync_and_overwrite(self) -> None:
        """What was synced comes back, and not what was there before."""
        if found := self._some():
            self._overwrite(*found, self._noise())
            self._fsync(*found)
            self._overwrite(*found, self._noise())
            self.rig.db.sync()
            self._names_are_safe()

    def write_while_syncing(self) -> None:
        """Somebody else writes to the file while its fsync waits for the disk."""
        if not (found := self._some()):
            return
        path, file = found
        self._overwrite(path, file, self._noise())
        synced, blocks = file.newest, self.rig.blocks
        finish_sync = blocks.finish_sync

        def write_first(begun: FileSync) -> None:
            self._overwrite(path, file, self._noise())
            finish_sync(begun)

        blocks.finish_sync = write_first  # type: ignore[method-assign]
        try:
            handle = self.rig.vfs.open(path, os.O_RDWR)
            self.rig.vfs.files.fsync(handle, self.rig.db.sync)
            file.safe(synced)
            self._names_are_safe()
        finally:
            blocks.finish_sync = finish_sync  # type: ignore[method-assign]
        self._close(handle)

    def sync_folder(self) -> None:
        """fsync of a directory: all names, and no contents."""
        self.rig.db.sync()
        self._names_are_safe()

    def round(self) -> None:
        self.rig.round(seal=self.random.random() < 0.5)
        self._all_is_safe()

    # Names

    def mkdir(self) -> None:
        path = self._new_path()
        self._changes(lambda names: names.update({path + b"/": Entry()}))
        self.rig.vfs.mkdir(path, 0o755, ME)

    def rmdir(self) -> None:
        full = {path.rstrip(b"/").rpartition(b"/")[0] + b"/" for path in self.now}
        if empty := sorted(path for path in self.now if path[-1:] == b"/" and path not in full):
            path = self.random.choice(empty)
            self._changes(lambda names: names.pop(path))
            self.rig.vfs.rmdir(path.rstrip(b"/"))

    def link(self) -> None:
        if found := self._some():
            old, new = found[0], self._new_path()
            self._changes(lambda names: names.update({new: names[old]}))
            self.rig.vfs.link(old, new)

    def unlink(self) -> None:
        if found := self._some():
            self._changes(lambda names: names.pop(found[0]))
            self.rig.vfs.unlink(found[0])

    def rename(self) -> None:
        """To a free name, with all that lies below it, or over another file."""
        if not self.now:
            return
        old = self.random.choice(sorted(self.now))
        if old.endswith(b"/"):
            self._move_folder(old)
            return
        target = self._some() if self.random.random() < 0.5 else None
        self._rename(old, target[0] if target else self._new_path())

    def _rename(self, old: bytes, new: bytes) -> None:
        file, replaces = self._file(old), new in self.now
        if replaces and self._file(new) is file:
            return
        # Where it takes the place of another file neither may be lost: when the names are the
        # new ones, so is the content.
        moved = Entry(file, file.newest) if replaces else self.now[old]

        def move(names: Names) -> None:
            del names[old]
            names[new] = moved

        self._changes(move)
        self.rig.vfs.rename(old, new)

    def replace(self) -> None:
        """As careful programs save, and as careless ones do: without an fsync."""
        if found := self._some():
            self.create()
            new = next(reversed(self.now))
            self._rename(new, found[0])
            if self.random.random() < 0.7:
                self.sync_folder()

    def _move_folder(self, old: bytes) -> None:
        new = b"/" + self._new_name() + b"/"

        def move(names: Names) -> None:
            for path in [path for path in names if path.startswith(old)]:
                names[new + path[len(old) :]] = names.pop(path)

        self._changes(move)
        self.rig.vfs.rename(old.rstrip(b"/"), new.rstrip(b"/"))

    def exchange(self) -> None:
        one, other = self._some(), self._some()
        if one and other and one[1] is not other[1]:
            a, b = one[0], other[0]
            self._changes(lambda names: names.update({a: names[b], b: names[a]}))
            self.rig.vfs.rename(a, b, _EXCHANGE)

    # The past

    @property
    def _past(self) -> TimeMachine:
        rig = self.rig
        history = History(rig.db)
        return TimeMachine(
            rig.db, rig.tree, rig.contents, rig.blocks, history,
            Moments(rig.db, rig.epochs, rig.tree, history),
            close_epoch=lambda: rig.round(seal=True), refusal=lambda: None,
        )  # fmt: skip

    def snapshot(self) -> None:
        name = f"snapshot {self.random.randrange(10**9)}"
        self._past.snapshot(name)
        self._all_is_safe()
        self._snapshots[name] = {path: self._file(path).now for path in self._paths()}

    def restore(self) -> None:
        """A file of a snapshot comes back under a new name, and names blocks that exist."""
        named = [name for name, files in self._snapshots.items() if files]
        if not named:
            return
        name = self.random.choice(sorted(named))
        path = self.random.choice(sorted(self._snapshots[name]))
        to = b"/" + self._new_name()
        made = self._past.restore(path, name, to, lambda _: None)["made"]
        self._all_is_safe()
        file = File([self._snapshots[name][path]])
        self._changes(lambda names: names.update({to: Entry(file)}))
        self.rig.vfs.rename(os.fsencode(made), to)

    # What threads do in the background, and the end of the process

    def upload(self) -> None:
        rows = self.rig.blocks.dirty_queue(3)
        self.rig.upload([block_id for block_id, _ in rows])
        if self.random.random() < 0.5:
            self.rig.evict_all()

    def collect(self) -> None:
        self.rig.blocks.collect()

    def kill(self) -> None:
        """The process dies, and the next one starts; the power stays."""
        if self.random.random() < 0.3:
            self.rig.restart()
            self._all_is_safe()

    # After the cut

    def check(self, rig: VfsRig) -> None:
        """What a file system that was cut must hold."""
        there = _without_restored(_walk(rig))
        possible = [names for names in self.names if _without_restored(names) == there]
        assert possible, "the names are not those of any moment since the last sync"
        for path in there:
            entries = [names[path] for names in possible]
            if path.endswith(b"/"):
                continue
            found = rig.read(path)
            assert any(entry.file and entry.file.fits(found, entry.since) for entry in entries), (
                f"{path!r} with {len(found)} bytes is none of what it was"
            )


def _without_restored(paths: Iterable[bytes]) -> set[bytes]:
    """Without what a restoration leaves that was cut off before its last step, by this cut or the
    one before."""
    return {path for path in paths if not path.rpartition(b"/")[2].startswith(_RESTORED)}


def _walk(rig: VfsRig) -> set[bytes]:
    """All paths; those of directories end in a slash."""
    found: set[bytes] = set()
    waiting = [b"/"]
    while waiting:
        folder = waiting.pop()
        for name in rig.list(folder):
            if rig.vfs.getattr(folder + name).is_dir:
                waiting.append(folder + name + b"/")
                found.add(waiting[-1])
            else:
                found.add(folder + name)
    return found


def _found(rig: VfsRig) -> Names:
    """What is there, as the beginning of a world."""
    files: dict[int, File] = {}
    names: Names = {}
    for path in _walk(rig):
        if path.endswith(b"/"):
            names[path] = Entry()
        else:
            number = rig.vfs.getattr(path).id
            names[path] = Entry(files.setdefault(number, File([rig.read(path)])))
    return names
