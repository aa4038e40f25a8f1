"""What the commands do that begin: mount, init, clone. Each returns the exit status."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Callable
from pathlib import Path

from syncer.config import DEFAULT_LIMIT_BYTES, Config
from syncer.process import daemon, mounts
from syncer.process.background import run_in_background
from syncer.process.mounting import check_apart, parse_limit, plan_mount
from syncer.process.repository import clone_repository, create_repository
from syncer.remote import parse


def mount(arguments: argparse.Namespace) -> int:
    """``syncer mount``"""
    plan = plan_mount(arguments)
    if arguments.foreground:
        daemon.show_log()
        daemon.Daemon(plan).run(on_serving=lambda: None)
    else:
        run_in_background(lambda on_serving: daemon.Daemon(plan).run(on_serving))
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
