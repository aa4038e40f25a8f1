"""What a program file lends to who runs it, and when it stops: suid and sgid bits, capabilities.

Who changes a program must not leave it with another person's rights. The kernel leaves this to the
file system (see `kernel.answer_init`).
"""

from __future__ import annotations

import stat

from syncer.metadata.node import Node
from syncer.metadata.tree import Tree
from syncer.vfs.caller import Caller
from syncer.vfs.xattrs import Xattrs


def lends(node: Node | None) -> bool:
    """Whether a file has one of the bits."""
    return node is not None and bool(node.mode & (stat.S_ISUID | stat.S_ISGID))


def without_privileges(mode: int) -> int:
    """A mode without set-user-id, and without set-group-id where the group may execute."""
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode


def drop(tree: Tree, xattrs: Xattrs, number: int, caller: Caller) -> None:
    """A file is being changed: it keeps its privileges only if root does it."""
    if caller.uid == 0:
        return
    node = tree.node(number)
    if node is None or not (lends(node) or xattrs.has_capabilities(node)):
        return
    with tree.transaction():
        node = tree.node(number)
        if node is None:
            return
        if without_privileges(node.mode) != node.mode:
            tree.save(node.changed(mode=without_privileges(node.mode)))
        xattrs.drop_capabilities(node)
