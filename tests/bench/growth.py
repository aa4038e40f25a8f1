"""How cost grows with a file's length, a folder's names and a cache's blocks: `make bench-scale`.

What is written and read goes through the mount. Costs are processor time of the mounted process, as
the kernel counts it, so that a machine that is busy with other things matters little.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .collection import file_name, folder_name, prepare, run
from .measure import MIB, Stopwatch, content, drop_page_cache
from .report import as_markdown, as_text
from .scale import replace_part

FILE_GIBS = (1, 10, 100)
FOLDER_NAMES = (1_000, 10_000, 100_000)
#: The smallest just fills the smallest limit.
CACHE_BLOCKS = (8_000, 30_000, 100_000)
OVERWRITES = 2000
OVERWRITE_BYTES = 64 << 10
SAMPLE = 1000
#: Larger than what is kept in the database here, so each file has a block of its own.
BLOCK_FILE_BYTES = 8192
INLINE_LIMIT = "4Ki"
LIMIT_MARGIN = 1.02


@dataclass(frozen=True)
class Mounted:
    """A collection of its own."""

    data: Path
    path: Path
    pid: int

    def cpu_seconds(self) -> float:
        """What its process has taken so far, user and system, ended threads as well."""
        # As clock_getcpuclockid(3) makes it: /proc counts in hundredths of a second.
        return time.clock_gettime(~self.pid << 3 | 2)

    def cost(self, count: int, act: Callable[[], object]) -> float:
        """Microseconds of its processor time for each of what `act` does."""
        before = self.cpu_seconds()
        act()
        return (self.cpu_seconds() - before) / count * 1e6


@contextmanager
def collection(limit: str, folder_names: int = 0) -> Iterator[Path]:
    """A folder with an unmounted data directory `data`, of one folder with so many names."""
    folder = Path(tempfile.mkdtemp(prefix="syncer-growth-"))
    try:
        prepare(folder, folder_names, limit=limit, folder_files=max(1, folder_names))
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def mounted(folder: Path) -> Iterator[Mounted]:
    run("mount", folder / "data", folder / "mnt")
    try:
        status = json.loads(run("status", folder / "mnt", "--json"))
        yield Mounted(folder / "data", folder / "mnt", status["pid"])
    finally:
        run("umount", folder / "mnt")


def overwriting(gib: int) -> dict[str, float]:
    """A file of so many GiB, of which only what is written takes place."""
    dice = random.Random(gib)
    pieces = (gib << 30) // OVERWRITE_BYTES
    data = content(gib, OVERWRITE_BYTES)
    with collection("4G") as folder, mounted(folder) as mount:
        path = mount.path / "file"
        path.touch()
        os.truncate(path, gib << 30)
        file = os.open(path, os.O_RDWR)

        def write(count: int) -> None:
            for _ in range(count):
                os.pwrite(file, data, dice.randrange(pieces) * OVERWRITE_BYTES)
            os.fsync(file)

        try:
            # The first ones fill holes; then blocks are there that are overwritten in part.
            fresh = mount.cost(OVERWRITES, lambda: write(OVERWRITES))
            again = mount.cost(OVERWRITES, lambda: write(OVERWRITES))
        finally:
            os.close(file)
        assert path.stat().st_size == gib << 30
    return {"size": gib, "first_us": fresh, "then_us": again}


def listing(names: int) -> dict[str, float]:
    """A folder with so many names."""
    with collection("1G", names) as folder:
        drop_page_cache()
        with mounted(folder) as mount:
            top = mount.path / folder_name(0)
            watch = Stopwatch()
            assert len(os.listdir(top)) == names
            found: dict[str, float] = {"size": names, "ls_seconds": watch.seconds()}
            dice = random.Random(names)
            known = [top / file_name(number) for number in dice.sample(range(names), SAMPLE)]
            made = [top / f"new-{number}" for number in range(SAMPLE)]
            drop_page_cache()
            found["stat_us"] = mount.cost(SAMPLE, lambda: each(known, os.stat))
            found["create_us"] = mount.cost(SAMPLE, lambda: each(made, Path.touch))
            found["unlink_us"] = mount.cost(SAMPLE, lambda: each(known, os.unlink))
    return found


def caching(blocks: int) -> dict[str, float]:
    """A cache that is full, of so many blocks."""
    limit_bytes = int(blocks * BLOCK_FILE_BYTES * LIMIT_MARGIN)
    with collection(f"{limit_bytes}B") as folder:
        run("config", folder / "data", "inline_limit", INLINE_LIMIT)
        with mounted(folder) as mount:
            write_files(mount.path / "old", blocks)
            run("flush", mount.path)
        drop_page_cache()
        watch = Stopwatch()
        with mounted(folder) as mount:
            found: dict[str, float] = {"size": blocks, "mount_seconds": watch.seconds()}
            found["mount_cpu_seconds"] = mount.cpu_seconds()

            def write_and_evict() -> None:
                write_files(mount.path / "new", SAMPLE)
                run("flush", mount.path)

            found["write_us"] = mount.cost(SAMPLE, write_and_evict)
            status = json.loads(run("status", mount.path, "--json"))
            assert status["cache_bytes"] <= limit_bytes + 16 * MIB
            gone = [mount.path / "old" / f"{number:06}" for number in range(SAMPLE)]
            found["evict_us"] = mount.cost(SAMPLE, lambda: run("evict", *gone))
    return found


def write_files(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:06}").write_bytes(content((folder.name, number), BLOCK_FILE_BYTES))


def each(paths: Sequence[Path], act: Callable[[Path], object]) -> None:
    for path in paths:
        act(path)


@dataclass(frozen=True)
class Table:
    """One of the three: what it measures at which sizes, and its columns."""

    measure: Callable[[int], dict[str, float]]
    sizes: tuple[int, ...]
    columns: tuple[tuple[str, str], ...]

    def lines(self, rows: Sequence[dict[str, float]]) -> list[list[str]]:
        head = [title for _key, title in self.columns]
        return [head, *([shown(row[key]) for key, _title in self.columns] for row in rows)]


TABLES = {
    "file": Table(
        overwriting,
        FILE_GIBS,
        (
            ("size", "file, GiB"),
            ("first_us", "64 KiB written at random, µs"),
            ("then_us", "the next ones, µs"),
        ),
    ),
    "folder": Table(
        listing,
        FOLDER_NAMES,
        (
            ("size", "names"),
            ("ls_seconds", "first ls, s"),
            ("stat_us", "stat, µs"),
            ("create_us", "create, µs"),
            ("unlink_us", "unlink, µs"),
        ),
    ),
    "cache": Table(
        caching,
        CACHE_BLOCKS,
        (
            ("size", "blocks"),
            ("mount_seconds", "mount, s"),
            ("mount_cpu_seconds", "of it at work, s"),
            ("write_us", "write a file, upload it, evict another, µs"),
            ("evict_us", "evict, µs"),
        ),
    ),
}


def shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}".rstrip("0").rstrip(".")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.growth", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--quick", action="store_true", help="the two smaller sizes of each")
    parser.add_argument("--write-docs", action="store_true", help="write the tables into the page")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    for name in arguments.only:
        table = TABLES[name]
        rows = []
        for size in table.sizes[:2] if arguments.quick else table.sizes:
            rows.append(table.measure(size))
            print(json.dumps(rows[-1]), file=sys.stderr)
        lines = table.lines(rows)
        print(as_text(lines))
        if arguments.write_docs:
            replace_part(name, as_markdown(lines), load)


if __name__ == "__main__":
    main()
