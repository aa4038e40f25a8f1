"""Names that were taken away, it may be for a rename that follows: a crash puts them back."""

from __future__ import annotations

from syncer.metadata.db import Database


class Provisional:
    """The notes of such names. Inside of the caller's transaction, if there is one."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def names(self) -> list[tuple[int, bytes, int]]:
        """(parent, name, node) of all that are noted."""
        return self._db.query("SELECT parent, name, node FROM provisional")

    def note(self, parent: int, name: bytes, node_id: int) -> None:
        """A name led to a node: an orphan now, or a file that has further names."""
        with self._db.transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO provisional VALUES(?, ?, ?)", (parent, name, node_id)
            )

    def end(self, parent: int, name: bytes) -> None:
        """It is final that the name is gone."""
        with self._db.transaction():
            self._db.execute(
                "DELETE FROM provisional WHERE parent = ? AND name = ?", (parent, name)
            )
