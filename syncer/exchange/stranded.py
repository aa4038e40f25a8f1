"""The changes of a displaced writer, which the repository's history will not have."""

from __future__ import annotations

from syncer.metadata.db import Database


def count(db: Database) -> int:
    """The changes that are not published: of files and names, and files with small rewrites."""
    row = db.query_one(
        "SELECT (SELECT count(*) FROM outbox) + (SELECT count(DISTINCT node) FROM patch)"
    )
    assert row is not None
    return int(row[0])
