"""What the commands do. Each takes its parsed arguments, and returns the exit status.

A command for a data directory runs in the process that has it mounted, through its control
socket; where none has, it runs here, by the same functions.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import select
import shutil
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syncer.commands import progress, report
from syncer.config import DEFAULT_LIMIT_BYTES, SETTINGS, Config, setting_for
from syncer.errors import (
    AccessError,
    ExistsError,
    MissingError,
    MountError,
    TemporaryError,
    UsageError,
)
from syncer.process import control, daemon, desktop, mounts
from syncer.process.background import run_in_background
from syncer.process.control import NoProcessError, Progress
from syncer.process.engine import Engine
from syncer.process.folder import DataFolder, clone_repository, create_repository
from syncer.process.mounting import check_apart, parse_limit, plan_mount
from syncer.remote import parse

_WATCH_SECONDS = 1.0
#: The mounted process bounds each step of its end; together they stay below this.
_ENDS_WITHIN_SECONDS = 300.0
#: The commands that need the engine's threads.
_MOVES_DATA = ("flush", "evict", "fetch", "snapshot")
_CLEAR_SCREEN = "\x1b[H\x1b[J"


# Targets


@dataclass(frozen=True)
class Target:
    """What a person means by a data directory, a mount point, or a path in a mount."""

    folder: DataFolder
    path: str
    """From the mount's root on, which is "/"."""


def resolve(text: str) -> Target:
    """The target that is meant. Raises MissingError if it is none."""
    path = mounts.real(Path(text))
    if mount := mounts.mount_around(path):
        below = path.relative_to(mount.mountpoint)
        return Target(DataFolder(mount.data), "/" + "/".join(below.parts))
    folder = DataFolder(path)
    if not os.path.exists(folder.config):
        raise MissingError(f"{text} is neither a data directory nor mounted by syncer")
    return Target(folder, "/")


def _ask(
    folder: DataFolder, command: str, on_progress: Progress, **arguments: Any
) -> dict[str, Any]:
    """Run a command for a data directory, where it is mounted or else here."""
    try:
        return control.call(folder.socket, command, arguments, on_progress)
    except NoProcessError:
        pass
    with folder.lock():
        engine = Engine(folder.path, Config.load(folder.config))
        try:
            if command in _MOVES_DATA:
                engine.start()
            return daemon.commands_of(engine)[command](arguments, on_progress)
        finally:
            engine.stop()


def _no_progress(state: dict[str, Any]) -> None:
    pass


# Mounting


def mount(arguments: argparse.Namespace) -> int:
    """``syncer mount``"""
    plan = plan_mount(arguments)
    if arguments.foreground:
        daemon.show_log()
        daemon.Daemon(plan).run(on_serving=lambda: None)
    else:
        run_in_background(lambda on_serving: daemon.Daemon(plan).run(on_serving))
    return 0


def umount(arguments: argparse.Namespace) -> int:
    """``syncer umount``"""
    path = mounts.real(Path(arguments.mountpoint))
    found = mounts.mount_at(path)
    if found is None or not found.is_ours:
        raise MountError(f"{arguments.mountpoint} is not mounted by syncer")
    folder = DataFolder(found.data)
    try:
        process = os.pidfd_open(control.process_behind(folder.socket))
    except (NoProcessError, ProcessLookupError):
        # A crash left the mount behind.
        mounts.unmount(path, lazy=True)
        return 0
    try:
        if arguments.wait:
            _flush(folder, None)
        mounts.unmount(path)
        if not select.select([process], [], [], _ENDS_WITHIN_SECONDS)[0]:
            raise TemporaryError(
                f"{path} is unmounted, but its process has not ended yet; {folder.log} may tell why"
            )
    finally:
        os.close(process)
    return 0


def init(arguments: argparse.Namespace) -> int:
    """``syncer init``"""
    return _make(arguments, create_repository)


def clone(arguments: argparse.Namespace) -> int:
    """``syncer clone``"""
    return _make(arguments, clone_repository)


def _make(arguments: argparse.Namespace, make: Callable[[Path, Config, str], None]) -> int:
    limit_bytes = DEFAULT_LIMIT_BYTES if arguments.limit is None else parse_limit(arguments.limit)
    location = parse(arguments.remote)
    data = mounts.real(Path(arguments.data))
    check_apart(data, None, location)
    config = Config(remote=str(location), limit_bytes=limit_bytes)
    if arguments.transport:
        config = config.with_value("transport", arguments.transport)
    make(data, config, socket.gethostname())
    return 0


# Looking


def status(arguments: argparse.Namespace) -> int:
    """``syncer status``"""
    while True:
        states = _states(arguments.target)
        if arguments.json:
            shown: Any = states[0] if arguments.target else states
            text = json.dumps(shown, indent=None if arguments.watch else 2)
        else:
            text = "\n\n".join("\n".join(report.status_lines(state)) for state in states)
            text = text or "Nothing is mounted."
            if arguments.watch and sys.stdout.isatty():
                text = _CLEAR_SCREEN + text
        print(text, flush=True)
        if not arguments.watch:
            return 0
        time.sleep(_WATCH_SECONDS)


def _states(target: str | None) -> list[dict[str, Any]]:
    if target is not None:
        folders = [resolve(target).folder]
    else:
        folders = [DataFolder(mount.data) for mount in mounts.our_mounts(os.getuid())]
    states = [_ask(folder, "status", _no_progress) for folder in folders]
    # Where nothing is mounted, this process has answered itself.
    return [{**state, "pid": 0} if state["pid"] == os.getpid() else state for state in states]


# Moving data


def flush(arguments: argparse.Namespace) -> int:
    """``syncer flush``"""
    _flush(resolve(arguments.target).folder, arguments.timeout)
    return 0


def _flush(folder: DataFolder, timeout_seconds: float | None) -> None:
    with progress.flush_bar() as show:
        _ask(folder, "flush", show, timeout_seconds=timeout_seconds)


def evict(arguments: argparse.Namespace) -> int:
    """``syncer evict``"""
    blocks = freed_bytes = 0
    for folder, paths in _by_folder(arguments.paths).items():
        everything = arguments.all or "/" in paths
        done = _ask(folder, "evict", _no_progress, paths=None if everything else paths)
        blocks += done["blocks"]
        freed_bytes += done["bytes"]
    print(f"freed {report.size(freed_bytes)} ({blocks:,} blocks)")
    return 0


def fetch(arguments: argparse.Namespace) -> int:
    """``syncer fetch``"""
    files = blocks = 0
    with progress.fetch_counter() as show:
        for folder, paths in _by_folder(arguments.paths).items():
            done = _ask(folder, "fetch", show, paths=paths)
            files += done["files"]
            blocks += done["blocks"]
    print(f"fetched {blocks:,} blocks of {files:,} files")
    return 0


def _by_folder(texts: list[str]) -> dict[DataFolder, list[str]]:
    """The paths in each mount. All are resolved before anything is done. Raises MissingError."""
    folders: dict[Path, DataFolder] = {}
    paths: dict[DataFolder, list[str]] = {}
    for text in texts:
        if not os.path.lexists(text) and not mounts.mount_at(Path(text)):
            raise MissingError(f"{text} does not exist")
        target = resolve(text)
        folder = folders.setdefault(target.folder.path, target.folder)
        paths.setdefault(folder, []).append(target.path)
    return paths


# The past


def snapshot(arguments: argparse.Namespace) -> int:
    """``syncer snapshot``"""
    done = _ask(resolve(arguments.target).folder, "snapshot", _no_progress, name=arguments.name)
    print(f"{done['name']}: epoch {done['epoch']}")
    return 0


def snapshots(arguments: argparse.Namespace) -> int:
    """``syncer snapshots``"""
    for found in _ask(resolve(arguments.target).folder, "snapshots", _no_progress)["snapshots"]:
        print(report.snapshot_line(found))
    return 0


def versions(arguments: argparse.Namespace) -> int:
    """``syncer versions``"""
    target = resolve(arguments.file)
    for found in _ask(target.folder, "versions", _no_progress, path=target.path)["versions"]:
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

    _ask(folder, command, show, **arguments)


def restore(arguments: argparse.Namespace) -> int:
    """``syncer restore``"""
    place = mounts.real(Path(arguments.to or arguments.path))
    source, target = resolve(arguments.path), resolve(str(place))
    mount = mounts.mount_around(place)
    if mount is None or source.folder.path != target.folder.path:
        raise UsageError("restore works within one mount; name paths in it")
    if arguments.to and os.path.lexists(place):
        raise ExistsError(f"{arguments.to} exists already; name a place that is free")
    done = _ask(
        source.folder,
        "restore",
        _no_progress,
        path=source.path,
        when=arguments.at,
        to=target.path,
    )
    # Through the kernel, which knows what is there and what is not, and would not learn otherwise.
    _put_in_place(mount.mountpoint / done["made"].lstrip("/"), place)
    print(f"restored {arguments.to or arguments.path}: {report.restored(done)}")
    return 0


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


# Settings


def config(arguments: argparse.Namespace) -> int:
    """``syncer config``"""
    folder = resolve(arguments.target).folder
    settings = Config.load(folder.config)
    if arguments.value is not None:
        key = setting_for(arguments.key).key
        settings.with_value(key, arguments.value)
        _ask(folder, "config", _no_progress, key=key, value=arguments.value)
    elif arguments.key is not None:
        print(settings.value(arguments.key))
    else:
        for setting in SETTINGS:
            print(f"{setting.key} = {settings.value(setting.key)}")
    return 0


def autostart(arguments: argparse.Namespace) -> int:
    """``syncer autostart``"""
    wants_paths = arguments.action != "list"
    if wants_paths != (arguments.mountpoint is not None) or wants_paths != bool(arguments.data):
        needs = "needs DATA and MOUNTPOINT" if wants_paths else "takes no paths"
        raise UsageError(f"autostart {arguments.action} {needs}; see syncer autostart --help")
    if arguments.action == "list":
        for entry in desktop.entries():
            print(f"{entry.data} at {entry.mountpoint}: {entry.file}")
        return 0
    data, mountpoint = Path(arguments.data), Path(arguments.mountpoint)
    if arguments.action == "add":
        DataFolder(data).require()
        print(desktop.add(data, mountpoint, systemd=arguments.systemd).file)
    else:
        desktop.remove(data, mountpoint)
    return 0
