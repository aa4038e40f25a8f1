"""The scripts in docs/examples/, run as a person would run them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .mounted import ROOT, CommandError, Mount, mounted

EXAMPLES = ROOT / "docs" / "examples"
BLOCK = 1 << 20
FAILS_WITH = 7

pytestmark = pytest.mark.fuse


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder for the PATH, with `syncer` in it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    add_program(folder, "syncer", f'exec "{sys.executable}" -m syncer "$@"')
    return folder


def add_program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def run(script: str, programs: Path, *words: str | Path, **variables: str) -> str:
    """Run a script; returns what it printed. Raises CommandError."""
    environment = {key: value for key, value in os.environ.items() if "DISPLAY" not in key}
    environment["PATH"] = f"{programs}:{environment['PATH']}"
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [EXAMPLES / script, *words],
        cwd=programs.parent,
        env={**environment, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CommandError(done.returncode, done.stderr)
    return done.stdout


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    with mounted(tmp_path, "3") as mount:
        yield mount


@pytest.fixture
def held_back(tmp_path: Path) -> Iterator[Mount]:
    """A mount that takes a minute to upload what was just written into it."""
    with mounted(tmp_path, "3", settings={"upload_limit": "50K"}) as mount:
        (mount.path / "photo.jpg").write_bytes(os.urandom(3 * BLOCK))
        yield mount


def test_every_example_is_described_and_can_be_run() -> None:
    described = (EXAMPLES / "README.md").read_text()
    for script in EXAMPLES.glob("*.sh"):
        assert f"[{script.name}]({script.name})" in described
        assert os.access(script, os.X_OK)
        if shutil.which("shellcheck"):
            subprocess.run(["shellcheck", script], check=True)


def test_mount_at_login_mounts_and_does_nothing_the_second_time(
    tmp_path: Path, programs: Path
) -> None:
    data, mountpoint = tmp_path / "data", tmp_path / "new" / "mnt"
    try:
        run("mount-at-login.sh", programs, data, mountpoint, tmp_path / "remote", "100")
        (mountpoint / "file").write_bytes(b"content")
        run("mount-at-login.sh", programs, data, mountpoint)
        run("mount-at-login.sh", programs, data, mountpoint, tmp_path / "remote")
        assert (mountpoint / "file").read_bytes() == b"content"
        subprocess.run([programs / "syncer", "umount", mountpoint], cwd=ROOT, check=True)
        run("mount-at-login.sh", programs, data, mountpoint)
        assert (mountpoint / "file").read_bytes() == b"content"
    finally:
        subprocess.run([programs / "syncer", "umount", mountpoint], cwd=ROOT, check=True)


def test_wait_before_suspend_suspends_when_everything_is_on_the_server(
    mount: Mount, programs: Path
) -> None:
    add_program(programs, "systemctl", f'syncer status "{mount.path}" >said; echo "$@" >>said')
    (mount.path / "photo.jpg").write_bytes(os.urandom(3 * BLOCK))
    run("wait-before-suspend.sh", programs, mount.path)
    said = (programs.parent / "said").read_text().splitlines()
    assert said[0].startswith("Everything is on the server")
    assert said[-1] == "suspend"


def test_wait_before_suspend_does_not_suspend_while_something_is_missing(
    held_back: Mount, programs: Path
) -> None:
    with pytest.raises(CommandError) as caught:
        run(
            "wait-before-suspend.sh",
            programs,
            held_back.path,
            "touch",
            programs / "suspended",
            SECONDS_TO_WAIT="1",
        )
    assert caught.value.status == 4
    assert "NOT everything is on the server" in str(caught.value)
    assert not (programs / "suspended").exists()


def test_wait_before_suspend_hands_on_how_the_command_ended(mount: Mount, programs: Path) -> None:
    with pytest.raises(CommandError) as caught:
        run("wait-before-suspend.sh", programs, mount.path, "sh", "-c", f"exit {FAILS_WITH}")
    assert caught.value.status == FAILS_WITH


def test_warn_when_not_safe_is_silent_while_nothing_waits_for_long(
    held_back: Mount, programs: Path
) -> None:
    assert run("warn-when-not-safe.sh", programs, held_back.path) == ""
    held_back.configure(upload_limit="0")
    held_back.remount()
    held_back.flush()
    assert run("warn-when-not-safe.sh", programs, held_back.path, "0") == ""


def test_warn_when_not_safe_warns_on_stderr_or_on_the_desktop(
    held_back: Mount, programs: Path
) -> None:
    with pytest.raises(CommandError) as caught:
        run("warn-when-not-safe.sh", programs, held_back.path, "0")
    assert caught.value.status == 1
    assert "NOT everything is on the server" in str(caught.value)
    add_program(programs, "notify-send", f'printf "%s\\n" "$@" >"{programs}/shown"')
    with pytest.raises(CommandError) as caught:
        run("warn-when-not-safe.sh", programs, held_back.path, "0", DISPLAY=":0")
    assert str(caught.value) == ""
    assert "NOT everything is on the server" in (programs / "shown").read_text()


def test_warn_when_not_safe_tells_a_failure_from_safety(tmp_path: Path, programs: Path) -> None:
    with pytest.raises(CommandError) as caught:
        run("warn-when-not-safe.sh", programs, tmp_path / "nothing")
    assert caught.value.status > 1


def test_pin_thumbnails_keeps_the_small_pictures_without_the_server(
    mount: Mount, programs: Path
) -> None:
    small = os.urandom(20_000)
    thumbnails = [mount.path / "2019" / ".thumbnails", mount.path / "a b" / "@eaDir" / "below"]
    for folder in thumbnails:
        folder.mkdir(parents=True)
        (folder / "photo.jpg").write_bytes(small)
    photo = mount.path / "2019" / "photo.jpg"
    photo.write_bytes(os.urandom(BLOCK))
    mount.evict()
    said = run("pin-thumbnails.sh", programs, mount.path).splitlines()
    for path in ("/2019/.thumbnails", "/a b/@eaDir"):
        assert any(line.endswith(path) for line in said), said
    later = thumbnails[0] / "later.jpg"
    later.write_bytes(small)
    mount.evict()
    mount.remount()
    remote = Path(mount.remote)
    remote.rename(remote.with_name("away"))
    try:
        for file in (*(folder / "photo.jpg" for folder in thumbnails), later):
            assert file.read_bytes() == small
        with pytest.raises(OSError):
            photo.read_bytes()
    finally:
        remote.with_name("away").rename(remote)
    run("pin-thumbnails.sh", programs, mount.path, "nothing has this name")


@pytest.mark.slow(15)
def test_real_input_says_that_everything_came_back(tmp_path: Path, programs: Path) -> None:
    library = tmp_path / "library"
    shutil.copytree(ROOT / "syncer", library, ignore=shutil.ignore_patterns("__pycache__"))
    said = run(
        "real-input.sh",
        programs,
        tmp_path / "remote",
        tmp_path / "try",
        PHOTOS_MB="120",
        MAX_MB="64",
        LIBRARIES=str(library),
    )
    last = said.splitlines()[-1]
    found = re.fullmatch(r"== no difference; at most (\d+) MB were kept locally", last)
    assert found
    assert 0 < int(found[1]) <= 80
