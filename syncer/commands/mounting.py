"""What the commands do that begin: mount, init, clone. Each returns the exit status."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from syncer.commands.target import ask, no_progress
from syncer.config import DEFAULT_LIMIT_BYTES, Config
from syncer.errors import UsageError
from syncer.process import daemon, mounts
from syncer.process.background import run_in_background
from syncer.process.folder import DataFolder
from syncer.process.mounting import check_apart, parse_limit, plan_mount
from syncer.process.repository import clone_repository, create_repository
from syncer.remote import parse


def mount(arguments: argparse.Namespace) -> int:
    """``syncer mount``"""
    plan = plan_mount(arguments, _moment_of(arguments) if arguments.at else None)
    if arguments.foreground:
        daemon.show_log()
        daemon.Daemon(plan).run(on_serving=lambda: None)
    else:
        run_in_background(
            lambda on_serving, on_waiting: daemon.Daemon(plan).run(on_serving, on_waiting), _tell
        )
    return 0


def _tell(why: str) -> None:
    print(f"syncer: {why}", file=sys.stderr, flush=True)


def _moment_of(arguments: argparse.Namespace) -> daemon.PastMoment:
    """What `--at` means. Where the present is mounted, its process says so."""
    folder = DataFolder(mounts.real(Path(arguments.data)))
    folder.require()
    if len(arguments.words) > 1 or arguments.take_over:
        raise UsageError("--at shows the past of what is there: syncer mount --at WHEN DATA MNT")
    found = ask(folder, "moment", no_progress, when=arguments.at)
    return daemon.PastMoment(found["epoch"], found["when"])


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
