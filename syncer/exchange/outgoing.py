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
from typing import Any, NamedTuple, TypeVar

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
T = TypeVar("T")

_FOREVER = 1 << 63
_NLINK = NODE.columns.index("nlink")


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


def _keys(width: int, count: int) -> str:
    """Table `keys` of so many keys, each of so many columns, k0 and so on; ?1 is left free."""
    columns = ", ".join(f"k{place}" for place in range(width))
    numbers = itertools.count(2)
    rows = (", ".join(f"?{next(numbers)}" for _ in range(width)) for _ in range(count))
    return f"WITH keys({columns}) AS (VALUES {', '.join(f'({row})' for row in rows)}) "


def _are_now(table: Table, width: int) -> str:
    """The versions, with died = 0, that begin with one of the `keys` and are true now."""
    key, values = ", ".join(table.key), ", ".join(table.values)
    # CROSS: a search for each of the keys, whatever SQLite thinks of the tables' sizes.
    return f"SELECT {key}, born, 0, {values} FROM keys CROSS JOIN {table.name} WHERE " + (
        " AND ".join(f"{column} = k{place}" for place, column in enumerate(table.key[:width]))
    )


def _were_true(table: Table) -> str:
    """As `_are_now`, of whole keys: the past that was not over before epoch ?1."""
    key, values = ", ".join(table.key), ", ".join(table.values)
    where = " AND ".join(f"{column} = k{place}" for place, column in enumerate(table.key))
    return (
        f"SELECT {key}, born, died, {values} FROM keys CROSS JOIN {table.name}_past"
        f" WHERE {where} AND died >= ?1"
    )


def _past_of_node(table: Table) -> str:
    """The past from epoch ?2 on of all keys of node ?1, in a table with the key (node, another).

    It visits each key's past from there on, and skips what lies before, however long: a log file
    that is written all day has thousands of past versions of its last run.
    """
    key, values = ", ".join(table.key), ", ".join(table.values)
    second, past = table.key[1], f"{table.name}_past"
    return (
        f"WITH RECURSIVE keys(k) AS (SELECT min({second}) FROM {past} WHERE node = ?1 UNION ALL"
        f" SELECT (SELECT min({second}) FROM {past} WHERE node = ?1 AND {second} > k) FROM keys"
        " WHERE k IS NOT NULL)"
        f" SELECT {key}, born, died, {values} FROM keys CROSS JOIN {past}"
        f" WHERE node = ?1 AND {second} = k AND died >= ?2"
    )


#: Sizes of batches: a statement for every size would fill SQLite's cache of them.
_BATCHES = (1, 8, 64, 256)
_VERSIONS = {
    (table.name, count): _keys(len(table.key), count)
    + f"{_are_now(table, len(table.key))} UNION ALL {_were_true(table)}"
    for table in (NODE, NAME)
    for count in _BATCHES
}
_NOW_BY_NODE = {
    (table.name, count): _keys(1, count) + _are_now(table, 1)
    for table in (CONTENT, XATTR)
    for count in _BATCHES
}
_WITH_PAST = {
    (table.name, count): _keys(1, count)
    + f"SELECT k0 FROM keys WHERE EXISTS (SELECT 1 FROM {table.name}_past WHERE node = k0)"
    for table in (CONTENT, XATTR)
    for count in _BATCHES
}
_PAST_OF_NODE = {table.name: _past_of_node(table) for table in (CONTENT, XATTR)}
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
    for batch in _batched(keys):
        # Within it, so that the contents of one batch are gone before the next comes.
        yield from _changes_of(batch, reader, first, last)


def _changes_of(batch: Sequence[Row], reader: Reader, first: int, last: int) -> Iterator[Record]:
    ids = [node for node, name in batch if not name]
    nodes = _by_key(reader, NODE, [(node,) for node in ids], first, last)
    names = _by_key(reader, NAME, [key for key in batch if key[1]], first, last)
    contents = _by_node(reader, CONTENT, ids, first, last)
    xattrs = _by_node(reader, XATTR, ids, first, last)
    for node, name in batch:
        if name:
            yield from _changed(NAME, names.get((node, name), ()), first)
            continue
        versions = nodes.get((node,), ())
        spans = _visible(versions, first)
        yield from _changed(NODE, (row for row in versions if row[_NLINK]), first)
        for table, found in ((CONTENT, contents), (XATTR, xattrs)):
            if node in found:
                yield from _changed(table, _clip(found[node], spans), first)


def _by_key(
    reader: Reader, table: Table, keys: Sequence[Row], first: int, last: int
) -> dict[Row, list[Version]]:
    """The versions of some keys as of `last`, by age, but those that ended before `first`."""
    found: dict[Row, list[Version]] = {}
    width = len(table.key)
    for count, values in _padded(keys, width):
        for row in reader.query(_VERSIONS[table.name, count], (first, *values)):
            found.setdefault(row[:width], []).append(row)
    return {key: _cut(table, rows, last) for key, rows in found.items()}


def _by_node(
    reader: Reader, table: Table, nodes: Sequence[int], first: int, last: int
) -> dict[int, list[Version]]:
    """As `_by_key`, all that some nodes have, in a table with the key (node, another)."""
    found: dict[int, list[Version]] = {}
    for count, values in _padded([(node,) for node in nodes], 1):
        # The epoch is not asked for.
        for row in reader.query(_NOW_BY_NODE[table.name, count], (None, *values)):
            found.setdefault(row[0], []).append(row)
        for (node,) in list(reader.query(_WITH_PAST[table.name, count], (None, *values))):
            past = reader.query(_PAST_OF_NODE[table.name], (node, first))
            found.setdefault(node, []).extend(past)
    return {node: _cut(table, rows, last) for node, rows in found.items()}


def _padded(keys: Sequence[Row], width: int) -> Iterator[tuple[int, list[Any]]]:
    """Keys in portions: the size of a batch, and the values of as many keys, some of them NULL."""
    for start in range(0, len(keys), _BATCHES[-1]):
        portion = keys[start : start + _BATCHES[-1]]
        count = next(size for size in _BATCHES if size >= len(portion))
        values = list(itertools.chain.from_iterable(portion))
        yield count, [*values, *[None] * (width * (count - len(portion)))]


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
    for batch in _batched(
        reader.query(
            "SELECT node FROM outbox WHERE epoch = ? AND name = x'' ORDER BY node", (epoch,)
        )
    ):
        nodes = _by_key(reader, NODE, batch, epoch, epoch)
        contents = _by_node(reader, CONTENT, [node for (node,) in batch], epoch, epoch)
        for node, versions in contents.items():
            spans = _visible(nodes.get((node,), ()), epoch)
            for _node, run, born, _died, data in _clip(versions, spans):
                if run >= 0 and born == epoch:
                    for start in range(0, len(data), ID_BYTES):
                        if (block_id := data[start : start + ID_BYTES]) != HOLE:
                            yield block_id


def _batched(items: Iterator[T]) -> Iterator[list[T]]:
    while batch := list(itertools.islice(items, _BATCHES[-1])):
        yield batch


def _as_of(table: Table, rows: Iterable[Row], last: int) -> Iterator[Version]:
    born = len(table.key)
    died = born + 1
    for row in rows:
        if row[born] <= last:
            yield row if row[died] <= last else (*row[:died], 0, *row[died + 1 :])


def _cut(table: Table, rows: Iterable[Row], last: int) -> list[Version]:
    """Versions as of `last`, by key and age."""
    width = len(table.key)
    versions = list(_as_of(table, rows, last))
    if len(versions) > 1:
        versions.sort(key=lambda row: row[: width + 1])
    return versions


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
    rest = batches(changes(reader, first, last), first)
    rows = next(rest)
    # One after another: the rows of all of them may be larger than memory allows.
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
