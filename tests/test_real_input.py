"""The main job on real input, from outside: 2 GB of real files through a limit of 200 MB.

Only the command line is used, as a person would; docs/examples/real-input.sh is the same to
follow by hand. While it runs, the local disk and the mount's process are watched: the limit on
local data and on memory must hold at every moment, not only at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from .sshd import HOST, Sshd

REPOSITORY = Path(__file__).parent.parent
MB = 1_000_000
BLOCK_BYTES = 1 << 20
LIMIT_BYTES = 200 * MB
SLACK_BYTES = 16 * MB
"""By how much local data may pass the limit, at any moment."""
SAMPLE_SECONDS = 0.1
BUSY_BYTES = 200 * MB
REST_BYTES = 80 * MB
PHOTO_BYTES = (2 * MB, 8 * MB)


@dataclass(frozen=True)
class Way:
    """One of the ways to run syncer."""

    fuse: int
    transport: str


@dataclass
class Peaks:
    """The most that was seen while `watch` looked on."""

    local_bytes: int = 0
    memory_bytes: int = 0
    samples: int = 0
    pid: int = 0
    """The mount's process, once it is known."""
    stopping: threading.Event = field(default_factory=threading.Event, repr=False)


@contextlib.contextmanager
def watch(data: Path) -> Iterator[Peaks]:
    """Measure a data directory's blocks, and the process `Peaks.pid`, each 100 ms."""
    peaks = Peaks()

    def look() -> None:
        while not peaks.stopping.wait(SAMPLE_SECONDS):
            peaks.local_bytes = max(peaks.local_bytes, disk_bytes(data / "blocks"))
            if peaks.pid:
                peaks.memory_bytes = max(peaks.memory_bytes, resident_bytes(peaks.pid))
            peaks.samples += 1

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peaks
    finally:
        peaks.stopping.set()
        watcher.join()


def disk_bytes(folder: Path | str) -> int:
    """What the files below a folder take on the disk, as du counts it."""
    total = 0
    # Files come and go meanwhile.
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    total += disk_bytes(entry.path)
                else:
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total


def resident_bytes(pid: int) -> int:
    """The memory of a process; 0 if it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    with contextlib.suppress(OSError):
        # proc(5): the state stands behind the name in parentheses; Z waits for its parent.
        return not Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].startswith(" Z")
    return False


class Person:
    """Runs syncer's commands, in a folder of their own."""

    def __init__(self, folder: Path, server: Sshd, way: Way) -> None:
        self.folder = folder
        self.way = way
        self._environment = {
            **os.environ,
            "SYNCER_SSH_CONFIG": str(server.config),
            "PYTHONPATH": str(REPOSITORY),
        }

    def run(self, *words: str) -> str:
        """Run a command of syncer; fails the test if it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "syncer", *words],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"syncer {' '.join(words)}: {done.stderr}{self._logs()}"
        return done.stdout

    def _logs(self) -> str:
        return "".join(f"\n{log}:\n{log.read_text()[-3000:]}" for log in self.folder.glob("*/log"))

    def status(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.run("status", "mnt", "--json"))
        return state

    @contextlib.contextmanager
    def mounted(self, data: str, *words: str, peaks: Peaks) -> Iterator[None]:
        """Mounts at ``mnt``, and unmounts, as a person does between two days."""
        way = ("--fuse", str(self.way.fuse), "--transport", self.way.transport)
        self.run("mount", *way, data, *words)
        try:
            peaks.pid = self.status()["pid"]
            yield
            assert self.status()["errors"] == []
        except BaseException:
            subprocess.run(["umount", "-l", "mnt"], cwd=self.folder, check=False)
            raise
        self.run("umount", "mnt")
        assert not is_running(peaks.pid), "the mount's process is still there"
        for line in (self.folder / data / "log").read_text().splitlines():
            assert " WARNING " not in line and " ERROR " not in line, line


def make_source(folder: Path, library_packages: bool, total_bytes: int) -> list[Path]:
    """Real files, and photos to fill them up to `total_bytes`; returns the photos in order."""
    paths = sysconfig.get_paths()
    # A copy, since running Python adds to the originals.
    shutil.copytree(
        paths["stdlib"],
        folder / "stdlib",
        symlinks=True,
        ignore=shutil.ignore_patterns("site-packages"),
    )
    if library_packages:
        shutil.copytree(paths["purelib"], folder / "site-packages", symlinks=True)
    return make_photos(folder / "year", total_bytes - disk_bytes(folder))


def make_photos(folder: Path, total_bytes: int) -> list[Path]:
    """Files of 2 to 8 MB that can't be compressed, in folders of fifty."""
    assert total_bytes > 0, "the libraries alone are larger than the test's input"
    dice = random.Random(2026)
    photos: list[Path] = []
    while total_bytes > 0:
        photo = folder / f"{len(photos) // 50:03}" / f"IMG_{len(photos):04}.jpg"
        photo.parent.mkdir(parents=True, exist_ok=True)
        size = dice.randint(*PHOTO_BYTES)
        photo.write_bytes(dice.randbytes(size))
        photos.append(photo)
        total_bytes -= size
    return photos


def count_blocks(folder: Path) -> int:
    """How many blocks the files below a folder have at most."""
    return sum(
        -(-os.lstat(os.path.join(path, name)).st_size // BLOCK_BYTES)
        for path, _, names in os.walk(folder)
        for name in names
    )


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", f"{source}/.", str(target)], check=True)


def assert_same(source: Path, copy: Path) -> None:
    """`diff -r` finds no difference."""
    done = subprocess.run(
        ["diff", "-r", "--no-dereference", str(source), str(copy)],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
    )
    assert (done.returncode, done.stdout[:2000], done.stderr[:2000]) == (0, "", "")


def newest(photos: list[Path], total_bytes: int) -> list[Path]:
    """The last photos, up to so many bytes."""
    chosen: list[Path] = []
    for photo in reversed(photos):
        total_bytes -= photo.stat().st_size
        if total_bytes < 0:
            break
        chosen.append(photo)
    return chosen


@pytest.fixture
def server() -> Iterator[Sshd]:
    with Sshd() as server:
        yield server


@pytest.mark.fuse
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("way", "total_bytes"),
    [
        pytest.param(Way(3, "ssh"), 2000 * MB, id="2GB-fuse3-ssh"),
        pytest.param(Way(2, "paramiko"), 400 * MB, id="400MB-fuse2-paramiko"),
    ],
)
def test_what_goes_through_a_small_disk_comes_back_the_same(
    tmp_path: Path, server: Sshd, way: Way, total_bytes: int
) -> None:
    source, mountpoint = tmp_path / "source", tmp_path / "mnt"
    mountpoint.mkdir()
    photos = make_source(source, library_packages=total_bytes > 1000 * MB, total_bytes=total_bytes)
    person = Person(tmp_path, server, way)
    remote = f"{HOST}:{tmp_path}/remote"
    stopwatch = Stopwatch()
    with watch(tmp_path / "data") as peaks:
        with person.mounted("data", remote, "mnt", str(LIMIT_BYTES // MB), peaks=peaks):
            copy(source, mountpoint)
            stopwatch.lap("cp -a")
            person.run("flush", "mnt")
            stopwatch.lap("flush")
            after = person.status()
            assert after["safe"] and after["fetched_blocks"] == 0
        stopwatch.lap("umount")
        with person.mounted("data", "mnt", peaks=peaks):
            assert sorted(os.listdir(mountpoint)) == sorted(os.listdir(source))
            rest_bytes = resident_bytes(peaks.pid)
            # What was written last is local still, and is not fetched.
            for photo in newest(photos, LIMIT_BYTES // 2):
                assert (mountpoint / photo.relative_to(source)).read_bytes() == photo.read_bytes()
            assert person.status()["fetched_blocks"] == 0
            stopwatch.lap("read again")
            assert_same(source, mountpoint)
            stopwatch.lap("diff -r")
            # No block was fetched twice: not for its eight reads, not ahead of the reader in vain.
            assert person.status()["fetched_blocks"] <= count_blocks(source)
        stopwatch.lap("umount")
    shown = f"{stopwatch}; at rest {rest_bytes // MB} MB, {peaks}"
    assert_bounded(peaks, shown)
    assert 0 < rest_bytes <= REST_BYTES, shown
    with watch(tmp_path / "data2") as peaks:
        transport = ("--transport", way.transport)
        person.run("clone", *transport, "data2", remote, str(LIMIT_BYTES // MB))
        with person.mounted("data2", "mnt", peaks=peaks):
            assert_same(source, mountpoint)
        stopwatch.lap("clone, diff -r")
    print(f"{stopwatch}; {peaks}; {shown}")
    assert_bounded(peaks, shown)


def assert_bounded(peaks: Peaks, shown: str) -> None:
    assert peaks.samples > 10
    assert 0 < peaks.local_bytes <= LIMIT_BYTES + SLACK_BYTES, shown
    assert 0 < peaks.memory_bytes <= BUSY_BYTES, shown


class Stopwatch:
    """Says how long each step took, for who wonders; nothing is asserted of it."""

    def __init__(self) -> None:
        self._laps: list[str] = []
        self._since = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self._laps.append(f"{name} {now - self._since:.1f} s")
        self._since = now

    def __str__(self) -> str:
        return ", ".join(self._laps)
