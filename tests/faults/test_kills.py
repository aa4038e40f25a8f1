"""kill -9 at any moment, many times: what calls returned for is there, the rest is old or new.

    SYNCER_KILLS=200 SYNCER_FIRST_KILL=37 python -m pytest tests/faults/test_kills.py -s

begins with another seed, and -s shows how long each mount took to serve. `make torture` makes its
500 in pieces of 25, each a test of its own, so that one who was interrupted goes on with the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from syncer.metadata.db import FILE_ENDS, Database
from tests.faults import work
from tests.mounted import BINDINGS, Mount, mounted
from tests.sshd import HOST, Sshd

pytestmark = pytest.mark.fuse

_KILLS = int(os.environ.get("SYNCER_KILLS", "20"))
_FIRST_KILL = int(os.environ.get("SYNCER_FIRST_KILL", "0"))
_TORTURE_KILLS = 500
_PIECE_KILLS = 25
_WORKERS = 3
_LIMIT_MB = "64"
_BALLAST_BYTES = 62_000_000
"""Fills the limit, so that all that is written evicts something."""
_KEPT_ROUNDS = 4
_CALLS_WITHIN_SECONDS = 120.0

#: path -> (kind, content or target).
Truth = dict[str, tuple[int, str]]


@contextlib.contextmanager
def working(
    folders: Sequence[tuple[Path, Path, int]], *, verify: bool = False
) -> Iterator[list[int]]:
    """Workers at (folder, journal, seed); they are gone afterwards."""
    pids = [work.start(*place, verify=verify) for place in folders]
    try:
        yield pids
    finally:
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert set(statuses) == {0}, _errors(folders)


def _errors(folders: Sequence[tuple[Path, Path, int]]) -> str:
    files = [journal.with_suffix(".error") for _, journal, _ in folders]
    return "\n".join(file.read_text() for file in files if file.exists())


def truth_of(folder: Path) -> Truth:
    """What is below a folder, for comparing it later."""
    truth: Truth = {}
    for name, path in work.found(folder).items():
        kind = stat.S_IFMT(path.lstat().st_mode)
        said = ""
        if stat.S_ISLNK(kind):
            said = os.readlink(path)
        elif stat.S_ISREG(kind):
            said = hashlib.sha256(path.read_bytes()).hexdigest()
        truth[name] = kind, said
    return truth


class Loop:
    """Rounds of work and death on one mount."""

    def __init__(self, mount: Mount, journals: Path, first_seed: int) -> None:
        self._mount = mount
        self._journals = journals
        self._seed = first_seed
        self._truths: dict[str, Truth] = {}
        self._snapshots: dict[str, dict[str, Truth]] = {}
        self._ballast = work.noise(first_seed, _BALLAST_BYTES)
        # The power may be cut before the committer's first round.
        with open(mount.path / "ballast", "wb") as file:
            file.write(self._ballast)
            os.fsync(file.fileno())
        self.dirty = 0
        self.in_flight = 0
        self.serving_seconds: list[float] = []

    def run(self, kills: int) -> None:
        for seed in range(self._seed, self._seed + kills):
            self._round(seed)
        print(
            f"{kills} kills, {self.in_flight} with calls in flight, {self.dirty} with dirty blocks;"
            f" mounts served within {max(self.serving_seconds):.2f} s"
        )
        # Each had something to lose; and blocks were among it, not only names.
        assert self.in_flight * 2 >= kills and self.dirty * 2 >= kills

    def _round(self, seed: int) -> None:
        chance = random.Random(seed)
        power_is_cut = chance.random() < 0.3
        places = [
            (self._mount.path / f"{seed}-{number}", self._journals / f"{seed}-{number}", number)
            for number in range(_WORKERS)
        ]
        places = [(folder, journal, seed * 10 + number) for folder, journal, number in places]
        goal = chance.randrange(20, 150)
        deadline = time.monotonic() + _CALLS_WITHIN_SECONDS
        with working(places) as pids:
            while sum(work.calls(journal)[1] for _, journal, _ in places) < goal:
                assert time.monotonic() < deadline, f"seed {seed}: the work does not go on"
                assert not any(_has_failed(pid) for pid in pids), f"seed {seed}: {_errors(places)}"
                time.sleep(chance.random() * 0.02)
            self._mount.kill()
        self._count(seed, places)
        if power_is_cut:
            cut_power(self._mount.data, chance)
        began = time.monotonic()
        self._mount.mount()
        self.serving_seconds.append(time.monotonic() - began)
        print(f"seed {seed}: served after {self.serving_seconds[-1]:.2f} s")
        for folder, journal, worker_seed in places:
            work.check(folder, journal, worker_seed, power_was_cut=power_is_cut)
            if folder.exists():
                self._truths[folder.name] = truth_of(folder)
        self._check_truths()
        self._age(seed)
        if chance.random() < 0.2:
            name = f"after {seed}"
            self._mount.run("snapshot", self._mount.data, name)
            self._snapshots[name] = dict(self._truths)

    def _count(self, seed: int, places: Sequence[tuple[Path, Path, int]]) -> None:
        in_flight = any(begun > done for begun, done in (work.calls(place[1]) for place in places))
        with left_database(self._mount.data, self._journals) as db:
            ((dirty,),) = db.query("SELECT count(*) FROM block WHERE dirty IS NOT NULL")
            ((unpublished,),) = db.query("SELECT count(*) FROM outbox")
        assert in_flight or dirty or unpublished, f"seed {seed}: there was nothing to lose"
        self.in_flight += in_flight
        self.dirty += bool(dirty)

    def _check_truths(self) -> None:
        for name, truth in self._truths.items():
            assert truth_of(self._mount.path / name) == truth, f"{name} changed by itself"

    def _age(self, seed: int) -> None:
        for name in [
            name for name in self._truths if int(name.split("-")[0]) <= seed - _KEPT_ROUNDS
        ]:
            shutil.rmtree(self._mount.path / name)
            del self._truths[name]

    def check_all(self, top: Path) -> None:
        """See that a mount of the same repository shows the same now, and in each snapshot."""
        assert (top / "ballast").read_bytes() == self._ballast
        for name, truth in self._truths.items():
            assert truth_of(top / name) == truth, name
        for snapshot, truths in self._snapshots.items():
            for name, truth in truths.items():
                assert truth_of(top / ".snapshots" / snapshot / name) == truth, (snapshot, name)


def _has_failed(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


@contextlib.contextmanager
def left_database(data: Path, scratch: Path) -> Iterator[Database]:
    """A look at a copy of what a dead process left, which opening would tidy up."""
    folder = scratch / "left"
    folder.mkdir()
    try:
        for end in FILE_ENDS:
            name = f"metadata.db{end}"
            if end != "-shm" and (data / name).exists():
                shutil.copy(data / name, folder / name)
        with contextlib.closing(Database(folder / "metadata.db")) as db:
            yield db
    finally:
        shutil.rmtree(folder)


def cut_power(data: Path, chance: random.Random) -> None:
    """As if the power had gone with the process: files that were not synced are damaged.

    And the mark of the boot is that of an earlier one.
    """
    with contextlib.closing(Database(data / "metadata.db")) as db:
        unsynced = db.query("SELECT id FROM block WHERE synced = 0")
        unsynced += db.query("SELECT data FROM undo_run WHERE node = 0")
        db.set_meta("boot", "an earlier boot")
    for (block_id,) in unsynced:
        path = data / "blocks" / block_id.hex()[:2] / block_id.hex()
        if path.exists() and chance.random() < 0.6:
            content = path.read_bytes()
            half = len(content) // 2
            torn = chance.choice(
                [None, b"", content[:half], content[:half].ljust(len(content), b"\0")]
            )
            if torn is None:
                path.unlink()
            else:
                path.write_bytes(torn)


def kill_many(
    folder: Path,
    fuse: str,
    kills: int,
    first_seed: int,
    *,
    remote: str = "",
    upload_limit: str = "0",
    env: Mapping[str, str] | None = None,
) -> None:
    journals = folder / "journals"
    journals.mkdir()
    with mounted(
        folder,
        fuse,
        limit=_LIMIT_MB,
        remote=remote,
        env=env,
        settings={"timeout": "10", "upload_limit": upload_limit},
        expects_warnings=True,
    ) as mount:
        loop = Loop(mount, journals, first_seed)
        loop.run(kills)
        mount.evict()
        # Without what the kernel has in its memory.
        mount.remount()
        loop.check_all(mount.path)
        with mounted(
            folder, fuse, name="clone", clone=True, limit=_LIMIT_MB, remote=remote, env=env
        ) as clone:
            loop.check_all(clone.path)


@pytest.mark.timeout(600)
@pytest.mark.slow(55)
def test_kills_at_any_moment_lose_nothing(tmp_path: Path) -> None:
    with Sshd() as server:
        kill_many(
            tmp_path,
            BINDINGS[-1],
            _KILLS,
            _FIRST_KILL,
            remote=f"{HOST}:{tmp_path}/remote",
            env={"SYNCER_SSH_CONFIG": str(server.config)},
        )


@pytest.mark.torture
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(0, _TORTURE_KILLS // len(BINDINGS), _PIECE_KILLS))
@pytest.mark.parametrize("fuse", BINDINGS)
def test_many_kills_lose_nothing(tmp_path: Path, fuse: str, first: int) -> None:
    seed = _FIRST_KILL + 1000 * int(fuse) + first
    # A directory takes blocks at once, so that few would be lost with the local disk.
    kill_many(tmp_path, fuse, _PIECE_KILLS, seed, upload_limit="4M")


@pytest.mark.parametrize("fuse", BINDINGS)
def test_who_removes_an_open_file_and_dies_has_removed_it(tmp_path: Path, fuse: str) -> None:
    """And a rename over an open file leaves one of the two, which libfuse makes of two calls."""
    with mounted(tmp_path, fuse) as mount:
        for name in ("removed", "replaced", "new"):
            (mount.path / name).write_text(name)
        with contextlib.suppress(OSError), contextlib.ExitStack() as files:
            for name in ("removed", "replaced"):
                files.enter_context(open(mount.path / name, "rb"))
            os.rename(mount.path / "new", mount.path / "replaced")
            os.unlink(mount.path / "removed")
            mount.kill()
        mount.mount()
        assert os.listdir(mount.path) == ["replaced"]
        assert (mount.path / "replaced").read_text() == "new"
