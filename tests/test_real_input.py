"""The main job on real input, from outside: 2 GB of real files through a limit of 200 MB.

Only the command line is used, as a person would; docs/examples/real-input.sh is the same to
follow by hand. While it runs, the local disk and the mount's process are watched: the limit on
local data and on memory must hold at every moment, not only at the end.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sysconfig
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from .mounted import Mount, mounted, resident_bytes
from .sshd import HOST, Sshd

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

    fuse: str
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
                # Between two mounts there is no process, or one that has ended.
                with contextlib.suppress(OSError, AssertionError):
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


def make_source(folder: Path, with_packages: bool, total_bytes: int) -> None:
    """Real files, and photos to fill them up to `total_bytes`."""
    paths = sysconfig.get_paths()
    # A copy, since running Python adds to the originals.
    shutil.copytree(
        paths["stdlib"],
        folder / "stdlib",
        symlinks=True,
        ignore=shutil.ignore_patterns("site-packages"),
    )
    if with_packages:
        shutil.copytree(paths["purelib"], folder / "site-packages", symlinks=True)
    make_photos(folder / "year", total_bytes - disk_bytes(folder))


def make_photos(folder: Path, total_bytes: int) -> None:
    """Files of 2 to 8 MB that can't be compressed, in folders of fifty."""
    assert total_bytes > 0, "the libraries alone are larger than the test's input"
    dice = random.Random(2026)
    number = 0
    while total_bytes > 0:
        photo = folder / f"{number // 50:03}" / f"IMG_{number:04}.jpg"
        photo.parent.mkdir(parents=True, exist_ok=True)
        size = dice.randint(*PHOTO_BYTES)
        photo.write_bytes(dice.randbytes(size))
        number += 1
        total_bytes -= size


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


def newest(folder: Path, total_bytes: int) -> list[Path]:
    """The files below a folder that were written last, up to so many bytes.

    `cp` takes them in an order of its own.
    """
    files = [Path(path, name) for path, _, names in os.walk(folder) for name in names]
    states = {file: file.lstat() for file in files}
    chosen: list[Path] = []
    for file in sorted(files, key=lambda file: states[file].st_ctime_ns, reverse=True):
        total_bytes -= states[file].st_size
        if total_bytes < 0:
            break
        chosen.append(file)
    return chosen


@pytest.fixture
def server() -> Iterator[Sshd]:
    with Sshd() as server:
        yield server


@pytest.mark.fuse
@pytest.mark.slow(150)
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("way", "total_bytes"),
    [
        pytest.param(Way("3", "ssh"), 2000 * MB, id="2GB-fuse3-ssh"),
        pytest.param(Way("2", "paramiko"), 300 * MB, id="300MB-fuse2-paramiko"),
    ],
)
def test_what_goes_through_a_small_disk_comes_back_the_same(
    tmp_path: Path, server: Sshd, way: Way, total_bytes: int
) -> None:
    source = tmp_path / "source"
    make_source(source, with_packages=total_bytes > 1000 * MB, total_bytes=total_bytes)
    stopwatch = Stopwatch()

    @contextlib.contextmanager
    def mounted_by(name: str, *, clone: bool = False) -> Iterator[Mount]:
        with mounted(
            tmp_path,
            way.fuse,
            name=name,
            clone=clone,
            limit=str(LIMIT_BYTES // MB),
            remote=f"{HOST}:{tmp_path}/remote",
            settings={"transport": way.transport},
            env={"SYNCER_SSH_CONFIG": str(server.config)},
        ) as mount:
            yield mount
            assert mount.status()["errors"] == []

    with watch(tmp_path / "data") as peaks, mounted_by("data") as mount:
        peaks.pid = mount.pid
        copy(source, mount.path)
        stopwatch.lap("cp -a")
        mount.flush()
        stopwatch.lap("flush")
        after = mount.status()
        assert after["safe"]
        assert after["fetched_blocks"] == 0
        mount.remount()
        peaks.pid = mount.pid
        stopwatch.lap("umount, mount")
        assert sorted(os.listdir(mount.path)) == sorted(os.listdir(source))
        time.sleep(1)
        rest_bytes = resident_bytes(peaks.pid)
        # What was written last is local still, and is not fetched.
        for file in newest(mount.path, LIMIT_BYTES // 2):
            if not file.is_symlink():
                assert file.read_bytes() == (source / file.relative_to(mount.path)).read_bytes()
        assert mount.status()["fetched_blocks"] == 0
        assert_same(source, mount.path)
        stopwatch.lap("diff -r")
        # No block was fetched twice: not for its eight reads, not ahead of the reader in vain.
        assert mount.status()["fetched_blocks"] <= count_blocks(source)
    shown = f"{stopwatch}; at rest {rest_bytes // MB} MB, {peaks}"
    assert_bounded(peaks, shown)
    assert 0 < rest_bytes <= REST_BYTES, shown
    with watch(tmp_path / "data2") as peaks, mounted_by("data2", clone=True) as mount:
        peaks.pid = mount.pid
        assert_same(source, mount.path)
        stopwatch.lap("clone, diff -r")
    print(f"{shown}; {stopwatch}; {peaks}")
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
