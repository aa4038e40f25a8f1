"""What the commands do that look after a collection. Each takes its arguments, and returns the exit
status."""

from __future__ import annotations

import argparse
import json
from typing import Any

from syncer.commands import progress, report
from syncer.commands.target import resolve
from syncer.process import control
from syncer.process.control import NoProcessError


def fsck(arguments: argparse.Namespace) -> int:
    """``syncer fsck``"""
    folder = resolve(arguments.target).folder
    options = {name: getattr(arguments, name) for name in ("repair", "remote", "read_data")}
    with progress.fsck_line() as show:
        try:
            found: dict[str, Any] = control.call(folder.socket, "fsck", options, show)
        except NoProcessError:
            # These take a moment to import.
            from syncer.maintain.fsck import Options
            from syncer.process.checking import check_alone

            found = check_alone(folder, Options(**options), show)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(report.fsck_lines(found)))
    return report.FSCK_STATUS[found["state"]]
