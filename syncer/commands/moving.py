"""What the commands do that move data. Each takes its arguments, and returns the exit status."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from syncer.commands import progress, report
from syncer.commands.target import ask, by_folder, no_progress, resolve
from syncer.errors import LocalFullError, UsageError
from syncer.process import mounts
from syncer.process.folder import DataFolder


def flush(arguments: argparse.Namespace) -> int:
    """``syncer flush``"""
    flush_folder(resolve(arguments.target).folder, arguments.timeout)
    return 0


def flush_folder(folder: DataFolder, timeout_seconds: float | None) -> None:
    with progress.flush_bar() as show:
        ask(folder, "flush", show, timeout_seconds=timeout_seconds)


def export(arguments: argparse.Namespace) -> int:
    """``syncer export``"""
    place = mounts.real(Path(arguments.folder))
    if mounts.mount_around(place):
        raise UsageError(f"{arguments.folder} lies in a mount; choose a folder outside")
    done = ask(resolve(arguments.target).folder, "export", no_progress, to=str(place))
    for what, told in (("removed", "removed"), ("skipped", "no file"), ("failed", "can't be read")):
        for path in done[what]:
            print(f"{told}: {path}")
    print(report.exported(done))
    return 1 if done["failed"] else 0


def evict(arguments: argparse.Namespace) -> int:
    """``syncer evict``"""
    for folder, paths in by_folder(arguments.paths).items():
        everything = arguments.all or "/" in paths
        done = ask(folder, "evict", no_progress, paths=None if everything else paths)
        print(report.evicted(done))
    return 0


def fetch(arguments: argparse.Namespace) -> int:
    """``syncer fetch``"""
    exit_code = 0
    for folder, paths in by_folder(arguments.paths).items():
        with progress.fetch_counter() as show:
            done = ask(folder, "fetch", show, paths=paths)
        print(report.fetched(done))
        if done["skipped_files"]:
            exit_code = LocalFullError.exit_code
    return exit_code


def pin(arguments: argparse.Namespace) -> int:
    """``syncer pin``"""
    for folder, paths in by_folder(arguments.paths).items():
        with progress.fetch_counter() as show:
            done = ask(folder, "pin", show, paths=paths)
        print(report.pinned(done))
    return 0


def unpin(arguments: argparse.Namespace) -> int:
    """``syncer unpin``"""
    for folder, paths in by_folder(arguments.paths).items():
        ask(folder, "unpin", no_progress, paths=paths)
    return 0


def pins(arguments: argparse.Namespace) -> int:
    """``syncer pins``"""
    found = ask(resolve(arguments.target).folder, "pins", no_progress)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        for line in report.pins_lines(found):
            print(line)
    return 0


def ls(arguments: argparse.Namespace) -> int:
    """``syncer ls``"""
    target = resolve(arguments.path)
    items: list[dict[str, Any]] = []

    def show(state: dict[str, Any]) -> None:
        if arguments.json:
            items.extend(state["items"])
            return
        for item in state["items"]:
            print(report.ls_line(item))

    ask(target.folder, "ls", show, path=target.path)
    if arguments.json:
        print(json.dumps(items, indent=2))
    return 0
