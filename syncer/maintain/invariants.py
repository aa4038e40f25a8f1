"""What must hold between the rows of the database; each check is a query for what breaks it.

The queries read tables and indexes in their order, or search in primary keys, so their memory is
that of SQLite's caches at any size; the one set, of all directories, may lie on the disk.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Any

from syncer.codec import BLOCK_BYTES, ID_BYTES, MAX_FILE_BYTES
from syncer.exchange.rows import CONTENT, NAME, NODE, TABLES, XATTR, Table
from syncer.maintain.findings import Progress, Report
from syncer.maintain.named import path_of
from syncer.maintain.totals import wrong_totals
from syncer.metadata.connection import Reader, Row
from syncer.metadata.contents import RUN_BLOCKS
from syncer.metadata.node import ROOT, node_base
from syncer.metadata.schema import COUNTED_BLOCKS, WRONG_PAST_BLOCKS

_KIND = stat.S_IFMT(0o177777)
_DIR = f"mode & {_KIND} = {stat.S_IFDIR}"
_FILE = f"mode & {_KIND} = {stat.S_IFREG}"
_ROWS = 1000
_FOREVER = 1 << 62


@dataclass(frozen=True)
class Check:
    """One invariant of the history's rows, which clones have as well."""

    kind: str
    #: Rows that break it; the first column is a node.
    sql: str
    #: What is wrong with it; `{1}` is the query's second column.
    text: str


#: What breaks the tree itself: where it is so in the history as well, `mending` has to place nodes.
STRUCTURE = (
    Check(
        "no root",
        f"SELECT {ROOT} WHERE NOT EXISTS (SELECT 1 FROM node WHERE id = {ROOT} AND {_DIR})",
        "there is no root directory",
    ),
    Check(
        "name of nothing",
        "SELECT parent, name.name, name.node FROM name LEFT JOIN node ON node.id = name.node"
        " WHERE node.id IS NULL",
        "its name {1} leads to a node that is not there",
    ),
    Check(
        "name in nothing",
        "SELECT parent FROM (SELECT DISTINCT parent FROM name) LEFT JOIN node ON node.id = parent"
        f" WHERE node.id IS NULL OR NOT {_DIR}",
        "it has names in it, and is no directory",
    ),
    Check(
        "node without a name",
        f"SELECT id FROM node WHERE id != {ROOT}"
        " AND NOT EXISTS (SELECT 1 FROM name WHERE name.node = node.id)"
        " AND NOT EXISTS (SELECT 1 FROM orphan WHERE orphan.node = node.id)",
        "it has no name",
    ),
    Check(
        "directory with names",
        "SELECT name.node, count(*) FROM name JOIN node ON node.id = name.node"
        f" WHERE {_DIR} GROUP BY name.node HAVING count(*) > (name.node != {ROOT})",
        "it is a directory with {1} names",
    ),
    Check(
        "cycle",
        # With one name each, whatever is not reached from the root hangs on a cycle; what hangs
        # on a damage of another kind is told there.
        f"WITH RECURSIVE reached(id) AS (SELECT {ROOT} UNION SELECT node.id FROM reached"
        f" JOIN name ON name.parent = reached.id JOIN node ON node.id = name.node AND {_DIR}),"
        f" lost(id) AS (SELECT id FROM node WHERE {_DIR} AND id NOT IN reached)"
        " SELECT lost.id FROM lost JOIN name ON name.node = lost.id WHERE name.parent IN lost",
        "it is not below the root",
    ),
)

#: What is wrong with single rows.
ROWS = (
    Check(
        "content of nothing",
        "SELECT DISTINCT node FROM content LEFT JOIN node ON node.id = content.node"
        f" WHERE node.id IS NULL OR NOT {_FILE}",
        "it has content, and is no file",
    ),
    Check(
        "attribute of nothing",
        "SELECT DISTINCT xattr.node FROM xattr LEFT JOIN node ON node.id = xattr.node"
        " WHERE node.id IS NULL",
        "it has extended attributes, and is not there",
    ),
    Check(
        "impossible node",
        f"SELECT id FROM node WHERE mode & {_KIND} NOT IN"
        f" ({stat.S_IFREG}, {stat.S_IFDIR}, {stat.S_IFLNK}, {stat.S_IFIFO}, {stat.S_IFSOCK},"
        f" {stat.S_IFCHR}, {stat.S_IFBLK}) OR mode NOT BETWEEN 0 AND 65535"
        f" OR size NOT BETWEEN 0 AND {MAX_FILE_BYTES} OR id < 1 OR nlink < 0"
        f" OR (target IS NOT NULL) != (mode & {_KIND} = {stat.S_IFLNK})"
        " OR uid NOT BETWEEN 0 AND 4294967295 OR gid NOT BETWEEN 0 AND 4294967295",
        "its attributes are impossible",
    ),
    Check(
        "impossible name",
        "SELECT parent, name FROM name WHERE length(name) NOT BETWEEN 1 AND 255"
        " OR instr(name, x'2f') OR instr(name, x'00') OR name IN (x'2e', x'2e2e')",
        "the name {1} in it is impossible",
    ),
    Check(
        "impossible content",
        "SELECT node, run FROM content WHERE run < -1 OR run >= 0 AND"
        f" (length(data) % {ID_BYTES} OR length(data) NOT BETWEEN 1 AND {RUN_BLOCKS * ID_BYTES})",
        "its list of blocks {1} is impossible",
    ),
    Check(
        "content beyond the end",
        f"SELECT node, run FROM content JOIN node ON node.id = content.node AND {_FILE}"
        f" WHERE run >= 0 AND (run * {RUN_BLOCKS} + length(data) / {ID_BYTES} - 1) * {BLOCK_BYTES}"
        " >= size",
        "it has blocks behind its end",
    ),
    Check(
        "tiny file of another size",
        f"SELECT node, length(data), size FROM content JOIN node ON node.id = content.node"
        f" AND {_FILE} WHERE run = -1 AND (length(data) != size OR EXISTS (SELECT 1 FROM content"
        " AS other WHERE other.node = content.node AND other.run >= 0))",
        "it holds {1} bytes itself and should have {2}, or has blocks as well",
    ),
)

#: Counts that are set right by a new version of the node.
LINKS = (
    Check(
        "wrong link count",
        "SELECT id, nlink, (SELECT count(*) FROM name WHERE name.node = node.id) AS names"
        f" FROM node WHERE NOT {_DIR} AND nlink != names",
        "its link count is {1} and should be {2}",
    ),
    Check(
        "wrong link count",
        "SELECT id, nlink, 2 + (SELECT count(*) FROM name JOIN node AS below"
        f" ON below.id = name.node AND below.{_DIR} WHERE name.parent = node.id) AS links"
        f" FROM node WHERE {_DIR} AND nlink != links",
        "its link count is {1} and should be {2}",
    ),
)


def _past_checks(table: Table) -> tuple[Check, Check]:
    key = ", ".join(table.key)
    name, past = table.name, f"{table.name}_past"
    same = " AND ".join(f"now.{column} = past.{column}" for column in table.key)
    last = "(SELECT coalesce(max(seq), 0) FROM epoch)"
    return (
        Check(
            "impossible past",
            f"SELECT {key} FROM (SELECT {key}, born, died, lag(died) OVER (PARTITION BY {key}"
            f" ORDER BY died) AS before FROM {past}) WHERE born >= died OR born < before"
            f" OR born < 1 OR died > {last} UNION ALL"
            f" SELECT {key} FROM {name} WHERE born < 1 OR born > {last}",
            f"a row of its past ({name}) has an impossible life",
        ),
        Check(
            "impossible past",
            f"SELECT {', '.join(f'now.{column}' for column in table.key)} FROM {past} AS past"
            f" JOIN {name} AS now ON {same} WHERE past.died > now.born",
            f"its past ({name}) reaches into the present",
        ),
    )


PAST = (
    *(check for table in TABLES for check in _past_checks(table)),
    Check(
        "impossible past",
        # Numbers may be missing: of moments that were pruned.
        f"SELECT {ROOT}, seq FROM (SELECT seq, time_ns, lag(time_ns) OVER (ORDER BY seq) AS time"
        " FROM epoch) WHERE time_ns < time OR seq < 1",
        "epoch {1} has a time before that of the one before it",
    ),
)

HISTORY = (*STRUCTURE, *ROWS, *LINKS, *PAST)


def check_history(
    reader: Reader, report: Report, progress: Progress, checks: tuple[Check, ...] = HISTORY
) -> None:
    """Look for all that is wrong with what clones have as well."""
    for number, check in enumerate(checks):
        progress(f"metadata: {check.kind}", number, len(checks))
        for row in reader.query(check.sql):
            report.found(check.kind, f"{_shown(reader, row[0])}: {_text(check, row)}")


def _text(check: Check, row: Row) -> str:
    shown = [
        value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in row
    ]
    return check.text.format(*shown)


def _shown(reader: Reader, node: int) -> str:
    return f"{path_of(reader, node).decode('utf-8', 'surrogateescape')} (node {node})"


# What only this database has: counts, notes of what is to be done, leftovers

_OUTBOX_MISSING = {
    NODE.name: ("id", "x''"),
    NAME.name: ("parent", "name"),
    CONTENT.name: ("node", "x''"),
    XATTR.name: ("node", "x''"),
}


def missing_from_outbox(published: int) -> str:
    """A query for (epoch, node, name) of changes that nobody would publish."""
    parts = []
    for table, (node, name) in _OUTBOX_MISSING.items():
        noted = name if name.startswith("x") else f"source.{name}"
        for end, epoch in (("", "born"), ("_past", "born"), ("_past", "died")):
            parts.append(
                f"SELECT {epoch}, {node}, {name} FROM {table}{end} AS source"
                f" WHERE {epoch} > {published} AND NOT EXISTS (SELECT 1 FROM outbox"
                f" WHERE outbox.epoch = source.{epoch} AND outbox.node = source.{node}"
                f" AND outbox.name = {noted})"
            )
    return " UNION ".join(parts)


@dataclass(frozen=True)
class Leftover:
    """Rows that say nothing, or what is not so, and can go."""

    kind: str
    #: Of what is wrong; the first column is a number to tell.
    sql: str
    #: Statements that set it right.
    repair: str
    text: str


LEFTOVERS = (
    Leftover(
        "wrong orphan",
        "SELECT orphan.node FROM orphan LEFT JOIN node ON node.id = orphan.node"
        " WHERE node.id IS NULL OR EXISTS (SELECT 1 FROM name WHERE name.node = orphan.node)",
        "DELETE FROM orphan WHERE node NOT IN (SELECT id FROM node)"
        " OR EXISTS (SELECT 1 FROM name WHERE name.node = orphan.node)",
        "it is noted as removed while open, and is not",
    ),
    Leftover(
        "name to put back of nothing",
        "SELECT node FROM provisional WHERE node NOT IN (SELECT id FROM node)"
        " OR parent NOT IN (SELECT id FROM node)",
        "DELETE FROM provisional WHERE node NOT IN (SELECT id FROM node)"
        " OR parent NOT IN (SELECT id FROM node)",
        "a name of it is noted as to be put back, and it or its folder is not there",
    ),
    Leftover(
        "patch of nothing",
        "SELECT DISTINCT patch.node FROM patch LEFT JOIN node ON node.id = patch.node"
        f" WHERE node.id IS NULL OR NOT {_FILE}",
        f"DELETE FROM patch WHERE node NOT IN (SELECT id FROM node WHERE {_FILE})",
        "it has rewritten bytes, and is no file",
    ),
    Leftover(
        "leftover of an undone change",
        "SELECT node FROM undo_file WHERE node NOT IN (SELECT id FROM node) UNION"
        " SELECT node FROM undo_run WHERE node NOT IN (SELECT 0 UNION SELECT node FROM undo_file)"
        " UNION"
        " SELECT node FROM undo_patch WHERE node NOT IN (SELECT node FROM undo_file)",
        "DELETE FROM undo_file WHERE node NOT IN (SELECT id FROM node);"
        " DELETE FROM undo_run WHERE node NOT IN (SELECT 0 UNION SELECT node FROM undo_file);"
        " DELETE FROM undo_patch WHERE node NOT IN (SELECT node FROM undo_file)",
        "copies of what it was are left, and it is not there",
    ),
    Leftover(
        "wrong count of blocks",
        f"SELECT id FROM node WHERE {_FILE} AND blocks != {COUNTED_BLOCKS}",
        f"UPDATE node SET blocks = {COUNTED_BLOCKS} WHERE {_FILE} AND blocks != {COUNTED_BLOCKS}",
        "the number of its blocks is wrong",
    ),
    Leftover(
        "wrong count of past blocks",
        WRONG_PAST_BLOCKS,
        f"UPDATE node_past SET blocks = NULL WHERE (id, died) IN ({WRONG_PAST_BLOCKS})",
        "the number of the blocks that it had until epoch {1} is wrong",
    ),
    Leftover(
        "pin of nothing",
        # Until pins have been gone through, those of what was removed are there still.
        "SELECT node FROM pin WHERE node NOT IN (SELECT id FROM node)"
        " AND NOT EXISTS (SELECT 1 FROM meta WHERE key = 'pins_stale' AND value = 1)",
        "DELETE FROM pin WHERE node NOT IN (SELECT id FROM node)",
        "it is pinned, and is not there",
    ),
    Leftover(
        "published change in the outbox",
        "SELECT node FROM outbox WHERE epoch <="
        " (SELECT value FROM meta WHERE key = 'published') LIMIT 1",
        "DELETE FROM outbox WHERE epoch <= (SELECT value FROM meta WHERE key = 'published')",
        "changes that are published are noted as if they were not",
    ),
    Leftover(
        "damaged note of a checkpoint",
        f"SELECT range FROM chunk WHERE length(object) % {ID_BYTES}",
        f"UPDATE chunk SET object = NULL WHERE length(object) % {ID_BYTES}",
        "a part of the checkpoint on the server is noted in an impossible way",
    ),
)


def check_local(reader: Reader, report: Report, progress: Progress) -> None:
    """Look for all that is wrong with what only this database has."""
    progress("metadata: counts and notes", 0, 0)
    for column, said, true in wrong_totals(reader):
        report.found("wrong total", f"{column} is {said} and should be {true}")
    for leftover in LEFTOVERS:
        for row in reader.query(leftover.sql):
            report.found(leftover.kind, f"number {row[0]}: {leftover.text.format(*row)}")
    values: dict[str, Any] = dict(reader.query("SELECT key, value FROM meta"))
    for epoch, node, name in reader.query(missing_from_outbox(values["published"])):
        shown = name.decode("utf-8", "replace")
        report.found("change outside the outbox", f"node {node} {shown}, epoch {epoch}")
    if values["next_node"] <= newest_number(reader, values["machine"]):
        report.found("node number twice", "the next node would get a number that is taken")


def newest_number(reader: Reader, machine: int) -> int:
    """The highest node number of a machine that is used, or was."""
    base = node_base(machine)
    newest = base
    for table in ("node", "node_past"):
        ((found,),) = reader.query(
            f"SELECT max(id) FROM {table} WHERE id BETWEEN ? AND ?", (base, base | (1 << 40) - 1)
        )
        newest = max(newest, found or 0)
    return newest
