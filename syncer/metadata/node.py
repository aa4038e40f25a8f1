"""What is known of a file, directory, symlink or device; and how such nodes are numbered."""

from __future__ import annotations

import stat
from typing import Any, NamedTuple

from syncer.codec import BLOCK_BYTES

ROOT = 1
_TAG_BITS = 22
_COUNTER_BITS = 40


class Node(NamedTuple):
    """One row of table `node`. `Tree.save` takes a changed copy."""

    id: int
    born: int
    mode: int
    uid: int
    gid: int
    rdev: int
    nlink: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    target: bytes | None
    blocks: int = 0

    @property
    def stored_bytes(self) -> int:
        """What of a file is there and no hole, to a block."""
        return min(self.size, self.blocks * BLOCK_BYTES)

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    def changed(self, **values: Any) -> Node:
        """A copy with other values."""
        return self._replace(**values)


def node_base(machine: int) -> int:
    """The number before the first node of a machine: its tag, never 0, above the counter."""
    return (machine % ((1 << _TAG_BITS) - 1) + 1) << _COUNTER_BITS
