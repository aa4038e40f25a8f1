"""Measures syncer beside the local disk and what people use instead; see docs/performance.md.

Everything happens on this machine: an SSH server on loopback, mounts in a temporary folder, which
is removed at the end. Needs root, since the page cache is dropped between the steps.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import files, large, measure, references, report
from .place import Place, a_place
from .rows import LIMIT, rows_for
from .systems import System, available

Piece = Callable[[System, measure.Book], None]

#: Each piece of work with the rows that it gives. In this order, since a system's process has its
#: memory looked at when it has done all other work.
LOOPBACK: dict[Piece, set[str]] = {
    files.first_listing: {"first-ls", "memory"},
    large.large_file: {"write-1m", "upload", "read-again", "read-random", "cold-read"},
    large.held_back_file: {"upload-local"},
    large.synced_file: {"write-sync"},
    large.small_writes: {"write-4k", "write-128"},
    files.small_files: {"create-4k", "small-upload", "stat", "read-small", "rename", "unlink"},
    files.empty_files: {"create-empty", "find", "ls-lr", "rm-rf"},
    large.photos: {"photos-head", "photos-whole"},
    files.archive: {"untar", "tar"},
    large.latency: {"latency-stat", "latency-read"},
    files.memory: {"memory-run"},
}
WAN: dict[Piece, set[str]] = {
    large.large_file: {"upload", "cold-read"},
    files.small_upload: {"small-upload"},
    large.photos: {"first-look", "photos-head", "photos-whole"},
    large.latency: {"latency-stat", "latency-read"},
}
#: Measured in the first round only: it takes minutes, and hardly varies.
ONCE = (files.first_listing,)
REFERENCES = {"scp": references.scp, "raw TCP": references.raw_tcp}
REFERENCE_ROWS = {"upload", "upload-local", "cold-read", "photos-whole"}


def main() -> int:
    arguments = parse()
    if os.geteuid() != 0:
        print("tests.bench needs root: it drops the page cache between steps", file=sys.stderr)
        return 2
    # Ended by a signal, it tidies up as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results = report.Results(arguments.link, rows_for(arguments.link))
    with a_place(arguments.folder, arguments.link) as place:
        Run(place, arguments, results).all_rounds()
    lines = report.table(results)
    if arguments.json:
        print(json.dumps(report.as_json(results), indent=2))
    else:
        print(f"{arguments.link}, {report.machine()}\n\n{report.as_text(lines)}")
    for failure in results.failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    if arguments.write_docs and not results.failures:
        report.write_page(arguments.write_docs, results, references.versions(), arguments.rounds)
    return 1 if results.failures else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print figures for programs")
    parser.add_argument("--quick", action="store_true", help="less work: to see that all works")
    parser.add_argument(
        "--link",
        choices=("loopback", "wan"),
        default="loopback",
        help="wan: 40 ms round trip and 100 MB/s, shared, between each system and the server",
    )
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows of the table, by their key")
    parser.add_argument("--systems", nargs="+", metavar="NAME", help="measure only these")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="show the median of N")
    parser.add_argument("--folder", type=Path, help="work here (default: the folder for temporary)")
    parser.add_argument(
        "--write-docs",
        nargs="?",
        type=Path,
        const=Path(__file__).parents[2] / "docs" / "performance.md",
        metavar="PAGE",
        help="write the table into this page (default: docs/performance.md)",
    )
    arguments = parser.parse_args()
    known = {row.key for row in rows_for(arguments.link)}
    if unknown := set(arguments.only or ()) - known:
        parser.error(f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return arguments


class Run:
    """One run: every system does a piece of work before the next piece begins."""

    def __init__(
        self, place: Place, arguments: argparse.Namespace, results: report.Results
    ) -> None:
        self._place = place
        self._results = results
        self._rounds: int = arguments.rounds
        whole = measure.FAR if arguments.link == "wan" else measure.Sizes()
        self._sizes = measure.QUICK if arguments.quick else whole
        wanted = set(arguments.only or [row.key for row in results.rows])
        pieces = WAN if arguments.link == "wan" else LOOPBACK
        self._pieces = [piece for piece, rows in pieces.items() if rows & wanted]
        self._wants_references = bool(REFERENCE_ROWS & wanted)
        self._wanted = wanted
        self._limit: System | None = None
        self._kinds = [
            kind for kind in available() if not arguments.systems or kind.name in arguments.systems
        ]

    def all_rounds(self) -> None:
        with contextlib.ExitStack() as stack:
            systems = []
            for kind in self._kinds:
                system = kind(self._place)
                stack.callback(self._stop, system)
                if self._tried(system.name, "mount", system.start):
                    systems.append(system)
            self._limit = next((each for each in systems if each.name == LIMIT), None)
            for number in range(self._rounds):
                # Nobody always comes first, when the disk is quiet, or last.
                shift = number % len(systems) if systems else 0
                self._round(number, systems[shift:] + systems[:shift])

    def _round(self, number: int, systems: list[System]) -> None:
        if self._wants_references:
            for name, refer in REFERENCES.items():
                self._tried(name, name, partial(refer, self._place, self._book(name, number)))
        for piece in self._pieces:
            if number and piece in ONCE:
                continue
            for system in systems:
                measure.wait_for_quiet()
                act = partial(piece, system, self._book(system.name, number))
                self._tried(system.name, piece.__name__, act)

    def _book(self, column: str, number: int) -> measure.Book:
        def record(column: str, key: str, value: float) -> None:
            if key in self._wanted:
                self._results.add(key, column, value)

        return measure.Book(
            self._sizes, partial(record, column), number, self._limit, partial(record, LIMIT)
        )

    def _tried(self, name: str, what: str, act: Callable[[], None]) -> bool:
        """Do something; a failure is shown at once and at the end, and the others go on."""
        started = time.monotonic()
        try:
            act()
        except Exception as error:
            failure = f"{name}: {what}: {type(error).__name__}: {error}"
            self._results.failures.append(failure)
            print(failure, file=sys.stderr)
            return False
        print(f"{name}: {what}: {time.monotonic() - started:.1f} s", file=sys.stderr)
        return True

    def _stop(self, system: System) -> None:
        self._tried(system.name, "unmount", system.stop)


if __name__ == "__main__":
    sys.exit(main())
