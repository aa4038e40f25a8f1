"""Changes that the repository's history will not have: they stay, and can be taken out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

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
