"""What the commands about the past do. Each takes its arguments, and returns the exit status."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from syncer.commands import report
from syncer.commands.target import ask, no_progress, resolve, run_here
from syncer.errors import AccessError, ExistsError, UsageError
from syncer.process import control, mounts
from syncer.process.control import NoProcessError
from syncer.process.folder import DataFolder
from syncer.values import parse_duration


def snapshot(arguments: argparse.Namespace) -> int:
    """``syncer snapshot``"""
    if arguments.remove:
        folder = resolve(arguments.target).folder
        ask(folder, "unsnapshot", no_progress, name=arguments.name)
        print(f"{arguments.name}: removed; what only it kept goes with the next prune")
        return 0
    done = ask(resolve(arguments.target).folder, "snapshot", no_progress, name=arguments.name)
    print(f"{done['name']}: epoch {done['epoch']}")
    return 0


def snapshots(arguments: argparse.Namespace) -> int:
    """``syncer snapshots``"""
    listed = ask(resolve(arguments.target).folder, "snapshots", no_progress)["snapshots"]
    if arguments.json:
        print(json.dumps(listed, indent=2))
        return 0
    for found in listed:
        print(report.snapshot_line(found))
    return 0


def prune(arguments: argparse.Namespace) -> int:
    """``syncer prune``"""
    policy = {
        "within_seconds": parse_duration(arguments.keep_within or "0"),
        "hourly": arguments.keep_hourly,
        "daily": arguments.keep_daily,
        "weekly": arguments.keep_weekly,
        "monthly": arguments.keep_monthly,
        "yearly": arguments.keep_yearly,
    }

    def show(state: dict[str, Any]) -> None:
        if "plan" in state and not arguments.json:
            print(report.prune_plan(state["plan"], is_dry=arguments.dry_run), flush=True)

    folder = resolve(arguments.target).folder
    done = ask(folder, "prune", show, policy=policy, dry_run=arguments.dry_run)
    if arguments.json:
        print(json.dumps(done, indent=2))
    elif not arguments.dry_run:
        print(report.pruned(done))
    return 0


def versions(arguments: argparse.Namespace) -> int:
    """``syncer versions``"""
    target = resolve(arguments.file)
    for found in ask(target.folder, "versions", no_progress, path=target.path)["versions"]:
        print(report.version_line(found))
    return 0


def deleted(arguments: argparse.Namespace) -> int:
    """``syncer deleted``"""
    target = resolve(arguments.target)
    path = os.path.normpath(os.path.join(target.path, (arguments.path or "").lstrip("/")))
    _tell(report.deleted_line, target.folder, "deleted", path=path)
    return 0


def diff(arguments: argparse.Namespace) -> int:
    """``syncer diff``"""
    target = resolve(arguments.target)
    moments = {"first": arguments.when, "second": arguments.when2 or "latest"}
    _tell(report.difference_line, target.folder, "diff", path=target.path, **moments)
    return 0


def _tell(
    line: Callable[[dict[str, Any]], str], folder: DataFolder, command: str, **arguments: Any
) -> None:
    """Print what a command tells, as it comes."""

    def show(state: dict[str, Any]) -> None:
        for item in state["items"]:
            print(line(item))

    ask(folder, command, show, **arguments)


def restore(arguments: argparse.Namespace) -> int:
    """``syncer restore``"""
    source, target = resolve(arguments.path), resolve(arguments.to or arguments.path)
    if source.folder.path != target.folder.path:
        raise UsageError("restore works within one collection; name paths in it")
    words: dict[str, Any] = {"path": source.path, "when": arguments.at, "to": target.path}
    done: dict[str, Any] | None = None
    if mountpoint := _mountpoint_of(target.folder):
        place = mountpoint / target.path.lstrip("/")
        if arguments.to and os.path.lexists(place):
            raise ExistsError(f"{arguments.to} exists already; name a place that is free")
        # What a crash has left behind is no mount any more.
        with contextlib.suppress(NoProcessError):
            done = control.call(source.folder.socket, "restore", words, no_progress)
            # Through the kernel, which knows what is there, and would not learn otherwise.
            _put_in_place(mountpoint / done["made"].lstrip("/"), place)
    if done is None:
        # Under the data directory's lock, so that nobody mounts it meanwhile.
        words["replaces"] = not arguments.to
        done = run_here(source.folder, "put_back", no_progress, **words)
    print(f"restored {arguments.to or arguments.path}: {report.restored(done)}")
    return 0


def _mountpoint_of(folder: DataFolder) -> Path | None:
    """Where the present of a data directory is mounted, if it is."""
    found = [mount for mount in mounts.our_mounts() if mount.data == folder.path and not mount.at]
    return found[-1].mountpoint if found else None


def _put_in_place(made: Path, place: Path) -> None:
    """Rename what was restored; what it replaces is removed, and stays in the history."""
    try:
        try:
            os.rename(made, place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR):
                raise
            # A folder that is not empty, or a file by a folder, is not replaced in one step.
            old = made.with_name(made.name + "-replaced")
            os.rename(place, old)
            os.rename(made, place)
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            else:
                old.unlink()
    except OSError as error:
        raise AccessError(
            f"{place} can't be replaced: {error.strerror}; what was restored is {made}"
        ) from error
