"""Pins, states and what is local, through real mounts and commands."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from tests.mounted import BINDINGS, CommandError, mounted
from tests.sshd import HOST, Sshd

pytestmark = pytest.mark.fuse

PHOTOS = 40
THUMBNAIL_BYTES = 12_000


def noise(number: int, size_bytes: int) -> bytes:
    return random.Random(number).randbytes(size_bytes)


@pytest.mark.parametrize("fuse", BINDINGS)
def test_pinned_thumbnails_are_there_without_the_server(fuse: str, tmp_path: Path) -> None:
    """What docs/getting-started.md promises: a collection can be browsed offline, from the start of
    a mount on, though all that was not pinned is gone from the local disk."""
    with (
        Sshd() as server,
        mounted(
            tmp_path, fuse, remote=f"{HOST}:{tmp_path}/remote",
            settings={"timeout": "2", "inline_limit": "4Ki"},
            env={"SYNCER_SSH_CONFIG": str(server.config)}, expects_warnings=True,
        ) as mount,
    ):  # fmt: skip
        photos, thumbs = mount.path / "photos", mount.path / "photos" / ".thumbs"
        thumbs.mkdir(parents=True)
        for number in range(PHOTOS):
            (photos / f"{number}.jpg").write_bytes(noise(number, 150_000))
            (thumbs / f"{number}.jpg").write_bytes(noise(1000 + number, THUMBNAIL_BYTES))
        mount.evict()
        assert f"pinned {PHOTOS} files" in mount.run("pin", thumbs)
        said = mount.run("evict", thumbs)
        assert said.startswith("freed 0 B") and "480 kB pinned (see: syncer unpin)" in said
        mount.run("evict", "--all", mount.path)
        mount.umount()
        server.stop()
        mount.mount()
        names = sorted(os.listdir(photos))
        assert len(names) == PHOTOS + 1
        for number in range(PHOTOS):
            assert (thumbs / f"{number}.jpg").read_bytes() == noise(1000 + number, THUMBNAIL_BYTES)
        with pytest.raises(OSError) as error:
            (photos / "0.jpg").read_bytes()
        assert error.value.errno == errno.EIO
        (pin,) = json.loads(mount.run("pins", mount.path, "--json"))["pins"]
        assert (pin["path"], pin["local_files"]) == ("/photos/.thumbs", PHOTOS)
        assert "all local" in mount.run("pins", mount.path)
        server.start()


@pytest.mark.parametrize("fuse", BINDINGS)
def test_states_answer_by_name_and_are_copied_by_nobody(fuse: str, tmp_path: Path) -> None:
    with mounted(tmp_path, fuse) as mount:
        folder = mount.path / "folder"
        folder.mkdir()
        path = folder / "file"
        path.write_bytes(noise(1, 100_000))
        os.setxattr(path, "user.comment", b"mine")
        mount.flush()
        get = os.getxattr
        assert get(path, "user.syncer.state") == b"local"
        assert get(path, "user.syncer.cached_bytes") == b"100000"
        assert get(path, "user.syncer.pinned") == get(folder, "user.syncer.pinned") == b"0"
        mount.evict()
        assert get(path, "user.syncer.state") == b"remote"
        os.setxattr(folder, "user.syncer.pinned", b"1")
        assert get(path, "user.syncer.pinned") == b"1"
        assert os.listxattr(path) == ["user.comment"] and os.listxattr(folder) == []
        shown = subprocess.run(
            ["getfattr", "-d", "-m", "-", path], capture_output=True, text=True, check=True
        ).stdout
        assert "user.syncer" not in shown
        for command in (["cp", "-a", f"{folder}/."], ["rsync", "-aX", f"{folder}/"]):
            copy = tmp_path / command[0]
            copy.mkdir()
            done = subprocess.run([*command, copy], capture_output=True, text=True, check=True)
            assert not done.stderr
            assert os.listxattr(copy / "file") == ["user.comment"]
            # And back: the copy is pinned or not by where it lies.
            back = mount.path / f"by-{command[0]}"
            back.mkdir()
            subprocess.run([*command[:-1], f"{copy}/.", back], check=True)
            assert get(back / "file", "user.syncer.pinned") == b"0"
            assert get(back / "file", "user.comment") == b"mine"
        for name, value, number in (
            ("state", b"local", errno.EPERM),
            ("other", b"1", errno.EOPNOTSUPP),
            ("pinned", b"maybe", errno.EINVAL),
        ):
            with pytest.raises(OSError) as error:
                os.setxattr(path, f"user.syncer.{name}", value)
            assert error.value.errno == number
        with pytest.raises(OSError) as error:
            get(path, "user.syncer.other")
        assert error.value.errno == errno.ENODATA
        os.removexattr(folder, "user.syncer.pinned")
        assert get(path, "user.syncer.pinned") == b"0"


def test_commands_tell_what_they_did_and_what_they_left(tmp_path: Path) -> None:
    with mounted(tmp_path, BINDINGS[-1]) as mount:
        folder = mount.path / "folder"
        (folder / "below").mkdir(parents=True)
        for number in range(3):
            (folder / str(number)).write_bytes(noise(number, 1_500_000))
        mount.flush()
        assert mount.run("evict", folder) == "freed 4.51 MB (6 blocks of 3 files)\n"
        assert mount.run("fetch", folder) == "fetched 4.5 MB (6 blocks of 3 files)\n"
        assert mount.run("pin", folder / "0") == "pinned 1 file, 1.5 MB\n"
        said = mount.run("evict", folder)
        assert (
            said == "freed 3.01 MB (4 blocks of 2 files); kept 1.5 MB pinned (see: syncer unpin)\n"
        )
        items = {item["name"]: item for item in json.loads(mount.run("ls", folder, "--json"))}
        assert items["0"] == {
            "name": "0", "size": 1_500_000, "state": "local", "pinned": True,
            "cached_bytes": 1_500_000,
        }  # fmt: skip
        assert (items["1"]["state"], items["1"]["cached_bytes"]) == ("remote", 0)
        assert items["below/"]["state"] is None
        lines = [line.split() for line in mount.run("ls", folder).splitlines()]
        assert ["1.5", "MB", "local", "1.5", "MB", "pinned", "0"] in lines
        assert ["1.5", "MB", "remote", "0", "B", "2"] in lines
        assert "1.5 MB of at most 50 MB" in mount.run("status", mount.path)
        for words, status in (
            (("unpin", folder / "1"), 2),
            (("pin", folder / "missing"), 3),
            (("ls", folder / "missing"), 3),
        ):
            with pytest.raises(CommandError) as error:
                mount.run(*words)
            assert error.value.status == status
        big = mount.path / "big"
        big.mkdir()
        for number in range(30):
            (big / str(number)).write_bytes(noise(100 + number, 2_000_000))
        with pytest.raises(CommandError) as error:
            mount.run("pin", big)
        assert error.value.status == 6
        assert "needs 61 MB more, but of the limit of 100 MB pins may take 50 MB" in str(
            error.value
        )
        # Unmounted, the same.
        mount.umount()
        assert "1 file    1.5 MB      all local  /folder/0" in mount.run("pins", mount.data)
