"""Row versions out of the database: what changed in a span of epochs, or all of a range of nodes.

Everything here is as of an epoch `last` that is closed: a version that began later is left out,
one that ended later is still true. Rows of closed epochs never change (but for atime, which is
not history), so any later look at the database gives the same answer.

Nodes without a name, which a process still has open, are local business. What is sent is the
part of each version's life in which its node had one: see `_visible`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from syncer.codec import HOLE, ID_BYTES
from syncer.exchange.rows import CONTENT, NAME, NODE, XATTR, Rows, Table, Version
from syncer.exchange.wire import (
    RANGE_EPOCHS,
    RANGE_NODES,
    TARGET_BYTES,
    Epoch,
    Segment,
    encode_part,
    encode_segment,
    part_key,
    segment_key,
)
from syncer.metadata.connection import Reader, Row

#: One version, with its table; among those of a key, the oldest comes first.
Record = tuple[Table, Version]
Span = tuple[int, int]

_FOREVER = 1 << 63
_NLINK = NODE.columns.index("nlink")
#: SQLite takes more, but a statement per size would fill its cache.
_IDS_PER_QUERY = 256


def _select(table: Table, where: str) -> str:
    """Present and past versions of a table's keys, in the order of the columns on the wire.

    Unsorted, with died = 0 for what is true now. `where` holds for both; `died >= ?2` leaves
    out the past that was over before a span of epochs.
    """
    key, values = ", ".join(table.key), ", ".join(table.values)
    return (
        f"SELECT {key}, born, 0, {values} FROM {table.name} WHERE {where} UNION ALL "
        f"SELECT {key}, born, died, {values} FROM {table.name}_past WHERE {where} AND died >= ?2"
    )


def _select_by_node(table: Table, second: str) -> str:
    """As `_select`, for all rows of node ?1 in a table with the key (node, `second`).

    It visits each key's past from epoch ?2 on, and skips what lies before, however long: a log
    file that is written all day has thousands of past versions of its last run.
    """
    key, values = ", ".join(table.key), ", ".join(table.values)
    past = f"{table.name}_past"
    return (
        f"WITH RECURSIVE keys(k) AS (SELECT min({second}) FROM {past} WHERE node = ?1 UNION ALL"
        f" SELECT (SELECT min({second}) FROM {past} WHERE node = ?1 AND {second} > k) FROM keys"
        " WHERE k IS NOT NULL)"
        f" SELECT {key}, born, 0, {values} FROM {table.name} WHERE node = ?1 UNION ALL"
        f" SELECT {key}, born, died, {values} FROM keys CROSS JOIN {past}"
        f" WHERE node = ?1 AND {second} = k AND died >= ?2"
    )


_NODE_VERSIONS = _select(NODE, "id = ?1")
_NAME_VERSIONS = _select(NAME, "parent = ?1 AND name = ?3")
_CONTENT_VERSIONS = _select_by_node(CONTENT, "run")
_XATTR_VERSIONS = _select_by_node(XATTR, "name")
_IN_RANGE = {
    table.name: _select(table, f"{table.key[0]} >= ?1 AND {table.key[0]} < ?3")
    # Both halves lie in the order of the first column, so nothing is sorted or held in memory.
    + " ORDER BY 1"
    for table in (NODE, NAME, CONTENT, XATTR)
}


def changes(reader: Reader, first: int, last: int) -> Iterator[Record]:
    """The versions of all keys in the outbox that began or ended in epochs `first` to `last`.

    A version that was born before `first` is one that ended.
    """
    keys = reader.query(
        "SELECT DISTINCT node, name FROM outbox WHERE epoch BETWEEN ? AND ? ORDER BY node, name",
        (first, last),
    )
    for node, name in keys:
        if name:
            versions = _cut(NAME, reader.query(_NAME_VERSIONS, (node, first, name)), last)
            yield from _changed(NAME, versions, first)
            continue
        nodes = _node_versions(reader, node, first, last)
        spans = _visible(nodes, first)
        yield from _changed(NODE, (version for version in nodes if version[_NLINK]), first)
        for table, sql in ((CONTENT, _CONTENT_VERSIONS), (XATTR, _XATTR_VERSIONS)):
            versions = _cut(table, reader.query(sql, (node, first)), last)
            yield from _changed(table, _clip(versions, spans), first)


def first_unuploaded(reader: Reader, first: int, last: int) -> tuple[int, bytes] | None:
    """The first epoch from `first` to `last` that names a block which the remote lacks.

    With the block's id; None if all of them are whole.
    """
    if not any(reader.query("SELECT 1 FROM block WHERE dirty IS NOT NULL LIMIT 1")):
        return None
    for epoch in range(first, last + 1):
        for ids in _batched(_placed(reader, epoch)):
            marks = ",".join("?" * len(ids))
            sql = f"SELECT id FROM block WHERE id IN ({marks}) AND dirty IS NOT NULL LIMIT 1"
            for (block_id,) in reader.query(sql, ids):
                return epoch, block_id
    return None


def _placed(reader: Reader, epoch: int) -> Iterator[bytes]:
    """The ids of blocks that contents began to name in an epoch."""
    for (node,) in reader.query(
        "SELECT node FROM outbox WHERE epoch = ? AND name = x'' ORDER BY node", (epoch,)
    ):
        spans = _visible(_node_versions(reader, node, epoch, epoch), epoch)
        versions = _cut(CONTENT, reader.query(_CONTENT_VERSIONS, (node, epoch)), epoch)
        for _node, run, born, _died, data in _clip(versions, spans):
            if run >= 0 and born == epoch:
                for start in range(0, len(data), ID_BYTES):
                    if (block_id := data[start : start + ID_BYTES]) != HOLE:
                        yield block_id


def _batched(ids: Iterator[bytes]) -> Iterator[Sequence[bytes]]:
    while batch := tuple(itertools.islice(ids, _IDS_PER_QUERY)):
        yield batch


def _node_versions(reader: Reader, node: int, first: int, last: int) -> list[Version]:
    return _cut(NODE, reader.query(_NODE_VERSIONS, (node, first)), last)


def _as_of(table: Table, rows: Iterable[Row], last: int) -> Iterator[Version]:
    born = len(table.key)
    died = born + 1
    for row in rows:
        if row[born] <= last:
            yield row if row[died] <= last else (*row[:died], 0, *row[died + 1 :])


def _cut(table: Table, rows: Iterable[Row], last: int) -> list[Version]:
    """Versions as of `last`, by key and age."""
    width = len(table.key)
    return sorted(_as_of(table, rows, last), key=lambda row: row[: width + 1])


def _visible(nodes: Sequence[Version], first: int = 0) -> list[Span]:
    """The spans (from, until) of epochs in which a node had a name, given its versions by age.

    Of versions that began before `first`, the beginning does not matter and may not be the
    node's own; such a span is from 0.
    """
    spans: list[Span] = []
    for version in nodes:
        born, died = version[1], version[2] or _FOREVER
        if not version[_NLINK]:
            continue
        begin = born if born >= first else 0
        if spans and spans[-1][1] == begin:
            begin = spans.pop()[0]
        spans.append((begin, died))
    return spans


def _clip(versions: Iterable[Version], spans: Sequence[Span]) -> Iterator[Version]:
    """The parts of versions with a key of two columns that lie within the spans."""
    for version in versions:
        born, died = version[2], version[3] or _FOREVER
        for begin, end in spans:
            since, until = max(born, begin), min(died, end)
            if since < until:
                yield (*version[:2], since, until if until < _FOREVER else 0, *version[4:])


def _changed(table: Table, versions: Iterable[Version], first: int) -> Iterator[Record]:
    born = len(table.key)
    for version in versions:
        if version[born] >= first or version[born + 1]:
            yield table, version


def batches(records: Iterable[Record], first: int) -> Iterator[Rows]:
    """Records gathered into objects' worth of rows; what was born before `first` becomes an end.

    At least one, which may be empty.
    """
    rows = Rows()
    for table, version in records:
        width = len(table.key)
        if version[width] >= first:
            rows.versions[table.name].append(version)
        else:
            rows.ends[table.name].append((*version[:width], version[width + 1]))
        rows.size_bytes += sum(
            8 if isinstance(value, int) else 4 + len(value or b"") for value in version
        )
        if rows.size_bytes >= TARGET_BYTES:
            yield rows
            rows = Rows()
    yield rows


class Identity(NamedTuple):
    """Whose a segment is."""

    #: The repository's.
    uuid: str
    generation: int
    machine: int


def segment_objects(
    reader: Reader, identity: Identity, first: int, last: int, parent: str, seed: int
) -> list[tuple[str, bytes]]:
    """The segment of closed epochs: its objects with their keys, in the order of writing."""
    key = segment_key(identity.machine, first, last)
    # A reader applies the head first, then the parts: the end of a version may be in one of
    # them and its successor in the next.
    rows, *rest = batches(changes(reader, first, last), first)
    parts = [encode_part(part, seed) for part in rest]
    segment = Segment(
        identity.uuid, identity.generation, identity.machine, first, last, parent,
        epochs(reader, first, last), rows, tuple(digest for digest, _data in parts),
    )  # fmt: skip
    objects = [(part_key(key, number), part[1]) for number, part in enumerate(parts, 1)]
    return [*objects, (key, encode_segment(segment, seed))]


def in_range(reader: Reader, number: int, last: int) -> Iterator[Record]:
    """All versions, now and past, of the nodes of a range (`range_of_node`), as of `last`."""
    low = number * RANGE_NODES
    spans: dict[int, list[Span]] = {}

    def rows(table: Table) -> Iterator[Version]:
        found = reader.query(_IN_RANGE[table.name], (low, 0, low + RANGE_NODES))
        return _as_of(table, found, last)

    for node, group in itertools.groupby(rows(NODE), key=lambda version: version[0]):
        versions = sorted(group, key=lambda version: version[1])
        spans[node] = _visible(versions)
        yield from ((NODE, version) for version in versions if version[_NLINK])
    yield from ((NAME, version) for version in rows(NAME))
    for table in (CONTENT, XATTR):
        for version in rows(table):
            yield from ((table, part) for part in _clip((version,), spans.get(version[0], ())))


def node_ranges(reader: Reader) -> Iterator[int]:
    """The numbers of all ranges that have nodes, now or past, in ascending order."""
    after = 0
    while True:
        found = [
            row[0]
            for table in ("node", "node_past")
            for row in reader.query(f"SELECT min(id) FROM {table} WHERE id >= ?", (after,))
            if row[0] is not None
        ]
        if not found:
            return
        number = min(found) // RANGE_NODES
        yield number
        after = (number + 1) * RANGE_NODES


def epochs(reader: Reader, first: int, last: int) -> list[Epoch]:
    """The epochs from `first` to `last`."""
    rows = reader.query(
        "SELECT seq, machine, counter, time_ns FROM epoch WHERE seq BETWEEN ? AND ? ORDER BY seq",
        (first, last),
    )
    return [Epoch(*row) for row in rows]


def epoch_ranges(last: int) -> range:
    """The numbers of all ranges of epochs up to `last`: see `range_of_epoch`."""
    return range(-1 - last // RANGE_EPOCHS, 0)


def epochs_in_range(reader: Reader, number: int, last: int) -> list[Epoch]:
    """The epochs of a range (`range_of_epoch`) up to `last`."""
    low = (-1 - number) * RANGE_EPOCHS
    return epochs(reader, low, min(last, low + RANGE_EPOCHS - 1))
