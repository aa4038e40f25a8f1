"""How cost grows with the size of a collection: `make bench-scale`.

Everything that is measured goes through commands and the mount, and a directory takes the place of
the server. To make the collections (see `collection`) keeps a processor busy for a quarter of an
hour: `--collections FOLDER --prepare SECONDS` makes them in portions and measures nothing. Without
`--prepare`, what lies in the folder is measured, and removed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import apsw

from tests.mounted import resident_bytes

from .collection import FOLDER_FILES, folder_name, path_of, prepare, run
from .measure import MIB, Stopwatch, drop_page_cache, per_second
from .report import as_markdown, as_text, machine, quiet

COUNTS = (10_000, 100_000, 1_000_000, 10_000_000)
#: Done in so many portions, of which the median counts.
SAMPLE = 5000
PORTIONS = 5
MOST_LISTED = 100_000
PAGE = Path("docs/performance.md")
SETTLE_SECONDS = 3.0

COLUMNS = (
    ("files", "files"),
    ("mount_seconds", "mount, s"),
    ("ls_seconds", "first ls of 1,000, s"),
    ("stat_per_second", "stat, /s"),
    ("cold_stat_per_second", "the same from a cold disk, /s"),
    ("find_per_second", "find -printf, entries/s"),
    ("create_per_second", "create, /s"),
    ("database_bytes_per_file", "database, bytes a file"),
    ("resident_megabytes", "process at the end, MB"),
)

PLOTS = (
    ("mount_seconds", "Mount, seconds", "seconds"),
    ("stat_per_second", "stat, a second", "calls"),
    ("find_per_second", "find -printf, entries a second", "entries"),
    ("create_per_second", "create, a second", "calls"),
    ("database_bytes_per_file", "Database, bytes a file", "bytes"),
    ("resident_megabytes", "Memory of the process, MB", "MB"),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description=__doc__)
    parser.add_argument("--files", type=int, nargs="+", default=COUNTS, metavar="N")
    parser.add_argument("--json", action="store_true", help="print figures for programs")
    parser.add_argument("--write-docs", action="store_true", help=f"write the table into {PAGE}")
    parser.add_argument("--collections", type=Path, metavar="FOLDER", help="where they are made")
    parser.add_argument(
        "--prepare", type=float, metavar="SECONDS", help="make them for so long, measure nothing"
    )
    arguments = parser.parse_args()
    kept: Path | None = arguments.collections
    if arguments.prepare is not None:
        if kept is None:
            parser.error("--prepare needs --collections")
        deadline = time.monotonic() + arguments.prepare
        ready = all(
            prepare(kept / str(count), count, deadline=deadline) for count in arguments.files
        )
        print("All are ready." if ready else "There is more to be made.")
        return
    load = os.getloadavg()[0]
    rows = []
    for count in arguments.files:
        folder = kept / str(count) if kept else Path(tempfile.mkdtemp(prefix="syncer-scale-"))
        rows.append(measure(folder, count))
        print(json.dumps(rows[-1]), file=sys.stderr)
    lines = table(rows)
    print(json.dumps(rows) if arguments.json else as_text(lines))
    if arguments.write_docs:
        replace_part("scale", f"{as_markdown(lines)}\n\n{plots(rows)}", load)


def measure(folder: Path, count: int) -> dict[str, float]:
    """The figures of a collection of so many files, which is removed.

    Needs root, to drop the page cache.
    """
    data, mountpoint = folder / "data", folder / "mnt"
    try:
        prepare(folder, count)
        database_bytes = used_bytes(data / "metadata.db")
        drop_page_cache()
        watch = Stopwatch()
        run("mount", data, mountpoint)
        found: dict[str, float] = {"files": count, "mount_seconds": watch.seconds()}
        try:
            found |= look(mountpoint, count, data / "metadata.db")
        finally:
            run("umount", mountpoint)
        return {**found, "database_bytes_per_file": database_bytes / count}
    finally:
        shutil.rmtree(folder)


def look(mountpoint: Path, count: int, database: Path) -> dict[str, float]:
    """What is measured through the mount."""
    watch = Stopwatch()
    names = os.listdir(mountpoint / folder_name(0))
    assert len(names) == min(count, FOLDER_FILES)
    found = {"ls_seconds": watch.seconds()}
    paths = [
        path_of(mountpoint, number)
        for number in random.Random(count).sample(range(count), min(count, SAMPLE))
    ]
    drop_page_cache()
    found["cold_stat_per_second"] = per_second(paths, os.stat)
    # One look-up for each, and no wait for the disk: more files are in more folders, and pages.
    with open(database, "rb", buffering=0) as file:
        while file.read(MIB):
            pass
    forget_names()
    for folder in {path.parent for path in paths}:
        os.stat(folder)
    found["stat_per_second"] = median_per_second(paths, os.stat)
    drop_page_cache()
    watch = Stopwatch()
    # As many entries at each size, so that the figure tells what one costs.
    listed = 0
    for number in range(-(-min(count, MOST_LISTED) // FOLDER_FILES)):
        words = ["find", mountpoint / folder_name(number), "-printf", "%s %p\n"]
        listed += subprocess.run(words, capture_output=True, check=True).stdout.count(b"\n")
    found["find_per_second"] = listed / watch.seconds()
    new = mountpoint / "new"
    new.mkdir()
    made = [new / f"{number:05}" for number in range(SAMPLE)]
    found["create_per_second"] = median_per_second(made, Path.touch)
    time.sleep(SETTLE_SECONDS)
    status = json.loads(run("status", mountpoint, "--json"))
    found["resident_megabytes"] = resident_bytes(status["pid"]) / 1e6
    return found


def median_per_second(items: Sequence[Path], act: Callable[[Path], object]) -> float:
    size = len(items) // PORTIONS
    portions = [items[start : start + size] for start in range(0, size * PORTIONS, size)]
    return statistics.median(per_second(portion, act) for portion in portions)


def forget_names() -> None:
    """Have the kernel forget names and attributes, but not what it has read. Needs root."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


def used_bytes(database: Path) -> int:
    """What the database takes on the disk, but for pages that it will use again."""
    connection = apsw.Connection(str(database))
    try:
        pages, free, page_bytes = (
            next(iter(connection.execute(f"PRAGMA {name}")))[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * page_bytes)
    finally:
        connection.close()


def table(rows: Sequence[dict[str, float]]) -> list[list[str]]:
    head = [title for _key, title in COLUMNS]
    return [head, *([figure(row[key]) for key, _title in COLUMNS] for row in rows)]


def figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def plots(rows: Sequence[dict[str, float]]) -> str:
    """How each cost goes, as charts in Mermaid's language, which needs no picture to be stored."""
    sizes = ", ".join(f'"{row["files"]:,.0f}"' for row in rows)
    return "\n\n".join(
        "\n".join(
            (
                "```mermaid",
                "xychart-beta",
                f'    title "{title}"',
                f'    x-axis "files" [{sizes}]',
                f'    y-axis "{unit}" 0 --> {max(row[key] for row in rows) * 1.2:.4g}',
                f"    line [{', '.join(f'{row[key]:.4g}' for row in rows)}]",
                "```",
            )
        )
        for key, title, unit in PLOTS
    )


def replace_part(name: str, part: str, load: float) -> None:
    """Put a part of the page between its two marks, with the date and the machine."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, rest = PAGE.read_text(encoding="utf-8").split(begin)
    after = rest.split(end)[1]
    how = f"Measured on {time.strftime('%Y-%m-%d')}, one round: {machine()}. {quiet(load)}"
    PAGE.write_text(f"{before}{begin}\n{how}\n\n{part}\n\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
