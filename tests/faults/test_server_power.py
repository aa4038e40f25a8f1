"""Power cuts of the server: what only it had is there afterwards, whole and with its name.

A machine writes, uploads, publishes, makes checkpoints, evicts and prunes, on OpenSSH's real SFTP
server or on a folder, over a disk that forgets what was not synced (`forgetful`). In the middle of
that the power of the server goes. What it has then must hold all that this machine counts as being
there, and a clone must find one consistent history that ends no earlier than what was published.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from syncer.codec import HOLE, split_ids
from syncer.errors import MissingError, OfflineError, SyncerError
from syncer.exchange.recover import clone
from syncer.exchange.wire import (
    MAX_OBJECT_BYTES,
    chunk_key,
    decode_chunk,
    decode_manifest,
    manifest_key,
    parse_epoch,
)
from syncer.maintain import sweep
from syncer.metadata.db import Database
from syncer.remote import Location
from syncer.remote.base import Remote
from syncer.remote.local import LocalRemote
from syncer.remote.server import SftpRemote
from tests.faults.forgetful import ForgetfulDisk
from tests.prune_rig import PruneRig
from tests.sftp_program import SftpProgram
from tests.vfs_rig import VfsRig, fast_folder

pytestmark = pytest.mark.fuse

_CUTS = int(os.environ.get("SYNCER_SERVER_CUTS", "8"))
_FIRST_CUT = int(os.environ.get("SYNCER_FIRST_SERVER_CUT", "0"))
_TORTURE_CUTS = 1000
_STEPS = 40
_SETTLE_SECONDS = 30.0


class Served(PruneRig):
    """A data directory whose remote is on the forgetful disk; threads' work is done by calls."""

    def __init__(self, folder: Path, disk: ForgetfulDisk, connect: Callable[[], Remote]) -> None:
        self._disk = disk
        self._connect = connect
        self.seconds = 0.0
        super().__init__(folder)

    def _open(self) -> None:
        self.remote = self._connect()  # type: ignore[assignment]
        super()._open()
        self.uploads._clock = lambda: self.seconds
        self.exchange._publisher._settling._clock = lambda: self.seconds

    def restart(self) -> None:
        """The process dies, and the next one starts."""
        self.remote.close()
        super().restart()

    def close(self) -> None:
        self.remote.close()
        super().close()

    def upload_one(self) -> None:
        self.uploads.retry()
        self.uploads.step()
        if (error := self.uploads.status().error) and self._disk.is_off:
            raise OfflineError(error)

    def upload_all(self) -> None:
        while self.blocks.dirty_queue(1):
            self.upload_one()
            if self.uploads.status().settling:
                self.let_settle()

    def let_settle(self) -> None:
        """The server's operating system writes out what it has by itself, after half a minute."""
        self._disk.settle()
        self.seconds += _SETTLE_SECONDS


class ServedWorld:
    """Random work of one machine, and what must be true of the server at any time."""

    def __init__(self, rig: Served, disk: ForgetfulDisk, seed: int, *, syncs_folders: bool) -> None:
        """`syncs_folders` tells whether the server's disk can; else what it has must settle."""
        self.rig = rig
        self.disk = disk
        self.syncs_folders = syncs_folders
        self.random = random.Random(seed)
        self.files: dict[bytes, bytes] = {}
        self._names = (b"/%d" % number for number in itertools.count(seed * 1000))

    def run(self, steps: int) -> bool:
        """So many steps; False if the power went before their end."""
        often = [self.create, self.overwrite, self.upload, self.upload, self.publish]
        work: list[Callable[[], None]] = [
            *often, *often, *often, self.remove, self.evict, self.read, self.settle,
            self.checkpoint, self.prune, self.restart,
        ]  # fmt: skip
        try:
            for _ in range(steps):
                self.random.choice(work)()
        except (SyncerError, OSError):
            if not self.disk.is_off:
                raise
            return False
        return True

    def create(self) -> None:
        self._write(next(self._names))

    def overwrite(self) -> None:
        if self.files:
            self._write(self.random.choice(sorted(self.files)))

    def _write(self, path: bytes) -> None:
        content = self.random.randbytes(self.random.choice([100, 6_000, 30_000]))
        self.rig.write(path, content)
        self.files[path] = content

    def remove(self) -> None:
        if self.files:
            path = self.random.choice(sorted(self.files))
            self.rig.vfs.unlink(path)
            del self.files[path]

    def upload(self) -> None:
        for _ in range(self.random.randrange(1, 4)):
            if self.rig.blocks.dirty_queue(1):
                self.rig.upload_one()

    def publish(self) -> None:
        self.rig.advance()
        if self.syncs_folders and self.random.random() < 0.5:
            self.rig.upload_all()
        self.rig.exchange.publish_once()

    def checkpoint(self) -> None:
        self.rig.exchange.checkpoint()

    def settle(self) -> None:
        self.rig.let_settle()

    def evict(self) -> None:
        self.rig.blocks.collect()
        self.rig.evict_all()

    def read(self) -> None:
        if self.files:
            path = self.random.choice(sorted(self.files))
            assert self.rig.read(path) == self.files[path]

    def prune(self) -> None:
        if self.random.random() < 0.3:
            self.rig.prune()

    def restart(self) -> None:
        # Which segments have not settled yet is known to the process that put them.
        if self.syncs_folders:
            self.rig.restart()

    # What must be true

    def check(self, place: Path) -> None:
        """The server, as it is now, has what this machine counts on, and shows one history."""
        self._check_blocks()
        if self.syncs_folders:
            self._check_exchange(place)

    def _check_exchange(self, place: Path) -> None:
        self._check_checkpoint()
        published = self.rig.db.get_meta("published")
        path = place / "clone.db"
        try:
            clone(self.rig.remote, path, "clone")
        except MissingError:
            assert not published, "what was published is gone"
            return
        with closing(Database(path)) as db:
            assert db.get_meta("published") >= published, "what was published is gone"
            self._compare(db)
        for left in place.glob("clone.db*"):
            left.unlink()

    def _check_blocks(self) -> None:
        for block_id in self.rig.named():
            if not self.rig.blocks.is_dirty(block_id):
                self.rig.fetcher.download(block_id, urgent=False)

    def _check_checkpoint(self) -> None:
        """The newest manifest that there is names chunks that are there."""
        machine, seed = self.rig.db.get_meta("machine"), self.rig.db.get_meta("seed")
        entries = self.rig.remote.list(f"checkpoint/{machine:016x}")
        epochs = [epoch for entry in entries if (epoch := parse_epoch(entry.name)) is not None]
        if epochs:
            key = manifest_key(machine, max(epochs))
            manifest = decode_manifest(self.rig.remote.get(key, 0, MAX_OBJECT_BYTES), seed, key)
            for number, ids in manifest.chunks.items():
                for chunk_id in split_ids(ids):
                    data = self.rig.remote.get(chunk_key(machine, chunk_id))
                    decode_chunk(data, seed, manifest, number, chunk_id)

    def _compare(self, db: Database) -> None:
        mine = {row[0] for row in self.rig.db.query("SELECT seq FROM epoch")}
        for (epoch,) in db.query("SELECT seq FROM epoch"):
            if epoch in mine:
                assert _state_at(db, epoch) == self.rig.state_at(epoch), f"epoch {epoch} differs"
        rows = db.query("SELECT data FROM content WHERE run >= 0")
        for block_id in {one for row in rows for one in split_ids(row[0])} - {HOLE}:
            self.rig.fetcher.download(block_id, urgent=False)

    def finish(self, place: Path) -> None:
        """All goes on, and ends in a server that has everything."""
        self.rig.publish()
        self.settle()
        # What had not settled, and is lost, is made up for.
        while self.rig.exchange.step():
            pass
        self.rig.publish()
        self.settle()
        self.evict()
        assert not self.rig.blocks.usage().local_blocks
        for path, content in self.files.items():
            assert self.rig.read(path) == content
        self._check_blocks()
        self._check_exchange(place)
        ((left,),) = self.rig.db.query("SELECT count(*) FROM outbox")
        assert not left


def _state_at(db: Database, epoch: int) -> object:
    class Rows:
        pass

    rows = Rows()
    rows.db = db  # type: ignore[attr-defined]
    return VfsRig.state_at(rows, epoch)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForgetfulDisk]:
    with ForgetfulDisk(tmp_path_factory.mktemp("server")) as disk:
        yield disk


@pytest.fixture(autouse=True)
def one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a seed leads to the same steps in the same order."""
    monkeypatch.setattr(sweep, "_WORKERS", 1)


def cut_twice(disk: ForgetfulDisk, seed: int) -> None:
    """Work, a power cut of the server in the middle of it; and the same on what is left."""
    chance = random.Random(seed)
    syncs_folders = seed % 4 != 3
    disk.empty(syncs_folders=syncs_folders)
    with fast_folder() as folder, SftpProgram() as program:
        (folder / "data").mkdir()
        rig = Served(folder / "data", disk, _connector(disk, program, is_sftp=seed % 3 != 0))
        try:
            if not syncs_folders:
                disk.settle()  # the repository was made some time ago
            world = ServedWorld(rig, disk, seed, syncs_folders=syncs_folders)
            for number in range(2):
                disk.power_for(chance.randrange(5, 400))
                world.run(_STEPS)
                program.kill()
                disk.cut(2 * seed + number)
                _go_on(rig, restarts=syncs_folders and chance.random() < 0.5)
                world.check(folder)
            world.finish(folder)
        finally:
            rig.close()


def _connector(disk: ForgetfulDisk, program: SftpProgram, *, is_sftp: bool) -> Callable[[], Remote]:
    root = disk.path / "repository"
    if is_sftp:
        return lambda: SftpRemote(Location(str(root), "server"), program.connect, 3, 30.0)
    return lambda: LocalRemote(root)


def _go_on(rig: Served, *, restarts: bool) -> None:
    """The server is back: for the same process, or for the next one."""
    if restarts:
        rig.restart()
    rig.remote.check()


@pytest.mark.parametrize("seed", range(_FIRST_CUT, _FIRST_CUT + _CUTS))
def test_a_power_cut_of_the_server_loses_nothing_that_only_it_had(
    disk: ForgetfulDisk, seed: int
) -> None:
    cut_twice(disk, seed)


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(_CUTS, _TORTURE_CUTS))
def test_a_thousand_power_cuts_of_the_server_lose_nothing(disk: ForgetfulDisk, seed: int) -> None:
    cut_twice(disk, seed)
