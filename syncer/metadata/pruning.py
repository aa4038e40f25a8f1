"""Which moments of the past are kept, and the removal of what only the others saw.

A moment is kept while its epoch has a row in table `epoch`. The decision is an extended attribute
of the root directory, as snapshots are (`moments`): a row like any other, so the next segment and
every checkpoint have it, and each machine brings its own tables in line with it. It holds a
horizon and the epochs up to it that are kept; those behind the horizon all are.

To bring the tables in line:

1. rows of `epoch` that are not kept go;
2. past rows go that no kept moment saw: a life born <= e < died with no kept e in it.

First the moments and then what they show: whoever reads a moment of the past and does not find a
row asks afterwards whether the moment is still there, and so never takes a row that was pruned for
one that never was (`History`). Each step is one short transaction. A crash costs the place where
they were; the next process takes all of them again, and finds nothing to do in most.

Step 2 leaves alone what died in an epoch that is not published yet, since to a checkpoint of
what is published it is still the present. And neither step begins before the decision itself is
published: so whatever lacks a row for this reason, a checkpoint or a later segment, comes with the
decision or behind it.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from syncer.errors import CorruptError, UsageError
from syncer.metadata.db import Database
from syncer.metadata.node import ROOT
from syncer.metadata.tree import OWN_XATTRS, Tree

_KEY = OWN_XATTRS + b"kept"
_HORIZON = struct.Struct(">q")
_GAP = struct.Struct("<I")
#: So that the attribute stays within what an extended attribute may hold.
MAX_KEPT = 12_000

#: What one step looks at: some milliseconds, for which other callers wait.
_STEP_EPOCHS = 8192
_STEP_ROWS = 1000

#: The past's tables and their keys; the first column is a node's number.
_TABLES = {
    "node_past": ("id", "died"),
    "name_past": ("parent", "name", "died"),
    "content_past": ("node", "run", "died"),
    "xattr_past": ("node", "name", "died"),
}
_UNSEEN = (
    "died <= ? AND NOT EXISTS (SELECT 1 FROM epoch WHERE seq >= past.born AND seq < past.died)"
)

#: Told of what a step is about to change: the first and the last number, of nodes or epochs.
Hook = Callable[[int, int], None]


@dataclass(frozen=True)
class Decision:
    """Which moments are kept."""

    epoch: int
    """In which it was decided."""
    horizon: int
    """All moments behind it are kept."""
    kept: tuple[int, ...]
    """Of those up to it, the ones that are, in ascending order."""


def decision(db: Database) -> Decision | None:
    """What was decided last, or None. Raises CorruptError."""
    row = db.query_one("SELECT born, value FROM xattr WHERE node = ? AND name = ?", (ROOT, _KEY))
    return None if row is None else Decision(row[0], *_decode(row[1]))


def _decode(value: bytes) -> tuple[int, tuple[int, ...]]:
    if len(value) < _HORIZON.size or (len(value) - _HORIZON.size) % _GAP.size:
        raise CorruptError("the list of kept moments is damaged")
    (horizon,) = _HORIZON.unpack_from(value)
    kept: list[int] = []
    for (gap,) in _GAP.iter_unpack(value[_HORIZON.size :]):
        kept.append((kept[-1] if kept else 0) + gap)
        if not gap or kept[-1] > horizon:
            raise CorruptError("the list of kept moments is damaged")
    return horizon, tuple(kept)


def decide(tree: Tree, horizon: int, kept: Iterable[int]) -> None:
    """Keep of the epochs up to `horizon` only these. In the caller's transaction.

    Raises UsageError if they are too many.
    """
    epochs = sorted(kept)
    if len(epochs) > MAX_KEPT:
        raise UsageError(
            f"more than {MAX_KEPT:,} moments would be kept besides the newest ones; keep fewer"
        )
    gaps = (epoch - before for before, epoch in zip([0, *epochs], epochs, strict=False))
    value = _HORIZON.pack(horizon) + b"".join(_GAP.pack(gap) for gap in gaps)
    tree.set_xattr(ROOT, _KEY, value)


def pending(db: Database) -> Decision | None:
    """The decision with which the tables are not in line yet, or None."""
    with db.lock:
        found = decision(db)
        if found is None or found.epoch == db.get_meta("pruned", 0):
            return None
        return found if found.epoch <= db.get_meta("published") else None


def forget_moments(db: Database, found: Decision, on_epochs: Hook) -> Iterator[int]:
    """Step 1, in short transactions; yields after each how many moments went."""
    before = 0
    for kept in (*found.kept, found.horizon + 1):
        for first in range(before + 1, kept, _STEP_EPOCHS):
            last = min(first + _STEP_EPOCHS, kept) - 1
            with db.transaction():
                db.execute("DELETE FROM epoch WHERE seq BETWEEN ? AND ?", (first, last))
                count = db.changes()
                if count:
                    on_epochs(first, last)
            yield count
        before = kept


def remove_unseen(db: Database, on_nodes: Hook) -> Iterator[int]:
    """Step 2, in short transactions; yields after each how many rows went."""
    for table, key in _TABLES.items():
        after: tuple[object, ...] | None = (0,) + (b"",) * (len(key) - 1)
        while after is not None:
            with db.transaction():
                after, count = _remove_span(db, table, key, after, on_nodes)
            yield count


def _remove_span(
    db: Database, table: str, key: tuple[str, ...], after: tuple[object, ...], on_nodes: Hook
) -> tuple[tuple[object, ...] | None, int]:
    """Remove what is unseen of the next rows behind a key.

    Returns the last of their keys, None at the table's end, and how many rows went.
    """
    columns, marks = ", ".join(key), ", ".join("?" * len(key))
    # A blob is greater than any number, so an empty one begins behind all rows of node 0.
    border = db.query_one(
        f"SELECT {columns} FROM {table} WHERE ({columns}) > ({marks}) ORDER BY {columns}"
        f" LIMIT 1 OFFSET {_STEP_ROWS}",
        after,
    )
    within = f"({columns}) > ({marks})" + (f" AND ({columns}) <= ({marks})" if border else "")
    where = f"{within} AND {_UNSEEN}"
    bindings = (*after, *(border or ()), db.get_meta("published"))
    if table == "content_past":
        db.execute(
            "UPDATE usage SET inline_bytes = inline_bytes - (SELECT total(length(data))"
            f" FROM content_past AS past WHERE run < 0 AND {where})",
            bindings,
        )
    nodes = db.query_one(
        f"SELECT min({key[0]}), max({key[0]}) FROM {table} AS past WHERE {where}", bindings
    )
    assert nodes is not None
    if nodes[0] is None:
        return border, 0
    db.execute(f"DELETE FROM {table} AS past WHERE {where}", bindings)
    count = db.changes()
    on_nodes(*nodes)
    return border, count


def finish(db: Database, found: Decision) -> None:
    """Note that the tables are in line with a decision, unless there is another one by now."""
    with db.transaction():
        now = decision(db)
        if now is not None and now.epoch == found.epoch:
            db.set_meta("pruned", found.epoch)


def prune(db: Database) -> None:
    """All steps at once, for a database that nobody uses yet."""
    found = pending(db)
    if found is None:
        return
    for _ in itertools.chain(forget_moments(db, found, _ignore), remove_unseen(db, _ignore)):
        pass
    finish(db, found)


def _ignore(first: int, last: int) -> None:
    pass
