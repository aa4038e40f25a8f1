"""Nobody else gets in, and what is secret stays so: on a real mount."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted import BINDINGS, CommandError, mounted, syncer

pytestmark = pytest.mark.fuse

FUSE = BINDINGS[-1]
NOBODY = 65534


def as_nobody(*words: str | Path) -> int:
    """The exit status of a program that another user runs."""
    done = subprocess.run(
        [str(word) for word in words],
        user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode


def test_all_in_the_data_directory_is_for_its_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with mounted(tmp_path, FUSE) as mount:
            (mount.path / "file").write_bytes(os.urandom(3_000_000))
            (mount.path / "small").write_bytes(b"x")
            mount.flush()
            mount.run("config", mount.data, "timeout", "20")
            mount.run("snapshot", mount.path, "kept")
            found = [mount.data, *mount.data.rglob("*")]
            assert {path.name for path in found} >= {"config", "control.sock", "lock", "log"}
            for path in found:
                mode = path.lstat().st_mode
                wanted = 0o700 if stat.S_ISDIR(mode) else 0o600
                assert stat.S_IMODE(mode) == wanted, path
    finally:
        os.umask(before)


def test_the_process_leaves_no_core_dump(tmp_path: Path) -> None:
    with mounted(tmp_path, FUSE) as mount:
        limits = Path(f"/proc/{mount.pid}/limits").read_text()
        assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)


@pytest.fixture
def common() -> Iterator[Path]:
    """A folder that everybody may enter. pytest's are for their owner, and so again with each run
    of it that begins meanwhile."""
    with tempfile.TemporaryDirectory(prefix="syncer-common-", dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as somebody else")
@pytest.mark.parametrize("fuse", BINDINGS)
def test_others_see_the_mount_only_if_that_was_asked_for(common: Path, fuse: str) -> None:
    with mounted(common, fuse) as mount:
        (mount.path / "file").write_bytes(b"x")
        assert as_nobody("ls", mount.path)
        assert as_nobody("cat", mount.path / "file")
        assert as_nobody("ls", mount.data)
    with mounted(
        common, fuse, name="open", remote=str(common / "other"), options=["allow_other"]
    ) as mount:
        (mount.path / "file").write_bytes(b"x")
        (mount.path / "file").chmod(0o604)
        (mount.path / "private").write_bytes(b"x")
        (mount.path / "private").chmod(0o600)
        assert not as_nobody("cat", mount.path / "file")
        assert as_nobody("cat", mount.path / "private"), "modes count"
        assert as_nobody("ls", mount.data), "the data directory stays private"


def test_a_password_in_an_address_goes_nowhere(tmp_path: Path) -> None:
    with pytest.raises(CommandError) as refused:
        syncer("init", tmp_path / "data", "sftp://me:geheim@host/folder")
    assert "geheim" not in str(refused.value)
    assert not (tmp_path / "data").exists()
