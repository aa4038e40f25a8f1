"""How a data directory comes to be: with a new repository, or as a clone of one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from syncer.config import Config
from syncer.errors import AccessError, CorruptError, ForeignError
from syncer.exchange.recover import clone
from syncer.exchange.writers import RepositoryInfo, init_repository, new_machine, set_up_database
from syncer.metadata.contents import Contents
from syncer.metadata.db import Database
from syncer.metadata.epochs import Epochs
from syncer.metadata.tree import Tree
from syncer.process.folder import DataFolder, mending
from syncer.remote import Remote, open_remote


def remote_of(config: Config) -> Remote:
    """The remote that a configuration names, not yet touched. Raises UsageError."""
    return open_remote(
        config.remote,
        transport=config.transport,
        connections=config.connections,
        timeout_seconds=config.timeout_seconds,
    )


def open_database(folder: DataFolder) -> Database:
    """The database of a data directory. Raises CorruptError if it is damaged or gone."""
    try:
        db = Database(folder.database, must_exist=True)
        try:
            db.look()
        except BaseException:
            db.close()
            raise
        return db
    except CorruptError as error:
        raise CorruptError(f"{error}; {mending(folder)}") from error


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
