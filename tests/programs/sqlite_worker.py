"""Writes to a database, or watches one, as a process of its own; see `test_sqlite`.

    python sqlite_worker.py write DATABASE WRITER TRANSACTIONS
    python sqlite_worker.py watch DATABASE

A writer prints the number of each transaction when its commit has returned. A watcher looks until
its input ends, and fails on anything that no moment between two transactions could show.
"""

from __future__ import annotations

import select
import sqlite3
import sys

ROWS = 5
"""In each transaction."""
BUSY_SECONDS = 60.0


def open_database(path: str) -> sqlite3.Connection:
    """Open one, for transactions that the caller begins and ends."""
    return sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)


def create(path: str, journal_mode: str) -> None:
    """Make the database."""
    db = open_database(path)
    assert db.execute(f"PRAGMA journal_mode = {journal_mode}").fetchone()[0] == journal_mode
    db.execute("CREATE TABLE entry (writer, number, row, text, PRIMARY KEY (writer, number, row))")
    db.execute("CREATE INDEX by_text ON entry (text)")
    db.close()


def write(path: str, writer: int, transactions: int) -> None:
    """Add rows, some at once. Longer and longer texts make pages split."""
    db = open_database(path)
    for number in range(transactions):
        db.execute("BEGIN IMMEDIATE")
        for row in range(ROWS):
            text = f"{writer} {number} {row} " * (1 + number % 40)
            db.execute("INSERT INTO entry VALUES (?, ?, ?, ?)", (writer, number, row, text))
        db.execute("COMMIT")
        print(number, flush=True)
    db.close()


def watch(path: str) -> None:
    """Look again and again. The database only grows, by whole transactions."""
    db = open_database(path)
    seen = 0
    is_over = False
    while not is_over:
        # The last look comes after the end of what it looks at.
        is_over = bool(select.select([sys.stdin], [], [], 0)[0])
        db.execute("BEGIN")
        (count,) = db.execute("SELECT count(*) FROM entry").fetchone()
        counts = db.execute("SELECT count(*) FROM entry GROUP BY writer, number").fetchall()
        (by_index,) = db.execute("SELECT count(*) FROM entry WHERE text >= ''").fetchone()
        db.execute("COMMIT")
        assert count >= seen, "rows have gone"
        assert all(rows == ROWS for (rows,) in counts), "a transaction shows in part"
        assert count == len(counts) * ROWS == by_index, "table and index differ"
        seen = count
    print(seen)
    db.close()


if __name__ == "__main__":
    what, database, *rest = sys.argv[1:]
    if what == "write":
        write(database, *map(int, rest))
    else:
        watch(database)
