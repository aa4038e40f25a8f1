"""A damaged database is noticed, and built anew from the server and the local segment files."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from syncer.config import Config
from syncer.errors import CorruptError, PermanentError
from syncer.exchange.journal import read_patches
from syncer.exchange.rows import MAX_EPOCH
from syncer.process.engine import Engine
from syncer.process.folder import DataFolder
from syncer.process.repository import clone_repository
from tests.damage import ME, Place, noise, read
from tests.mounted import ROOT as ROOT_FOLDER


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.made_in(tmp_path_factory.mktemp("original"))


@pytest.fixture
def place(original: Place, tmp_path: Path) -> Place:
    return original.copied_to(tmp_path)


def _delete(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _zero_header(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(bytes(100))


def _zero_pages(path: Path) -> None:
    with open(path, "r+b") as file:
        for page in range(1, path.stat().st_size // 2048, 2):
            file.seek(page * 2048)
            file.write(bytes(2048))


def _flip_bits(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for start in range(2048, len(data), 2048):
        data[start] ^= 0xFF
    path.write_bytes(data)


WAYS = [_delete, _empty, _truncate, _zero_header, _zero_pages, _flip_bits]


@pytest.mark.parametrize("damage", WAYS, ids=lambda way: way.__name__.strip("_"))
def test_a_destroyed_database_costs_no_name_and_no_content(
    place: Place, damage: Callable[[Path], None]
) -> None:
    damage(place.folder.database)
    assert place.fsck().state == "damaged"
    found = place.fsck(repair=True)
    assert found.state == "repaired", found
    assert place.fsck(remote=True, read_data=True).state == "clean"
    assert place.read_all() == place.files
    with place.engine() as engine:
        # It is the same machine still, and what was not published is now.
        assert engine.is_writer
        engine.flush(60, lambda state: None)
    assert place.cloned_names() >= {b"small", b"large", b"tiny", b"island", b"link", b"same"}


def test_a_mount_of_a_damaged_database_says_what_to_do(place: Place) -> None:
    for damage in WAYS[:4]:
        place.folder.database.with_name("copy").write_bytes(place.folder.database.read_bytes())
        damage(place.folder.database)
        with pytest.raises(CorruptError, match=r"syncer fsck --repair"), place.engine():
            pass
        place.folder.database.with_name("copy").replace(place.folder.database)
        for end in ("-wal", "-shm"):
            Path(f"{place.folder.database}{end}").unlink(missing_ok=True)
    assert place.read_all() == place.files


def test_an_old_database_in_its_place_is_noticed(place: Place) -> None:
    old = place.folder.database.read_bytes()
    with place.engine() as engine:
        place.write(engine, b"/later", b"later")
    place.folder.database.write_bytes(old)
    with pytest.raises(CorruptError, match="older than"), place.engine():
        pass
    assert place.fsck(repair=True).state == "repaired"
    assert place.read_all() == place.files


def started(place: Place) -> Engine:
    """An engine at work, whose end is an error of its own."""
    engine = Engine(place.data, Config.load(place.folder.config))
    engine.start()
    return engine


@pytest.mark.expects_warnings
def test_damage_that_shows_later_makes_it_read_only(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    engine = started(place)
    try:
        engine._db.checkpoint()
        rows = engine._db.query("SELECT pageno FROM dbstat WHERE name = 'node'")
        assert rows
        engine._db._connection.execute("PRAGMA shrink_memory")
        with open(place.folder.database, "r+b") as file:
            for (page,) in rows:
                file.seek((page - 1) * 2048)
                file.write(b"\xaa" * 2048)
        engine._tree.forget()
        with pytest.raises(CorruptError):
            engine._tree.node(1)
        with pytest.raises(OSError, match="Read-only"):
            engine.vfs.mkdir(b"/another", 0o755, ME)
        assert "fsck --repair" in engine._errors("")[0]
    finally:
        with pytest.raises(CorruptError, match="fsck --repair"):
            engine.stop()
    assert "damaged" in caplog.text
    caplog.clear()
    assert place.fsck(repair=True).state == "repaired"
    assert place.read_all() == place.files


@pytest.mark.expects_warnings
def test_a_disk_that_does_not_sync_makes_it_read_only_and_asks_for_no_repair(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fdatasync(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    engine = started(place)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fdatasync)
            place.write(engine, b"/last", b"written before that")
            with pytest.raises(PermanentError, match="may have lost"):
                engine.sync_metadata()
        # The disk says that all is well again.
        with pytest.raises(PermanentError, match="may have lost"):
            engine.sync_metadata()
        with pytest.raises(OSError, match="Read-only"):
            engine.vfs.mkdir(b"/another", 0o755, ME)
        assert read(engine, b"/new/small") == place.files[b"/new/small"]
        error = engine._errors("")[0]
        assert "look after the disk" in error
        assert "repair" not in error
    finally:
        with pytest.raises(PermanentError, match="may have lost"):
            engine.stop()
    assert place.fsck().state == "clean"
    assert place.read_all() == place.files


def test_small_rewrites_that_are_not_in_blocks_yet_are_rebuilt(place: Place) -> None:
    with place.engine() as engine:
        handle = engine.vfs.open(b"/album/2024/island", os.O_RDWR)
        engine.vfs.write(handle, memoryview(b"rewritten"), 1000)
        engine.vfs.files.fsync(handle, engine.sync_metadata)
        assert engine._db.query("SELECT 1 FROM patch")
        engine._committer.round()
        assert engine._db.query("SELECT 1 FROM patch")
        # As kill -9 leaves it: nothing more is sealed.
        copy = place.folder.segments.with_name("copy")
        shutil.copytree(place.folder.segments, copy)
        engine.vfs.release(handle)
    shutil.rmtree(place.folder.segments)
    copy.rename(place.folder.segments)
    place.folder.database.unlink()
    assert place.fsck(repair=True).state == "repaired"
    content = place.files[b"/album/2024/island"]
    place.files[b"/album/2024/island"] = content[:1000] + b"rewritten" + content[1009:]
    assert place.read_all() == place.files


@pytest.mark.parametrize("offset", [24, 40, -1])
def test_small_rewrites_that_are_damaged_do_not_stop_a_rebuilding(
    place: Place, offset: int
) -> None:
    """Not even in the version that they say they are of: see `decode_envelope`."""
    with place.engine() as engine:
        handle = engine.vfs.open(b"/album/2024/island", os.O_RDWR)
        engine.vfs.write(handle, memoryview(b"rewritten"), 1000)
        engine.vfs.files.fsync(handle, engine.sync_metadata)
        engine._committer.round()
        data = bytearray((place.folder.segments / "patches").read_bytes())
        engine.vfs.release(handle)
    data[offset] ^= 1
    (place.folder.segments / "patches").write_bytes(data)
    place.folder.database.unlink()
    found = place.fsck(repair=True)
    assert found.state == "repaired" and found.notes
    assert place.fsck(remote=True).state == "clean"


@pytest.mark.expects_warnings
def test_another_writer_since_then_keeps_what_was_not_published_apart(place: Place) -> None:
    clone = place.data.with_name("clone")
    clone_repository(clone, Config(remote=str(place.remote), limit_bytes=10**8), "desktop")
    other = Engine(clone, Config.load(clone / "config"))
    other.take_over()
    other.start()
    other.vfs.mkdir(b"/theirs", 0o755, ME)
    other.flush(60, lambda state: None)
    other.stop()
    place.folder.database.unlink()
    assert place.fsck(repair=True).state == "repaired"
    with place.engine() as engine:
        assert engine.status()["role"] == "displaced"
        assert engine.status()["stranded_changes"]
        with pytest.raises(FileNotFoundError):
            engine.vfs.getattr(b"/theirs")
    assert place.read_all() == place.files


@pytest.mark.expects_warnings
@pytest.mark.parametrize("role", ["writer", "displaced"])
def test_a_new_writer_keeps_what_it_has_not_published(place: Place, role: str) -> None:
    """Before its first segment, no file of its own is part of the server's history."""
    with place.engine() as engine:
        engine.flush(60, lambda state: None)
    config = Config(remote=str(place.remote), limit_bytes=10**8)
    for name in ("desktop", "phone"):
        clone_repository(place.data.with_name(name), config, name)
    place.data = place.data.with_name("desktop")
    place.folder = DataFolder(place.data)
    engine = Engine(place.data, Config.load(place.folder.config))
    engine.take_over()
    engine.stop()
    place.remote_away()
    with place.engine() as engine:
        place.write(engine, b"/mine", noise(9, 100_000))
        place.write(engine, b"/tiny", b"mine as well")
    with place.engine() as engine:
        place.write(engine, b"/later", noise(10, 100_000))
    place.remote_back()
    if role == "displaced":
        phone = place.data.with_name("phone")
        other = Engine(phone, Config.load(phone / "config"))
        other.take_over()
        other.stop()
    place.folder.database.unlink()
    found = place.fsck(repair=True)
    assert (found.state, found.left) == ("repaired", 0)
    with place.engine() as engine:
        assert engine.status()["role"] == role
    assert place.read_all() == place.files


def test_small_rewrites_of_a_new_writer_are_told_and_kept(place: Place) -> None:
    with place.engine() as engine:
        engine.flush(60, lambda state: None)
    data = place.data.with_name("desktop")
    clone_repository(data, Config(remote=str(place.remote), limit_bytes=10**8), "desktop")
    place.data, place.folder = data, DataFolder(data)
    engine = Engine(place.data, Config.load(place.folder.config))
    engine.take_over()
    engine.stop()
    with place.engine() as engine:
        seed = engine._db.get_meta("seed")
        handle = engine.vfs.open(b"/album/2024/island", os.O_RDWR)
        engine.vfs.write(handle, memoryview(b"rewritten"), 1000)
        engine.vfs.files.fsync(handle, engine.sync_metadata)
        engine.vfs.release(handle)
    place.folder.database.unlink()
    found = place.fsck(repair=True)
    assert (found.state, found.kinds["changes without a history"]["found"]) == ("damaged", 1)
    (kept,) = place.folder.segments.glob("unfit-*/patches")
    (patch,) = read_patches(kept.parent, seed, MAX_EPOCH)
    assert patch[2:4] == (1000, b"rewritten")


def test_a_copy_that_is_behind_becomes_another_machine(place: Place, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(place.data, copy)
    with place.engine() as engine:
        place.write(engine, b"/later", b"later")
        engine.flush(60, lambda state: None)
        machine = engine._db.get_meta("machine")
    files = dict(place.files)
    place.data, place.folder = copy, DataFolder(copy)
    place.remote_away()
    with place.engine() as engine:
        place.write(engine, b"/mine", noise(9, 100_000))
    place.remote_back()
    place.folder.database.unlink()
    found = place.fsck(repair=True)
    assert (found.state, found.left) == ("damaged", 1), "some of it is in nobody's history"
    assert place.fsck().state == "clean"
    with place.engine() as engine:
        assert engine.status()["role"] == "follower"
        assert engine._db.get_meta("machine") != machine
    assert place.read_all() == files
    kept = [path.name for path in place.folder.segments.glob("unfit-*/*")]
    assert len(kept) >= 2 and any(name.startswith("block-") for name in kept)


def test_a_rebuilding_that_is_killed_begins_anew(place: Place) -> None:
    place.folder.database.unlink()
    words = [sys.executable, "-m", "syncer", "fsck", "--repair", place.data]
    for when in ("insert_rows", "_adopt_blocks", "publish_file"):
        code = (
            "import os, signal, sys\n"
            "from syncer.maintain import rebuild\n"
            f"rebuild.{when} = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
            "from syncer.commands.cli import main\n"
            f"main(['fsck', '--repair', {str(place.data)!r}])\n"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT_FOLDER, check=False)
        assert done.returncode == -signal.SIGKILL
    assert subprocess.run(words, cwd=ROOT_FOLDER, stdout=subprocess.DEVNULL).returncode == 18
    assert place.fsck(remote=True, read_data=True).state == "clean"
    assert place.read_all() == place.files
