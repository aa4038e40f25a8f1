"""Pruning over real mounts: the command, a standing policy, and kills in the middle of it."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted import BINDINGS, CommandError, Mount, mounted, syncer
from tests.processes import command, environment, wait_for
from tests.test_view import shown

pytestmark = pytest.mark.fuse

_KEEP = ("--keep-yearly", "1")
_CONTENTS = [random.Random(number).randbytes(150_000) for number in range(6)]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    with mounted(tmp_path, BINDINGS[-1], settings={"grace": "0", "epoch": "0.1"}) as mount:
        yield mount


def stored(mount: Mount) -> int:
    """How many objects of blocks the server has, wherever they lie."""
    top = Path(mount.remote)
    return len([*top.glob("blocks/*/*"), *top.glob("trash/*")])


def tree_of(top: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(top)): path.read_bytes()
        for path in sorted(top.rglob("*"))
        if path.is_file()
    }


def past(mount: Mount, name: str) -> Path:
    return mount.path / ".snapshots" / name


def test_the_command_says_what_goes_does_it_and_leaves_the_rest(mount: Mount) -> None:
    file = mount.path / "file"
    file.write_bytes(_CONTENTS[0])
    mount.run("snapshot", mount.path, "first")
    file.write_bytes(_CONTENTS[1])
    mount.run("snapshot", mount.path, "second")
    file.write_bytes(_CONTENTS[2])
    mount.flush()
    assert stored(mount) == 3
    said = mount.run("prune", mount.path, *_KEEP, "--dry-run")
    assert said.startswith("would remove") and "0 blocks" in said
    mount.run("prune", mount.path, *_KEEP)
    lines = mount.run("snapshots", mount.path).splitlines()
    assert [line.split(None, 1)[1].split() for line in lines] == [
        ["1", "files", "150", "kB", "first"],
        ["1", "files", "150", "kB", "second"],
    ]
    mount.run("snapshot", mount.path, "first", "--remove")
    (left,) = json.loads(mount.run("snapshots", mount.path, "--json"))
    assert (left["name"], left["files"], left["own_bytes"]) == ("second", 1, 150_000)
    said = mount.run("prune", mount.data, *_KEEP)
    assert "150 kB in 1 block" in said.splitlines()[0]
    assert stored(mount) == 2
    assert past(mount, "second").joinpath("file").read_bytes() == _CONTENTS[1]
    assert file.read_bytes() == _CONTENTS[2]
    for words in (["prune", mount.path], ["prune", mount.path, "--keep-within", "7m"]):
        with pytest.raises(CommandError) as error:
            mount.run(*words)
        assert error.value.status == 2
    with pytest.raises(CommandError) as error:
        mount.run("snapshot", mount.path, "first", "--remove")
    assert error.value.status == 3
    mount.umount()
    syncer("fsck", mount.data, "--remote", "--read-data")


def test_a_standing_policy_prunes_by_itself_while_the_mount_is_used(mount: Mount) -> None:
    mount.umount()
    mount.configure(keep_yearly="1", prune_every="1s")
    mount.mount()
    kept = mount.path / "kept"
    kept.write_bytes(_CONTENTS[0])
    mount.run("snapshot", mount.path, "one")
    kept.unlink()
    for number in range(1, 6):
        (mount.path / "file").write_bytes(_CONTENTS[number])
        mount.flush()
    wait_for(lambda: stored(mount) == 2, 60)
    assert tree_of(past(mount, "one")) == {"kept": _CONTENTS[0]}
    assert tree_of(mount.path) == {"file": _CONTENTS[5]}


def test_a_clone_of_a_pruned_collection_has_all_that_is_kept(mount: Mount, tmp_path: Path) -> None:
    for content in _CONTENTS:
        (mount.path / "file").write_bytes(content)
        mount.flush()
    mount.run("snapshot", mount.path, "last")
    (mount.path / "file").unlink()
    mount.run("prune", mount.path, *_KEEP)
    with mounted(tmp_path, BINDINGS[-1], name="clone", clone=True) as clone:
        assert tree_of(past(clone, "last")) == {"file": _CONTENTS[-1]}
        assert tree_of(clone.path) == {}
        with pytest.raises(CommandError) as error:
            clone.run("prune", clone.path, *_KEEP)
        assert error.value.status == 7


def test_a_mounted_moment_that_is_pruned_is_an_error_and_nothing_wrong(mount: Mount) -> None:
    folder = mount.path / "folder"
    folder.mkdir()
    (folder / "seen").write_bytes(_CONTENTS[0])
    (folder / "unseen").write_bytes(_CONTENTS[1])
    mount.run("snapshot", mount.path, "gone")
    (folder / "seen").write_bytes(_CONTENTS[2])
    (folder / "unseen").unlink()
    mount.flush()
    (snapshot,) = json.loads(mount.run("snapshots", mount.path, "--json"))
    with shown(mount, "--at", "gone") as then:
        assert (then / "folder" / "seen").read_bytes() == _CONTENTS[0]
        mount.run("snapshot", mount.path, "gone", "--remove")
        mount.run("prune", mount.path, *_KEEP)
        assert stored(mount) == 1
        for look in (
            lambda: (then / "folder" / "unseen").read_bytes(),
            lambda: os.listdir(then / "folder"),
            lambda: os.listdir(then),
        ):
            with pytest.raises(OSError) as failed:
                look()
            assert failed.value.errno == errno.ESTALE
        mount.run("umount", then)
        with pytest.raises(CommandError, match="was pruned") as error:
            mount.run("mount", "--at", str(snapshot["epoch"]), mount.data, then)
        assert error.value.status == 3
        assert "Traceback" not in str(error.value) and len(str(error.value).splitlines()) == 1
    assert tree_of(mount.path) == {"folder/seen": _CONTENTS[2]}


def _kill_while_pruning(tmp_path: Path, kills: int, seed: int) -> None:
    draw = random.Random(seed)
    settings = {"grace": "0", "epoch": "0.1"}
    with mounted(tmp_path, BINDINGS[-1], settings=settings, expects_warnings=True) as mount:
        copies: dict[str, dict[str, bytes]] = {}
        for number in range(kills):
            for _ in range(draw.randrange(1, 6)):
                file = mount.path / draw.choice("abcd")
                if draw.random() < 0.2:
                    file.unlink(missing_ok=True)
                else:
                    file.write_bytes(draw.choice(_CONTENTS))
            name = f"snapshot {number}"
            mount.run("snapshot", mount.path, name)
            copies[name] = tree_of(mount.path)
            if len(copies) > 3:
                gone = draw.choice(list(copies))
                mount.run("snapshot", mount.path, gone, "--remove")
                del copies[gone]
            present = tree_of(mount.path)
            pruning = subprocess.Popen(
                command("prune", mount.path, *_KEEP),
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            try:
                assert pruning.stdout is not None
                # From when it has said what goes, at any moment until it is done.
                pruning.stdout.readline()
                time.sleep(draw.random() * 0.4)
                mount.kill()
            finally:
                pruning.communicate(timeout=60)
            mount.remount()
            assert tree_of(mount.path) == present
            if draw.random() < 0.3:
                mount.evict()
            for name, copy in copies.items():
                assert tree_of(past(mount, name)) == copy, name
        mount.run("prune", mount.path, *_KEEP)
        mount.run("prune", mount.path, *_KEEP)
        mount.evict()
        for name, copy in copies.items():
            assert tree_of(past(mount, name)) == copy, name
        named = {content for copy in (*copies.values(), present) for content in copy.values()}
        assert stored(mount) == len(named - {b""})
        mount.umount()
        syncer("fsck", mount.data, "--remote", "--read-data")


def test_a_mount_killed_while_it_prunes_loses_nothing_that_is_kept(tmp_path: Path) -> None:
    _kill_while_pruning(tmp_path, 10, seed=1)


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_a_mount_killed_two_hundred_times_while_it_prunes(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(2), "big")
    print(f"seed {seed}")
    _kill_while_pruning(tmp_path, 200, seed)
