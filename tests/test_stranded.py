"""Changes that the repository's history will not have: they stay, and can be taken out."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from syncer.config import Config
from syncer.errors import DisplacedError, OfflineError
from syncer.metadata.db import Database
from syncer.process.engine import Engine
from tests.damage import Place
from tests.mounted import BINDINGS, CommandError, mounted
from tests.processes import contents, wait_for

pytestmark = pytest.mark.fuse

FUSE = BINDINGS[-1]


def test_what_a_displaced_writer_had_not_published_is_exported(tmp_path: Path) -> None:
    rescued = tmp_path / "rescued"
    with mounted(tmp_path, FUSE, name="first", expects_warnings=True) as first:
        folder = first.path / "folder"
        folder.mkdir()
        for name in ("published", "goes", "moves"):
            (folder / name).write_bytes(name.encode() * 10_000)
        first.flush()
        first.umount()
        # What it writes now, nobody sees before another one takes over.
        os.rename(first.remote, tmp_path / "away")
        first.mount()
        large = os.urandom(3_000_000)
        (folder / "large").write_bytes(large)
        (folder / "large").chmod(0o640)
        os.utime(folder / "large", ns=(1, 2_000_000_000))
        with open(folder / "sparse", "wb") as file:
            file.truncate(2_000_000)
        (folder / "published").write_bytes(b"anew")
        os.symlink("large", folder / "link")
        os.mkfifo(folder / "fifo")
        os.rename(folder / "moves", first.path / "moved")
        (folder / "goes").unlink()
        first.umount()
        os.rename(tmp_path / "away", first.remote)
        with mounted(tmp_path, FUSE, name="second", clone=True) as second:
            second.remount("--take-over")
            (second.path / "folder/published").write_bytes(b"of the second")
            second.flush()
            first.mount()
            wait_for(lambda: first.status()["role"] == "displaced")
            with pytest.raises(CommandError, match="lies in a mount"):
                first.run("export", first.path, first.path / "here")
            said = first.run("export", first.path, rescued)
            assert "removed: /folder/goes" in said
            assert "no file: /folder/fifo" in said
            with pytest.raises(CommandError, match="not empty"):
                first.run("export", first.path, rescued)
            assert (second.path / "folder/published").read_bytes() == b"of the second"
    found = contents(rescued)
    assert found == {
        "folder": None,
        "folder/large": large,
        "folder/link": large,
        "folder/published": b"anew",
        "folder/sparse": bytes(2_000_000),
        "moved": b"moves" * 10_000,
    }
    assert (rescued / "folder/link").is_symlink()
    status = (rescued / "folder/large").stat()
    assert (status.st_mode & 0o777, status.st_mtime_ns) == (0o640, 2_000_000_000)


def test_what_can_not_be_read_is_told_and_the_rest_exported(tmp_path: Path) -> None:
    rescued = tmp_path / "rescued"
    with mounted(tmp_path, FUSE, expects_warnings=True) as mount:
        (mount.path / "cold").write_bytes(os.urandom(100_000))
        mount.evict()
        os.rename(mount.remote, tmp_path / "away")
        os.rename(mount.path / "cold", mount.path / "moved")
        (mount.path / "local").write_bytes(b"local" * 10_000)
        mount.umount()
        with pytest.raises(CommandError) as failure:
            mount.run("export", mount.data, rescued)
        assert failure.value.status == 1
        assert contents(rescued) == {"local": b"local" * 10_000}
        os.rename(tmp_path / "away", mount.remote)


def test_a_copied_data_directory_goes_on_under_an_id_of_its_own(tmp_path: Path) -> None:
    with mounted(tmp_path, FUSE, name="first", expects_warnings=True) as first:
        (first.path / "file").write_bytes(b"from the start")
        first.flush()
        first.umount()
        shutil.copytree(first.data, tmp_path / "copy")
        first.mount()
        (first.path / "file").write_bytes(b"of the first")
        first.flush()
        mnt = tmp_path / "copy-mnt"
        mnt.mkdir()
        first.run("mount", "--fuse", FUSE, tmp_path / "copy", mnt)
        try:
            wait_for(lambda: '"displaced"' in first.run("status", "--json", mnt))
            first.run("umount", mnt)
            # It has nothing of its own.
            first.run("mount", "--fuse", FUSE, tmp_path / "copy", mnt)
            wait_for(lambda: '"follower"' in first.run("status", "--json", mnt))
            wait_for(lambda: (mnt / "file").read_bytes() == b"of the first")
        finally:
            first.run("umount", mnt)
        assert first.status()["role"] == "writer"
        (first.path / "file").write_bytes(b"again")
        first.flush()


# Blocks that nobody else's history names


@pytest.mark.expects_warnings
def test_blocks_that_only_stranded_changes_name_stay_here(tmp_path: Path) -> None:
    place = Place.made_in(tmp_path)
    published = set(place.objects())
    with place.taken_over() as other:
        other.flush(60, lambda state: None)
        # It uploads before it learns that it was displaced, and makes room.
        engine = Engine(place.data, Config.load(place.folder.config))
        blocks = engine._blocks
        while blocks.usage().dirty_blocks:
            engine._transfer.uploads.step()
        engine._db.sync()
        blocks.evict(1 << 40)
        assert not place.blocks()
        with pytest.raises(DisplacedError):
            engine._exchange.step()
        mine = {path.name for path in set(place.objects()) - published}
        assert mine and {path.name for path in place.blocks()} == mine
        engine.stop()
        # To the writer of now they are garbage.
        for path in set(place.objects()) - published:
            path.unlink()
        with place.engine() as engine:
            engine._blocks.evict(1 << 40)
            assert {path.name for path in place.blocks()} == mine
            assert not engine._transfer.flush(1.0)
            assert not engine.status()["safe"]
    assert set(place.objects()) == published
    assert place.read_all() == place.files
    assert place.fsck(remote=True).state == "clean"


def test_blocks_that_can_not_be_fetched_when_it_is_displaced_are_fetched_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place.made_in(tmp_path)
    with place.taken_over() as other:
        other.flush(60, lambda state: None)
        engine = Engine(place.data, Config.load(place.folder.config))
        while engine._blocks.usage().dirty_blocks:
            engine._transfer.uploads.step()
        engine._blocks.evict(1 << 40)
        with monkeypatch.context() as patched:
            patched.setattr(engine._fetcher, "download", _fail)
            with pytest.raises(DisplacedError):
                engine._exchange.step()
        assert not place.blocks()
        assert not engine._exchange.step()
        assert place.blocks()
        engine.stop()


def _fail(*_args: object, **_options: object) -> bytes:
    raise OfflineError("it is away")


# Small rewrites that are not in blocks yet


def rewrite(place: Place) -> bytes:
    """Have all on the server but a small rewrite of a file; returns what that has now."""
    with place.engine() as engine:
        engine.flush(60, lambda state: None)
        handle = engine.vfs.open(b"/album/2024/island", os.O_RDWR)
        engine.vfs.write(handle, memoryview(b"rewritten"), 1000)
        engine.vfs.files.fsync(handle, engine.sync_metadata)
        engine.vfs.release(handle)
    with closing(Database(place.folder.database)) as db:
        assert db.query("SELECT 1 FROM patch")
        assert not db.query("SELECT 1 FROM outbox")
    content = place.files[b"/album/2024/island"]
    return content[:1000] + b"rewritten" + content[1009:]


def test_a_small_rewrite_that_only_this_computer_has_is_told_after_the_unmount(
    tmp_path: Path,
) -> None:
    with mounted(tmp_path, FUSE) as mount:
        (mount.path / "large").write_bytes(os.urandom(1_000_000))
        mount.flush()
        with open(mount.path / "large", "r+b") as file:
            file.write(b"rewritten")
            file.flush()
            os.fsync(file.fileno())
        mount.umount()
        status = mount.status()
        assert (status["safe"], status["dirty_files"]) == (False, 1)
        assert "NOT everything is on the server: 1 file" in mount.run("status", mount.data)
        mount.flush()
        assert mount.status()["safe"]


@pytest.mark.expects_warnings
def test_a_displaced_writer_whose_small_rewrites_are_stranded_does_not_follow(
    tmp_path: Path,
) -> None:
    place = Place.made_in(tmp_path)
    mine = rewrite(place)
    with place.taken_over() as other:
        other.flush(60, lambda state: None)
        # It learns that it was displaced, and is killed before the rewrite is in a block.
        engine = Engine(place.data, Config.load(place.folder.config))
        with pytest.raises(DisplacedError):
            engine._exchange.step()
        engine.stop()
        for role in ("displaced", "follower"):
            # The other one: as an earlier version has left it.
            with closing(Database(place.folder.database)) as db:
                db.set_meta("role", role)
            engine = Engine(place.data, Config.load(place.folder.config))
            status = engine.status()
            engine.stop()
            assert (status["role"], status["stranded_changes"]) == ("displaced", 1)
            assert not status["safe"]
    with place.engine() as engine:
        found = engine.stranded.export(tmp_path / "rescued", lambda state: None)
        assert not found["failed"]
    assert (tmp_path / "rescued/album/2024/island").read_bytes() == mine
