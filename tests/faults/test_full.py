"""Disks that are full: the server's, and this computer's, for blocks and for metadata."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncer.config import Config
from syncer.errors import LocalFullError
from tests.damage import Place
from tests.faults.line import noise
from tests.mounted import BINDINGS, CommandError, mounted
from tests.processes import contents, is_mounted, wait_for

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make small disks"),
]

FUSE = BINDINGS[-1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, timeout=60)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=60)


def free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def fill(folder: Path, left_bytes: int) -> Path:
    """Use up the disk, but for so much."""
    ballast = folder / "ballast"
    with open(ballast, "wb") as file:
        file.write(bytes(max(0, free_bytes(folder) - left_bytes)))
    return ballast


def test_while_the_servers_disk_is_full_writing_goes_on_and_resumes(
    tmp_path: Path, small_disk: Path
) -> None:
    with mounted(
        tmp_path, FUSE, limit="200", remote=str(small_disk / "remote"), expects_warnings=True
    ) as mount:
        (mount.path / "before").write_bytes(noise(3_000_000, 0))
        mount.flush()
        ballast = fill(small_disk, 5_000_000)
        for number in range(20):
            (mount.path / f"{number}").write_bytes(noise(1_000_000, number + 1))
        wait_for(lambda: "No space left" in mount.status()["remote"]["error"], 60)
        status = mount.status()
        assert status["remote"]["state"] == "error"
        assert not status["safe"]
        assert status["dirty_bytes"] >= 10_000_000
        assert not status["waiting"], "there is room here"
        assert (mount.path / "before").read_bytes() == noise(3_000_000, 0)
        ballast.unlink()
        mount.flush()
        wait_for(lambda: mount.status()["remote"]["state"] == "online")
        assert mount.status()["safe"]
        with mounted(tmp_path, FUSE, name="clone", remote=mount.remote, clone=True) as clone:
            assert contents(clone.path) == contents(mount.path)


def test_a_full_server_is_cloned_and_followed(tmp_path: Path, small_disk: Path) -> None:
    remote = str(small_disk / "remote")
    with mounted(tmp_path, FUSE, remote=remote, expects_warnings=True) as mount:
        (mount.path / "before").write_bytes(noise(300_000, 0))
        mount.flush()
        ballast = fill(small_disk, 0)
        with mounted(tmp_path, FUSE, name="clone", remote=remote, clone=True) as clone:
            assert (clone.path / "before").read_bytes() == noise(300_000, 0)
            clone.umount()
            ballast.unlink()
            (mount.path / "after").write_bytes(noise(300_000, 1))
            mount.flush()
            fill(small_disk, 0)
            clone.mount()
            wait_for(lambda: (clone.path / "after").exists(), 60)
            assert (clone.path / "after").read_bytes() == noise(300_000, 1)
        ballast.unlink()


def test_a_disk_without_room_for_metadata_refuses_and_loses_nothing(
    tmp_path: Path, small_disk: Path
) -> None:
    with mounted(
        tmp_path, FUSE, data=small_disk / "data", expects_warnings=True,
        settings={"timeout": "1", "min_free": "1"},
    ) as mount:  # fmt: skip
        (mount.path / "before").write_bytes(noise(100_000, 0))
        mount.flush()
        # Less than SQLite takes for the next pages of its log.
        ballast = fill(small_disk, 0)
        made = set()
        refused: OSError | None = None
        for number in range(20_000):
            try:
                os.mkdir(mount.path / f"folder-{number}")
            except OSError as error:
                refused = error
                break
            made.add(f"folder-{number}")
        assert refused is not None
        assert refused.errno == errno.ENOSPC
        assert (mount.path / "before").read_bytes() == noise(100_000, 0)
        assert set(os.listdir(mount.path)) == {"before", *made}
        for change in (
            lambda: (mount.path / "small").write_bytes(b"x"),
            lambda: os.rename(mount.path / "before", mount.path / "after"),
        ):
            # Refused, or there was just room: never half.
            with contextlib.suppress(OSError):
                change()
        ballast.unlink()
        (mount.path / "file").write_bytes(noise(100_000, 1))
        before = contents(mount.path)
        assert before["file"] == noise(100_000, 1)
        assert made < before.keys()
        mount.flush()
        mount.remount()
        assert contents(mount.path) == before
        with mounted(tmp_path, FUSE, name="clone", remote=mount.remote, clone=True) as clone:
            assert contents(clone.path) == before


@pytest.mark.parametrize("left_bytes", [0, 4096, 16384])
def test_a_full_disk_is_not_taken_for_a_damaged_database(
    tmp_path: Path, small_disk: Path, left_bytes: int
) -> None:
    """Who repairs a good database loses what was done since the last round."""
    place = Place.made_in(tmp_path / "large").copied_to(small_disk)
    Config.load(place.folder.config).with_value("min_free", "1").save(place.folder.config)
    ballast = fill(small_disk, left_bytes)
    with pytest.raises(LocalFullError, match="free some space") as error, place.engine():
        pass
    assert "repair" not in str(error.value)
    for repair in (False, True):
        with pytest.raises(LocalFullError, match="free some space"):
            place.fsck(repair=repair)
    assert not list(place.data.glob("*.damaged-*"))
    ballast.unlink()
    assert place.fsck().state == "clean"
    assert place.read_all() == place.files


def test_on_a_disk_with_hardly_any_room_a_mount_serves_in_full_or_not_at_all(
    tmp_path: Path, small_disk: Path
) -> None:
    with mounted(
        tmp_path, FUSE, data=small_disk / "data", expects_warnings=True,
        settings={"timeout": "1", "min_free": "1"},
    ) as mount:  # fmt: skip
        mount.umount()
        statuses = []
        said = []
        for left_kib in (24, 32, 40, 48, 64, 96):
            ballast = fill(small_disk, left_kib << 10)
            try:
                mount.mount()
                statuses.append(0)
            except CommandError as error:
                statuses.append(error.status)
                said.append(str(error))
            finally:
                ballast.unlink()
            if statuses[-1]:
                assert not is_mounted(mount.path)
            else:
                # Only a whole engine can do that.
                (mount.path / f"{left_kib}").write_bytes(noise(100_000, left_kib))
                mount.run("flush", "--timeout", "30", mount.data)
                mount.umount()
        assert LocalFullError.exit_code in statuses, statuses
        assert all(text.startswith("syncer: ") and text.count("\n") == 1 for text in said)


def last_boot(data: Path) -> str:
    """Of what boot the process was that had the data directory last; "" if it ended in order."""
    with contextlib.closing(sqlite3.connect(data / "metadata.db")) as db:
        return str(db.execute("SELECT value FROM meta WHERE key = 'boot'").fetchone()[0])


def test_umount_from_a_disk_without_room_ends_all_and_is_an_error(
    tmp_path: Path, small_disk: Path
) -> None:
    with mounted(
        tmp_path, FUSE, data=small_disk / "data", expects_warnings=True,
        settings={"timeout": "1", "min_free": "1"},
    ) as mount:  # fmt: skip
        (mount.path / "file").write_bytes(noise(100_000, 0))
        mount.flush()
        ballast = fill(small_disk, 0)
        made = set()
        with contextlib.suppress(OSError):
            for number in range(20_000):
                os.mkdir(mount.path / f"folder-{number}")
                made.add(f"folder-{number}")
        with pytest.raises(CommandError) as caught:
            mount.umount()
        assert caught.value.status == LocalFullError.exit_code
        assert "is unmounted, but not everything is safe: " in str(caught.value)
        assert str(caught.value).count("\n") == 1
        mount.wait_ended()
        ballast.unlink()
        assert last_boot(mount.data)
        mount.mount()
        assert {"file", *made} <= set(os.listdir(mount.path))
        assert (mount.path / "file").read_bytes() == noise(100_000, 0)
        mount.flush()
        mount.umount()
        assert not last_boot(mount.data)


def test_umount_says_which_files_found_no_room(tmp_path: Path, small_disk: Path) -> None:
    with mounted(
        tmp_path, FUSE, data=small_disk / "data", expects_warnings=True,
        settings={"timeout": "1", "min_free": "4"},
    ) as mount:  # fmt: skip
        # What the disk had free a moment ago still counts for a process.
        mount.umount()
        ballast = fill(small_disk, 4_700_000)
        mount.mount()
        # So that uploading makes no room.
        os.rename(mount.remote, f"{mount.remote}.away")
        (mount.path / "before").write_bytes(noise(100_000, 0))
        for number in range(3):
            with pytest.raises(OSError, match="No space left"):
                (mount.path / f"late-{number}").write_bytes(noise(900_000, number))
        with pytest.raises(CommandError) as caught:
            mount.umount()
        assert caught.value.status == LocalFullError.exit_code
        assert "3 files could not be saved (/late-" in str(caught.value)
        assert str(caught.value).count("\n") == 1
        mount.wait_ended()
        ballast.unlink()
        os.rename(f"{mount.remote}.away", mount.remote)
        mount.mount()
        assert (mount.path / "before").read_bytes() == noise(100_000, 0)
        mount.flush()
        mount.umount()
