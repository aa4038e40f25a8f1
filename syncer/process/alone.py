"""A command for a data directory that no process has mounted."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from syncer.config import Config
from syncer.process.control import Handler, Progress
from syncer.process.daemon import commands_of
from syncer.process.engine import Engine
from syncer.process.folder import DataFolder

#: The commands that need the engine's threads.
_MOVES_DATA = (
    "flush",
    "export",
    "evict",
    "fetch",
    "pin",
    "unpin",
    "snapshot",
    "unsnapshot",
    "prune",
    "moment",
    "put_back",
)


def _put_back(engine: Engine, given: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Not for the control socket: who has a mount renames through the kernel."""
    return engine.past.put_back(
        os.fsencode(given["path"]),
        given["when"],
        os.fsencode(given["to"]),
        progress,
        replaces=given["replaces"],
    )


def run_alone(
    folder: DataFolder, command: str, arguments: dict[str, Any], on_progress: Progress
) -> dict[str, Any]:
    """Run a command in this process. Raises BusyError if another one has the data directory."""
    with folder.lock():
        engine = Engine(folder.path, Config.load(folder.config))
        try:
            if command in _MOVES_DATA:
                engine.start()
            commands: dict[str, Handler] = {
                **commands_of(engine),
                "put_back": partial(_put_back, engine),
            }
            return commands[command](arguments, on_progress)
        finally:
            engine.stop()
