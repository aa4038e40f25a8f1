"""A data directory: its paths, and its lock. `repository` tells how it comes to be.

    config          settings, see `config`; written last, so a directory without it is unfinished
    metadata.db     see `db`
    blocks/         see `cache`
    segments/       see `journal`
    lock            held by the process that uses the directory
    control.sock    that process's socket, see `control`
    log             what a mount in the background has to say
    view.log        the same of mounts of the past (mount --at)
    view-*.sock     their sockets

All of it is for its owner only: directories 0700, files 0600.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from syncer.errors import AccessError, BusyError, ForeignError, MissingError


class DataFolder:
    """The paths in a data directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config"
        self.database = path / "metadata.db"
        self.blocks = path / "blocks"
        self.segments = path / "segments"
        self.lock_file = path / "lock"
        self.socket = path / "control.sock"
        self.log = path / "log"
        self.view_log = path / "view.log"

    def view_socket(self, mountpoint: Path) -> Path:
        """The control socket of the process that shows a past state at a mount point."""
        digest = hashlib.blake2b(os.fsencode(mountpoint), digest_size=8)
        return self.path / f"view-{digest.hexdigest()}.sock"

    def require(self) -> None:
        """Raise MissingError, or ForeignError, if this is no data directory."""
        if not self.path.is_dir():
            raise MissingError(f"{self.path} does not exist; make it with: syncer init")
        if not self.config.is_file():
            raise ForeignError(f"{self.path} is not a data directory of syncer")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for this process.

        Raises BusyError if another one does, MissingError if there is no such directory.
        """
        try:
            descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise MissingError(f"{self.path} does not exist any more") from None
        except OSError as error:
            raise AccessError(f"{self.lock_file}: {error.strerror}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
                raise BusyError(
                    f"{self.path} is in use by process {pid or '?'}; unmount it first"
                ) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)


def mending(folder: DataFolder) -> str:
    """What to do about damage, as the end of a sentence."""
    return f"repair it with: syncer fsck --repair {folder.path}"
