"""What the list of mounts says of ours, whatever they are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from syncer.process import mounts
from tests.mounted import BINDINGS, CommandError, mounted


@pytest.mark.parametrize(
    ("source", "kind", "expected"),
    [
        ("/data", "fuse.syncer", ("/data", "")),
        ("syncer:/data", "fuse.sshfs", ("/data", "")),
        (
            "syncer@2026-11-22T10-05-00+0100:/a@b:/c",
            "fuse.sshfs",
            ("/a@b:/c", "2026-11-22T10-05-00+0100"),
        ),
        ("host:/data", "fuse.sshfs", None),
        ("syncer:data", "fuse.sshfs", None),
        ("syncer:/data", "nfs", None),
    ],
)
def test_a_mount_is_known_by_type_or_source(
    source: str, kind: str, expected: tuple[str, str] | None
) -> None:
    mount = mounts.Mount(Path("/mnt"), kind, source, 1, 0)
    assert mount.is_ours == (expected is not None)
    if expected:
        data, at = expected
        assert (mount.data, mount.at) == (Path(data), at)
        assert mounts.source_of(Path(data), kind.removeprefix("fuse."), at) == source


@pytest.mark.fuse
def test_a_mount_may_be_called_otherwise_and_is_still_known(tmp_path: Path) -> None:
    for fuse in BINDINGS:
        folder = tmp_path / f"on, {fuse}"
        folder.mkdir()
        with mounted(folder, fuse) as mount:
            mount.umount()
            mount.mount("--subtype", "sshfs")
            found = mounts.mount_at(mount.path)
            assert found is not None
            assert (found.type, found.is_ours, found.data) == ("fuse.sshfs", True, mount.data)
            assert mount.run("config", mount.path, "subtype") == "sshfs\n"
            mount.run("flush", mount.path)
            mount.kill()
            # What a crash leaves is cleared, and the name is kept.
            mount.mount()
            found = mounts.mount_at(mount.path)
            assert found is not None and found.type == "fuse.sshfs"
            with pytest.raises(CommandError) as error:
                mount.run("mount", "--subtype", "a,b", mount.data, mount.path)
            assert error.value.status == 2
