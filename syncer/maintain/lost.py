"""Blocks that are gone for good, as notes in the history: who reads them gets EIO, never zeros.

A note is an extended attribute of the root, under a prefix that no file system call reaches, so
clones have it, too. With it, a block that is nowhere is no longer damage to be found again and
again. It goes when the block turns up, or when nothing names it any more.
"""

from __future__ import annotations

from collections.abc import Iterable

from syncer.codec import ID_BYTES
from syncer.maintain.findings import Report
from syncer.maintain.named import files_of, path_of
from syncer.metadata.connection import Reader
from syncer.metadata.node import ROOT
from syncer.metadata.tree import OWN_XATTRS, Tree

_PREFIX = OWN_XATTRS + b"lost."
_BEHIND = _PREFIX[:-1] + bytes([_PREFIX[-1] + 1])
#: Notes of one transaction.
_NOTES = 500


def known_lost(reader: Reader) -> set[bytes]:
    """The blocks that are noted."""
    rows = reader.query(
        "SELECT name FROM xattr WHERE node = ? AND name >= ? AND name < ?",
        (ROOT, _PREFIX, _BEHIND),
    )
    found = (row[0][len(_PREFIX) :] for row in rows)
    return {bytes.fromhex(name.decode()) for name in found if len(name) == 2 * ID_BYTES}


def note_lost(tree: Tree, block_ids: Iterable[bytes], *, are_lost: bool = True) -> None:
    """Note that blocks are gone, or (not `are_lost`) that the note is over."""
    waiting = list(block_ids)
    for start in range(0, len(waiting), _NOTES):
        with tree.transaction():
            for block_id in waiting[start : start + _NOTES]:
                name = _PREFIX + block_id.hex().encode()
                if are_lost or tree.xattr(ROOT, name) is not None:
                    tree.set_xattr(ROOT, name, b"" if are_lost else None)


def tell_lost(
    reader: Reader, report: Report, kind: str, block_ids: Iterable[bytes], *, is_noted: bool
) -> None:
    """Report blocks that are nowhere, by the files that had them. Reads all contents."""
    left = set(block_ids)
    for node, found in files_of(reader, left).items():
        path = path_of(reader, node).decode("utf-8", "surrogateescape")
        report.found(
            kind,
            f"{path} (node {node}): {len(found)} of its blocks are nowhere"
            f" ({', '.join(sorted(block_id.hex() for block_id in found)[:3])})",
            is_repaired=is_noted,
        )
        left -= found
    for block_id in left:
        report.found(kind, f"block {block_id.hex()} is nowhere", is_repaired=is_noted)
