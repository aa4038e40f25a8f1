"""What the commands do that move data. Each takes its arguments, and returns the exit status."""

from __future__ import annotations

import argparse

from syncer.commands import progress, report
from syncer.commands.target import ask, by_folder, no_progress, resolve
from syncer.process.folder import DataFolder


def flush(arguments: argparse.Namespace) -> int:
    """``syncer flush``"""
    flush_folder(resolve(arguments.target).folder, arguments.timeout)
    return 0


def flush_folder(folder: DataFolder, timeout_seconds: float | None) -> None:
    with progress.flush_bar() as show:
        ask(folder, "flush", show, timeout_seconds=timeout_seconds)


def evict(arguments: argparse.Namespace) -> int:
    """``syncer evict``"""
    blocks = freed_bytes = 0
    for folder, paths in by_folder(arguments.paths).items():
        everything = arguments.all or "/" in paths
        done = ask(folder, "evict", no_progress, paths=None if everything else paths)
        blocks += done["blocks"]
        freed_bytes += done["bytes"]
    print(f"freed {report.size(freed_bytes)} ({blocks:,} blocks)")
    return 0


def fetch(arguments: argparse.Namespace) -> int:
    """``syncer fetch``"""
    files = blocks = 0
    with progress.fetch_counter() as show:
        for folder, paths in by_folder(arguments.paths).items():
            done = ask(folder, "fetch", show, paths=paths)
            files += done["files"]
            blocks += done["blocks"]
    print(f"fetched {blocks:,} blocks of {files:,} files")
    return 0
