"""How a data directory comes to be: with a new repository, or as a clone of one.

Whoever makes one may die at any moment; the same command then goes on. A directory that is half
made has `unfinished` in place of `config`: the settings to be, headed by a line that says who makes
what. The machine's id stands there before it can be the repository's writer. So one that claimed
the role and died is known to be the one that begins again. The last step makes `config` of it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from syncer.config import Config
from syncer.errors import AccessError, CorruptError, ExistsError, ForeignError
from syncer.exchange.recover import clone, publish_file, remove_database
from syncer.exchange.writers import RepositoryInfo, init_repository, new_machine, set_up_database
from syncer.metadata.contents import Contents
from syncer.metadata.db import Database
from syncer.metadata.epochs import Epochs
from syncer.metadata.soundness import look
from syncer.metadata.tree import Tree
from syncer.process.folder import DataFolder, mending
from syncer.remote import Remote, open_remote

_LOCK = DataFolder(Path()).lock_file.name
#: How `Config.save` begins the name of a file that is not whole yet.
_TEMPORARY = f".{DataFolder(Path()).unfinished.name}."


def remote_of(config: Config, folder: Path | None = None, *, was_far: bool = False) -> Remote:
    """The remote that a configuration names, not yet touched. Raises UsageError.

    For `folder` and `was_far` see `open_remote`.
    """
    return open_remote(
        config.remote,
        transport=config.transport,
        connections=config.connections,
        timeout_seconds=config.timeout_seconds,
        folder=folder,
        was_far=was_far,
    )


def open_database(folder: DataFolder) -> Database:
    """The database of a data directory. Raises CorruptError if it is damaged or gone."""
    try:
        db = Database(folder.database, must_exist=True)
        try:
            look(db)
        except BaseException:
            db.close()
            raise
        return db
    except CorruptError as error:
        raise CorruptError(f"{error}; {mending(folder)}") from error


def create_repository(path: Path, config: Config, name: str) -> None:
    """`init`: a new repository on the remote, and the data directory of its first machine.

    Goes on with what an earlier call has left that was killed. Raises ExistsError if the remote
    holds a repository, ForeignError if it or the data directory holds something else, and what
    reaching the remote raises. Then nothing is left behind, unless this machine may have become the
    repository's writer by then: the same call goes on.
    """
    _Making(path, config, "init").run(lambda making, remote: making.create(remote, name))


def clone_repository(path: Path, config: Config, name: str) -> None:
    """`clone`: a data directory for one more machine of the remote's repository.

    Raises as `create_repository`, and MissingError if the remote holds no repository. Nothing is
    left behind then.
    """
    _Making(path, config, "clone").run(lambda making, remote: making.clone(remote, name))


class _Making:
    """A data directory on its way, from nothing or from what a killed process has left."""

    def __init__(self, path: Path, config: Config, command: str) -> None:
        self._folder = DataFolder(path)
        self._config = config
        self._command = command
        #: The machine that an earlier call has begun with; it may be the writer already.
        self._machine: int | None = None
        self._is_claimed = False

    def run(self, fill: Callable[[_Making, Remote], None]) -> None:
        """Make all of it, with `fill` for what the two commands do not have in common."""
        folder = self._folder
        self._look()
        with contextlib.closing(remote_of(self._config)) as remote:
            # First of all, and by reading only: most mistakes show here.
            remote.check()
            existed = folder.path.exists()
            self._make_folder()
            with folder.lock():
                # Another process may have been at it until now.
                self._look()
                try:
                    self._clear()
                    fill(self, remote)
                    publish_file(folder.unfinished, folder.config)
                except BaseException as error:
                    # Whoever was refused has claimed nothing.
                    if not self._is_claimed or isinstance(error, ExistsError):
                        self._undo(existed)
                    raise

    def create(self, remote: Remote, name: str) -> None:
        """See `create_repository`."""
        machine = self._machine or new_machine()

        def before_claim() -> None:
            self._note(machine)
            self._is_claimed = True

        info = init_repository(remote, machine, name, before_claim)
        _make_database(self._folder.database, info, machine)

    def clone(self, remote: Remote, name: str) -> None:
        """See `clone_repository`."""
        self._note(0)
        clone(remote, self._folder.database, name)

    def _look(self) -> None:
        """See what is there. Raises ForeignError if that is nothing to begin with."""
        path = self._folder.path
        self._folder.look()
        if not path.exists():
            return
        if not path.is_dir():
            raise ForeignError(f"{path} is not a directory; choose a new data directory")
        if self._folder.config.exists():
            raise ForeignError(f"{path} is a data directory already; mount it")
        if self._folder.unfinished.exists():
            self._look_at_unfinished()
        elif not all(_is_litter(name) for name in os.listdir(path)):
            raise ForeignError(f"{path} is not empty; choose a new data directory")

    def _look_at_unfinished(self) -> None:
        path, unfinished = self._folder.path, self._folder.unfinished
        remote = Config.load(unfinished).remote
        begun = re.match(r"# syncer (init|clone) ([0-9a-f]{16})\n", unfinished.read_text())
        if begun is None:
            raise ForeignError(f"{path} is not empty; choose a new data directory")
        if begun[1] == "clone":
            # Nobody counts on that.
            return
        if (self._command, self._config.remote) != ("init", remote):
            raise ForeignError(f"{path} is half made; go on with: syncer init {path} {remote}")
        self._machine, self._is_claimed = int(begun[2], 16), True

    def _make_folder(self) -> None:
        path = self._folder.path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.chmod(path, 0o700)
        except OSError as error:
            raise AccessError(f"{path} can't be made: {error.strerror}") from error

    def _note(self, machine: int) -> None:
        self._config.save(self._folder.unfinished, f"syncer {self._command} {machine:016x}")

    def _clear(self) -> None:
        """Remove what is half made, but for the note about it."""
        database = self._folder.database
        for path in (database, database.with_name(f"{database.name}.new")):
            remove_database(path)
        for name in os.listdir(self._folder.path):
            if name.startswith(_TEMPORARY):
                os.unlink(self._folder.path / name)

    def _undo(self, existed: bool) -> None:
        """Leave nothing behind."""
        self._clear()
        for path in (self._folder.unfinished, self._folder.lock_file):
            path.unlink(missing_ok=True)
        if not existed:
            # Unless somebody has put something there.
            with contextlib.suppress(OSError):
                self._folder.path.rmdir()


def _is_litter(name: str) -> bool:
    """Whether a process that was killed before it began has left this in the data directory."""
    return name == _LOCK or name.startswith(_TEMPORARY)


def _make_database(path: Path, info: RepositoryInfo, machine: int) -> None:
    with contextlib.closing(Database(path)) as db:
        set_up_database(db, info, machine)
        epochs = Epochs(db)
        Tree(db, epochs, Contents(db, epochs)).make_root(os.getuid(), os.getgid())
        db.sync()
