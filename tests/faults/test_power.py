"""Power cuts, simulated: what was fsynced is whole, and nothing is garbage, zeros or a mix."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from syncer.blocks.cache import Cache
from syncer.config import Config
from syncer.errors import SyncerError
from syncer.exchange import writers
from syncer.exchange.writers import init_repository, set_up_database
from syncer.metadata.db import Database
from syncer.metadata.undo import Undo
from syncer.process import engine
from syncer.process.engine import Engine
from syncer.remote.local import LocalRemote
from syncer.vfs.snapshots import SnapshotVfs
from tests.block_rig import LIMIT_BYTES, SEED
from tests.faults.power import Disk, PowerCutError
from tests.faults.world import World
from tests.vfs_rig import MACHINE, VfsRig, fast_folder

_CUTS = int(os.environ.get("SYNCER_CUTS", "30"))
_FIRST_CUT = int(os.environ.get("SYNCER_FIRST_CUT", "0"))
_TORTURE_CUTS = 1000
_STEPS = 60


def cut_twice(seed: int, *, threads: bool = False) -> None:
    """Work, a power cut in the middle of it, a reboot; and the same once more on what is left.

    With `threads`, syncs, uploads and evictions go on at the same time.
    """
    with fast_folder() as folder:
        place = folder / "0"
        place.mkdir()
        stored: dict[str, bytes] = {}
        for number in (1, 2):
            world = _work_until_the_cut(
                place, folder / str(number), stored, 2 * seed + number, threads=threads
            )
            place = folder / str(number)
            stored = dict(world.rig.remote.objects)
            _look_at(place, world, stored)


def _work_until_the_cut(
    before: Path, after: Path, stored: dict[str, bytes], seed: int, *, threads: bool = False
) -> World:
    with Disk(before, seed) as disk:
        rig = VfsRig(before)
        _fill(rig, stored)
        rig.round()
        world = World(rig, seed, is_alone=not threads)
        disk.effects_left = random.Random(seed).randrange(20, 300)
        with _others(rig, disk, seed) if threads else contextlib.nullcontext():
            with contextlib.suppress(PowerCutError):
                world.run(_STEPS)
            disk.effects_left = -1
        disk.cut(after)
    rig.db.close()
    return world


@contextlib.contextmanager
def _others(rig: VfsRig, disk: Disk, seed: int) -> Iterator[None]:
    """Threads that do what syncer's own do in the background, until the power is gone."""
    failures: list[BaseException] = []

    def upload() -> None:
        for block_id, _ in rig.blocks.dirty_queue(3):
            # Dropped meanwhile, if there is none.
            if (content := rig.blocks.local(block_id)) is not None:
                rig.store_remotely(content)
                rig.blocks.mark_clean([block_id])

    def run(number: int, *work: Callable[[], object]) -> None:
        dice = random.Random(f"{seed} {number}")
        try:
            while disk.effects_left >= 0:
                dice.choice(work)()
                time.sleep(dice.random() * 0.002)
        except PowerCutError:
            pass
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=run, args=(0, rig.round, lambda: rig.round(seal=True))),
        threading.Thread(target=run, args=(1, upload, rig.evict_all, rig.blocks.collect)),
        threading.Thread(target=run, args=(2, rig.db.sync, rig.db.checkpoint, _look(rig))),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()
    assert not failures, failures


def _look(rig: VfsRig) -> Callable[[], None]:
    """Somebody reads the metadata from outside, as the publisher does."""

    def look() -> None:
        with rig.db.snapshot() as reader:
            assert list(reader.query("SELECT count(*) FROM node"))

    return look


def _fill(rig: VfsRig, stored: dict[str, bytes]) -> None:
    for key, content in stored.items():
        rig.remote.put(key, content)


def _look_at(place: Path, world: World, stored: dict[str, bytes]) -> None:
    again = VfsRig(place, power_was_cut=True)
    _fill(again, stored)
    world.check(again)
    assert not again.blocks.sweep(), "a file that the remote lacks is gone"
    again.round(seal=True)
    rows = again.db.query("SELECT id FROM block")
    assert again.files().keys() == {row[0] for row in rows}
    for table in ("undo_file", "undo_run", "undo_patch"):
        assert not again.db.query(f"SELECT * FROM {table}"), "copies that are not needed any more"
    again.upload_all()
    again.evict_all()
    world.check(again)
    again.check_usage()
    again.close()
    stored.update(again.remote.objects)


@pytest.mark.parametrize("seed", range(_FIRST_CUT, _FIRST_CUT + _CUTS))
@pytest.mark.slow(1.5)
def test_a_power_cut_leaves_what_was_synced_and_nothing_wrong(seed: int) -> None:
    cut_twice(seed)


@pytest.mark.parametrize("seed", range(_FIRST_CUT, _FIRST_CUT + _CUTS // 3))
def test_a_power_cut_while_threads_work_leaves_what_was_synced(seed: int) -> None:
    cut_twice(seed, threads=True)


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(_CUTS // 3, _TORTURE_CUTS))
def test_a_thousand_power_cuts_while_threads_work_leave_what_was_synced(seed: int) -> None:
    cut_twice(seed, threads=True)


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(_CUTS, _TORTURE_CUTS))
def test_a_thousand_power_cuts_leave_what_was_synced(seed: int) -> None:
    cut_twice(seed)


def test_a_state_whose_blocks_were_dropped_is_not_taken_for_whole() -> None:
    """While fsync waits for the disk the file is written again, and the power goes."""
    contents = [random.Random(seed).randbytes(20_000) for seed in range(3)]
    with fast_folder() as folder:
        rig = VfsRig(folder)
        number = rig.make(b"/file", contents[0])
        rig.round(seal=True)
        safe = rig.files()
        handle = rig.vfs.open(b"/file", os.O_RDWR)
        for content in contents[1:]:
            rig.vfs.write(handle, memoryview(content), 0)
            rig.vfs.files.flush(handle)
            # The first half of an fsync.
            rig.blocks.begin_sync(number)
        rig.db.close()
        for block_id in rig.files().keys() - safe.keys():
            rig.path(block_id).unlink()
        again = VfsRig(folder, power_was_cut=True)
        assert again.read(b"/file") == contents[0]
        again.close()


@pytest.fixture
def another_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine sees another boot id than that of the work before."""
    (tmp_path / "boot_id").write_text("after the cut\n")
    monkeypatch.setattr(engine, "_BOOT_ID", tmp_path / "boot_id")
    monkeypatch.setattr(writers.secrets, "randbits", lambda bits: SEED)


class _Served:
    """An engine at work, as `World.check` looks at a rig."""

    def __init__(self, vfs: SnapshotVfs) -> None:
        self.vfs = vfs

    list = VfsRig.list
    read = VfsRig.read


@contextlib.contextmanager
def _engine_at(place: Path, remote: Path, stored: dict[str, bytes]) -> Iterator[Engine]:
    for key, content in stored.items():
        (remote / key).write_bytes(content)
    config = Config(remote=str(remote), limit_bytes=LIMIT_BYTES, min_free_bytes=0)
    at_work = Engine(place, config)
    at_work.start()
    try:
        yield at_work
    finally:
        at_work.stop()


@pytest.mark.parametrize("seed", range(10_000, 10_006))
@pytest.mark.usefixtures("another_boot")
def test_the_engine_recovers_at_its_start(seed: int) -> None:
    with fast_folder() as folder:
        place, remote = folder / "before", folder / "remote"
        place.mkdir()
        info = init_repository(LocalRemote(remote), MACHINE, "laptop")
        rig = VfsRig(place)
        set_up_database(rig.db, info, MACHINE)
        rig.db.set_meta("boot", "before the cut")
        rig.close()
        world = _work_until_the_cut(place, folder / "after", {}, seed)
        stored = dict(world.rig.remote.objects)
        with _engine_at(folder / "after", remote, stored) as at_work:
            world.check(_Served(at_work.vfs))
            at_work.flush(30, lambda status: None)
            at_work.keeping.evict(None)
            world.check(_Served(at_work.vfs))
            assert at_work.status()["safe"]


@pytest.mark.expects_warnings
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Database, "sync"), (Cache, "sync"), (Cache, "sync_all"),
        (Undo, "keep"), (Undo, "end_turn_of"), (Undo, "drop"),
    ],
)  # fmt: skip
def test_a_left_out_step_is_noticed(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    # What a step returns is an earlier turn, or the blocks that it was asked to sync.
    monkeypatch.setattr(owner, name, lambda self, ids=0, *more: ids if name == "sync" else 0)
    with pytest.raises((AssertionError, SyncerError)):
        _cut_many()


def _cut_many() -> None:
    for seed in range(3 * _CUTS):
        cut_twice(seed)
