"""Whether the remote may lack blocks that count as clean: then nothing is evicted."""

from __future__ import annotations

from syncer import codec
from syncer.metadata.db import Database

REDONE_REFS = 1 << 40
"""Of a block that is dirty once more: history may name it, and no open epoch ever takes back so
many names. So it is uploaded, whatever becomes of these."""


class Doubt:
    """What is known of the clean blocks as a whole. May be used from several threads."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def begin(self) -> None:
        """The remote may have lost some. Counts as soon as the caller's transaction does."""
        self._db.set_meta("doubtful", 1)

    def is_on(self) -> bool:
        """Whether nobody has looked since which of them the remote has."""
        return bool(self._db.get_meta("doubtful", 0))

    def end(self) -> None:
        """All that it lacks are dirty again."""
        self._db.set_meta("doubtful", 0)

    def lacking(self, first_byte: int, sizes: dict[str, int]) -> list[tuple[bytes, int]]:
        """The clean blocks, with their sizes, that the remote lacks of those with this first byte.

        It has these objects of all such; `sizes` is by name.
        """
        low = bytes([first_byte])
        rows = self._db.query(
            "SELECT id, size FROM block WHERE id BETWEEN ? AND ? AND dirty IS NULL",
            (low, low + b"\xff" * 16),
        )
        return [
            (block_id, size_bytes)
            for block_id, size_bytes in rows
            if sizes.get(block_id.hex()) != codec.header_bytes(size_bytes) + size_bytes
        ]

    def has_redone(self) -> bool:
        """Whether some of those that became dirty once more are not uploaded yet."""
        return bool(
            self._db.query_one(
                "SELECT 1 FROM block WHERE dirty IS NOT NULL AND refs >= ? LIMIT 1", (REDONE_REFS,)
            )
        )
