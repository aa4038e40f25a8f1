"""Commands that begin or end a mount, killed at each of their steps: the same command goes on.

A few steps of each in `make test`, all of them in `make torture`.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from syncer.config import Config
from syncer.errors import ExistsError
from tests.faults.killer import KILLED, Killer
from tests.mounted import BINDINGS, Mount
from tests.processes import is_alive, is_mounted, wait_for

FUSE = BINDINGS[-1]

CONTENT = os.urandom(1_500_000)

few_and_all = pytest.mark.parametrize(
    "most", [3, pytest.param(10_000, marks=[pytest.mark.torture, pytest.mark.timeout(3600)])]
)
"""How many of a command's steps are tried."""


@pytest.fixture
def killer(tmp_path: Path) -> Iterator[Killer]:
    with Killer(tmp_path) as killer:
        yield killer


def chosen(steps: int, most: int) -> list[int]:
    """The numbers of the steps at which to kill: the first, the last, and some in between."""
    count = min(most, steps)
    return sorted({1 + number * (steps - 1) // (count - 1) for number in range(count)})


def meta(data: Path, key: str) -> Any:
    with closing(sqlite3.connect(f"file:{data}/metadata.db?mode=ro", uri=True)) as db:
        return db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()[0]


class Laptop(Mount):
    """A machine of the repository in `remote`."""

    def __init__(self, folder: Path, name: str, remote: Path) -> None:
        self.folder = folder
        data = folder / name
        super().__init__(folder, FUSE, remote=str(remote), data=data, options=(), env={})
        self.path.mkdir(exist_ok=True)

    def words(self, *options: str) -> tuple[str | Path, ...]:
        return ("mount", "--fuse", self.fuse, *options, self.data, self.path)

    def follow_process(self) -> None:
        """Take the process that has it mounted for one's own, so that it is cleaned up."""
        self._process = os.pidfd_open(self.pid)


@few_and_all
def test_a_killed_init_goes_on(tmp_path: Path, killer: Killer, most: int) -> None:
    assert killer.run("init", tmp_path / "whole", tmp_path / "whole-remote") == 0
    for step in chosen(killer.steps, 2 * most):
        data, remote = tmp_path / f"data{step}", tmp_path / f"remote{step}"
        assert killer.run("init", data, remote, kill_at=step) == KILLED
        assert not (data / "config").exists()
        assert killer.run("init", data, remote) == 0, (step, killer.said)
        assert (meta(data, "role"), meta(data, "generation")) == ("writer", 1)
        assert {path.name for path in (remote / "writers").iterdir()} == {
            "00000001", "00000001.start",
        }, step  # fmt: skip
        assert f"{meta(data, 'machine'):016x}.json" in os.listdir(remote / "machines")
        assert killer.run("flush", data) == 0, (step, killer.said)
        assert sorted(os.listdir(data)) == [
            "blocks", "config", "lock", "metadata.db", "segments",
        ], step  # fmt: skip
    assert killer.run("clone", tmp_path / "clone", remote) == 0, killer.said


@few_and_all
def test_of_a_killed_init_and_another_one_has_the_repository(
    tmp_path: Path, killer: Killer, most: int
) -> None:
    assert killer.run("init", tmp_path / "whole", tmp_path / "whole-remote") == 0
    won = set()
    for step in chosen(killer.steps, most):
        first, second = tmp_path / f"first{step}", tmp_path / f"second{step}"
        remote = tmp_path / f"remote{step}"
        assert killer.run("init", first, remote, kill_at=step) == KILLED
        # The first one goes on after the second one has come to it.
        statuses = [killer.run("init", data, remote) for data in (second, first)]
        assert sorted(statuses) == [0, ExistsError.exit_code], (step, killer.said)
        winner, loser = (second, first) if statuses[0] == 0 else (first, second)
        assert not loser.exists() or not os.listdir(loser)
        assert killer.run("flush", winner) == 0, (step, killer.said)
        assert killer.run("clone", loser, remote) == 0
        won.add(winner.name.rstrip("0123456789"))
    assert won == {"first", "second"}


def test_what_is_half_made_says_how_to_go_on(tmp_path: Path, killer: Killer) -> None:
    data, remote, other = tmp_path / "data", tmp_path / "remote", tmp_path / "other"
    assert killer.run("init", tmp_path / "whole", tmp_path / "whole-remote") == 0
    assert killer.run("init", data, remote, kill_at=killer.steps) == KILLED
    for command in (("init", data, other), ("clone", data, remote)):
        assert killer.run(*command) != 0
        assert f"go on with: syncer init {data} {remote}" in killer.said
    assert killer.run("umount", data) != 0 and killer.run("status", data) != 0
    laptop = Laptop(tmp_path, "data", remote)
    try:
        # The words of a plain mount are enough: the rest is noted.
        laptop.mount()
        (laptop.path / "file").write_bytes(CONTENT)
        assert laptop.status()["role"] == "writer"
    finally:
        laptop.clean_up()


@pytest.fixture
def remote(tmp_path: Path, killer: Killer) -> Path:
    """A repository that holds one file, of a machine in the folder `laptop`."""
    remote = tmp_path / "remote"
    assert killer.run("init", tmp_path / "laptop", remote) == 0
    laptop = Laptop(tmp_path, "laptop", remote)
    try:
        laptop.mount()
        (laptop.path / "file").write_bytes(CONTENT)
        laptop.run("umount", "--wait", laptop.path)
        laptop.wait_ended()
    finally:
        laptop.clean_up()
    return remote


@few_and_all
def test_a_killed_clone_goes_on(tmp_path: Path, killer: Killer, remote: Path, most: int) -> None:
    assert killer.run("clone", tmp_path / "whole", remote) == 0
    for step in chosen(killer.steps, most):
        data = tmp_path / f"data{step}"
        assert killer.run("clone", data, remote, kill_at=step) == KILLED
        assert killer.run("clone", data, remote) == 0, (step, killer.said)
        assert sorted(os.listdir(data)) == ["config", "lock", "metadata.db"], step
        assert meta(data, "role") == "follower"
        assert meta(data, "published") == meta(tmp_path / "whole", "published")
        assert killer.run("fsck", data, "--remote") == 0, (step, killer.said)


@few_and_all
def test_a_killed_take_over_goes_on(
    tmp_path: Path, killer: Killer, remote: Path, most: int
) -> None:
    assert killer.run("clone", tmp_path / "clone", remote) == 0
    # The first one is not killed: it shows how many steps there are.
    waiting = [0]
    while waiting:
        step = waiting.pop(0)
        copy = tmp_path / f"remote{step}"
        shutil.copytree(remote, copy)
        for name in ("clone", "laptop"):
            shutil.copytree(tmp_path / name, tmp_path / f"{name}{step}")
            settings = tmp_path / f"{name}{step}" / "config"
            replace(Config.load(settings), remote=str(copy)).save(settings)
        machine = Laptop(tmp_path, f"clone{step}", copy)
        try:
            status = killer.run(*machine.words("--take-over"), kill_at=step)
            assert status == 0 or step, killer.said
            if not step:
                waiting = chosen(killer.steps, most)
            elif status or killer.steps >= step:
                # Or it had come to serve, and its process died then.
                wait_for(lambda: not is_alive(machine.pid))  # noqa: B023
                machine.run(*machine.words("--take-over"))
            machine.follow_process()
            assert (machine.path / "file").read_bytes() == CONTENT
            (machine.path / "mine").write_bytes(b"mine")
            machine.run("umount", "--wait", machine.path)
            machine.wait_ended()
        finally:
            machine.clean_up()
        assert (meta(machine.data, "role"), meta(machine.data, "generation")) == ("writer", 2)
        assert killer.run("fsck", machine.data, "--remote") == 0, (step, killer.said)
        former = tmp_path / f"laptop{step}"
        assert killer.run("flush", former) == 0, (step, killer.said)
        assert meta(former, "role") in ("displaced", "follower")


@few_and_all
def test_a_killed_umount_loses_nothing(
    tmp_path: Path, killer: Killer, remote: Path, most: int
) -> None:
    """Whichever of the two processes dies: the command's or the mount's."""
    laptop = Laptop(tmp_path, "laptop", remote)
    waiting = [0]
    closed: set[str] = set()
    try:
        while waiting:
            step = waiting.pop(0)
            assert killer.run(*laptop.words()) == 0, killer.said
            laptop.follow_process()
            for name in list(laptop.path.iterdir()):
                assert name.read_bytes() == CONTENT, (step, name)
            names = {path.name for path in laptop.path.iterdir()}
            assert names == {"file", *closed}
            pid = laptop.pid
            (laptop.path / f"closed{step}").write_bytes(CONTENT)
            closed.add(f"closed{step}")
            killer.arm(step)
            killer.start("umount", laptop.path)
            if is_mounted(laptop.path) and is_alive(pid):
                # The command died before it came to anything.
                assert killer.start("umount", laptop.path) == 0, killer.said
            laptop.wait_ended()
            waiting = waiting if step else chosen(killer.steps, most)
            killer.disarm()
    finally:
        laptop.clean_up()
    assert killer.run("fsck", laptop.data) == 0, killer.said
