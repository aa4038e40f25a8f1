"""What a call costs before syncer does anything: `python -m tests.bench.floor [--files N]`.

Mounts the file system that does the least (`bare`) beside syncer itself, and makes the same calls
in both by turns. Figures are processor time of the mounted process per call: nearly all of it is
the kernel's, libfuse's, ctypes' and the interpreter's for the first, and what the second takes
beyond that is syncer's own work and SQLite's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.mounted import mounted

_PORTION = 50
_STARTS_WITHIN_SECONDS = 60.0


@contextmanager
def _bare(folder: Path) -> Iterator[tuple[Path, int]]:
    mountpoint = folder / "mnt"
    mountpoint.mkdir(parents=True)
    words = [sys.executable, "-m", "tests.bench.bare", folder, mountpoint]
    process = subprocess.Popen(words)
    try:
        deadline = time.monotonic() + _STARTS_WITHIN_SECONDS
        while not os.path.ismount(mountpoint):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the bare file system does not mount")
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
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with _bare(folder / "bare") as bare, mounted(folder, "3") as syncer:
            _measure([bare, (syncer.path, syncer.pid)], options.files)


if __name__ == "__main__":
    main()
