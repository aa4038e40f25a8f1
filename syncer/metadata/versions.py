"""Which schema a database's file has: it is looked at when it is opened, and brought up to date."""

from __future__ import annotations

import re
from pathlib import Path

import apsw

from syncer.errors import CorruptError, FormatError
from syncer.metadata.schema import SCHEMA, SCHEMA_VERSION, UPGRADES

_TABLES = frozenset(re.findall(r"CREATE (?:TABLE|INDEX) (\w+)", SCHEMA))
_VERSION = "SELECT value FROM meta WHERE key = 'schema_version'"


def check_version(connection: apsw.Connection, path: Path, *, may_upgrade: bool) -> None:
    """Raise CorruptError if the file is no database of ours, or lacks tables.

    Raises FormatError if it is newer than this program, or older where it can't be upgraded.
    """
    version = _version(connection) if "meta" in _names(connection) else None
    if not isinstance(version, int):
        raise CorruptError(f"{path} is not a syncer database")
    if version < SCHEMA_VERSION and not may_upgrade:
        raise FormatError(f"{path} was written by an older syncer; mount it once")
    if version > SCHEMA_VERSION:
        raise FormatError(f"{path} was written by a newer syncer; install that version")
    if version == SCHEMA_VERSION:
        _check_tables(connection, path)


def upgrade(connection: apsw.Connection, path: Path) -> None:
    """Bring an older file up to date, a version in each transaction. Raises CorruptError."""
    for old in range(_version(connection) or 0, SCHEMA_VERSION):
        with connection:
            connection.execute(UPGRADES[old])
            connection.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", (old + 1,))
    _check_tables(connection, path)


def _names(connection: apsw.Connection) -> set[str]:
    return {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}


def _version(connection: apsw.Connection) -> int | None:
    row = connection.execute(_VERSION).fetchone()
    return row[0] if row else None


def _check_tables(connection: apsw.Connection, path: Path) -> None:
    if not _names(connection) >= _TABLES:
        raise CorruptError(f"the database {path} is damaged (it lacks tables)")
