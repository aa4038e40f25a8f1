"""Paths from the mount's root, and the nodes that they lead to.

libfuse's high-level interface names a path with every call. So that a call does not cost more the
deeper its file lies, it is remembered which folders paths led to, until one of them loses a name.
"""

from __future__ import annotations

import errno
import os

from syncer.metadata.node import ROOT, Node
from syncer.metadata.tree import Tree
from syncer.vfs.hidden import HiddenFiles

NAME_MAX_BYTES = 255
_KNOWN_FOLDERS = 4096


class Paths:
    """Finds nodes by path. Safe for use from several threads."""

    def __init__(self, tree: Tree, hidden: HiddenFiles) -> None:
        self._tree = tree
        self._hidden = hidden
        #: Path of a folder -> (`Tree.folder_changes` before the look at it, its node's number).
        self._folders: dict[bytes, tuple[int, int]] = {}

    def walk(self, path: bytes) -> Node:
        """The node at `path`; ENOENT, ENOTDIR."""
        head, _, name = path.rstrip(b"/").rpartition(b"/")
        folder = self._folder(head)
        if not name:
            return self.node(folder)
        number = self._child(folder, name, is_last=True)
        while (node := self._tree.node(number)) is None:
            # Between the two looks, another file may have taken its place.
            before, number = number, self._child(folder, name, is_last=True)
            if number == before:
                raise _error(errno.ENOENT)
        return node

    def parent(self, path: bytes) -> tuple[Node, bytes]:
        """The directory that holds the last part of `path`, and that part."""
        head, _, name = path.rstrip(b"/").rpartition(b"/")
        if not name:
            raise _error(errno.EBUSY)
        if len(name) > NAME_MAX_BYTES:
            raise _error(errno.ENAMETOOLONG)
        parent = self.node(self._folder(head))
        if not parent.is_dir:
            raise _error(errno.ENOTDIR)
        return parent, name

    def node(self, number: int) -> Node:
        """The node of this number; ENOENT."""
        node = self._tree.node(number)
        if node is None:
            raise _error(errno.ENOENT)
        return node

    def _folder(self, path: bytes) -> int:
        """The number of the node at `path`, which must be a folder for what is below it."""
        changes = self._tree.folder_changes
        known = self._folders.get(path)
        if known is not None and known[0] == changes:
            return known[1]
        number = ROOT
        for name in path.split(b"/"):
            if name:
                number = self._child(number, name, is_last=False)
        # The names of other things come and go without notice.
        if self.node(number).is_dir:
            if len(self._folders) >= _KNOWN_FOLDERS:
                self._folders.clear()
            self._folders[path] = changes, number
        return number

    def _child(self, parent: int, name: bytes, *, is_last: bool) -> int:
        number = self._tree.lookup(parent, name)
        return self._missing(parent, name, is_last=is_last) if number is None else number

    def _missing(self, parent: int, name: bytes, *, is_last: bool) -> int:
        """Why there is no such entry; or the file behind a hidden name."""
        hidden = self._hidden.find(parent, name) if is_last else None
        if hidden is not None:
            return hidden
        if not self.node(parent).is_dir:
            raise _error(errno.ENOTDIR)
        if len(name) > NAME_MAX_BYTES:
            raise _error(errno.ENAMETOOLONG)
        raise _error(errno.ENOENT)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
