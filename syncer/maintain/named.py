"""The blocks that contents name, now and past, as a temporary table of one view of the database.

    named(id, recent, length)

`recent` is 1 where only epochs that are not published name the block, so that the remote may lack
it. `length` is what the block has at most: how much of its file lies in its place.

The table lies on the disk, so it may be of any length. What is compared with it (block files,
objects) comes in portions, by the first byte of the ids.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from syncer.codec import BLOCK_BYTES, HOLE, split_ids
from syncer.metadata.connection import Reader
from syncer.metadata.contents import RUN_BLOCKS

_ROWS = 1000
_CONTENTS = """
SELECT content.node, run, data, content.born > ?1, node.size FROM content
LEFT JOIN node ON node.id = content.node WHERE run >= 0
UNION ALL
SELECT node, run, data, born > ?1, NULL FROM content_past WHERE run >= 0
"""


def note_named(reader: Reader, published: int, tell: Callable[[int], None]) -> None:
    """Fill table `named`; `tell` hears how many blocks were noted, now and then."""
    list(
        reader.query(
            "CREATE TEMP TABLE named(id BLOB PRIMARY KEY, recent INTEGER NOT NULL,"
            " length INTEGER NOT NULL) WITHOUT ROWID"
        )
    )
    blocks = (
        (block_id, recent, length)
        for _node, run, data, recent, size in reader.query(_CONTENTS, (published,))
        for block_id, length in _lengths(run, data, size)
    )
    count = 0
    while batch := list(itertools.islice(blocks, _ROWS)):
        reader.execute_many(
            "INSERT INTO named VALUES(?, ?, ?) ON CONFLICT DO UPDATE SET"
            " recent = min(recent, excluded.recent), length = max(length, excluded.length)",
            batch,
        )
        count += len(batch)
        tell(count)


def _lengths(run: int, data: bytes, size: int | None) -> Iterator[tuple[bytes, int]]:
    for place, block_id in enumerate(split_ids(data)):
        if block_id != HOLE:
            start = (run * RUN_BLOCKS + place) * BLOCK_BYTES
            length = BLOCK_BYTES if size is None else min(BLOCK_BYTES, max(1, size - start))
            yield block_id, length


def named_with(reader: Reader, first_byte: int) -> dict[bytes, tuple[bool, int]]:
    """Of the blocks whose ids begin with this byte: id -> (recent, length)."""
    low = bytes([first_byte])
    rows = reader.query(
        "SELECT id, recent, length FROM named WHERE id BETWEEN ? AND ?", (low, low + b"\xff" * 16)
    )
    return {row[0]: (bool(row[1]), row[2]) for row in rows}


def files_of(reader: Reader, block_ids: Iterable[bytes]) -> dict[int, set[bytes]]:
    """node -> those of these blocks that it names, now or in the past. Reads all contents."""
    wanted = set(block_ids)
    found: dict[int, set[bytes]] = {}
    if not wanted:
        return found
    for node, _run, data, _recent, _size in reader.query(_CONTENTS, (0,)):
        hits = wanted.intersection(split_ids(data))
        if hits:
            found.setdefault(node, set()).update(hits)
    return found


def still_named(reader: Reader, block_ids: Iterable[bytes]) -> set[bytes]:
    """Those of these blocks that contents name, now or in the past. Reads all contents."""
    return {block_id for found in files_of(reader, block_ids).values() for block_id in found}


def path_of(reader: Reader, node: int) -> bytes:
    """A path of a node, of now or else of then, for people; b"?" where it has none."""
    parts: list[bytes] = []
    while node != 1:
        rows: Sequence[tuple[int, bytes]] = [
            (row[0], row[1])
            for row in reader.query(
                "SELECT parent, name FROM name WHERE node = ?1 UNION ALL"
                " SELECT parent, name FROM name_past WHERE node = ?1 LIMIT 1",
                (node,),
            )
        ]
        if not rows or len(parts) > 4096:
            return b"?/" + b"/".join(reversed(parts))
        parts.append(rows[0][1])
        node = rows[0][0]
    return b"/" + b"/".join(reversed(parts))
