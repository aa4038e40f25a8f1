"""A data directory: its paths, its lock, and how it comes to be.

    config          settings, see `config`; written last, so a directory without it is unfinished
    metadata.db     see `db`
    blocks/         see `cache`
    lock            held by the process that uses the directory
    control.sock    that process's socket, see `control`
    log             what a mount in the background has to say

All of it is for its owner only: directories 0700, files 0600.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from syncer.config import Config
from syncer.errors import AccessError, BusyError, ForeignError, MissingError
from syncer.exchange.recover import clone
from syncer.exchange.writers import RepositoryInfo, init_repository, new_machine, set_up_database
from syncer.metadata.contents import Contents
from syncer.metadata.db import Database
from syncer.metadata.epochs import Epochs
from syncer.metadata.tree import Tree
from syncer.remote import Remote, open_remote


class DataFolder:
    """The paths in a data directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config"
        self.database = path / "metadata.db"
        self.blocks = path / "blocks"
        self.lock_file = path / "lock"
        self.socket = path / "control.sock"
        self.log = path / "log"

    def require(self) -> None:
        """Raise MissingError, or ForeignError, if this is no data directory."""
        if not self.path.is_dir():
            raise MissingError(f"{self.path} does not exist; make it with: syncer init")
        if not self.config.is_file():
            raise ForeignError(f"{self.path} is not a data directory of syncer")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for this process. Raises BusyError if another one does."""
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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


def remote_of(config: Config) -> Remote:
    """The remote that a configuration names, not yet touched. Raises UsageError."""
    return open_remote(
        config.remote,
        transport=config.transport,
        connections=config.connections,
        timeout_seconds=config.timeout_seconds,
    )


def create_repository(path: Path, config: Config, name: str) -> None:
    """`init`: a new repository on the remote, and the data directory of its first machine.

    Raises ExistsError if the remote holds a repository, ForeignError if it or the data directory
    holds something else, and what reaching the remote raises. Then nothing is left behind.
    """

    def fill(folder: DataFolder, remote: Remote) -> None:
        machine = new_machine()
        info = init_repository(remote, machine, name)
        _make_database(folder.database, info, machine)

    _make(path, config, fill)


def clone_repository(path: Path, config: Config, name: str) -> None:
    """`clone`: a data directory for one more machine of the remote's repository.

    Raises as `create_repository`, and MissingError if the remote holds no repository.
    """
    _make(path, config, lambda folder, remote: _clone(folder, remote, name))


def _clone(folder: DataFolder, remote: Remote, name: str) -> None:
    clone(remote, folder.database, name)


def _make(path: Path, config: Config, fill: Callable[[DataFolder, Remote], None]) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ForeignError(f"{path} is not empty; choose a new data directory")
    with contextlib.closing(remote_of(config)) as remote:
        # First of all, and by reading only: most mistakes show here.
        remote.check()
        existed = path.exists()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.chmod(path, 0o700)
        except OSError as error:
            raise AccessError(f"{path} can't be made: {error.strerror}") from error
        folder = DataFolder(path)
        try:
            fill(folder, remote)
            config.save(folder.config)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            if existed:
                path.mkdir(mode=0o700)
            raise


def _make_database(path: Path, info: RepositoryInfo, machine: int) -> None:
    with contextlib.closing(Database(path)) as db:
        set_up_database(db, info, machine)
        epochs = Epochs(db)
        Tree(db, epochs, Contents(db, epochs)).make_root(os.getuid(), os.getgid())
        db.sync()
