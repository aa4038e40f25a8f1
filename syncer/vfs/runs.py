"""Which blocks an open file has: the ids of a few runs of them, kept from the metadata."""

from __future__ import annotations

from syncer.codec import HOLE, ID_BYTES
from syncer.metadata.contents import RUN_BLOCKS, Contents
from syncer.metadata.node import Node

_MAX_CACHED_RUNS = 8


class Runs:
    """The ids of one file's committed blocks. The file's lock guards it."""

    def __init__(self, node: Node, contents: Contents) -> None:
        self._node_id = node.id
        self._contents = contents
        #: Ids of a run's blocks, one behind the other. Of an empty file all is known.
        self._cached: dict[int, bytes] = {} if node.size or node.blocks else {0: b""}

    def block_id(self, index: int) -> bytes:
        """The id of the block at `index` as it is committed, or HOLE."""
        run, place = divmod(index, RUN_BLOCKS)
        data = self._cached.get(run)
        if data is None:
            data = self._contents.run(self._node_id, run)
            if len(self._cached) >= _MAX_CACHED_RUNS:
                del self._cached[next(iter(self._cached))]
            self._cached[run] = data
        start = place * ID_BYTES
        return data[start : start + ID_BYTES] or HOLE

    def clear(self) -> None:
        """The file's blocks have changed, or may have."""
        self._cached.clear()
