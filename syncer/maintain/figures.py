"""What a prune would free, and what a snapshot alone keeps, from the metadata.

Both read all runs of block ids, from one view beside the mount's own work; the sizes of blocks
follow from those of their files. That may take minutes, so they tell now and then that they go on.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from syncer.codec import BLOCK_BYTES
from syncer.metadata import naming
from syncer.metadata.connection import Reader, Row
from syncer.metadata.contents import RUN_BLOCKS
from syncer.metadata.db import Database
from syncer.metadata.history import FOREVER

#: (node, run, born, died, data) of past runs, and the file's size when they ended.
_PAST_RUNS = """
SELECT past.node, past.run, past.born, past.died, past.data, coalesce(
  (SELECT size FROM node_past WHERE id = past.node AND died >= past.died ORDER BY died LIMIT 1),
  (SELECT size FROM node WHERE id = past.node), 0)
FROM content_past AS past
"""
_FILES = """
SELECT count(*) FROM (
  SELECT 1 FROM node WHERE born <= ?1 AND nlink > 0 AND mode & 61440 = 32768 UNION ALL
  SELECT 1 FROM node_past WHERE born <= ?1 AND died > ?1 AND nlink > 0 AND mode & 61440 = 32768)
"""


#: Rows between two times that it is told; these take some tenths of a second.
_TOLD_ROWS = 10_000

Tell = Callable[[], None]
"""Tells somebody who waits that it goes on. What it raises ends it."""


@dataclass(frozen=True)
class Freed:
    """What nothing names once some moments are gone."""

    blocks: int
    size_bytes: int
    """Of these blocks on the server, and of tiny files in the metadata."""


def freed(db: Database, horizon: int, kept: Collection[int], tell: Tell) -> Freed:
    """What goes if of the epochs up to `horizon` only `kept` are, and all behind it."""
    epochs = sorted(kept)

    def goes(born: int, died: int) -> bool:
        place = bisect_left(epochs, born)
        return died <= horizon + 1 and (place == len(epochs) or epochs[place] >= died)

    with db.snapshot() as reader:
        (found,) = _alone(reader, [goes], tell)
    return found


@dataclass(frozen=True)
class Kept:
    """What one snapshot shows, and what it alone keeps."""

    files: int
    alone: Freed


def snapshots(db: Database, epochs: Sequence[int], tell: Tell) -> list[Kept]:
    """Of each of these epochs, what it holds, and what no other moment does, nor the present."""
    with db.snapshot() as reader:
        files = []
        for epoch in epochs:
            tell()
            ((count,),) = reader.query(_FILES, (epoch,))
            files.append(count)
        # What has two names, neither keeps alone.
        tests = [_only(reader, epoch) if epochs.count(epoch) == 1 else _none for epoch in epochs]
        return [Kept(*pair) for pair in zip(files, _alone(reader, tests, tell), strict=True)]


def _only(reader: Reader, epoch: int) -> Callable[[int, int], bool]:
    """Whether a life (born, died) is seen at one moment and at no other that is kept."""
    ((before, after),) = reader.query(
        "SELECT (SELECT max(seq) FROM epoch WHERE seq < ?1),"
        " (SELECT min(seq) FROM epoch WHERE seq > ?1)",
        (epoch,),
    )
    low, high = before or 0, after or FOREVER
    return lambda born, died: low < born <= epoch < died <= high


def _none(born: int, died: int) -> bool:
    return False


def _alone(
    reader: Reader, tests: Sequence[Callable[[int, int], bool]], tell: Tell
) -> Iterator[Freed]:
    """For each test, what only the past lives that pass it name. A life passes one at most."""
    blocks, sizes = [0] * len(tests), [0] * len(tests)

    def test_of(row: Row) -> int | None:
        return next((n for n, test in enumerate(tests) if test(row[2], row[3])), None)

    for first_bytes in naming.passes(reader):
        found: dict[bytes, tuple[int, int]] = {}
        shared: set[bytes] = set()
        for row in _telling(reader.query(_PAST_RUNS), tell):
            number = test_of(row)
            if number is None:
                continue
            if row[1] < 0:
                sizes[number] += len(row[4]) if first_bytes[0] == 0 else 0
                continue
            for block_id, size_bytes in _sizes(row, first_bytes):
                before = found.setdefault(block_id, (number, size_bytes))
                if before[0] != number:
                    shared.add(block_id)
        if not found:
            continue
        for block_id in _named_otherwise(reader, first_bytes, test_of, tell):
            found.pop(block_id, None)
        for block_id, (number, size_bytes) in found.items():
            if block_id not in shared:
                blocks[number] += 1
                sizes[number] += size_bytes
    return (Freed(*pair) for pair in zip(blocks, sizes, strict=True))


def _telling(rows: Iterable[Row], tell: Tell) -> Iterator[Row]:
    """The same rows, letting other threads run and telling that it goes on, now and then."""
    for number, row in enumerate(naming.breathing(rows)):
        if number % _TOLD_ROWS == 0:
            tell()
        yield row


def _sizes(row: Row, first_bytes: range) -> Iterator[tuple[bytes, int]]:
    """The ids in a run, each with the bytes that its block has."""
    _node, run, _born, _died, data, file_bytes = row
    for place in range(len(data) // 16):
        for block_id in naming.ids_in(data[place * 16 : place * 16 + 16], first_bytes):
            rest = file_bytes - (run * RUN_BLOCKS + place) * BLOCK_BYTES
            yield block_id, max(1, min(BLOCK_BYTES, rest))


def _named_otherwise(
    reader: Reader, first_bytes: range, test_of: Callable[[Row], int | None], tell: Tell
) -> Iterable[bytes]:
    for (data,) in _telling(reader.query("SELECT data FROM content WHERE run >= 0"), tell):
        yield from naming.ids_in(data, first_bytes)
    past = "SELECT node, run, born, died, data FROM content_past WHERE run >= 0"
    for row in _telling(reader.query(past), tell):
        if test_of(row) is None:
            yield from naming.ids_in(row[4], first_bytes)
