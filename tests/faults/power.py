"""A data directory whose disk forgets, at a power cut, what was not synced.

The real code writes to a real folder. The calls by which it changes and syncs files are watched at
the modules that make them, `blocks.cache`, `exchange.journal`, `metadata.db`, `redo` and `wal`
(and SQLite's own syncs by a VFS above the usual one). `cut` then makes another folder, as the disk
may look when the power is back:

- a block file or local segment file whose content was not synced is there whole, in part, empty, as
  zeros, or not at all;
- a name that was made, replaced or removed in a folder that was not synced is new or old;
- each sector of 512 bytes of the database and its WAL is as it is now, or as it was synced last;
- each sector of the redo log, which nobody syncs, is as it was at any moment.

It chooses by a seeded generator, each independently of the others, so in any order. What it does
not model: sectors that are damaged though nobody wrote to them.
"""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import apsw
import pytest

from syncer.blocks import cache
from syncer.exchange import journal
from syncer.metadata import db, redo, wal

_SECTOR_BYTES = 512


class PowerCutError(BaseException):
    """The power goes now. Not an Exception: nobody may catch it."""


class _Inode:
    def __init__(self) -> None:
        self.is_synced = False


class Disk:
    """The watched folder. `with` watches; several threads may work in it meanwhile."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        #: Guards everything below: an effect and the note of it are one step.
        self.lock = threading.RLock()
        #: How many more effects the power lasts for.
        self.effects_left = 1 << 60
        #: It was cut, and what is left of it is known.
        self.is_over = False
        self._patch = pytest.MonkeyPatch()
        #: path -> what it may hold after a cut: contents (None: nothing), oldest first; the first
        #: is what was synced. A content has the inode that tells whether it is safe.
        self._names: dict[str, list[tuple[_Inode, bytes] | None]] = {}
        #: Database files as they were when they were synced last.
        self._synced: dict[str, bytes] = {}
        #: Redo logs before each time that they began anew.
        self._logs: dict[str, list[bytes]] = {}
        self._wal_is_named = False

    def __enter__(self) -> Disk:
        self._take_up()
        self._vfs = _Vfs(self)
        apsw.set_default_vfs("power")
        watched = _Os(self)
        self._patch.setattr(cache, "os", watched)
        self._patch.setattr(db, "os", watched)
        self._patch.setattr(redo, "os", watched)
        # Some worlds commit often, between two syncs as well.
        self._patch.setattr(redo, "_GROUP_BYTES", self.random.choice([0, 1000, 5000, 1 << 20]))
        self._patch.setattr(wal, "os", watched)
        self._patch.setattr(journal, "os", watched)
        self._patch.setattr(cache, "_libc", watched)
        return self

    def _take_up(self) -> None:
        """What is there already is safe."""
        for path in map(str, [*self.folder.glob("blocks/*/*"), *self.folder.glob("segments/*")]):
            if self._is_watched(path):
                inode = _Inode()
                inode.is_synced = True
                self._names[path] = [(inode, Path(path).read_bytes())]
        for path in map(str, self.folder.glob("metadata.db*")):
            self._synced[path] = Path(path).read_bytes()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._patch.undo()
        apsw.set_default_vfs("unix")
        self._vfs.unregister()

    @property
    def is_dark(self) -> bool:
        """Whether the power is gone, and nobody has looked yet at what it leaves."""
        return self.effects_left < 0 and not self.is_over

    def effect(self) -> None:
        """Called before each change or sync of a file."""
        self.effects_left -= 1
        if self.effects_left < 0:
            raise PowerCutError

    def _is_watched(self, path: str) -> bool:
        """Whether it is a block or a local segment file, and not one that is being written."""
        if path.startswith(f"{self.folder}/segments/"):
            return not path.endswith(".tmp")
        return path.startswith(f"{self.folder}/blocks/") and "/incoming/" not in path

    def changed(self, path: str, inode: _Inode | None) -> None:
        """A name leads to another file, or to none."""
        if self._is_watched(path):
            states = self._names.setdefault(path, [None])
            states.append((inode, Path(path).read_bytes()) if inode is not None else None)

    def synced_folder(self, path: str) -> None:
        for name, states in self._names.items():
            if os.path.dirname(name) == path:
                del states[:-1]
        if path == str(self.folder):
            self._wal_is_named = True

    def synced_all(self) -> None:
        for states in self._names.values():
            del states[:-1]
            if states[0] is not None:
                states[0][0].is_synced = True

    def synced_database(self, path: str) -> None:
        self._synced[path] = Path(path).read_bytes()

    def begun_anew(self, path: str) -> None:
        """A redo log is about to be overwritten from its beginning."""
        self._logs.setdefault(path, []).append(Path(path).read_bytes())

    def cut(self, target: Path) -> None:
        """The power is gone: what `target`, a new folder, holds is what the disk has."""
        (target / "blocks").mkdir(parents=True)
        for path, states in self._names.items():
            state = self.random.choice(states)
            if state is not None:
                place = target / os.path.relpath(path, self.folder)
                place.parent.mkdir(exist_ok=True)
                inode, content = state
                place.write_bytes(content if inode.is_synced else self._torn(content))
        for name in ("metadata.db", "metadata.db-wal", "metadata.db-redo"):
            path = self.folder / name
            is_named = name == "metadata.db" or (name.endswith("-wal") and self._wal_is_named)
            if path.exists() and (is_named or self._flip()):
                now = path.read_bytes()
                for before in self._logs.get(str(path), []):
                    now = self._mixed(before, now)
                (target / name).write_bytes(self._mixed(self._synced.get(str(path), b""), now))
        self.is_over = True

    def _flip(self) -> bool:
        return self.random.random() < 0.5

    def _torn(self, content: bytes) -> bytes:
        if not content:
            return content
        length = self.random.randrange(len(content))
        zeros = bytes(len(content) - length)
        return self.random.choice(
            [content, content, content[:length], b"", content[:length] + zeros]
        )

    def _mixed(self, before: bytes, after: bytes) -> bytes:
        """Each sector old or new; often all new, as when the disk had the time for most."""
        share = self.random.choice([0.0, 0.5, 0.98, 1.0, 1.0])
        length = self.random.choice([len(before), len(after), len(after)])
        mixed = bytearray(before[:length].ljust(length, b"\0"))
        for start in range(0, length, _SECTOR_BYTES):
            if self.random.random() < share:
                mixed[start : start + _SECTOR_BYTES] = after[start : start + _SECTOR_BYTES]
        return bytes(mixed)


class _Os:
    """Stands in for module `os`, and for libc's syncfs, where files are written and synced."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._inodes: dict[str, _Inode] = {}
        self._open: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        with self._disk.lock:
            if flags & os.O_CREAT:
                self._disk.effect()
                self._inodes[os.fspath(path)] = _Inode()
            descriptor = os.open(path, flags, mode)
            self._open[descriptor] = os.fspath(path)
            return descriptor

    def write(self, descriptor: int, data: Any) -> int:
        with self._disk.lock:
            self._disk.effect()
            return os.write(descriptor, data)

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        with self._disk.lock:
            self._disk.effect()
            if not offset:
                self._disk.begun_anew(self._open[descriptor])
            return os.pwrite(descriptor, data, offset)

    def rename(self, old: Any, new: Any) -> None:
        with self._disk.lock:
            self._disk.effect()
            os.rename(old, new)
            source, target = os.fspath(old), os.fspath(new)
            inode = self._inodes.pop(source)
            self._inodes[target] = inode
            self._disk.changed(source, None)
            self._disk.changed(target, inode)

    def unlink(self, path: Any) -> None:
        with self._disk.lock:
            self._disk.effect()
            os.unlink(path)
            self._inodes.pop(os.fspath(path), None)
            self._disk.changed(os.fspath(path), None)

    def fsync(self, descriptor: int) -> None:
        with self._disk.lock:
            self._disk.effect()
            path = self._open[descriptor]
            if path in self._inodes:
                self._inodes[path].is_synced = True
            else:
                self._disk.synced_folder(path)

    def fdatasync(self, descriptor: int) -> None:
        with self._disk.lock:
            self._disk.effect()
            self._disk.synced_database(self._open[descriptor])

    def syncfs(self, descriptor: int) -> int:
        with self._disk.lock:
            self._disk.effect()
            self._disk.synced_all()
            return 0


class _Vfs(apsw.VFS):
    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        super().__init__("power", "unix")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return _File(self._disk, name, flags)


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        self._disk = disk
        self._path = name.filename() if isinstance(name, apsw.URIFilename) else name
        super().__init__("unix", name, flags)

    def xSync(self, flags: int) -> None:  # noqa: N802
        with self._disk.lock:
            if self._disk.is_dark:
                # SQLite writes to the database what it takes for safe in its log.
                raise PowerCutError
            super().xSync(flags)
            if not self._disk.is_over and self._path.endswith((".db", "-wal")):
                self._disk.synced_database(self._path)
