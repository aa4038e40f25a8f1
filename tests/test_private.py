"""Nobody else gets in, and what is secret stays so: on a real mount."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncer.commands.cli import main
from syncer.errors import AccessError
from syncer.process.control import call
from tests.mounted import BINDINGS, ROOT, CommandError, mounted, syncer
from tests.processes import children_of, wait_for
from tests.sshd import HOST, Sshd

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


def test_all_in_a_repository_is_for_its_owner_only_whichever_command_makes_it(
    tmp_path: Path,
) -> None:
    before = os.umask(0o022)
    try:
        remote = tmp_path / "remote"
        syncer("init", tmp_path / "data", remote)
        assert stat.S_IMODE(remote.stat().st_mode) == 0o700
        syncer("snapshot", tmp_path / "data", "kept")
        syncer("flush", tmp_path / "data")
        for path in remote.rglob("*"):
            wanted = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == wanted, path
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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as somebody else")
def test_the_socket_answers_no_other_user_even_if_its_mode_would(common: Path) -> None:
    with mounted(common, FUSE) as mount:
        mount.data.chmod(0o755)
        path = mount.data / "control.sock"
        path.chmod(0o666)
        assert call(path, "status", {})["role"] == "writer"
        pid = os.fork()
        if not pid:
            status = 1
            try:
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
                call(path, "status", {})
            except AccessError:
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        mount.data.chmod(0o700)


PASSWORDS = (
    ("init", "data", "sftp://me:geheim@host/folder"),
    ("init", "data", "me:geheim@host:folder"),
    ("clone", "data", "sftp://me:geheim@host:22/folder"),
    ("mount", "data", "sftp://me:geheim@host/folder", "mnt"),
    ("data", "me:geheim@host:folder", "mnt", "100"),
    ("mount", "known", "sftp://me:geheim@host/folder", "mnt"),
    ("config", "known", "remote", "sftp://me:geheim@host/folder"),
)


def test_a_password_in_an_address_goes_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnt").mkdir()
    assert main(["init", "known", "remote"]) == 0
    for words in PASSWORDS:
        for verbosity in ([], ["-v"]) if words[0] == "mount" else ([],):
            assert main([*words[:1], *verbosity, *words[1:]]) != 0, words
        assert not (tmp_path / "data").exists()
    # One that a person has written into the settings by hand is not told either.
    settings = tmp_path / "known" / "config"
    settings.write_text(
        settings.read_text().replace(str(tmp_path / "remote"), "sftp://a:geheim@b/")
    )
    for command in (["mount", "known", "mnt"], ["status", "known"], ["flush", "known"]):
        assert main(command) != 0, command
    said = capfd.readouterr()
    assert "geheim" not in said.out + said.err
    for path in (tmp_path / "known").rglob("*"):
        assert path == settings or not path.is_file() or b"geheim" not in path.read_bytes()


@pytest.mark.parametrize("transport", ["ssh", "paramiko"])
def test_no_key_and_no_secret_of_the_environment_shows(tmp_path: Path, transport: str) -> None:
    """In the log with -v, in the list of processes, in `status`, and in what errors say."""
    with Sshd() as server:
        env = {"SYNCER_SSH_CONFIG": str(server.config), "SOME_TOKEN": "geheim"}
        secrets = ["geheim", *server.user_key.read_text().splitlines()[1:-1]]
        told: list[str] = []
        with mounted(
            tmp_path, FUSE, remote=f"{HOST}:{tmp_path}/remote", env=env,
            settings={"transport": transport, "timeout": "5"}, expects_warnings=True,
        ) as mount:  # fmt: skip
            mount.umount()
            mount.mount("-v")
            (mount.path / "file").write_bytes(os.urandom(1_000_000))
            mount.flush()
            pids = (mount.pid, *children_of(mount.pid))
            told += [Path(f"/proc/{pid}/cmdline").read_text() for pid in pids]
            server.stop()
            (mount.path / "other").write_bytes(os.urandom(1_000_000))
            wait_for(lambda: mount.status()["remote"]["state"] == "offline")
            told += [mount.run("status", mount.data), str(mount.status())]
            with pytest.raises(CommandError) as failed:
                mount.run("flush", mount.data, "--timeout", "0")
            # What is told first may be that the connection ended.
            wait_for(lambda: "can't reach" in mount.log)
            told += [str(failed.value), mount.log]
        for secret in secrets:
            assert not [text for text in told if secret in text]


def test_no_command_leaves_a_core_dump() -> None:
    """Others than the mounted process hold contents and keys as well."""
    program = """if True:
        import resource
        from syncer.commands.cli import main
        _, most = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (most, most))
        main(["config", "nowhere"])
        print("allowed:", resource.getrlimit(resource.RLIMIT_CORE)[0])
    """
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "allowed: 0\n"
