from __future__ import annotations

import configparser
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from syncer.errors import AccessError, MissingError, UsageError
from syncer.process import desktop, notify
from tests.processes import environment, is_mounted, run

AWKWARD = (
    "plain",
    "with blank",
    'a "quoted" one',
    "it's",
    "100% %u %%",
    "$HOME ${HOME} `id`",
    "back\\slash \\n",
    "ends with \\",
    "größer 写真",
    "a;b#c=d [e]",
)

BOTH_FORMS = pytest.mark.parametrize("systemd", [False, True], ids=["autostart", "systemd"])


@pytest.fixture(autouse=True)
def config_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "xdg config"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    return home


def validate(entry: desktop.Entry, runtime: Path) -> str:
    """What the desktop's or systemd's own checker has to say: nothing, if all is well."""
    if entry.systemd:
        # Its exit status is 0 for a unit with unknown keys, so it is the output that counts.
        runtime.mkdir(exist_ok=True)
        command = ["systemd-analyze", "verify", "--user", "--man=no", str(entry.file)]
    else:
        command = ["desktop-file-validate", str(entry.file)]
    done = subprocess.run(
        command,
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout or ("" if done.returncode == 0 else f"exit status {done.returncode}")


def value(entry: desktop.Entry, group: str, key: str) -> str:
    parser = configparser.RawConfigParser(delimiters=("=",), strict=False)
    parser.read(entry.file, encoding="utf-8")
    return parser[group][key]


@BOTH_FORMS
@pytest.mark.parametrize("name", AWKWARD)
def test_an_entry_for_any_path_is_valid_and_listed(
    tmp_path: Path, name: str, systemd: bool
) -> None:
    data, mountpoint = tmp_path / f"data {name}", tmp_path / name
    entry = desktop.add(data, mountpoint, systemd=systemd)
    assert validate(entry, tmp_path / "runtime") == ""
    assert (entry.data, entry.mountpoint, entry.systemd) == (data, mountpoint, systemd)
    assert desktop.entries() == [entry]


@BOTH_FORMS
def test_the_checkers_do_find_mistakes(tmp_path: Path, systemd: bool) -> None:
    entry = desktop.add(tmp_path / "data", tmp_path / "mnt", systemd=systemd)
    entry.file.write_text(entry.file.read_text().replace("Exec", "Ecex"))
    assert validate(entry, tmp_path / "runtime") != ""


@pytest.mark.parametrize("name", AWKWARD)
def test_the_desktop_runs_the_mount_with_the_very_paths(tmp_path: Path, name: str) -> None:
    entry = desktop.add(tmp_path / f"data {name}", tmp_path / name)
    written = value(entry, "Desktop Entry", "Exec")
    # The specification's three layers, undone in its order; the innermost is the shell's quoting.
    quoted = written.replace("\\\\", "\\").replace("%%", "%")
    output = subprocess.run(
        ["sh", "-c", f"printf '%s\\0' {quoted}"], stdout=subprocess.PIPE, check=True
    ).stdout
    assert os.fsdecode(output).split("\0")[:-1] == [
        sys.executable,
        *("-m", "syncer", "mount", str(entry.data), str(entry.mountpoint)),
    ]


def test_systemd_runs_the_mount_in_the_foreground_and_unmounts_it(tmp_path: Path) -> None:
    entry = desktop.add(tmp_path / 'd "1" \\ %h', tmp_path / "m $USER", systemd=True)
    assert value(entry, "Service", "Type") == "notify"
    assert value(entry, "Service", "ExecStart") == (
        f':"{sys.executable}" "-m" "syncer" "mount" "--foreground" '
        f'"{tmp_path}/d \\"1\\" \\\\ %%h" "{tmp_path}/m $USER"'
    )
    assert value(entry, "Service", "ExecStop") == (
        f'-:"{sys.executable}" "-m" "syncer" "umount" "{tmp_path}/m $USER"'
    )


@pytest.mark.fuse
def test_after_a_kill_the_unit_mounts_again_by_itself(tmp_path: Path) -> None:
    """The unit's own command, run as systemd does: again after SIGKILL (Restart=on-failure)."""
    data, mountpoint = tmp_path / "data", tmp_path / "mnt"
    mountpoint.mkdir()
    run("init", data, tmp_path / "remote")
    entry = desktop.add(data, mountpoint, systemd=True)
    assert value(entry, "Service", "Restart") == "on-failure"
    assert value(entry, "Unit", "StartLimitIntervalSec") == "0"
    assert float(value(entry, "Service", "RestartSec")) <= 0.5
    words = shlex.split(value(entry, "Service", "ExecStart").removeprefix(":"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)
        for end in (signal.SIGKILL, signal.SIGTERM):
            env = environment(NOTIFY_SOCKET=str(tmp_path / "notify"))
            with subprocess.Popen(words, env=env, stderr=subprocess.DEVNULL) as process:
                try:
                    assert systemd.recv(100) == b"READY=1"
                    if end is signal.SIGKILL:
                        (mountpoint / "file").write_text("content")
                    assert (mountpoint / "file").read_text() == "content"
                finally:
                    process.send_signal(end)
    assert process.returncode == 0
    assert not is_mounted(mountpoint)


def test_a_unit_is_enabled_as_systemctl_would(tmp_path: Path, config_home: Path) -> None:
    entry = desktop.add(tmp_path / "data", tmp_path / "mnt", systemd=True)
    folder = config_home / "systemd" / "user"
    assert entry.file.parent == folder
    assert (folder / "default.target.wants" / entry.file.name).resolve() == entry.file.resolve()
    desktop.remove(tmp_path / "data", tmp_path / "mnt")
    assert not [file for file in folder.rglob("*") if not file.is_dir()]


@BOTH_FORMS
def test_adding_twice_is_adding_once(tmp_path: Path, systemd: bool) -> None:
    first = desktop.add(tmp_path / "data", tmp_path / "mnt", systemd=systemd)
    before = first.file.read_text()
    assert desktop.add(tmp_path / "data", tmp_path / "mnt", systemd=systemd) == first
    assert first.file.read_text() == before
    assert desktop.entries() == [first]


@BOTH_FORMS
def test_the_other_form_replaces_the_first(tmp_path: Path, systemd: bool) -> None:
    first = desktop.add(tmp_path / "data", tmp_path / "mnt", systemd=not systemd)
    second = desktop.add(tmp_path / "data", tmp_path / "mnt", systemd=systemd)
    assert desktop.entries() == [second]
    assert not first.file.exists()


def test_folders_of_the_same_name_have_entries_of_their_own(tmp_path: Path) -> None:
    a = desktop.add(tmp_path / "data-a", tmp_path / "a" / "photos")
    b = desktop.add(tmp_path / "data-b", tmp_path / "b" / "photos", systemd=True)
    assert desktop.entries() == [a, b]
    assert desktop.remove(a.data, a.mountpoint) == a
    assert desktop.entries() == [b]


def test_relative_paths_are_taken_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    entry = desktop.add(Path("data"), Path("x/../mnt"))
    assert (entry.data, entry.mountpoint) == (tmp_path / "data", tmp_path / "mnt")


def test_removing_what_is_not_there_is_a_one_line_error(tmp_path: Path) -> None:
    entry = desktop.add(tmp_path / "data", tmp_path / "mnt")
    for data, mountpoint in [("data", "other"), ("other", "mnt")]:
        with pytest.raises(MissingError, match="no autostart entry mounts") as raised:
            desktop.remove(tmp_path / data, tmp_path / mountpoint)
        assert "\n" not in str(raised.value)
    assert desktop.entries() == [entry]


@pytest.mark.parametrize(
    ("name", "message"), [("line\nbreak", "control characters"), ("raw \udcff", "not UTF-8")]
)
def test_a_path_that_no_entry_can_hold_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        desktop.add(tmp_path / "data", tmp_path / name)
    assert desktop.entries() == []


def test_files_of_others_are_left_alone(tmp_path: Path, config_home: Path) -> None:
    folder = config_home / "autostart"
    folder.mkdir(parents=True)
    (folder / "syncer-other.desktop").write_text("[Desktop Entry]\nName=other\n")
    (folder / "syncer-broken.desktop").write_bytes(b"\xff\n")
    assert desktop.entries() == []


def test_a_folder_that_cannot_be_written_is_a_one_line_error(
    tmp_path: Path, config_home: Path
) -> None:
    config_home.touch()
    with pytest.raises(AccessError, match=str(config_home)):
        desktop.add(tmp_path / "data", tmp_path / "mnt")


def test_without_a_configured_folder_it_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for unusable in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CONFIG_HOME", unusable)
        entry = desktop.add(tmp_path / "data", tmp_path / "mnt")
        assert entry.file.parent == tmp_path / ".config" / "autostart"


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_systemd_hears_of_ready_and_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    address = f"\0syncer-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address.replace("\0", "@"))
        notify.ready()
        notify.stopping()
        assert [systemd.recv(100), systemd.recv(100)] == [b"READY=1", b"STOPPING=1"]


def test_outside_systemd_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify.ready()


@pytest.mark.expects_warnings
def test_a_systemd_that_does_not_listen_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify.ready()
    assert "systemd can't be told READY=1" in caplog.text
