"""Whether the database's file is as SQLite left it: what a look at it finds."""

from __future__ import annotations

from syncer.errors import CorruptError
from syncer.metadata.db import Database


def look(db: Database) -> None:
    """Look at both ends of every table and index: cheap at any size, and finds much.

    Raises CorruptError. A whole look is `integrity_faults`.
    """
    for (table,) in db.query("SELECT name FROM sqlite_master WHERE type = 'table'"):
        columns = [row[1] for row in db.query(f"PRAGMA table_info({table})") if row[5]]
        for way in ("", " DESC") if columns else ():
            order = ", ".join(f"{column}{way}" for column in columns)
            db.query(f"SELECT * FROM {table} ORDER BY {order} LIMIT 1")
    if not db.query_one("SELECT 1 FROM usage"):
        raise CorruptError(f"the database {db.path} is damaged (it has no totals)")


def integrity_faults(db: Database, limit: int) -> list[str]:
    """What SQLite's own check finds wrong with the file, in its words. Reads all of it."""
    try:
        rows = db.query(f"PRAGMA integrity_check({limit})")
    except CorruptError as error:
        return [str(error)]
    return [row[0] for row in rows if row[0] != "ok"]
