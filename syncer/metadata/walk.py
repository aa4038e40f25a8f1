"""The files below a folder of now, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator

from syncer.metadata.node import Node
from syncer.metadata.tree import Tree

_ROWS = 256


def files_below(tree: Tree, top: Node) -> Iterator[Node]:
    """The regular files at and below a node, those with several names as often as they have some.

    What is renamed meanwhile may be missed, or come twice.
    """
    folders = [top.id] if top.is_dir else []
    if top.is_file:
        yield top
    while folders:
        folder, after = folders.pop(), b""
        while rows := tree.entries(folder, after, _ROWS):
            after = rows[-1][0]
            yield from (node for _, node in rows if node.is_file)
            folders += [node.id for _, node in rows if node.is_dir]
