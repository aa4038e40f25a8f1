from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from syncer import libfuse
from syncer.commands import cli, parser, report, target
from syncer.config import Config
from syncer.errors import BusyError, UsageError
from syncer.process import mounting, mounts
from syncer.process.control import ControlServer
from syncer.process.folder import DataFolder
from syncer.remote import parse
from syncer.values import size
from tests.processes import command, contents, environment, run
from tests.sshd import HOST, Sshd, make_key

LIMIT = "1000"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with an empty directory `mnt`."""
    (tmp_path / "mnt").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    return tmp_path


def everything() -> dict[str, bytes | None]:
    """All in the current folder, but who last held a lock."""
    return {path: held for path, held in contents(Path()).items() if path != "data/lock"}


def fails(capsys: pytest.CaptureFixture[str], exit_code: int, *words: str) -> str:
    """Run a command that has to fail in one line and change nothing; returns the line."""
    before = everything()
    assert cli.main(words) == exit_code, capsys.readouterr()
    captured = capsys.readouterr()
    assert re.fullmatch(r"syncer: [^\n]+\n", captured.err), captured
    assert captured.out == ""
    assert everything() == before
    return captured.err


def fails_alone(exit_code: int, *words: str, env: dict[str, str] | None = None) -> str:
    """As `fails`, in a process of its own."""
    before = everything()
    done = run(*words, expect=exit_code, env=env)
    assert re.fullmatch(r"syncer: [^\n]+\n", done.stderr), done
    assert done.stdout == ""
    assert everything() == before
    return done.stderr


# What may be written


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("mnt", (None, "mnt", None)),
        ("mnt 1000", (None, "mnt", "1000")),
        ("host:x mnt", ("host:x", "mnt", None)),
        ("host:x ./2024", ("host:x", "./2024", None)),
        ("host:x mnt 20G", ("host:x", "mnt", "20G")),
    ],
)
def test_mount_understands_two_to_four_words(
    words: str, expected: tuple[str | None, str, str | None]
) -> None:
    assert mounting.split_words(words.split()) == expected


def test_four_words_without_a_command_are_a_mount() -> None:
    arguments = cli.parse(["data", "host:x", "mnt", "1000"])
    assert (arguments.command, arguments.data) == ("mount", "data")
    assert arguments.words == ["host:x", "mnt", "1000"]


@pytest.mark.parametrize(
    "words",
    [
        "dance",
        "data mnt",
        "status --nonsense",
        "status a b",
        "mount",
        "mount data",
        "mount data a b c d",
        "umount",
        "export data",
        "flush",
        "flush mnt --timeout soon",
        "flush mnt --timeout nan",
        "init data",
        "evict",
        "fetch",
        "autostart",
        "autostart dance",
        "autostart add data",
        "autostart list data mnt",
        "mount data remote mnt --fuse 4",
        "mount data remote mnt --writeback maybe",
        "mount data remote mnt -o nonsense",
        "mount data remote mnt -o fsname=x",
        "mount data mnt",
        "mount data mnt 1000",
        "mount data remote mnt lots",
        "mount data remote mnt 63",
        "mount data remote mnt -5",
        "mount data remote mnt 0",
        "data remote mnt lots",
        "init data remote 63",
        "clone data remote nan",
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_can_not_be_understood_is_an_error_of_one_line(
    capsys: pytest.CaptureFixture[str], words: str
) -> None:
    fails(capsys, 2, *words.split())


@pytest.mark.parametrize(
    ("words", "usual"),
    [
        ("autostart add --systemd data mnt", "autostart add data mnt --systemd"),
        ("autostart --systemd add data mnt", "autostart add data mnt --systemd"),
        ("diff mnt -v monday tuesday", "diff mnt monday tuesday -v"),
        ("config mnt -v limit 100", "config mnt limit 100 -v"),
        ("mount data --fuse 3 host:x mnt 100", "mount data host:x mnt 100 --fuse 3"),
    ],
)
def test_options_may_stand_anywhere(words: str, usual: str) -> None:
    assert cli.parse(words.split()) == cli.parse(usual.split())


@pytest.mark.parametrize(
    "remote", ["", ":x", "host name:x", "ftp://host/x", "s3://bucket", "sftp://user:secret@h/x"]
)
@pytest.mark.usefixtures("folder")
def test_a_remote_that_can_not_be_parsed_changes_nothing(
    capsys: pytest.CaptureFixture[str], remote: str
) -> None:
    for words in (["mount", "data", remote, "mnt", LIMIT], ["init", "data", remote]):
        assert "secret" not in fails(capsys, 2, *words)


def test_the_version_is_told() -> None:
    assert run("--version").stdout.startswith("syncer ")


def test_help_shows_each_command_with_an_example() -> None:
    assert "mount" in run("--help").stdout
    assert "mount" in run().stdout
    for name, asked in parser.commands_of(parser.make_parser()).items():
        text = run(name, "--help").stdout
        assert re.search(rf"example: syncer {name} ", text)
        assert asked.usage and asked.usage.startswith(f"syncer {name} ")


def test_the_page_about_commands_is_up_to_date() -> None:
    root = Path(__file__).parent.parent
    script = root / "scripts" / "command_page.py"
    page = root / "docs" / "commands.md"
    check = [sys.executable, str(script), "--check", str(page)]
    subprocess.run(check, env=environment(), check=True)


def test_a_message_never_spans_lines_or_moves_the_cursor(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    assert "\\x1b[2J\\n" in fails(capsys, 3, "status", "\x1b[2J\nx")


@pytest.mark.usefixtures("folder")
def test_verbose_shows_where_an_error_came_from() -> None:
    assert "Traceback" in run("status", "-v", "nowhere", expect=3).stderr


@pytest.mark.usefixtures("folder")
def test_output_that_nobody_reads_any_more_ends_it_without_a_word() -> None:
    run("init", "data", "remote")
    process = subprocess.Popen(
        command("status", "data", "--watch"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout and process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "words",
    ["--version", "--help", "config data", "status data", "snapshots data", "pins data --json"],
)
def test_a_little_output_that_can_not_be_written_is_at_most_one_line(words: str) -> None:
    run("init", "data", "remote")

    def printing(stdout: int | None) -> tuple[int, bytes]:
        line = command(*words.split())
        if stdout is None:
            line = ["sh", "-c", 'exec "$@" >&-', "sh", *line]
        done = subprocess.run(
            line,
            env=environment(PYTHONUNBUFFERED=""),
            stdout=stdout,
            stderr=subprocess.PIPE,
            check=False,
        )
        return done.returncode, done.stderr

    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        assert printing(None) == (0, b"")
        if words == "snapshots data":  # There are none.
            assert printing(writer) == (0, b"")
        else:
            assert printing(writer) == (cli.OUTPUT_CLOSED, b"")
            said = b"syncer: can't write the output: No space left on device\n"
            assert printing(full) == (1, said)
    finally:
        os.close(writer)
        os.close(full)


@pytest.mark.usefixtures("folder")
def test_a_failure_is_told_also_where_nobody_reads_the_output() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe:
        line = command("status", "data")
        assert (
            subprocess.run(
                line, env=environment(PYTHONUNBUFFERED=""), stdout=pipe, check=False
            ).returncode
            == 3
        )


@pytest.mark.usefixtures("folder")
def test_verbose_may_stand_before_the_command() -> None:
    assert "Traceback" in run("-v", "status", "nowhere", expect=3).stderr
    words = ["-v", "data", "host:x", "mnt", "1000"]
    assert cli.parse(words).verbose and cli.parse(words).command == "mount"


def test_an_interrupt_while_it_starts_is_no_traceback() -> None:
    """The command takes its time to be imported."""
    script = (
        "import sys, types, os, signal\n"
        # As for a command in a terminal, though the tests may run in the background of a shell.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Late(types.ModuleType):\n"
        "    def __getattr__(self, name):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.modules['syncer.commands.cli'] = Late('cli')\n"
        "import runpy; runpy.run_module('syncer', run_name='__main__')\n"
    )
    line = [sys.executable, "-c", script]
    done = subprocess.run(
        line, env=environment(PYTHONUNBUFFERED=""), capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


# What can not be mounted


def test_a_mount_point_that_is_not_usable(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "file").touch()
    (folder / "full").mkdir()
    (folder / "full" / "file").touch()
    assert "mkdir" in fails(capsys, 13, "mount", "data", "remote", "missing")
    assert "not a directory" in fails(capsys, 13, "mount", "data", "remote", "file")
    assert "not empty" in fails(capsys, 13, "mount", "data", "remote", "full")
    assert "not mounted" in fails(capsys, 13, "umount", "mnt")


@pytest.mark.parametrize(
    ("data", "remote", "mountpoint"),
    [
        ("mnt/data", "remote", "mnt"),
        ("data", "mnt/remote", "mnt"),
        ("data", "data/remote", "mnt"),
        ("remote/data", "remote", "mnt"),
        ("data", "data", "mnt"),
        ("mnt", "remote", "mnt"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_the_folders_must_lie_apart(
    capsys: pytest.CaptureFixture[str], data: str, remote: str, mountpoint: str
) -> None:
    fails(capsys, 2, "mount", data, remote, mountpoint)


@pytest.mark.usefixtures("folder")
def test_a_missing_library_or_program_is_named_with_its_package(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("mount", "data", "remote", "mnt")
    monkeypatch.setattr(libfuse, "available_versions", list)
    assert "package fuse3" in fails(capsys, 13, *words)
    assert "package libfuse2" in fails(capsys, 13, *words, "--fuse", "2")
    monkeypatch.undo()


def test_a_missing_device_or_helper_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(mounts.MountError, match="package fuse3"):
        mounts.check_fuse(3)
    monkeypatch.setattr(mounts, "_DEVICE", str(tmp_path / "fuse"))
    with pytest.raises(mounts.MountError, match="modprobe fuse"):
        mounts.check_fuse(3)


def test_only_root_may_mount_with_devices(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    arguments = cli.parse(["mount", "data", "remote", "mnt", "-o", "ro,suid"])
    with pytest.raises(UsageError, match="only root"):
        mounting.plan_mount(arguments)
    monkeypatch.setattr(mounting, "_FUSE_SETTINGS", folder / "fuse.conf")
    arguments = cli.parse(["mount", "data", "remote", "mnt", "-o", "allow_other"])
    with pytest.raises(mounts.MountError, match="user_allow_other"):
        mounting.plan_mount(arguments)


# What can not be reached or used


@pytest.mark.parametrize("transport", ["ssh", "paramiko"])
@pytest.mark.usefixtures("folder")
def test_a_host_that_is_unknown_or_refuses(transport: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        refusing = f"sftp://127.0.0.1:{closed.getsockname()[1]}/blobs"
        for remote in ("host.invalid:blobs", refusing):
            for words in (["mount", "data", remote, "mnt", LIMIT], ["clone", "data", remote]):
                fails_alone(4, *words, "--transport", transport)


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    with Sshd() as server:
        yield server


@pytest.mark.parametrize("transport", ["ssh", "paramiko"])
def test_a_server_that_lets_nobody_in(folder: Path, server: Sshd, transport: str) -> None:
    words = ("mount", "data", f"{HOST}:{folder}/blobs", "mnt", "--transport", transport)
    env = {"SYNCER_SSH_CONFIG": str(server.config)}
    other = server.folder / "other"
    make_key(other)
    try:
        server.authorize(other)
        fails_alone(8, *words, env=env)
        server.authorize(server.user_key)
        server.know(other)
        fails_alone(9, *words, env=env)
        server.know()
        assert "ssh" in fails_alone(9, *words, env=env)
    finally:
        server.authorize(server.user_key)
        server.know(server.host_key)


@pytest.mark.usefixtures("folder")
def test_a_remote_path_that_can_not_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, 7, "init", "data", "/sys/syncer")


def test_a_remote_folder_with_something_else(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    (folder / "remote").mkdir()
    (folder / "remote" / "letter").touch()
    for name in ("init", "clone"):
        fails(capsys, 10, name, "data", "remote")


def test_a_remote_folder_without_a_repository(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    fails(capsys, 3, "clone", "data", "remote")
    (folder / "remote").mkdir()
    fails(capsys, 3, "clone", "data", "remote")


@pytest.mark.usefixtures("folder")
def test_a_remote_that_is_a_repository_already(capsys: pytest.CaptureFixture[str]) -> None:
    run("init", "data", "remote")
    assert "clone" in fails(capsys, 16, "init", "data2", "remote")


def test_a_repository_of_a_newer_format(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    run("init", "data", "remote")
    description = folder / "remote" / "syncer.json"
    settings = json.loads(description.read_text())
    description.write_text(json.dumps({**settings, "version": 99, "format": 99}))
    assert "newer" in fails(capsys, 11, "clone", "data2", "remote")


def test_another_repositorys_data_directory(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    run("init", "data", "remote")
    run("init", "data2", "remote2")
    fails(capsys, 10, "mount", "data", "remote2", "mnt")
    fails(capsys, 10, "clone", "data", "remote2")
    fails(capsys, 10, "init", "data", "remote3")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "one").touch()
    fails(capsys, 10, "clone", "pictures", "remote")


@pytest.mark.usefixtures("folder")
def test_a_folder_that_may_not_be_looked_into(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", "data", "remote"]) == 0
    commands = [
        "mount data mnt",
        "mount data remote mnt 1000",
        "init data remote2",
        "clone data remote",
        "autostart add data mnt",
        "status data",
        "config data",
    ]
    os.chmod("data", 0)
    root = os.geteuid() == 0
    for words in commands:
        if root:
            os.seteuid(65534)
        try:
            assert cli.main(words.split()) == 7
        finally:
            if root:
                os.seteuid(0)
        assert re.fullmatch(r"syncer: [^\n]+ Permission denied\n", capsys.readouterr().err)
    os.chmod("data", 0o700)
    assert cli.main(["status", "data"]) == 0


@pytest.mark.usefixtures("folder")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for others")
def test_what_is_another_users_is_not_changed_by_root(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", "data", "remote"]) == 0
    for path in [Path("data"), *Path("data").rglob("*")]:
        os.chown(path, 65534, 65534)
    owners = {path: path.stat().st_uid for path in Path("data").rglob("*")}
    moment = "mount data --at latest mnt"
    for words in ("config data max_size 200M", "flush data", "mount data mnt", moment, "fsck data"):
        told = fails(capsys, 7, *words.split())
        assert re.search("belongs to [^ ]+; run this as [^ ]+$", told.strip()), told
    assert {path: path.stat().st_uid for path in Path("data").rglob("*")} == owners


def test_a_remote_that_is_a_file(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "file").write_text("text")
    for words in (["init", "data", "file"], ["clone", "data", "file"]):
        assert "file is not a folder" in fails(capsys, 10, *words)


@pytest.mark.usefixtures("folder")
def test_a_command_waits_for_another_one_a_little(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["init", "data", "remote"]) == 0
    place = DataFolder(Path("data"))
    with monkeypatch.context() as patch:
        patch.setattr("syncer.process.folder._COMMAND_SECONDS", 0.1)
        with place.lock():
            told = fails(capsys, 12, "status", "data")
        assert re.search(rf"another syncer command \(process {os.getpid()}\).*try again", told)
    waits = threading.Event()

    def sleep(seconds: float) -> None:
        waits.set()
        ended.wait(10)

    ended = threading.Event()
    monkeypatch.setattr("syncer.process.folder.time.sleep", sleep)
    with ThreadPoolExecutor(1) as threads:
        with place.lock():
            status = threads.submit(cli.main, ["snapshots", "data"])
            assert waits.wait(10)
        ended.set()
        assert status.result(30) == 0


@pytest.mark.usefixtures("folder")
def test_a_command_finds_a_mount_that_has_just_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    place = DataFolder(Path("data"))
    place.path.mkdir()
    server = ControlServer(place.socket, {"status": lambda given, progress: {"found": True}})

    def begin(*words: object) -> None:
        server.start()
        raise BusyError("it has the directory")

    monkeypatch.setattr("syncer.commands.target.run_here", begin)
    try:
        assert target.ask(place, "status", target.no_progress) == {"found": True}
    finally:
        server.stop()


@pytest.mark.usefixtures("folder")
def test_a_fetch_that_left_something_out_says_so_by_its_exit_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert cli.main(["init", "data", "remote"]) == 0
    done = {"files": 2, "blocks": 1, "bytes": 9, "skipped_files": 1, "skipped_bytes": 10**9}
    monkeypatch.setattr("syncer.commands.moving.ask", lambda *words, **more: done)
    assert cli.main(["fetch", "data"]) == 6
    done["skipped_files"] = 0
    assert cli.main(["fetch", "data"]) == 0


@pytest.mark.usefixtures("folder")
def test_a_target_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("status nowhere", "flush mnt", "evict nowhere", "fetch nowhere", "config mnt"):
        fails(capsys, 3, *words.split())
    fails(capsys, 3, "autostart", "add", "nowhere", "mnt")
    fails(capsys, 3, "autostart", "remove", "data", "mnt")


def test_settings_that_are_damaged(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    run("init", "data", "remote")
    (folder / "data" / "config").write_text("[syncer]\nremote = x\nmax_size = huge\n")
    fails(capsys, 2, "mount", "data", "mnt")
    fails(capsys, 2, "status", "data")


# What works without a mount


def test_a_repository_is_made_and_cloned(folder: Path) -> None:
    run("init", "data", "remote", "64")
    run("flush", "data")
    run("clone", "data2", "remote", "2G")
    config = Config.load(folder / "data2" / "config")
    assert config == Config(remote=str(folder / "remote"), limit_bytes=2_000_000_000)
    for name in ("data", "data2"):
        assert os.stat(folder / name).st_mode & 0o777 == 0o700


def test_status_answers_in_its_first_line(folder: Path) -> None:
    run("init", "data", "remote")
    run("flush", "data")
    text = run("status", "data").stdout
    assert text.startswith("Everything is on the server.\n")
    assert f"{folder}/data (not mounted)" in text
    state = json.loads(run("status", "data", "--json").stdout)
    assert (state["safe"], state["pid"], state["fuse"], state["mountpoint"]) == (True, 0, 0, "")


def test_the_keys_for_programs_are_documented(folder: Path) -> None:
    run("init", "data", "remote")
    state = json.loads(run("status", "data", "--json").stdout)
    remote = state.pop("remote")
    assert [*state, *(f"remote.{key}" for key in remote)] != []
    only_of_some = {"at", "is_dead"}
    found = {*state, *(f"remote.{key}" for key in remote)}
    assert found == set(report.STATUS_KEYS) - only_of_some


@pytest.mark.usefixtures("folder")
def test_settings_are_shown_and_changed(capsys: pytest.CaptureFixture[str]) -> None:
    run("init", "data", "remote")
    assert run("config", "data", "max-size").stdout == "5G\n"
    run("config", "data", "max-size", "64")
    run("config", "data", "upload_limit", "2M")
    shown = run("config", "data").stdout
    assert "max_size = 64M\n" in shown and "upload_limit = 2M\n" in shown
    for words in ("max-size 63", "nonsense 1", "remote other", "nonsense"):
        fails(capsys, 2, "config", "data", *words.split())


def test_flush_evict_and_fetch_work_without_a_mount(folder: Path) -> None:
    run("init", "data", "remote")
    run("flush", "data", "--timeout", "30")
    run("evict", "data")
    assert sorted(os.listdir(folder / "data")) != []


def test_autostart_is_added_listed_and_removed(folder: Path) -> None:
    run("init", "data", "remote")
    for systemd in ([], ["--systemd"]):
        file = run("autostart", "add", "data", "mnt", *systemd).stdout.strip()
        assert Path(file).is_file()
        listed = run("autostart", "list").stdout
        assert listed == f"{folder}/data at {folder}/mnt: {file}\n"
    run("autostart", "remove", "data", "mnt")
    assert run("autostart", "list").stdout == ""


# What status tells a person

STATE = {
    "safe": False,
    "dirty_bytes": 340_000_000,
    "dirty_blocks": 325,
    "dirty_files": 12,
    "oldest_dirty_seconds": 130.0,
    "upload_bytes_per_second": 3_100_000.0,
    "cache_bytes": 900_000_000,
    "cache_limit_bytes": 1_000_000_000,
    "cache_floor_bytes": 512_000_000,
    "cache_hits": 12345,
    "cache_misses": 1,
    "pinned_bytes": 0,
    "pinned_limit_bytes": 750_000_000,
    "unpinnable_bytes": 0,
    "pins_error": "",
    "waiting": "",
    "metadata_bytes": 115_000,
    "files": 100_000,
    "file_bytes": 10_000_000_000_000,
    "remote": {"location": "host:blobs", "state": "online", "error": ""},
    "role": "writer",
    "writer": "laptop",
    "unpublished_epochs": 3,
    "stranded_changes": 0,
    "damaged_blocks": [],
    "unreadable_files": [],
    "errors": [],
    "data": "/home/a/data",
    "mountpoint": "/home/a/mnt",
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {},
            "NOT everything is on the server: 12 files, 340 MB to go (about 2 min at 3.1 MB/s).",
        ),
        (
            {"upload_bytes_per_second": 0.0, "dirty_files": 1},
            "NOT everything is on the server: 1 file, 340 MB to go.",
        ),
        (
            {"dirty_bytes": 0, "dirty_blocks": 0},
            "NOT everything is on the server: 12 files, only names and dates to go.",
        ),
        (
            {"dirty_bytes": 0, "dirty_blocks": 0, "dirty_files": 0},
            "NOT everything is on the server: only names and dates to go.",
        ),
        (
            {"remote": {"location": "h:", "state": "offline", "error": "no route"}},
            "NOT everything is on the server: 12 files, 340 MB to go; the server can't be used.",
        ),
        (
            {"role": "displaced", "writer": "desktop", "stranded_changes": 2},
            "NOT everything is on the server: 2 changes stay here, since desktop took over.",
        ),
        ({"safe": True}, "Everything is on the server."),
    ],
)
def test_the_first_line_is_the_answer(changes: dict[str, object], expected: str) -> None:
    assert report.status_lines({**STATE, **changes})[0] == expected


def test_a_displaced_writer_is_told_how_to_get_at_what_only_it_has() -> None:
    changes = {"role": "displaced", "writer": "desktop", "stranded_changes": 2}
    text = "\n".join(report.status_lines({**STATE, **changes}))
    assert "syncer export /home/a/data FOLDER writes" in text
    assert "syncer export" not in "\n".join(report.status_lines(STATE))


def test_one_is_not_called_many() -> None:
    assert "1 file or folder," in "\n".join(report.status_lines({**STATE, "files": 1}))


def test_trouble_is_shown_in_words() -> None:
    trouble = {
        "waiting": "1.2 GB wait for the server",
        "damaged_blocks": ["ab", "cd"],
        "unreadable_files": ["/album/photo"],
        "errors": ["the disk is full"],
        "role": "follower",
        "remote": {"location": "h:", "state": "offline", "error": "no route to host"},
    }
    text = "\n".join(report.status_lines({**STATE, **trouble}))
    for part in (
        "1.2 GB wait",
        "2 blocks",
        "/album/photo",
        "the disk is full",
        "read-only",
        "no route to host",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("size_bytes", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_500_000, "1.5 MB"), (99_960_000, "100 MB")],
)
def test_sizes_have_three_digits(size_bytes: int, expected: str) -> None:
    assert size(size_bytes) == expected


def test_the_local_remotes_path_is_kept_absolute(folder: Path) -> None:
    run("init", "data", "./remote")
    assert Config.load(folder / "data" / "config").remote == str(parse(str(folder / "remote")))
