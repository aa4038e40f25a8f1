"""Remotes: places that store objects. `open_remote` makes the one that a location names."""

from __future__ import annotations

import os
from pathlib import Path

from .base import Entry, Payload, Remote, Usage
from .local import LocalRemote
from .location import Location, parse
from .retry import Health, Report, State
from .server import TRANSPORTS, open_server

__all__ = [
    "TRANSPORTS",
    "Entry",
    "Health",
    "Location",
    "Payload",
    "Remote",
    "Report",
    "State",
    "Usage",
    "open_remote",
    "parse",
]

DEFAULT_CONNECTIONS = 8
DEFAULT_TIMEOUT_SECONDS = 30.0
SSH_CONFIG_VARIABLE = "SYNCER_SSH_CONFIG"
"""Environment variable: an ssh config file to use instead of the usual ones."""


def open_remote(
    location: Location | str,
    *,
    transport: str = "auto",
    connections: int = DEFAULT_CONNECTIONS,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ssh_config: Path | None = None,
    folder: Path | None = None,
    was_far: bool = False,
) -> Remote:
    """Make the remote at `location`, without touching it yet.

    `transport` is how to reach a server: ``ssh`` (the program), ``paramiko``, or ``auto``, the
    first of them that is there. `connections` is the most that are open at once.
    `timeout_seconds` ends each wait in which nothing moves. In `folder`, of which nobody else makes
    that use, sockets may lie by which connections share a login. `was_far` is what the remote's
    `is_far` was when it was used last: then its first callers don't wait for one connection.

    Raises:
        UsageError: the location can't be understood, or the transport isn't there.
    """
    if isinstance(location, str):
        location = parse(location)
    if location.is_local:
        return LocalRemote(Path(location.path))
    if ssh_config is None and SSH_CONFIG_VARIABLE in os.environ:
        ssh_config = Path(os.environ[SSH_CONFIG_VARIABLE])
    return open_server(
        location, transport, connections, timeout_seconds, ssh_config, folder, was_far=was_far
    )
