"""From the remote back to a database: clone, and reload of one that fell behind."""

from __future__ import annotations

from pathlib import Path

from syncer.remote.base import Remote
from syncer.writers import RepositoryInfo


def clone(remote: Remote, path: Path, name: str) -> RepositoryInfo:
    """Make at `path` the database of a new machine (called `name`), a follower, from the remote.

    It is built beside `path` and takes its name when complete, so that a crash leaves none.
    """
    raise NotImplementedError
