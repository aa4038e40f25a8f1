"""What a call costs before syncer does anything: `python -m tests.bench.floor [--files N]`.

Mounts a file system through the same binding whose operations only keep a set of names, beside
syncer itself, and makes the same calls in both by turns. Figures are processor time of the mounted
process per call: all of it is the kernel's, libfuse's, ctypes' and the interpreter's for the first,
and what the second takes beyond that is syncer's own work and SQLite's.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import os
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from syncer.binding import MountOptions, serve
from syncer.metadata.node import ROOT, Node
from syncer.mount import Operations
from tests.mounted import mounted

_PORTION = 50
_STARTS_WITHIN_SECONDS = 60.0


class _Nothing(Operations):
    """Empty files in the root directory, which are forgotten."""

    def __init__(self) -> None:
        self._names: set[bytes] = set()
        self._numbers = itertools.count(ROOT + 1)
        now = time.time_ns()
        times = (now, now, now, now)
        self._root = Node(ROOT, 1, stat.S_IFDIR | 0o777, 0, 0, 0, 2, 0, *times, None)
        self._file = Node(ROOT + 1, 1, stat.S_IFREG | 0o644, 0, 0, 0, 1, 0, *times, None)

    def _ignore(self, *arguments: Any) -> None:
        pass

    set_cache_dropper = set_abandoned_probe = set_asked = start = _ignore
    set_times = flush = release = _ignore

    def stale_paths(self) -> list[bytes]:
        return []

    def now_ns(self) -> int:
        return time.time_ns()

    def attributes(self, target: bytes | int) -> Node:
        if target == b"/":
            return self._root
        if isinstance(target, bytes) and target not in self._names:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self._file

    def create_file(self, path: bytes, mode: int, flags: int) -> int:
        self._names.add(path)
        return next(self._numbers)

    def move(self, old: bytes, new: bytes, flags: int) -> None:
        self._names.remove(old)
        self._names.add(new)

    def unlink(self, path: str) -> None:
        self._names.remove(path.encode("latin-1"))


@contextmanager
def _nothing(folder: Path) -> Iterator[tuple[Path, int]]:
    mountpoint = folder / "nothing"
    mountpoint.mkdir()
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.floor", "--serve", mountpoint])
    try:
        deadline = time.monotonic() + _STARTS_WITHIN_SECONDS
        while not os.path.ismount(mountpoint):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the empty file system does not mount")
            time.sleep(0.05)
        yield mountpoint, process.pid
    finally:
        subprocess.run(["umount", "-l", str(mountpoint)], check=False)
        process.wait()


def _cpu_us(pid: int) -> float:
    """Processor time of a process; its clock's number is made as by clock_getcpuclockid(3)."""
    return time.clock_gettime_ns(~pid << 3 | 2) / 1000


def _make(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))


def _measure(places: list[tuple[Path, int]], files: int) -> None:
    names = [f"IMG_{number:05}" for number in range(files)]
    calls: list[tuple[str, Callable[[Path], object]]] = [
        ("create an empty file", _make),
        ("stat, cold kernel", os.stat),
        ("rename", lambda path: os.rename(path, f"{path}.new")),
        ("unlink", lambda path: os.unlink(f"{path}.new")),
    ]
    print("| call | floor | syncer | |")
    for title, call in calls:
        os.sync()
        if call is os.stat:
            Path("/proc/sys/vm/drop_caches").write_text("2")
        costs: list[list[float]] = [[], []]
        for first in range(0, files, _PORTION):
            for (folder, pid), cost in zip(places, costs, strict=True):
                before = _cpu_us(pid)
                for name in names[first : first + _PORTION]:
                    call(folder / name)
                cost.append((_cpu_us(pid) - before) / _PORTION)
        floor, own = (statistics.median(cost) for cost in costs)
        least = " / ".join(f"{min(cost):.0f}" for cost in costs)
        print(f"| {title} | {floor:.0f} us | {own:.0f} us | at least {least} us |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(3, lambda caller: _Nothing(), options.serve, MountOptions("nothing"))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with _nothing(folder) as nothing, mounted(folder, "3") as syncer:
            _measure([nothing, (syncer.path, syncer.pid)], options.files)


if __name__ == "__main__":
    main()
