"""Extended attributes: which names are kept, and what setting and removing them means."""

from __future__ import annotations

import errno
import os

from syncer.metadata.node import Node
from syncer.metadata.tree import Tree
from syncer.vfs.caller import Caller

_TRUSTED = b"trusted."
_NAMESPACES = (b"user.", _TRUSTED, b"security.")
_MAX_NAME_BYTES = 255
_MAX_VALUE_BYTES = 65536
#: Flags of setxattr(2).
_CREATE = 1
_REPLACE = 2
_CAPABILITIES = b"security.capability"
_LABEL = b"security.selinux"


class Xattrs:
    """The extended attributes of nodes. Changes are made in the caller's transaction."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._has_labels = False

    def get(self, node: Node, name: bytes) -> bytes:
        """The value; ENODATA, EINVAL, EOPNOTSUPP."""
        value = self._tree.xattr(node.id, _checked(name))
        if name == _LABEL and value is not None:
            self._has_labels = True
        if value is None:
            raise self.absent(name)
        return value

    def absent(self, name: bytes) -> OSError:
        """The error for an attribute that a file does not have.

        `ls -l` asks for the label of each file, unless it learns that there are none. Where the
        kernel works with labels it answers itself; elsewhere hardly any file has one. So until one
        is met the answer is that they are not supported, which `ls` takes for all other files too.
        """
        is_unknown = name == _LABEL and not self._has_labels
        return _error(errno.EOPNOTSUPP if is_unknown else errno.ENODATA)

    def names(self, node: Node) -> list[bytes]:
        """The names of all attributes."""
        return self._tree.xattrs(node.id)

    def set(self, node: Node, name: bytes, value: bytes, flags: int) -> None:
        """Set an attribute; EEXIST and ENODATA by `flags`, E2BIG, EPERM, EINVAL, EOPNOTSUPP."""
        _checked(name)
        if len(value) > _MAX_VALUE_BYTES:
            raise _error(errno.E2BIG)
        if name.startswith(b"user.") and not (node.is_dir or node.is_file):
            raise _error(errno.EPERM)
        exists = self._tree.xattr(node.id, name) is not None
        if exists and flags & _CREATE:
            raise _error(errno.EEXIST)
        if not exists and flags & _REPLACE:
            raise _error(errno.ENODATA)
        self._has_labels |= name == _LABEL
        self._tree.set_xattr(node.id, name, value)

    def remove(self, node: Node, name: bytes) -> None:
        """Remove an attribute; ENODATA, EINVAL, EOPNOTSUPP."""
        self.get(node, name)
        self._tree.set_xattr(node.id, name, None)

    def has_capabilities(self, node: Node) -> bool:
        """Whether a program is allowed to do what others are not."""
        return self._tree.xattr(node.id, _CAPABILITIES) is not None

    def drop_capabilities(self, node: Node) -> None:
        """A program that was changed loses what it was allowed to do."""
        if self.has_capabilities(node):
            self._tree.set_xattr(node.id, _CAPABILITIES, None)


def shown(names: list[bytes], caller: Caller) -> list[bytes]:
    """The names that a caller may see: those of the trusted namespace are root's."""
    return [name for name in names if caller.uid == 0 or not name.startswith(_TRUSTED)]


def _checked(name: bytes) -> bytes:
    """An attribute's name, if it lies in a namespace that is kept here."""
    if len(name) > _MAX_NAME_BYTES:
        raise _error(errno.ERANGE)
    if not name.startswith(_NAMESPACES):
        raise _error(errno.EOPNOTSUPP)
    if name in _NAMESPACES:
        raise _error(errno.EINVAL)
    return name


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
