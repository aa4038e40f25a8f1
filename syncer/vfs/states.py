"""What syncer tells of a file as extended attributes, under ``user.syncer.``.

    user.syncer.state           of a file: "local", "partial", "remote", or "dirty": not all of it
                                is on the server yet
    user.syncer.pinned          "1" or "0"; setting it pins or unpins
    user.syncer.cached_bytes    of a file: how much of it is local
    user.syncer.versions        how many `syncer versions` lists

They answer when they are asked for by name, and are in no list: `cp -a` and `rsync -X` copy what is
listed. A folder has no state of its own: it would have to be counted.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

from syncer.blocks.store import Blocks
from syncer.errors import UsageError
from syncer.metadata.contents import Contents
from syncer.metadata.db import Database
from syncer.metadata.history import History
from syncer.metadata.node import ROOT, Node
from syncer.metadata.tree import Tree
from syncer.vfs.files import Files

PREFIX = b"user.syncer."
_PINNED = PREFIX + b"pinned"
_NAMES = (PREFIX + b"state", _PINNED, PREFIX + b"cached_bytes", PREFIX + b"versions")
_WORDS = {b"0": False, b"1": True}
_CREATE = 1


@dataclass(frozen=True)
class FileState:
    """How much of a regular file is here, and whether all of it is on the server."""

    state: str
    """"local", "partial", "remote" or "dirty"."""
    cached_bytes: int


class States:
    """Answers for nodes of now. Safe for use from several threads."""

    def __init__(
        self,
        db: Database,
        tree: Tree,
        contents: Contents,
        blocks: Blocks,
        files: Files,
        history: History,
    ) -> None:
        self._db = db
        self._tree = tree
        self._contents = contents
        self._blocks = blocks
        self._files = files
        self._history = history
        #: Pins a node, or unpins it; whoever owns the limit decides.
        self.set_pinned: Callable[[int, bool], None] = lambda number, pinned: None

    def of(self, node: Node) -> FileState:
        """The state of a regular file."""
        inline = self._contents.inline(node.id)
        ids = set(self._contents.ids(node.id))
        share = self._blocks.local_share(ids)
        cached_bytes = share.content_bytes if inline is None else len(inline)
        # Whatever changes a file changes its row.
        is_published = node.born <= self._db.get_meta("published", 0)
        if share.dirty_bytes or not is_published or self._files.is_unsaved(node.id):
            return FileState("dirty", cached_bytes)
        if share.blocks == len(ids):
            return FileState("local", cached_bytes)
        return FileState("partial" if share.blocks else "remote", cached_bytes)

    def is_pinned(self, node: Node) -> bool:
        return self._tree.pins.is_pinned(node.id)

    # As extended attributes

    def get(self, path: bytes, node: Node, name: bytes) -> bytes:
        """The value of an attribute; ENODATA."""
        if name == _PINNED:
            return b"%d" % self.is_pinned(node)
        if name == PREFIX + b"versions":
            return b"%d" % self._versions(path)
        if node.is_file and name == PREFIX + b"state":
            return self.of(node).state.encode()
        if node.is_file and name == PREFIX + b"cached_bytes":
            return b"%d" % self.of(node).cached_bytes
        raise _error(errno.ENODATA)

    def _versions(self, path: bytes) -> int:
        number: int | None = ROOT
        above, _, name = path.rstrip(b"/").rpartition(b"/")
        for part in above.split(b"/"):
            if part and number is not None:
                number = self._tree.lookup(number, part)
        if number is None or not name:
            return 0
        return len(self._history.versions_of_name(number, name))

    def set(self, node: Node, name: bytes, value: bytes, flags: int) -> None:
        """Pin or unpin; EPERM for what can only be read, EOPNOTSUPP for what there is not, EINVAL
        for another value than 0 or 1. Raises LocalFullError: it does not fit."""
        if name not in _NAMES:
            raise _error(errno.EOPNOTSUPP)
        if name != _PINNED:
            raise _error(errno.EPERM)
        if flags & _CREATE:
            raise _error(errno.EEXIST)
        if value not in _WORDS:
            raise _error(errno.EINVAL)
        try:
            self.set_pinned(node.id, _WORDS[value])
        except UsageError as error:
            # It is pinned by a folder above it.
            raise _error(errno.EBUSY) from error

    def remove(self, node: Node, name: bytes) -> None:
        """As setting the pin to 0."""
        self.set(node, name, b"0", 0)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
