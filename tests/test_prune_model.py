"""Random operations, snapshots and prunes, against copies that were taken at the time."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import pytest

from syncer.codec import BLOCK_BYTES
from syncer.maintain.policy import Policy
from syncer.vfs.caller import Caller
from tests.block_rig import content
from tests.prune_rig import Copy, PruneRig
from tests.vfs_rig import ME, fast_folder

_NAMES = [b"a", b"b", b"c", b"d"]
#: Few contents, so that what was thrown away is often written again; some are inline.
_CONTENTS = [*(content(number, 9000) for number in range(6)), b"tiny", b""]
_POLICIES = [
    Policy(yearly=1),
    Policy(within_seconds=3600),
    Policy(hourly=3),
    Policy(daily=2, weekly=1),
    Policy(within_seconds=60, hourly=2, daily=3),
]


class _Model:
    """One history, made of random steps. `copies` is what each snapshot must show."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._random = random.Random(seed)
        self._clones = 0
        self._names = 0
        self.rig = self._new("first")
        self.copies: dict[str, Copy] = {}

    def _new(self, name: str, rig: PruneRig | None = None) -> PruneRig:
        (self._folder / name).mkdir()
        made = PruneRig(self._folder / name, rig.remote if rig else None)
        if rig is not None:
            made.now_ns, made.grace_seconds = rig.now_ns, rig.grace_seconds
        return made

    def step(self) -> None:
        steps = {
            self._write: 10,
            self._remove: 4,
            self._rewrite: 4,
            self._rename: 3,
            self._replace: 3,
            self._link: 2,
            self._make_folder: 1,
            self._move_folder: 1,
            self._make_symlink: 1,
            self._set_mode: 1,
            self._set_xattr: 2,
            self._pass_time: 8,
            self._snapshot: 4,
            self._remove_snapshot: 1,
            self._prune: 5,
            self._sweep: 2,
            self._evict: 2,
            self._restart: 2,
            self._take_over: 1,
        }
        self._random.choices(list(steps), weights=list(steps.values()))[0]()

    def _place(self) -> bytes:
        folders = [b"", *(b"/" + name for name in self.rig.list(b"/") if self._is_folder(name))]
        return self._random.choice(folders) + b"/" + self._random.choice(_NAMES)

    def _is_folder(self, name: bytes) -> bool:
        return stat.S_ISDIR(self.rig.vfs.getattr(b"/" + name).mode)

    def _kind(self, path: bytes) -> int | None:
        try:
            return stat.S_IFMT(self.rig.vfs.getattr(path).mode)
        except FileNotFoundError:
            return None

    def _write(self) -> None:
        path = self._place()
        if self._kind(path) == stat.S_IFDIR:
            return
        if self._kind(path) is not None:
            self.rig.vfs.unlink(path)
        self.rig.make(path, self._random.choice(_CONTENTS))

    def _remove(self) -> None:
        path = self._place()
        if self._kind(path) in (stat.S_IFREG, stat.S_IFLNK):
            self.rig.vfs.unlink(path)

    def _rename(self) -> None:
        old, new = self._place(), self._place()
        if self._kind(old) == stat.S_IFREG and self._kind(new) is None:
            self.rig.vfs.rename(old, new)

    def _rewrite(self) -> None:
        """Some bytes of a file, or its length: what a program does that keeps it open."""
        path = self._place()
        if self._kind(path) != stat.S_IFREG:
            return
        if self._random.random() < 0.3:
            self.rig.vfs.truncate(path, self._random.choice([0, 5, 7000, 2 * BLOCK_BYTES]))
            return
        handle = self.rig.vfs.open(path, os.O_RDWR)
        offset = self._random.choice([0, 100, 8990, BLOCK_BYTES + 5])
        self.rig.vfs.write(handle, memoryview(self._random.choice(_CONTENTS)[:500]), offset)
        self.rig.vfs.files.flush(handle)
        self.rig.vfs.release(handle)

    def _replace(self) -> None:
        """As editors save."""
        old, new = self._place(), self._place()
        if self._kind(old) == self._kind(new) == stat.S_IFREG:
            self.rig.vfs.rename(old, new)

    def _move_folder(self) -> None:
        old, new = (b"/" + self._random.choice(_NAMES) for _ in range(2))
        if self._kind(old) == stat.S_IFDIR and self._kind(new) is None:
            self.rig.vfs.rename(old, new)

    def _make_symlink(self) -> None:
        path = self._place()
        if self._kind(path) is None:
            self.rig.vfs.symlink(b"../" + self._random.choice(_NAMES), path, ME)

    def _set_mode(self) -> None:
        path = self._place()
        if self._kind(path) == stat.S_IFREG:
            self.rig.vfs.chmod(path, self._random.choice([0o600, 0o644, 0o755]))

    def _link(self) -> None:
        old, new = self._place(), self._place()
        if self._kind(old) == stat.S_IFREG and self._kind(new) is None:
            self.rig.vfs.link(old, new)

    def _make_folder(self) -> None:
        path = b"/" + self._random.choice(_NAMES)
        if self._kind(path) is None:
            self.rig.vfs.mkdir(path, 0o755, Caller(ME.uid, ME.gid))

    def _set_xattr(self) -> None:
        path = self._place()
        if self._kind(path) in (stat.S_IFREG, stat.S_IFDIR):
            self.rig.vfs.setxattr(path, b"user.x", b"%d" % self._random.randrange(9), 0)

    def _pass_time(self) -> None:
        self.rig.advance(self._random.choice([5, 600, 5000, 90_000, 900_000]))

    def _snapshot(self) -> None:
        self._names += 1
        name = f"snapshot {self._names}"
        self.copies[name] = self.rig.snapshot(name)

    def _remove_snapshot(self) -> None:
        if self.copies:
            name = self._random.choice(list(self.copies))
            del self.copies[name]
            self.rig.moments.remove(name)

    def _prune(self) -> None:
        self.rig.grace_seconds = self._random.choice([0, 1000, 10**6])
        present = self.rig.copy()
        self.rig.prune(self._random.choice(_POLICIES))
        assert self.rig.copy() == present

    def _sweep(self) -> None:
        self.rig.sweep()

    def _evict(self) -> None:
        self.rig.forget_locally()

    def _restart(self) -> None:
        self.rig.restart()

    def _take_over(self) -> None:
        """Go on with a clone, which becomes the writer."""
        self.rig.publish()
        self._clones += 1
        other = self._new(f"clone {self._clones}", self.rig)
        self.rig.close()
        self.rig = other
        self.rig.exchange.take_over()

    def check(self) -> None:
        """Each snapshot is what it was, and nothing that is named is lost."""
        self.rig.check_kept()
        for name, copy in self.copies.items():
            assert self.rig.copy_of(name) == copy, name


def _run(seed: int, steps: int) -> None:
    with fast_folder() as folder:
        model = _Model(folder, seed)
        try:
            for number in range(steps):
                model.step()
                if number % 10 == 0:
                    model.check()
            model.rig.forget_locally()
            model.check()
            model.rig.grace_seconds = 0
            model.rig.prune(Policy(yearly=1))
            model.rig.sweep()
            model.check()
            assert model.rig.stored() == model.rig.named()
            assert model.rig.stored("trash") == set()
            model.rig.check_usage()
            model._take_over()
            model.check()
        finally:
            model.rig.close()


@pytest.mark.parametrize("seed", range(6))
def test_each_snapshot_is_what_it_was(seed: int) -> None:
    _run(seed, 70)


@pytest.mark.torture
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(100, 300))
def test_each_snapshot_is_what_it_was_for_long(seed: int) -> None:
    _run(seed, 400)
