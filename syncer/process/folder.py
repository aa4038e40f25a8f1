"""A data directory: its paths, and its lock. `repository` tells how it comes to be.

    config          settings, see `config`; there last, so a directory without it is unfinished
    unfinished      what becomes `config` when all else is there, see `repository`
    metadata.db     see `db`
    blocks/         see `cache`
    segments/       see `journal`
    lock            held by the process that uses the directory
    control.sock    that process's socket, see `control`
    ssh-*.sock      sockets of `ssh` while it has connections, see `sharing`
    log             what a mount in the background has to say
    view.log        the same of mounts of the past (mount --at)
    view-*.sock     their sockets

All of it is for its owner only: directories 0700, files 0600.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import time
from collections.abc import Iterator
from pathlib import Path

from syncer.errors import AccessError, BusyError, ForeignError, MissingError

_POLL_SECONDS = 0.05
#: Most commands need less.
_COMMAND_SECONDS = 5.0


class DataFolder:
    """The paths in a data directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config"
        self.unfinished = path / "unfinished"
        self.database = path / "metadata.db"
        self.blocks = path / "blocks"
        self.segments = path / "segments"
        self.lock_file = path / "lock"
        self.socket = path / "control.sock"
        self.log = path / "log"
        self.view_log = path / "view.log"

    def view_socket(self, mountpoint: Path) -> Path:
        """The control socket of the process that shows a past state at a mount point."""
        import hashlib  # loads the whole of OpenSSL, which other commands need not wait for

        digest = hashlib.blake2b(os.fsencode(mountpoint), digest_size=8)
        return self.path / f"view-{digest.hexdigest()}.sock"

    def require(self) -> None:
        """Raise MissingError, or ForeignError, if this is no data directory.

        Raises AccessError if it can't be looked into.
        """
        self.look()
        if not self.path.is_dir():
            raise MissingError(f"{self.path} does not exist; make it with: syncer init")
        if self.unfinished.is_file():
            raise ForeignError(f"{self.path} is half made; run the command that began it once more")
        if not self.config.is_file():
            raise ForeignError(f"{self.path} is not a data directory of syncer")

    def look(self) -> None:
        """Raise AccessError if there is something that we may not look into.

        Who asks for a file in it would be told that there is none, or by an error of the system's.
        """
        try:
            os.stat(self.config)
        except PermissionError as error:
            raise AccessError(f"{self.path} can't be looked into: {error.strerror}") from error
        except OSError:
            return

    def check_owner(self) -> None:
        """Raise AccessError if it is another user's, who could not use what we leave in it."""
        try:
            owner = os.stat(self.path).st_uid
        except OSError:
            # Whoever opens something in it learns why.
            return
        if owner != os.geteuid():
            name = _user_name(owner)
            raise AccessError(f"{self.path} belongs to {name}; run this as {name}")

    @contextlib.contextmanager
    def lock(self, patience_seconds: float = 0.0) -> Iterator[None]:
        """Hold the directory for this process.

        Raises BusyError if another one does for so long, MissingError if there is no directory,
        AccessError if it belongs to another user. A process that has mounted it is waited for no
        longer than that, and one that runs a command at least for some seconds.
        """
        self.check_owner()
        try:
            descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise MissingError(f"{self.path} does not exist any more") from None
        except OSError as error:
            raise AccessError(f"{self.lock_file}: {error.strerror}") from error
        try:
            began = time.monotonic()
            while not _is_locked(descriptor):
                is_mounted = self.socket.exists()
                least_seconds = 0.0 if is_mounted else _COMMAND_SECONDS
                if time.monotonic() < began + max(patience_seconds, least_seconds):
                    time.sleep(_POLL_SECONDS)
                    continue
                pid = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "?"
                raise BusyError(
                    f"{self.path} is in use by process {pid}; unmount it first"
                    if is_mounted
                    else f"another syncer command (process {pid}) works on {self.path}; try again"
                )
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    """Whether nobody else had the lock, so that it is ours."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"the user with the number {number}"


def mending(folder: DataFolder) -> str:
    """What to do about damage, as the end of a sentence."""
    return f"repair it with: syncer fsck --repair {folder.path}"
