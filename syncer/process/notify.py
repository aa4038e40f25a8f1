"""Telling systemd how the mount does, by the protocol of sd_notify(3)."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)


def ready() -> None:
    """Tell systemd that the mount serves. Does nothing where systemd has not started it."""
    _notify("READY=1")


def stopping() -> None:
    """Tell systemd that unmounting has begun. Does nothing where systemd has not started it."""
    _notify("STOPPING=1")


def _notify(state: str) -> None:
    # One datagram; a leading @ stands for the abstract namespace.
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.connect(address)
            connection.sendall(state.encode())
    except OSError as error:
        # The mount itself is well, and worth more than systemd's knowledge of it.
        log.warning("systemd can't be told %s: %s", state, error)
