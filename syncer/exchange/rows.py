"""Row versions of the versioned tables: as tuples, as columns of bytes, and what they may hold.

Pure. A row version is a row with the span of epochs in which it was true, as a tuple in the order
of its table below: the key, born, died (0: it is still true), the values. So the root directory
since epoch 3, and an entry of it that was there in epochs 3 to 6, are

    (1, 3, 0, 0o40755, 1000, 1000, 0, 2, 0, atime, mtime, ctime, btime, None)    node
    (1, b"notes.txt", 3, 7, 4398046511105)                                       name

An end is (key, died): the version of this key that the reader already has was true until then.

As bytes, a table is a list: the number of rows, then per column the rows' values, as 8 bytes
each, little-endian, or (bytes) as all lengths in 4 bytes each and all values one after another;
length -1 stands for NULL. So a column is checked at C's speed, and a hostile one unpacks to a
small multiple of its size. Unpacking raises CorruptError for whatever no syncer would write.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from syncer.codec import BLOCK_BYTES, ID_BYTES, MAX_FILE_BYTES
from syncer.errors import CorruptError

Version = tuple[Any, ...]
End = tuple[Any, ...]

MAX_NUMBER = (1 << 63) - 1
MAX_EPOCH = 1 << 62
MAX_RUN = MAX_FILE_BYTES // (256 * BLOCK_BYTES)
_RUN_BYTES = 256 * ID_BYTES
_MAX_XATTR_BYTES = 1 << 16
_MAX_ROWS = 1 << 24
_KINDS = frozenset(
    (
        stat.S_IFREG,
        stat.S_IFDIR,
        stat.S_IFLNK,
        stat.S_IFIFO,
        stat.S_IFSOCK,
        stat.S_IFCHR,
        stat.S_IFBLK,
    )
)

Columns = Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Table:
    """A versioned table: its columns on the wire are key, born, died, values."""

    name: str
    key: tuple[str, ...]
    values: tuple[str, ...]
    #: Columns that hold bytes; all others hold integers of 64 bits.
    blobs: frozenset[str]
    check_key: Callable[..., None]
    check_values: Callable[..., None]

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.key, "born", "died", *self.values)

    @property
    def end_columns(self) -> tuple[str, ...]:
        return (*self.key, "died")


@dataclass
class Rows:
    """Row versions and ends, by the name of their table."""

    versions: dict[str, list[Version]] = field(default_factory=lambda: {t.name: [] for t in TABLES})
    ends: dict[str, list[End]] = field(default_factory=lambda: {t.name: [] for t in TABLES})
    #: Roughly what they take on the wire; writers split by it.
    size_bytes: int = 0


# Checks of columns, each on a whole column at once. All may be empty.


def check_within(what: str, column: Sequence[int], low: int, high: int) -> None:
    if column and not low <= min(column) <= max(column) <= high:
        raise CorruptError(f"impossible {what}")


def _check_lengths(what: str, column: Sequence[bytes], low: int, high: int) -> None:
    check_present(what, column)
    check_within(f"length of {what}", [len(value) for value in column], low, high)


def check_present(what: str, column: Sequence[bytes | None]) -> None:
    if None in column:
        raise CorruptError(f"{what} is missing")


def _check_node_key(nodes: Sequence[int]) -> None:
    check_within("node number", nodes, 1, MAX_NUMBER)


def _check_name_key(parents: Sequence[int], names: Sequence[bytes]) -> None:
    _check_node_key(parents)
    _check_lengths("name", names, 1, 255)
    together = b"".join(names)
    if b"/" in together or b"\0" in together or not {b".", b".."}.isdisjoint(names):
        raise CorruptError("impossible name")


def _check_content_key(nodes: Sequence[int], runs: Sequence[int]) -> None:
    _check_node_key(nodes)
    check_within("run of blocks", runs, -1, MAX_RUN)


def _check_xattr_key(nodes: Sequence[int], names: Sequence[bytes]) -> None:
    _check_node_key(nodes)
    _check_lengths("name of an extended attribute", names, 1, 255)
    if b"\0" in b"".join(names):
        raise CorruptError("impossible name of an extended attribute")


def _check_node(
    _nodes: Sequence[int],
    modes: Sequence[int],
    uids: Sequence[int],
    gids: Sequence[int],
    rdevs: Sequence[int],
    nlinks: Sequence[int],
    sizes: Sequence[int],
    *rest: Sequence[Any],
) -> None:
    check_within("mode", modes, 0, 0o177777)
    kinds = [stat.S_IFMT(mode) for mode in modes]
    if not _KINDS.issuperset(kinds):
        raise CorruptError("impossible mode")
    check_within("owner", uids, 0, (1 << 32) - 1)
    check_within("group", gids, 0, (1 << 32) - 1)
    check_within("device number", rdevs, 0, MAX_NUMBER)
    check_within("link count", nlinks, 1, (1 << 32) - 1)
    check_within("size", sizes, 0, MAX_FILE_BYTES)
    targets: Sequence[bytes | None] = rest[-1]
    for kind, target in zip(kinds, targets, strict=True):
        if (target is not None) != (kind == stat.S_IFLNK):
            raise CorruptError("impossible symlink")
        if target is not None and (b"\0" in target or not 0 < len(target) <= 4095):
            raise CorruptError("impossible target of a symlink")


def _check_name(_parents: Columns, _names: Columns, nodes: Sequence[int]) -> None:
    _check_node_key(nodes)


def _check_content(_nodes: Columns, runs: Sequence[int], datas: Sequence[bytes]) -> None:
    check_present("content", datas)
    for run, data in zip(runs, datas, strict=True):
        size = len(data)
        if size > BLOCK_BYTES if run < 0 else size % ID_BYTES or not 0 < size <= _RUN_BYTES:
            raise CorruptError("impossible list of blocks")


def _check_xattr(_nodes: Columns, _names: Columns, values: Sequence[bytes]) -> None:
    _check_lengths("value of an extended attribute", values, 0, _MAX_XATTR_BYTES)


NODE = Table(
    "node",
    ("id",),
    (
        "mode", "uid", "gid", "rdev", "nlink", "size",
        "atime_ns", "mtime_ns", "ctime_ns", "btime_ns", "target",
    ),
    frozenset({"target"}),
    _check_node_key,
    _check_node,
)  # fmt: skip
NAME = Table(
    "name", ("parent", "name"), ("node",), frozenset({"name"}), _check_name_key, _check_name
)
CONTENT = Table(
    "content", ("node", "run"), ("data",), frozenset({"data"}), _check_content_key, _check_content
)
XATTR = Table(
    "xattr",
    ("node", "name"),
    ("value",),
    frozenset({"name", "value"}),
    _check_xattr_key,
    _check_xattr,
)
TABLES: tuple[Table, ...] = (NODE, NAME, CONTENT, XATTR)


# Tables as bytes


def pack_table(columns: Sequence[str], blobs: frozenset[str], rows: Sequence[Version]) -> list[Any]:
    """Rows as a list for msgpack; `blobs` says which columns hold bytes."""
    packed: list[Any] = [len(rows)]
    for index, column in enumerate(columns):
        values = [row[index] for row in rows]
        if column in blobs:
            lengths = [-1 if value is None else len(value) for value in values]
            parts = (value for value in values if value)
            packed.append(b"".join((struct.pack(f"<{len(rows)}i", *lengths), *parts)))
        else:
            packed.append(struct.pack(f"<{len(rows)}q", *values))
    return packed


def unpack_table(columns: Sequence[str], blobs: frozenset[str], packed: Any) -> Columns:
    """The columns of what `pack_table` made; their values are not checked yet."""
    if not isinstance(packed, list) or len(packed) != len(columns) + 1:
        raise CorruptError("a table has the wrong number of columns")
    count = packed[0]
    if type(count) is not int or not 0 <= count <= _MAX_ROWS:
        raise CorruptError("a table has an impossible number of rows")
    return [
        _unpack_blobs(count, data) if column in blobs else _unpack_numbers(count, data)
        for column, data in zip(columns, packed[1:], strict=True)
    ]


def _unpack_numbers(count: int, data: Any) -> Sequence[int]:
    if not isinstance(data, bytes) or len(data) != 8 * count:
        raise CorruptError("a column has the wrong length")
    return struct.unpack(f"<{count}q", data)


def _unpack_blobs(count: int, data: Any) -> Sequence[bytes | None]:
    if not isinstance(data, bytes) or len(data) < 4 * count:
        raise CorruptError("a column has the wrong length")
    values: list[bytes | None] = []
    start = 4 * count
    for length in struct.unpack_from(f"<{count}i", data):
        if length < -1:
            raise CorruptError("a column has a value of negative length")
        if length < 0:
            values.append(None)
        else:
            values.append(data[start : start + length])
            start += length
    # A slice beyond the end comes out short, but `start` has counted it in full.
    if start != len(data):
        raise CorruptError("a column has the wrong length")
    return values


def pack_versions(rows: Rows) -> list[Any]:
    return [pack_table(table.columns, table.blobs, rows.versions[table.name]) for table in TABLES]


def pack_ends(rows: Rows) -> list[Any]:
    return [pack_table(table.end_columns, table.blobs, rows.ends[table.name]) for table in TABLES]


def unpack_versions(packed: Sequence[Any], rows: Rows, first: int, last: int) -> None:
    """Add the four tables in `packed`, of versions born in `first` to `last`, to `rows`."""
    for table, data in zip(TABLES, packed, strict=True):
        columns = unpack_table(table.columns, table.blobs, data)
        width = len(table.key)
        keys, born, died = columns[:width], columns[width], columns[width + 1]
        table.check_key(*keys)
        check_within("epoch", born, first, last)
        check_within("epoch", died, 0, last)
        if any(died) and any(end and end <= begin for begin, end in zip(born, died, strict=True)):
            raise CorruptError("a row ends before it begins")
        table.check_values(*keys, *columns[width + 2 :])
        rows.versions[table.name] += zip(*columns, strict=True)


def unpack_ends(packed: Sequence[Any], rows: Rows, first: int, last: int) -> None:
    """Add the ends in `packed`, in epochs `first` to `last`, to `rows`."""
    for table, data in zip(TABLES, packed, strict=True):
        columns = unpack_table(table.end_columns, table.blobs, data)
        table.check_key(*columns[:-1])
        check_within("epoch", columns[-1], first, last)
        rows.ends[table.name] += zip(*columns, strict=True)


def trim(rows: Rows, position: int) -> Rows:
    """What of a segment's rows is news to a reader who knows the history up to `position`."""
    news = Rows()
    for table in TABLES:
        width = len(table.key)
        for version in rows.versions[table.name]:
            born, died = version[width], version[width + 1]
            if born > position:
                news.versions[table.name].append(version)
            elif died > position:
                news.ends[table.name].append((*version[:width], died))
        news.ends[table.name] += [end for end in rows.ends[table.name] if end[width] > position]
    return news


def changed_keys(rows: Rows) -> Iterator[tuple[int, int, bytes]]:
    """The rows of table `outbox` from which these rows were made: (epoch, node, name)."""
    for table in TABLES:
        width = len(table.key)
        spans = [(version, version[width : width + 2]) for version in rows.versions[table.name]]
        spans += [(end, end[width:]) for end in rows.ends[table.name]]
        for key, epochs in spans:
            name = key[1] if table is NAME else b""
            yield from ((epoch, key[0], name) for epoch in epochs if epoch)
