"""Who may publish: the repository's description, its machines, and its chain of writers."""

from __future__ import annotations

from dataclasses import dataclass

from syncer.db import Database
from syncer.remote.base import Remote


@dataclass(frozen=True)
class RepositoryInfo:
    """What `syncer.json` says; it never changes."""

    uuid: str
    seed: int


def new_machine(remote: Remote | None = None) -> int:
    """A random machine id of 63 bits whose node numbers no machine of the repository uses."""
    raise NotImplementedError


def init_repository(remote: Remote, machine: int, name: str) -> RepositoryInfo:
    """Make a repository in the remote's folder, with `machine` (called `name`) as its writer.

    Raises ExistsError if there is one already, ForeignError if the folder holds something else.
    """
    raise NotImplementedError


def read_repository(remote: Remote) -> RepositoryInfo:
    """The description of the repository in the remote's folder.

    Raises MissingError if the folder is missing or empty, ForeignError if it holds something
    else, FormatError if a newer syncer made it, CorruptError if its description is damaged.
    """
    raise NotImplementedError


def set_up_database(db: Database, info: RepositoryInfo, machine: int) -> None:
    """Make a new, empty database that of the repository's first writer."""
    raise NotImplementedError
