"""What a command is about: a data directory or a path in a mount, and how to reach its process.

A command for a data directory runs in the process that has it mounted, through its control
socket; where none has, it runs here, by the same functions. Only then are these imported: shell
scripts call commands often, and would wait for it.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syncer.errors import BusyError, MissingError, UsageError
from syncer.process import control, mounts
from syncer.process.control import NoProcessError, Progress
from syncer.process.folder import DataFolder


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
        if mount.at:
            raise UsageError(
                f"{text} shows the past, as of {mount.at}; name a path where the present is mounted"
            )
        below = path.relative_to(mount.mountpoint)
        return Target(DataFolder(mount.data), "/" + "/".join(below.parts))
    # What is not mounted is named from its data directory on: data/photos/a.jpg.
    for above in (path, *path.parents):
        folder = DataFolder(above)
        folder.look()
        # One that has lost its database is still one: fsck builds it anew.
        parts = (folder.database, folder.blocks)
        if os.path.exists(folder.config) and any(map(os.path.exists, parts)):
            return Target(folder, "/" + "/".join(path.relative_to(above).parts))
    raise MissingError(f"{text} is neither a data directory nor mounted by syncer")


def ask(
    folder: DataFolder, command: str, on_progress: Progress, **arguments: Any
) -> dict[str, Any]:
    """Run a command for a data directory, where it is mounted or else here."""
    try:
        return control.call(folder.socket, command, arguments, on_progress)
    except NoProcessError:
        pass
    try:
        return run_here(folder, command, on_progress, **arguments)
    except BusyError:
        # Whoever has it may be a mount that was just beginning.
        with contextlib.suppress(NoProcessError):
            return control.call(folder.socket, command, arguments, on_progress)
        raise


def run_here(
    folder: DataFolder, command: str, on_progress: Progress, **arguments: Any
) -> dict[str, Any]:
    """Run a command in this process. Raises BusyError if another one has the data directory."""
    from syncer.process.alone import run_alone

    return run_alone(folder, command, arguments, on_progress)


def no_progress(state: dict[str, Any]) -> None:
    pass


def by_folder(texts: list[str]) -> dict[DataFolder, list[str]]:
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
