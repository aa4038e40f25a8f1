"""Commands whose output nobody reads to its end, as in `syncer ls photos | head -1`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted import BINDINGS, COMMAND_SECONDS, ROOT, Mount, mounted

#: As a program that SIGPIPE has ended, for the shell.
_ENDED = 141
_FILES = 450


def run_unread(*words: str | Path) -> tuple[int, str]:
    """Run a command whose output has no reader any more; its exit status, and its errors."""
    reader, writer = os.pipe()
    os.close(reader)
    # As at a person's: what is printed waits in a buffer.
    env = {name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open(writer, "wb") as output:
        done = subprocess.run(
            [sys.executable, "-m", "syncer", *map(str, words)],
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    return done.returncode, os.fsdecode(done.stderr)


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    with mounted(tmp_path_factory.mktemp("output"), BINDINGS[-1]) as mount:
        for number in range(_FILES):
            (mount.path / f"file{number:03}").write_bytes(b"content")
        mount.run("snapshot", mount.path, "full")
        for number in range(_FILES // 2):
            os.unlink(mount.path / f"file{number:03}")
        mount.run("pin", mount.path / "file400")
        yield mount


@pytest.mark.fuse
@pytest.mark.slow(25)
def test_a_command_whose_reader_has_gone_ends_as_others_do(mount: Mount) -> None:
    path, file = mount.path, mount.path / "file400"
    commands: list[tuple[str | Path, ...]] = [
        # Longer than what is printed at once.
        ("ls", path),
        ("ls", "--json", path),
        ("deleted", path),
        ("diff", path, "full"),
        # Shorter.
        ("ls", file),
        ("versions", file),
        ("snapshots", path),
        ("snapshots", "--json", path),
        ("pins", path),
        ("status", path),
        ("status", "--watch", path),
        ("status", "--json"),
        ("config", path),
        ("config", path, "epoch"),
        ("fsck", path),
        ("fetch", file),
        ("evict", file),
        ("snapshot", path, "another"),
        ("prune", "--keep-daily", "1", path),
    ]
    found = {words: run_unread(*words) for words in commands}
    assert found == dict.fromkeys(commands, (_ENDED, ""))
    state = mount.status()
    assert state["pid"] == mount.pid and not state["errors"]


@pytest.mark.fuse
def test_the_same_where_nothing_is_mounted(mount: Mount) -> None:
    mount.umount()
    try:
        for words in (("ls", mount.data), ("fsck", mount.data), ("diff", mount.data, "full")):
            assert run_unread(*words) == (_ENDED, "")
    finally:
        mount.mount()


@pytest.mark.parametrize("words", ["--help", "ls --help", "--version"])
def test_help_that_nobody_reads_is_no_error(words: str) -> None:
    assert run_unread(*words.split()) == (_ENDED, "")


def test_a_command_that_fails_says_so_though_nobody_reads_its_output(tmp_path: Path) -> None:
    status, errors = run_unread("ls", tmp_path / "nowhere")
    assert status == 3 and errors.count("\n") == 1
