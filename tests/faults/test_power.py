"""Power cuts, simulated: what was fsynced is whole, and nothing is garbage, zeros or a mix."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from syncer.blocks.cache import Cache
from syncer.blocks.fetch import Fetcher
from syncer.blocks.store import Blocks
from syncer.codec import BLOCK_BYTES
from syncer.errors import SyncerError
from syncer.metadata.contents import Contents
from syncer.metadata.db import Database
from syncer.metadata.epochs import Epochs
from syncer.metadata.tree import Tree
from syncer.metadata.undo import Undo
from syncer.process.recovery import recover
from tests.block_rig import LIMIT_BYTES, SEED
from tests.faults.power import Disk, PowerCutError
from tests.memory_remote import MemoryRemote
from tests.vfs_rig import ME, VfsRig, fast_folder

_CUTS = 30
_TORTURE_CUTS = 1000
_STEPS = 60
_SIZES = (100, 5_000, 20_000, BLOCK_BYTES + 5_000)


class _Rebooted(VfsRig):
    """What the engine does at its start after a power cut, before anything is opened."""

    def __init__(self, folder: Path, remote: MemoryRemote) -> None:
        db = Database(folder / "meta.db")
        fetcher = Fetcher(remote, SEED)
        blocks = Blocks(db, Cache(folder / "blocks", LIMIT_BYTES, 0), fetcher, SEED)
        epochs = Epochs(db)
        recover(db, blocks, Tree(db, epochs, Contents(db, epochs)), power_was_cut=True)
        db.close()
        super().__init__(folder)
        for key, stored in remote.objects.items():
            self.remote.put(key, stored)


@dataclass
class File:
    """What a file may hold after a cut: contents that it had, from the one that was safe last."""

    versions: list[bytes] = field(default_factory=lambda: [b""])

    def write(self, data: bytes, offset: int) -> None:
        now = self.versions[-1].ljust(offset, b"\0")
        self.versions.append(now[:offset] + data + now[offset + len(data) :])

    def truncate(self, size: int) -> None:
        self.versions.append(self.versions[-1][:size].ljust(size, b"\0"))

    def safe(self) -> None:
        del self.versions[:-1]

    def check(self, found: bytes) -> None:
        """Each block is old or new, and the whole is as long as it was at some time."""
        longest = max(map(len, self.versions))
        assert len(found) <= longest and len(found) >= min(map(len, self.versions))
        for start in range(0, len(found), BLOCK_BYTES):
            block = found[start : start + BLOCK_BYTES]
            assert any(version[start:].startswith(block) for version in self.versions)


class World:
    """Random work on a file system, and what must be left of it."""

    def __init__(self, rig: VfsRig, seed: int) -> None:
        self.rig = rig
        self.random = random.Random(seed)
        self.names: list[dict[bytes, File]] = [{}]
        """The names after each change, from the state that was safe last."""

    @property
    def now(self) -> dict[bytes, File]:
        return self.names[-1]

    def run(self, steps: int) -> None:
        work: list[Callable[[], None]] = [
            self.create, self.create, self.overwrite, self.overwrite, self.rewrite, self.fsync,
            self.fsync, self.rename, self.unlink, self.round, self.upload, self.collect,
        ]  # fmt: skip
        for _ in range(steps):
            self.random.choice(work)()

    def _some(self) -> bytes | None:
        return self.random.choice(sorted(self.now)) if self.now else None

    def _noise(self) -> bytes:
        return self.random.randbytes(self.random.choice(_SIZES))

    def _changes(self, change: Callable[[dict[bytes, File]], object]) -> None:
        """Before the call itself, which the cut may interrupt: both are possible then."""
        names = dict(self.now)
        change(names)
        self.names.append(names)

    def create(self) -> None:
        path = b"/%d" % self.random.randrange(10**9)
        file = File()
        self._changes(lambda names: names.update({path: file}))
        handle = self.rig.vfs.create(path, 0o644, os.O_RDWR, ME)
        self._write(handle, file, 0)
        self._close(handle)

    def _write(self, handle: int, file: File, offset: int) -> None:
        data = self._noise()
        file.write(data, offset)
        self.rig.vfs.write(handle, memoryview(data), offset)

    def _close(self, handle: int) -> None:
        self.rig.vfs.files.flush(handle)
        self.rig.vfs.release(handle)

    def overwrite(self) -> None:
        path = self._some()
        if path is not None:
            handle = self.rig.vfs.open(path, os.O_RDWR)
            file = self.now[path]
            self._write(handle, file, self.random.randrange(len(file.versions[-1]) + 1))
            self._close(handle)

    def rewrite(self) -> None:
        path = self._some()
        if path is not None:
            self.now[path].truncate(0)
            handle = self.rig.vfs.open(path, os.O_RDWR | os.O_TRUNC)
            self._write(handle, self.now[path], 0)
            self._close(handle)

    def fsync(self) -> None:
        path = self._some()
        if path is not None:
            handle = self.rig.vfs.open(path, os.O_RDWR)
            self.rig.vfs.files.fsync(handle, self.rig.db.sync)
            self.now[path].safe()
            del self.names[:-1]
            self._close(handle)

    def rename(self) -> None:
        old, new = self._some(), self._some()
        if old is not None and new is not None and old != new:
            # It takes the place of another file, so neither may be lost: where the names are
            # the new ones, so is the content.
            moved = File(self.now[old].versions[-1:])

            def move(names: dict[bytes, File]) -> None:
                del names[old]
                names[new] = moved

            self._changes(move)
            self.rig.vfs.rename(old, new)

    def unlink(self) -> None:
        path = self._some()
        if path is not None:
            self._changes(lambda names: names.pop(path))
            self.rig.vfs.unlink(path)

    def round(self) -> None:
        self.rig.round(seal=self.random.random() < 0.5)
        for file in self.now.values():
            file.safe()
        del self.names[:-1]

    def upload(self) -> None:
        rows = self.rig.blocks.dirty_queue(3)
        self.rig.upload([block_id for block_id, _ in rows])
        if self.random.random() < 0.5:
            self.rig.evict_all()

    def collect(self) -> None:
        self.rig.blocks.collect()

    def check(self, rig: VfsRig) -> None:
        """What a file system that was cut must hold."""
        there = {b"/" + name for name in rig.list(b"/")}
        possible = [names for names in self.names if names.keys() == there]
        assert possible, "the names are not those of any moment since the last sync"
        for path in there:
            found = rig.read(path)
            files = {id(names[path]): names[path] for names in possible}
            assert any(_fits(file, found) for file in files.values()), (
                f"{path!r} with {len(found)} bytes is none of what it was"
            )


def _fits(file: File, found: bytes) -> bool:
    try:
        file.check(found)
    except AssertionError:
        return False
    return True


def cut_once(seed: int) -> None:
    """Work, a power cut in the middle of it, a reboot; and the same once more on what is left."""
    with fast_folder() as folder:
        chance = random.Random(seed)
        with Disk(folder / "before", seed) as disk:
            disk.folder.mkdir()
            rig = VfsRig(disk.folder)
            rig.round()
            world = World(rig, seed)
            disk.effects_left = chance.randrange(20, 300)
            try:
                world.run(_STEPS)
            except PowerCutError:
                pass
            disk.effects_left = -1
            disk.cut(folder / "after")
        rig.db.close()
        again = _Rebooted(folder / "after", rig.remote)
        world.check(again)
        assert not again.blocks.sweep(), "a file that the remote lacks is gone"
        again.round(seal=True)
        rows = again.db.query("SELECT id FROM block")
        assert again.files().keys() == {row[0] for row in rows}
        again.upload_all()
        again.evict_all()
        world.check(again)
        again.check_usage()
        again.close()


@pytest.mark.parametrize("seed", range(_CUTS))
def test_a_power_cut_leaves_what_was_synced_and_nothing_wrong(seed: int) -> None:
    cut_once(seed)


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(_CUTS, _TORTURE_CUTS))
def test_a_thousand_power_cuts_leave_what_was_synced(seed: int) -> None:
    cut_once(seed)


@pytest.mark.expects_warnings
@pytest.mark.parametrize(
    ("owner", "name"), [(Database, "sync"), (Cache, "sync"), (Cache, "sync_all"), (Undo, "keep")]
)
def test_a_left_out_step_is_noticed(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    monkeypatch.setattr(owner, name, lambda self, ids=(), *more: ids)
    with pytest.raises((AssertionError, SyncerError)):
        _cut_many()


def _cut_many() -> None:
    for seed in range(2 * _CUTS):
        cut_once(seed)
