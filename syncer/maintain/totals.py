"""Table `usage` as it must be, counted anew."""

from __future__ import annotations

from syncer.metadata.connection import Reader
from syncer.metadata.db import Database

#: Column -> what it counts.
TOTALS = {
    "local_bytes": "SELECT coalesce(sum((size + 4095) / 4096 * 4096), 0) FROM block",
    "local_blocks": "SELECT count(*) FROM block",
    "dirty_bytes": "SELECT coalesce(sum(size), 0) FROM block WHERE dirty IS NOT NULL",
    "dirty_blocks": "SELECT count(*) FROM block WHERE dirty IS NOT NULL",
    "pinned_bytes": (
        "SELECT coalesce(sum((size + 4095) / 4096 * 4096), 0) FROM block WHERE pinned = 1"
    ),
    "pinned_blocks": "SELECT count(*) FROM block WHERE pinned = 1",
    "inline_bytes": (
        "SELECT (SELECT coalesce(sum(length(data)), 0) FROM content WHERE run = -1) +"
        " (SELECT coalesce(sum(length(data)), 0) FROM content_past WHERE run = -1)"
    ),
    "nodes": "SELECT count(*) FROM node",
    "file_bytes": "SELECT coalesce(sum(size), 0) FROM node WHERE mode & 61440 = 32768",
}


def wrong_totals(reader: Reader) -> list[tuple[str, int, int]]:
    """(column, what it says, what is true) of those that differ."""
    found = []
    for column, sql in TOTALS.items():
        ((said, true),) = reader.query(f"SELECT (SELECT {column} FROM usage), ({sql})")
        if said != true:
            found.append((column, said, true))
    return found


def recount(db: Database) -> None:
    """Set all totals right; in the caller's transaction."""
    db.execute("DELETE FROM usage")
    db.execute(f"INSERT INTO usage({', '.join(TOTALS)}) SELECT {_all()}")


def _all() -> str:
    return ", ".join(f"({sql})" for sql in TOTALS.values())
