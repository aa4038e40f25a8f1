"""How cost grows with the size of a collection: `make bench-scale`.

Making a million files through any mount takes a quarter of an hour, so the collections are made by
syncer's own tree: folders of a thousand photos of 4 MB, whose blocks are nowhere. Everything that
is measured goes through commands and the mount, and a directory takes the place of the server.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import apsw

from syncer.metadata.contents import Contents
from syncer.metadata.db import Database
from syncer.metadata.epochs import Epochs
from syncer.metadata.node import ROOT
from syncer.metadata.tree import Tree
from tests.mounted import resident_bytes

from .measure import Stopwatch, drop_page_cache, per_second
from .report import as_markdown, as_text, machine, quiet

COUNTS = (10_000, 100_000, 1_000_000)
FOLDER_FILES = 1000
PHOTO_BYTES = 4_000_000
SAMPLE = 5000
COMMIT_FILES = 500
MOST_LISTED = 100_000
PAGE = Path("docs/performance.md")
SETTLE_SECONDS = 3.0

COLUMNS = (
    ("files", "files"),
    ("mount_seconds", "mount, s"),
    ("ls_seconds", "first ls of 1,000, s"),
    ("stat_per_second", "stat, /s"),
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
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    rows = []
    for count in arguments.files:
        rows.append(measure(count))
        print(json.dumps(rows[-1]), file=sys.stderr)
    lines = table(rows)
    print(json.dumps(rows) if arguments.json else as_text(lines))
    if arguments.write_docs:
        replace_part("scale", f"{as_markdown(lines)}\n\n{plots(rows)}", load)


def measure(count: int) -> dict[str, float]:
    """The figures of a collection of so many files. Needs root, to drop the page cache."""
    folder = Path(tempfile.mkdtemp(prefix="syncer-scale-"))
    data, mountpoint = folder / "data", folder / "mnt"
    mountpoint.mkdir()
    try:
        run("init", data, folder / "remote", "5G")
        fill(data / "metadata.db", count)
        run("flush", data)
        database_bytes = used_bytes(data / "metadata.db")
        drop_page_cache()
        watch = Stopwatch()
        run("mount", data, mountpoint)
        found: dict[str, float] = {"files": count, "mount_seconds": watch.seconds()}
        try:
            found |= look(mountpoint, count)
        finally:
            run("umount", mountpoint)
        return {**found, "database_bytes_per_file": database_bytes / count}
    finally:
        shutil.rmtree(folder)


def look(mountpoint: Path, count: int) -> dict[str, float]:
    """What is measured through the mount."""
    watch = Stopwatch()
    names = os.listdir(mountpoint / folder_name(0))
    assert len(names) == min(count, FOLDER_FILES)
    found = {"ls_seconds": watch.seconds()}
    dice = random.Random(count)
    paths = [path_of(mountpoint, dice.randrange(count)) for _ in range(SAMPLE)]
    drop_page_cache()
    found["stat_per_second"] = per_second(paths, os.stat)
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
    found["create_per_second"] = per_second(made, Path.touch)
    time.sleep(SETTLE_SECONDS)
    status = json.loads(run("status", mountpoint, "--json"))
    found["resident_megabytes"] = resident_bytes(status["pid"]) / 1e6
    return found


def fill(path: Path, count: int, *, folder_files: int = FOLDER_FILES) -> None:
    """Make the files, as a mount would, but for their contents."""
    with closing(Database(path)) as db:
        epochs = Epochs(db)
        contents = Contents(db, epochs)
        tree = Tree(db, epochs, contents)
        root = tree.node(ROOT)
        assert root is not None
        folder = root
        for start in range(0, count, COMMIT_FILES):
            with db.transaction():
                if start % folder_files == 0:
                    name = folder_name(start // folder_files).encode()
                    folder = tree.create(root, name, 0o40755, os.getuid(), os.getgid())
                for number in range(start, min(count, start + COMMIT_FILES)):
                    node = tree.create(
                        folder, file_name(number).encode(), 0o100644, os.getuid(), os.getgid()
                    )
                    ids = (os.urandom(16) for _ in range(-(-PHOTO_BYTES // (1 << 20))))
                    contents.set_blocks(node.id, dict(enumerate(ids)))
                    made = tree.node(node.id)
                    assert made is not None
                    tree.save(made.changed(size=PHOTO_BYTES))
        epochs.close()
        db.sync()


def folder_name(number: int) -> str:
    return f"album-{number:05}"


def file_name(number: int) -> str:
    return f"IMG_{number:07}.jpg"


def path_of(mountpoint: Path, number: int) -> Path:
    return mountpoint / folder_name(number // FOLDER_FILES) / file_name(number)


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


def run(*words: object) -> str:
    command = [sys.executable, "-m", "syncer", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


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
