"""Transactions of the redo log, run once more."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import apsw

from syncer.errors import CorruptError
from syncer.metadata.redo import Record


def do_again(connection: apsw.Connection, path: Path, records: Iterable[Record]) -> int:
    """Run them in the open transaction; returns the newest one's number, or 0.

    Raises CorruptError if they do not fit the database at `path`, and apsw.Error.
    """
    number = 0
    try:
        for record in records:
            before = connection.total_changes()
            for sql, values in record.statements:
                connection.execute(sql, values)
            if connection.total_changes() - before != record.changes:
                raise CorruptError(f"the database {path} does not fit its redo log")
            number = record.sequence
    except (apsw.ConstraintError, apsw.SQLError) as error:
        raise CorruptError(f"the database {path} does not fit its redo log ({error})") from error
    return number
