"""What a change of a file's content means for the pins that reach it."""

from __future__ import annotations

from collections.abc import Sequence

from syncer.blocks.store import Blocks
from syncer.metadata.tree import Tree


def note_content(
    tree: Tree, blocks: Blocks, number: int, placed: Sequence[bytes], *, replaces: bool
) -> None:
    """A file names these blocks from now on; with `replaces`, in place of others.

    In the transaction that names them: before they can become clean, and be evicted.
    """
    if not tree.pins.is_pinned(number):
        return
    absent, refused_bytes = blocks.pinned.mark(placed)
    if absent:
        # It shares them with another file, whose copies are on the remote.
        tree.pins.want(number)
    if replaces or refused_bytes:
        tree.pins.loosen()
