"""Tables whose rows may be long: what a look costs, and databases of before they were such."""

from __future__ import annotations

import os
import re

import apsw
import pytest

from syncer.metadata import schema
from syncer.metadata.node import ROOT
from tests.vfs_rig import VfsRig

_FILES = 300
_LONG = ("content", "content_past", "xattr", "xattr_past", "patch", "undo_run", "undo_patch")


def fill(rig: VfsRig) -> list[int]:
    """Files of several pages each, with a past and an attribute; returns their nodes."""
    numbers = [rig.make(b"/%d" % name, os.urandom(4000)) for name in range(_FILES)]
    for number in numbers:
        rig.tree.set_xattr(number, b"user.long", os.urandom(4000))
    rig.round()
    for number in numbers[:5]:
        rig.contents.set_inline(number, b"later")
        rig.tree.set_xattr(number, b"user.long", b"later")
    return numbers


def rows(rig: VfsRig) -> dict[str, list[tuple[object, ...]]]:
    return {name: sorted(rig.db.query(f"SELECT * FROM {name}")) for name in _LONG}


def pages_of(connection: apsw.Connection, sql: str, *values: object) -> int:
    """How many pages SQLite looks at, in its memory or not."""
    counters = (apsw.SQLITE_DBSTATUS_CACHE_HIT, apsw.SQLITE_DBSTATUS_CACHE_MISS)
    for counter in counters:
        connection.status(counter, True)
    connection.execute(sql, values).fetchall()
    return sum(connection.status(counter)[0] for counter in counters)


@pytest.mark.parametrize(
    ("table", "key", "column"),
    [("content", "run", "data"), ("xattr", "name", "value")],
)
def test_a_look_at_a_long_row_reads_no_other(
    rig: VfsRig, table: str, key: str, column: str
) -> None:
    numbers = fill(rig)
    rig.db.sync()
    connection = apsw.Connection(str(rig.db.path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        # The first look reads the schema, too.
        connection.execute(f"SELECT count(*) FROM {table}").fetchall()
        for number in numbers[5::50]:
            own = f"SELECT {column} FROM {table} WHERE node = ?"
            # The way down two trees, and the row's own.
            assert pages_of(connection, own, number) <= 3 + 3 + 4
            there = f"SELECT 1 FROM {table} WHERE node = ? AND {key} = ?"
            assert pages_of(connection, there, number, b"other") <= 3
    finally:
        connection.close()


def test_a_database_of_before_comes_along(rig: VfsRig) -> None:
    fill(rig)
    before = rows(rig)
    assert all(before[name] for name in ("content", "content_past", "xattr", "xattr_past"))
    with rig.db.transaction():
        for name in _LONG:
            # As they were in version 7.
            (table,) = re.findall(rf"CREATE TABLE {name}\(.*?\n\);", schema.SCHEMA, re.DOTALL)
            rig.db.execute(f"ALTER TABLE {name} RENAME TO new_{name}")
            rig.db.execute(table[:-1] + " WITHOUT ROWID")
            rig.db.execute(f"INSERT INTO {name} SELECT * FROM new_{name}")
            rig.db.execute(f"DROP TABLE new_{name}")
        rig.db.set_meta("schema_version", 7)
    rig.reopen()
    assert rig.db.get_meta("schema_version") == schema.SCHEMA_VERSION
    assert rows(rig) == before
    tables = dict(rig.db.query("SELECT name, sql FROM sqlite_master WHERE type = 'table'"))
    assert set(_LONG) <= set(tables) and not any(name.endswith("_before") for name in tables)
    assert not any("WITHOUT ROWID" in tables[name] for name in _LONG)
    assert rig.tree.lookup(ROOT, b"0") is not None
    rig.make(b"/new", b"content")
    assert rig.read(b"/new") == b"content"
