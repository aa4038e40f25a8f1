"""What the commands do that mount, look and set. Each takes its arguments, and returns the exit
status."""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from syncer.commands import report
from syncer.commands.moving import flush_folder
from syncer.commands.target import ask, no_progress, resolve
from syncer.config import SETTINGS, Config, setting_for
from syncer.errors import MountError, SyncerError, TemporaryError, UsageError
from syncer.process import control, desktop, mounts
from syncer.process.control import NoProcessError
from syncer.process.folder import DataFolder

_WATCH_SECONDS = 1.0
#: Longer than the steps of an end take that have a time limit; see `daemon`.
_ENDS_WITHIN_SECONDS = 300.0
#: When it has said how its end was, nothing is left to be done.
_GOES_WITHIN_SECONDS = 15.0
_CLEAR_SCREEN = "\x1b[H\x1b[J"


# Mounting


def umount(arguments: argparse.Namespace) -> int:
    """``syncer umount``"""
    path = mounts.real(Path(arguments.mountpoint))
    found = mounts.mount_at(path)
    if found is None or not found.is_ours:
        raise MountError(f"{arguments.mountpoint} is not mounted by syncer")
    folder = DataFolder(found.data)
    try:
        socket = folder.view_socket(path) if found.at else folder.socket
        process = os.pidfd_open(control.process_behind(socket))
    except (NoProcessError, ProcessLookupError):
        # A crash left the mount behind.
        mounts.unmount(path, lazy=True)
        return 0
    try:
        if arguments.wait and not found.at:
            flush_folder(folder, None)
        with control.watched_end(socket) as wait_for_end:
            mounts.unmount(path)
            _await(wait_for_end, process, f"{path} is unmounted, but", folder)
    finally:
        os.close(process)
    return 0


def _await(
    wait_for_end: Callable[[float], None], process: int, unmounted: str, folder: DataFolder
) -> None:
    """Wait until the process is gone. Raises what it could not make safe."""
    failure: SyncerError | None = None
    try:
        wait_for_end(_ENDS_WITHIN_SECONDS)
    except TimeoutError:
        pass
    except SyncerError as error:
        failure = type(error)(f"{unmounted} not everything is safe: {error}")
    if not select.select([process], [], [], _GOES_WITHIN_SECONDS)[0]:
        raise TemporaryError(
            f"{unmounted} its process has not ended yet; {folder.log} may tell why"
        )
    if failure is not None:
        raise failure


# Looking


def status(arguments: argparse.Namespace) -> int:
    """``syncer status``"""
    while True:
        states, failure = _states(arguments.target)
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
            if failure is not None:
                raise failure
            return 0
        time.sleep(_WATCH_SECONDS)


def _states(target: str | None) -> tuple[list[dict[str, Any]], SyncerError | None]:
    """What to show, and why that is not all: one mount that is broken does not hide the others."""
    states: list[dict[str, Any]] = []
    failure: SyncerError | None = None
    if target is not None:
        around = mounts.mount_around(Path(target))
        if around:
            return [_state_of(around)], None
        folder = resolve(target).folder
        # A data directory may have been named whose mount is dead.
        mounted = [one for one in mounts.our_mounts() if one.data == folder.path and not one.at]
        states.append(_state_of(mounted[-1]) if mounted else ask(folder, "status", no_progress))
    else:
        for mount in mounts.our_mounts(os.getuid()):
            try:
                states.append(_state_of(mount))
            except SyncerError as error:
                failure = failure or error
    # Where nothing is mounted, this process has answered itself.
    here = os.getpid()
    return [{**state, "pid": 0} if state["pid"] == here else state for state in states], failure


def _state_of(mount: mounts.Mount) -> dict[str, Any]:
    """The state of a mount, whose process may have died."""
    if mount.at:
        return _view_state(mount)
    state = ask(DataFolder(mount.data), "status", no_progress)
    if state["pid"] == os.getpid():
        # Nobody else has answered.
        return {**state, "mountpoint": str(mount.mountpoint), "pid": 0, "is_dead": True}
    return state


def _view_state(mount: mounts.Mount) -> dict[str, Any]:
    """The state of a mount that shows the past."""
    try:
        socket = DataFolder(mount.data).view_socket(mount.mountpoint)
        return control.call(socket, "status", {})
    except NoProcessError:
        place = {"data": str(mount.data), "mountpoint": str(mount.mountpoint)}
        return {**place, "at": mount.at, "epoch": 0, "fuse": 0, "pid": 0}


# Settings


def config(arguments: argparse.Namespace) -> int:
    """``syncer config``"""
    folder = resolve(arguments.target).folder
    settings = Config.load(folder.config)
    if arguments.value is not None:
        key = setting_for(arguments.key).key
        settings.with_value(key, arguments.value)
        ask(folder, "config", no_progress, key=key, value=arguments.value)
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
