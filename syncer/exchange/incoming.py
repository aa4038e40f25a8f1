"""Row versions into the database, and the proof that they make a tree.

What comes in was decoded, so each value is possible by itself; whether the rows fit together is
seen here. All functions run in the caller's transaction, so that what does not fit leaves no
trace. They raise CorruptError.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from syncer.errors import CorruptError, SyncerError
from syncer.exchange.rows import CONTENT, NAME, NODE, TABLES, Rows, Table, Version
from syncer.exchange.wire import Epoch
from syncer.metadata.contents import recount_blocks
from syncer.metadata.db import Database
from syncer.metadata.node import ROOT

_MODE = NODE.columns.index("mode")
_SIZE = NODE.columns.index("size")
_IS_DIRECTORY = f"mode & {0o170000} = {stat.S_IFDIR}"


def _insert_sql(table: Table, *, past: bool) -> str:
    # A version has its died even where the table has none: so the numbered parameters.
    columns = [
        (column, f"?{number}")
        for number, column in enumerate(table.columns, 1)
        if past or column != "died"
    ]
    name = f"{table.name}_past" if past else table.name
    return (
        f"INSERT INTO {name}({', '.join(column for column, _ in columns)})"
        f" VALUES({', '.join(mark for _, mark in columns)})"
    )


def _end_sql(table: Table) -> tuple[str, str]:
    """Statements that move the present version of a key to the past; bindings: (key, died)."""
    width = len(table.key)
    where = " AND ".join(f"{column} = ?{number}" for number, column in enumerate(table.key, 1))
    columns = (*table.key, "born", *table.values)
    if table is NODE:
        columns = (*columns, "blocks")
    move = (
        f"INSERT INTO {table.name}_past({', '.join(columns)}, died) SELECT {', '.join(columns)},"
        f" ?{width + 1} FROM {table.name} WHERE {where} AND born < ?{width + 1}"
    )
    return move, f"DELETE FROM {table.name} WHERE {where}"


_INSERT_NOW = {table.name: _insert_sql(table, past=False) for table in TABLES}
_INSERT_PAST = {table.name: _insert_sql(table, past=True) for table in TABLES}
_END = {table.name: _end_sql(table) for table in TABLES}


@dataclass
class Touched:
    """The keys that were applied: what caches of rows have to drop, and what is to be proved."""

    entries: set[tuple[int, bytes]] = field(default_factory=set)
    nodes: set[int] = field(default_factory=set)

    def add(self, rows: Rows) -> None:
        for table in TABLES:
            for row in (*rows.versions[table.name], *rows.ends[table.name]):
                if table is NAME:
                    self.entries.add(row[:2])
                else:
                    self.nodes.add(row[0])


def insert_epochs(db: Database, epochs: Sequence[Epoch]) -> None:
    """Add the rows of new epochs."""
    with _fitting("epochs"):
        db.execute_many(
            "INSERT INTO epoch(seq, machine, counter, time_ns) VALUES(?, ?, ?, ?)",
            [(epoch.seq, epoch.machine, epoch.counter, epoch.time_ns) for epoch in epochs],
        )


def insert_rows(db: Database, rows: Rows) -> None:
    """Apply the ends, then add the versions, and keep `usage` true."""
    nodes = file_bytes = 0
    files: set[int] = set()
    for node, _died in rows.ends[NODE.name]:
        found = db.query_one("SELECT mode, size FROM node WHERE id = ?", (node,))
        if found is not None:
            nodes -= 1
            file_bytes -= found[1] if stat.S_ISREG(found[0]) else 0
    for table in TABLES:
        move, delete = _END[table.name]
        width = len(table.key)
        for end in rows.ends[table.name]:
            db.execute(move, end)
            if db.changes() != 1:
                raise CorruptError(f"it ends a row of {table.name} that is not there")
            db.execute(delete, end[:width])
        died = width + 1
        now: list[Version] = []
        past: list[Version] = []
        for version in rows.versions[table.name]:
            (past if version[died] else now).append(version)
        with _fitting(f"rows of {table.name}"):
            db.execute_many(_INSERT_NOW[table.name], now)
            db.execute_many(_INSERT_PAST[table.name], past)
        if table is NODE:
            nodes += len(now)
            file_bytes += sum(row[_SIZE] for row in now if stat.S_ISREG(row[_MODE]))
            files |= {row[0] for row in now if stat.S_ISREG(row[_MODE])}
        elif table is CONTENT:
            files |= {row[0] for row in (*now, *rows.ends[CONTENT.name])}
    recount_blocks(db, files)
    inline_bytes = sum(len(row[4]) for row in rows.versions[CONTENT.name] if row[1] < 0)
    db.execute(
        "UPDATE usage SET nodes = nodes + ?, file_bytes = file_bytes + ?,"
        " inline_bytes = inline_bytes + ?",
        (nodes, file_bytes, inline_bytes),
    )


@contextlib.contextmanager
def _fitting(what: str) -> Iterator[None]:
    try:
        yield
    except SyncerError as error:
        # The database's errors have classes of their own, but for what a statement itself does
        # wrong; and here that is a key which is there already.
        if type(error) is SyncerError:
            raise CorruptError(f"it has {what} that are there already") from error
        raise


def check_touched(db: Database, touched: Touched) -> None:
    """Prove that the tree is one, if it was before `touched` was applied."""
    rooted = {ROOT}
    for parent, name in touched.entries:
        row = db.query_one("SELECT node FROM name WHERE parent = ? AND name = ?", (parent, name))
        if row is not None:
            touched.nodes.add(row[0])
            touched.nodes.add(parent)
    for node in touched.nodes:
        row = db.query_one("SELECT mode FROM node WHERE id = ?", (node,))
        names = db.query("SELECT parent FROM name WHERE node = ? LIMIT 2", (node,))
        is_directory = row is not None and stat.S_ISDIR(row[0])
        if row is None and names:
            raise CorruptError("a name leads to no node")
        if not is_directory and db.query_one("SELECT 1 FROM name WHERE parent = ?", (node,)):
            raise CorruptError("a name is in no directory")
        if is_directory and len(names) != (node != ROOT):
            raise CorruptError("a directory has not just one name")
        if is_directory:
            _check_rooted(db, node, rooted)


def _check_rooted(db: Database, directory: int, rooted: set[int]) -> None:
    """Walk up to a directory that is known to be below the root; then all of the way is."""
    way: set[int] = set()
    while directory not in rooted:
        row = db.query_one("SELECT parent FROM name WHERE node = ?", (directory,))
        if row is None or directory in way:
            raise CorruptError("a directory is not below the root")
        way.add(directory)
        directory = row[0]
    rooted |= way


def check_tree(db: Database) -> None:
    """Prove that all of the database's present is one tree, or empty."""
    faults = {
        "a name leads to no node": (
            "SELECT 1 FROM name LEFT JOIN node ON node.id = name.node WHERE node.id IS NULL"
        ),
        "a name is in no directory": (
            "SELECT 1 FROM (SELECT DISTINCT parent FROM name) LEFT JOIN node ON node.id = parent"
            f" WHERE node.id IS NULL OR NOT {_IS_DIRECTORY}"
        ),
        "a directory has not just one name": (
            f"SELECT 1 FROM node WHERE {_IS_DIRECTORY} AND (id != {ROOT}) !="
            " (SELECT count(*) FROM name WHERE name.node = node.id)"
        ),
        "there is no root": (
            f"SELECT 1 WHERE EXISTS (SELECT 1 FROM node) AND NOT EXISTS"
            f" (SELECT 1 FROM node WHERE id = {ROOT} AND {_IS_DIRECTORY})"
        ),
        # With one name each, whatever is not reached from the root hangs on a cycle.
        "a directory is not below the root": (
            f"WITH RECURSIVE reached(id) AS (SELECT {ROOT} UNION ALL SELECT node.id FROM reached"
            f" JOIN name ON name.parent = reached.id JOIN node ON node.id = name.node"
            f" AND {_IS_DIRECTORY}) SELECT 1 WHERE EXISTS (SELECT 1 FROM node) AND"
            " (SELECT count(*) FROM reached) !="
            f" (SELECT count(*) FROM node WHERE {_IS_DIRECTORY})"
        ),
    }
    for fault, sql in faults.items():
        if db.query_one(f"{sql} LIMIT 1"):
            raise CorruptError(f"the metadata on the remote is damaged: {fault}")
